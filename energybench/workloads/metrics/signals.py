"""How near a signal comes to another: the peak signal-to-noise ratio."""

from __future__ import annotations

import math


def peak_signal_to_noise_db(mean_squared_error: float, peak: float = 1.0) -> float:
    """10·log₁₀(peak² / mse), in decibels; infinite where nothing differs.

    Args:
        mean_squared_error: over all values, in the signal's own units squared
        peak: the largest difference that two values can have, 1 for a range of 0 to 1

    Raises:
        ValueError: for an error below 0 or a peak that is not above 0
    """
    if mean_squared_error < 0 or peak <= 0:
        raise ValueError(f"a mean squared error is at least 0 and a peak above 0: {mean_squared_error:g}, {peak:g}")
    return 10 * math.log10(peak**2 / mean_squared_error) if mean_squared_error else math.inf
