"""Loss scaling for fp16: small gradients are kept from vanishing, and an update whose gradient overflowed is left out.

    backward   the loss times the scale S is differentiated, and 1/S of what arrives is added to `.grad`
    update     left out where a gradient since the last one was not finite: S is halved; after 2,000 in a row, doubled

That is torch's GradScaler (Micikevicius et al. 2018, Mixed Precision Training, §3.2) with one thing moved: `.grad` is
the gradient itself after every backward pass, so that clipping, and whoever replaces `gradients` or `update`, sees it.
S is a power of two, so that scaling changes no bit of what neither over- nor underflows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0**16, 2.0, 0.5, 2000  # GradScaler's own
LARGEST_SCALE = 2.0**126  # so that float32 holds its reciprocal as a normal number


class LossScaler:
    """Of one run.

    scale:    S
    skipped:  epoch → updates of it that were left out
    left_out: losses of such steps that were not finite, and are in no mean of the curve
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = FIRST_SCALE
        self.skipped: Counter[int] = Counter()
        self.left_out = 0
        self._found = torch.zeros((), device=device)  # above 0: a gradient that is not finite
        self._in_a_row = 0  # updates since S last changed
        self._used = False  # a backward pass ran since the last update
        self._overflowed = False  # and what was found then

    def backward(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradient of a scalar loss () to `.grad` of these parameters, which hold all that may move.

        Raises:
            ValueError: for parameters in half precision, in which the true gradient would vanish again.
        """
        learning = list(parameters)
        if earlier := _gradients(learning):  # of micro-batches before this one
            torch._foreach_mul_(earlier, self.scale)
        wide = loss.to(torch.promote_types(loss.dtype, torch.float32))
        (wide * self.scale).backward()
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for gradient in _gradients(learning):
            if gradient.element_size() < 4:
                narrow = str(gradient.dtype).removeprefix("torch.")
                raise ValueError(f"fp16 keeps its parameters in float32, which autocast copies; one is in {narrow}")
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        inverse = torch.full((), 1 / self.scale, device=self._found.device)
        for gradients in by_dtype.values():
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, inverse)
        self._used = True

    def begin_step(self) -> None:
        """What overflowed in a step without an update is over."""
        self._overflowed = False
        if self._used:
            self._found.zero_()
            self._used = False

    def leaves_out(self, epoch: int) -> bool:
        """Whether the update that is due does not happen. Asked once for each; waits for the device.

        Where nothing was differentiated since the last one of a step, that one's answer holds: two parts of a model
        whose gradients come before both updates are left out together, and the scale changes once.
        """
        if self._used:
            self._used = False
            self._overflowed = bool(self._found.item())
            self._found.zero_()
            self._adapt()
        if self._overflowed:
            self.skipped[epoch] += 1
        return self._overflowed

    def _adapt(self) -> None:
        if self._overflowed:
            self.scale, self._in_a_row = self.scale * BACKOFF, 0
            return
        self._in_a_row += 1
        if self._in_a_row == GROWTH_INTERVAL:
            self.scale, self._in_a_row = min(self.scale * GROWTH, LARGEST_SCALE), 0

    def finite(self, losses: Tensor) -> Tensor:
        """The losses (steps,) of an epoch without those that are not finite; all of them where none is."""
        kept = losses[losses.isfinite()]
        if not len(kept):
            return losses
        self.left_out += len(losses) - len(kept)
        return kept

    def told(self, updates: int) -> dict[str, Any]:
        """For the record. updates: those that happened."""
        left_out = sum(self.skipped.values())
        due = updates + left_out
        return {
            "scale": self.scale,
            "updates": updates,
            "updates_skipped": left_out,
            "skipped_share": left_out / due if due else 0.0,
            "skipped_by_epoch": {str(epoch): count for epoch, count in sorted(self.skipped.items())},
            "losses_left_out": self.left_out,
        }


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What holds their gradients' numbers."""
    found = [p.grad for p in parameters if p.grad is not None]
    return [gradient._values() if gradient.is_sparse else gradient for gradient in found]
