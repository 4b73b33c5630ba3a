"""channels_last: keep images and kernels with the channels of a place side by side in memory: (B, C, H, W) as BHWC.

The numbers are the same and so is the mathematics; only their order in memory changes: of each batch's inputs as it is
loaded, and of every weight of four or five dimensions. A convolution hands the format on, so a network of convolutions,
normalisations, activations and pooling stays in it.

Documentation: torch.channels_last (PyTorch's tutorial "Channels Last Memory Format"). Promises no FLOP and no byte:
kernels that read rows of channels need not transpose, on a GPU tensor cores and on a CPU oneDNN's. A flatten behind a
convolution copies, which the ledger does not know. Composes with everything; models without a convolution are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from energybench import Method, TrainingRun

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class ChannelsLast(Method):
    trains_less: ClassVar[bool | None] = False

    def incompatible_run(self, run: TrainingRun) -> str | None:
        layers = [module for module in run.model.modules() if isinstance(module, CONVOLUTIONS)]
        if not layers:
            return "no layer of this model is a convolution of images, for which alone the order of channels matters"
        if all(layer.in_channels == 1 for layer in layers):
            return "every convolution of this model takes in one channel, of which there is no order"
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._weights = [p for p in run.model.parameters() if p.dim() in FORMATS and p.is_contiguous()]
        for weight in self._weights:
            weight.data = weight.data.contiguous(memory_format=FORMATS[weight.dim()])
        layers = [module for module in run.model.modules() if isinstance(module, CONVOLUTIONS)]
        self._hooks = [layer.register_forward_hook(self._look) for layer in layers]

    def prepare_inputs(self, run: TrainingRun, inputs: Any) -> Any:
        def ordered(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() not in FORMATS:
                return leaf
            return leaf.contiguous(memory_format=FORMATS[leaf.dim()])

        return tree_map(ordered, inputs)

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """It acts where a convolution of a training pass hands the format on; then nobody looks any more."""
        if module.training and output.dim() in FORMATS:
            self.acted = bool(self.acted or output.is_contiguous(memory_format=FORMATS[output.dim()]))
        if self.acted:
            self._stop_looking()

    def _stop_looking(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def finish(self, run: TrainingRun) -> None:
        self._stop_looking()
        for weight in self._weights:
            weight.data = weight.data.contiguous()

    def diagnostics(self) -> dict[str, Any]:
        return {"weights": len(self._weights)}
