"""The machine's balance: a speed over a speed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from fakes.replay import VirtualTime

from energybench.flops import balance as timed

CPU = torch.device("cpu")


def test_it_is_flop_per_second_over_bytes_per_second(monkeypatch):
    """Where every product takes 1 ms and every copy 2 ms: 2n³ / 1 ms over 8 B an element / 2 ms."""
    seconds = {"mm": 1e-3, "copy_": 2e-3}
    asked = lambda work: next(name for name in work.__code__.co_names if name in seconds)  # noqa: E731
    monkeypatch.setattr(timed, "_fastest_s", lambda work, device: seconds[asked(work)])
    found = timed.balance.__wrapped__(CPU, "fp32")
    assert math.isclose(found, (2 * 1024**3 / 1e-3) / (8 * 2**25 / 2e-3))


def test_what_starts_up_and_what_disturbs_does_not_count(monkeypatch):
    clock, pauses = VirtualTime(), iter([0.001, *[0.002] * 2, 0.03, *[0.002] * 20])
    monkeypatch.setattr(timed, "time", SimpleNamespace(perf_counter=lambda: clock.now_ns() / 1e9))
    assert math.isclose(timed._fastest_s(lambda: clock.sleep(next(pauses)), CPU), 0.002)


def test_a_real_machine_has_one():
    assert 0 < timed.balance.__wrapped__(CPU, "fp32") < math.inf
