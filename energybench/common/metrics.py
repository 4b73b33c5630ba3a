"""What a metric of quality is: which way is better, in what scale, unit and range. Declared, never guessed from a name.

A task declares its own (`Task.metrics`), a suite overrides them (`[accept] quality = { better = "lower", … }`), and the
names below are declared here once for all, as they are written and in no other spelling. A metric that nobody has
declared is refused before anything trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Better = Literal["higher", "lower"]
Scale = Literal["fraction", "percent", "units"]
End = Annotated[float, Field(ge=-1e100, le=1e100)]


class Metric(BaseModel):
    """One metric of quality.

    better: which way
    scale:  "fraction": 0.948, whose changes are percentage points; "percent": 94.8, whose changes are too; "units": in
            its own unit
    unit:   that unit, as it is printed: "dB", "nats"
    least, most: its range; what lies outside of it is no such figure, and decides nothing
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    better: Better
    scale: Scale = "units"
    unit: Annotated[str, Field(max_length=40)] = ""
    least: End | None = None
    most: End | None = None

    @model_validator(mode="after")
    def _rises(self) -> Metric:
        if self.least is not None and self.most is not None and not self.least < self.most:
            raise ValueError(f"a range rises, and {self.least:g} is not below {self.most:g}")
        return self

    @property
    def sign(self) -> int:
        """Of an improvement."""
        return 1 if self.better == "higher" else -1

    @property
    def in_points(self) -> bool:
        """Whether its changes are percentage points."""
        return self.scale != "units"

    def fraction(self, value: float) -> float:
        """A value as reports hold it: a percentage as a fraction, all else as it is."""
        return value / 100 if self.scale == "percent" else value

    def outside(self, value: float) -> bool:
        """Whether a value, as it was recorded, cannot be of this metric."""
        return (self.least is not None and value < self.least) or (self.most is not None and value > self.most)

    @property
    def range_in_words(self) -> str:
        """ "0 to 1"."""
        if self.least is None:
            return f"at most {self.most:g}"
        return f"at least {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"


def _all(names: str, **facts: Any) -> dict[str, Metric]:
    return {name: Metric(**facts) for name in names.split()}


KNOWN: Mapping[str, Metric] = {
    **_all(
        "accuracy acc acc1 acc5 acc@1 acc@5 top1 top5 top1_accuracy top5_accuracy balanced_accuracy train_accuracy "
        "val_accuracy valid_accuracy validation_accuracy test_accuracy eval_accuracy f1 f1_macro f1_micro macro_f1 "
        "micro_f1 eval_f1 precision recall auc auroc roc_auc average_precision map map50 map_50 map75 iou miou dice "
        "pixel_accuracy",
        better="higher",
        scale="fraction",
        least=0.0,
        most=1.0,
    ),
    **_all("error_rate top1_error top5_error ece", better="lower", scale="fraction", least=0.0, most=1.0),
    **_all("brier brier_score", better="lower", least=0.0, most=2.0),
    **_all("wer cer", better="lower", scale="fraction", least=0.0),  # insertions take them beyond 1
    **_all("r2 mcc", better="higher", most=1.0),
    **_all("bleu rouge1 rouge2 rougel rouge_l meteor", better="higher", least=0.0),
    **_all("psnr", better="higher", unit="dB"),
    **_all("ssim", better="higher", least=-1.0, most=1.0),
    **_all(
        "loss train_loss val_loss valid_loss validation_loss test_loss eval_loss nll test_nll val_nll log_loss",
        better="lower",
    ),
    **_all("error mse rmse mae mape smape perplexity ppl cross_entropy kl kl_divergence", better="lower", least=0.0),
    **_all(
        "bits_per_byte bits_per_char bits_per_dim bpb bpc bpd fid lpips chamfer_distance", better="lower", least=0.0
    ),
    **_all("kid", better="lower"),
}


def known(name: str) -> Metric | None:
    """A metric that is declared here, capital letters or not."""
    return KNOWN.get(name.lower())


def declared(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """What a task declares, where a word alone says which way is better: {"mse": "lower"}.

    Raises:
        ValueError: for what is neither a Metric nor one of the two words; the message is for whoever wrote the task
    """
    found = {}
    for name, given in metrics.items():
        if given in ("higher", "lower"):
            given = Metric(better=given)
        if not isinstance(given, Metric):
            raise ValueError(f'metrics[{name!r}] is {given!r}; write "higher", "lower" or Metric(better=…)')
        found[str(name)] = given
    return found
