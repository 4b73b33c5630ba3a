"""Models by name: ours, one file for each family; torchvision's classifiers; an installed package's; a user's function.

A model is a function (shape, classes, …) → nn.Module: `shape` is that of one sample, and what else it takes are keys of
the suite's `model`. Start with `small.py`. A family of its own is a file here and a line of MODELS for each name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.names import known_as
from energybench.common.torchvision_shim import import_torchvision
from energybench.workloads.names import Names

Shape = tuple[int, ...]


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
# What hidden layers end in. A sigmoid that is there already is a gate, and stays.
HIDDEN = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)

# Name → "module:function", imported when it is used.
MODELS = {
    "cnn": "energybench.workloads.models.small:cnn",
    "mlp": "energybench.workloads.models.small:mlp",
    "vit_tiny": "energybench.workloads.models.small:vit_tiny",
    "ddpm_unet": "energybench.workloads.models.diffusion:ddpm_unet",
    "mixer": "energybench.workloads.models.paper:mixer",
    "plain_cnn": "energybench.workloads.models.paper:plain_cnn",
    "resnet26": "energybench.workloads.models.paper:resnet26",
    "resnet32": "energybench.workloads.models.paper:resnet32",
    "resnet50_head4096": "energybench.workloads.models.paper:resnet50_head4096",
    "resnet56": "energybench.workloads.models.paper:resnet56",
    "swin_tiny": "energybench.workloads.models.paper:swin_tiny",
    "segmenter": "energybench.workloads.models.segmentation:segmenter",
    "unet": "energybench.workloads.models.segmentation:unet",
    "centre_net": "energybench.workloads.models.detection:centre_net",
    "rt_detr_v2": "energybench.workloads.models.detection:rt_detr_v2",
    "yolos": "energybench.workloads.models.detection:yolos",
    "gpt2_classifier": "energybench.workloads.models.text:gpt2_classifier",
    "gpt2_language_model": "energybench.workloads.models.text:gpt2_language_model",
    "siren": "energybench.workloads.models.regression:siren",
    "pointnet": "energybench.workloads.models.points:pointnet",
    "vgg_small": "energybench.workloads.models.features:vgg_small",
    "lenet": "energybench.workloads.models.federated:lenet",
    "resnet18_groupnorm": "energybench.workloads.models.federated:resnet18_groupnorm",
    "digit_net": "energybench.workloads.models.adaptation:digit_net",
    "mdd_net": "energybench.workloads.models.adaptation:mdd_net",
}
# Name → the extra of energybench that it needs.
NEEDS: dict[str, str] = {
    "unet": "vision",
    "rt_detr_v2": "vision",
    "yolos": "vision",
    "gpt2_classifier": "text",
    "gpt2_language_model": "text",
    "ddpm_unet": "diffusion",
}
NAMES = Names("model", "E401", MODELS, NEEDS)


def build(
    use: str, shape: Shape, classes: int | None, parameters: dict[str, Any], offered: Mapping[str, Any] | None = None
) -> nn.Module:
    """The model `use` for inputs of `shape` (C, H, W). Raises UsageError E401 for what it does not know.

    offered: what else is known of the data, for a model that takes it
    """
    if (function := NAMES.load(use)) is not None:
        return call(function, use, {"shape": shape, "classes": classes}, parameters, offered)
    torchvision = import_torchvision()
    known = torchvision.models.list_models(module=torchvision.models)
    use = known_as(use, known)
    if use not in known:
        hint = nearest(use, [*NAMES.known(), *known]) if len(use) > 2 else f"for example: {', '.join(MODELS)}, resnet18"
        if not hint.startswith("did"):
            hint = f'ours: {", ".join(MODELS)}; any torchvision classifier, such as resnet18; or "file.py:function"'
        raise UsageError(Problem("E401", f"no model is called '{use}'", hint=hint))
    parameters = dict(parameters)
    if use in ("googlenet", "inception_v3"):
        parameters.setdefault("init_weights", True)  # their papers' weights, without torchvision's warning
    stem = parameters.pop("stem", None)
    model = call(
        lambda **extra: torchvision.models.get_model(use, weights=None, num_classes=classes, **extra),
        use,
        {},
        parameters,
    )
    if stem is not None:
        small_stem(model, use, stem)
    if shape[0] != 3:
        take_channels(model, shape[0])
    return model


def fix_sizes(model: nn.Module, use: str, shape: Shape) -> None:
    """Lazy layers get their sizes, and their initial weights, from a first batch of zeros: (2, *shape)."""
    if not any(is_lazy(parameter) for parameter in (*model.parameters(), *model.buffers())):
        return
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, *shape))
    except Exception as error:
        message = (
            f"'{use}' has lazy layers, and a batch of zeros of shape {(2, *shape)} does not fix their sizes: {error}"
        )
        raise UsageError(
            Problem("E401", message, hint="give its layers their sizes, or call it once before")
        ) from error
    finally:
        model.train(training)
    unused = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if unused:
        message = f"'{use}' has a lazy layer that its forward pass never calls: {unused[0].rpartition('.')[0]}"
        raise UsageError(Problem("E401", message, hint="remove it, or give it its size"))


def call(
    function: Callable[..., Any],
    use: str,
    given: dict[str, Any],
    parameters: dict[str, Any],
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call a builder with what it accepts of `given`, what it names of `offered` and all of `parameters`; a refusal
    becomes E401."""
    signature = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    if unknown := [key for key in parameters if key not in signature and not open_ended]:
        words = [name for name in signature if name not in given]
        raise UsageError(
            Problem(
                "E401", f"'{use}' takes no parameter '{unknown[0]}'", hint=nearest(unknown[0], words) or "it takes none"
            )
        )
    arguments = {key: value for key, value in given.items() if key in signature or open_ended}
    arguments |= {key: value for key, value in (offered or {}).items() if key in signature} | parameters
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(Problem("E401", f"'{use}' refused its parameters: {error}")) from None


def small_stem(model: nn.Module, use: str, stem: str) -> None:
    """stem = "small": a 3×3 stride-1 first convolution and no max-pool, as ResNets are used on 32×32 images."""
    conv = getattr(model, "conv1", None)
    if stem != "small" or not isinstance(conv, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UsageError(Problem("E401", f"'{use}' has no stem '{stem}'", hint='stem = "small" is for ResNets'))
    model.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def take_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes `channels` input channels."""
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            fresh = copy.deepcopy(conv)
            shape = (conv.out_channels, channels, *conv.kernel_size)
            fresh.in_channels, fresh.weight = channels, nn.Parameter(torch.empty(shape))
            fresh.reset_parameters()
            setattr(parent, name.rpartition(".")[2], fresh)
            return


def activate(model: nn.Module, use: str, activation: str) -> None:
    """Every hidden activation that is a module becomes `activation`; those written as function calls stay."""
    activations = [name for name, module in model.named_modules(remove_duplicate=False) if type(module) in HIDDEN]
    if not activations:
        message = f"'{use}' has no activation module, so activation = \"{activation}\" would change nothing"
        raise UsageError(Problem("E401", message, hint="remove it, or build the model with nn.ReLU()"))
    for name in activations:
        parent, _, child = name.rpartition(".")
        if type(model.get_submodule(name)) is not ACTIVATIONS[activation]:
            setattr(model.get_submodule(parent), child, ACTIVATIONS[activation]())


def __getattr__(name: str) -> Any:
    """A model by its name, for scripts: `from energybench.workloads.models import mlp`."""
    if name in MODELS:
        return NAMES.load(name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
