"""What is repeated: blocks on one device, or devices with blocks on each.

Two cards of one kind save differently much: their silicon, their cooling, their host. Blocks on one card share that, so
they are no independent samples of what a method saves on cards like these, and Student's t over all blocks of several
cards promises too much: where devices and blocks both scatter by 1 %, its nominal 95 % interval covers 82 % with three
blocks on each of four cards, and 62 % with eight. So log ratios are averaged within a device, and t is taken over the
means of the devices, each weighing the same: 95 %, whatever the devices do.

Devices with fewer blocks have noisier means. Student's t over means of unequal variances stays conservative at every
confidence that is used here (Bakirov and Székely, Zapiski Nauchnykh Seminarov POMI 328 (2005) 5; Ibragimov and Müller,
Journal of Business & Economic Statistics 28 (2010) 453: two-sided levels up to 8.3 % for any number of groups, up to
10 % for at most 14 of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FEWEST_DEVICES = 3  # below it no spread between devices is known well enough, and each device stands by itself


def by_device(values: Sequence[float], devices: Sequence[str] | None) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The independent samples among paired differences.

    Args:
        values:  a difference per block
        devices: of each block; None where all ran on one device, so that each block is a sample of its own

    Returns:
        The samples, and how many blocks each is the mean of: empty where the samples are the blocks themselves. Devices
        come in the order of their names, so that the order of blocks does not matter.

    Raises:
        ValueError: where there are not as many devices as values
    """
    if devices is None:
        return tuple(values), ()
    if len(values) != len(devices):
        raise ValueError(f"a device for each value needed: {len(values)} values, {len(devices)} devices")
    groups: dict[str, list[float]] = {name: [] for name in sorted(set(devices))}
    for value, device in zip(values, devices, strict=True):
        groups[device].append(value)
    means = tuple(math.fsum(group) / len(group) for group in groups.values())
    return means, tuple(map(len, groups.values()))
