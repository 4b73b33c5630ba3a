"""The fixture `energy_benchmark`: pytest-benchmark's `benchmark`, whose timed rounds run inside a window of the meters.

    calibration   warm-up   │ round  round  round │   one call for the result
    ────────────────────────┼─────────────────────┼──────────────────────────
                            window opens      and closes      its FLOPs are counted, un-timed

What is timed is not touched: the runner that pytest-benchmark makes is called by one that opens the window before the
first timed round. With `setup` or `teardown` each round is a piece of the window, so that they are not billed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from math import ceil
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from energybench.pytest_energy.metered_calls import KEY, Bill, Metering, OpenWindow

WALL_CLOCKS = (time.perf_counter, time.monotonic)  # which tell what fraction of the window was timed


class EnergyBenchmark(BenchmarkFixture):
    """As `benchmark` in all that pytest-benchmark documents; `bill` and `extra_info["energybench"]` when it has run.

    flops: whether a call is counted that nobody times. None: the one that pytest-benchmark makes for the result, where
           it makes one and torch is imported; True: one more where it makes none; False: never
    """

    flops: bool | None = None
    bill: Bill | None = None

    def __init__(self, plain: BenchmarkFixture, metering: Metering) -> None:
        self.__dict__ = plain.__dict__  # one state: whatever is set on either is seen on both
        self._metering = metering
        self._window: OpenWindow | None = None
        self._target: Callable[..., Any] = _nothing
        self._each_round = False
        self._warmup_rounds_left = 0  # rounds of a warm-up that are still to come
        self._rounds, self._timed_s = 0, 0.0
        self._flop: dict[str, Any] = {}

    def _raw(self, function_to_benchmark: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._left_alone():
            return super()._raw(function_to_benchmark, *args, **kwargs)
        return self._billed(
            function_to_benchmark, lambda last: super(EnergyBenchmark, self)._raw(last, *args, **kwargs)
        )

    def _raw_pedantic(  # type: ignore[override]  # its options differ from version to version
        self, target: Callable[..., Any], args: Any = (), kwargs: Any = None, setup: Any = None, **options: Any
    ) -> Any:
        def pedantic(last: Callable[..., Any]) -> Any:
            return super(EnergyBenchmark, self)._raw_pedantic(last, args, kwargs, setup, **options)

        if self._left_alone():
            return pedantic(target)
        teardown = options.get("teardown")
        self._each_round, self._warmup_rounds_left = bool(setup or teardown), options.get("warmup_rounds", 0)
        result = self._billed(target, pedantic)
        if self.flops and not self._flop:
            given = (setup() if setup else None) or (args, kwargs or {})
            self._count(target, *given)
            if teardown:
                teardown(*given[0], **given[1])
            self._report()
        return result

    def _left_alone(self) -> bool:
        if self.enabled and self.cprofile:
            self.extra_info[KEY] = {"energy_j": None, "energy_reason": "not metered under --benchmark-cprofile"}
        return not self.enabled or bool(self.cprofile)

    def _billed(self, target: Callable[..., Any], run: Callable[[Callable[..., Any]], Any]) -> Any:
        """Run pytest-benchmark's own procedure, with a `target` that it times and one that it calls afterwards."""
        self._target = target

        def last(*args: Any, **kwargs: Any) -> Any:
            self._close()
            return self._count(target, args, kwargs)

        with self._metering.window() as self._window:
            result = run(last)
            self._close()
            stats: Any = self.stats
            if len(stats.stats.data) == self._rounds:
                self.bill = self._window.bill(self._rounds * stats.iterations, self._timed_s)
        self._report()
        return result

    def _calibrate_timer(self, runner: Callable[..., Any]) -> Any:
        duration, iterations, loops_range = super()._calibrate_timer(runner)
        if self._warmup:  # then as many rounds come that are not timed, before those that are
            rounds = max(ceil(self._max_time / duration), self._min_rounds)
            self._warmup_rounds_left = min(rounds, max(1, int(self._warmup / iterations)))
        return duration, iterations, loops_range

    def _make_runner(self, function_to_benchmark: Callable[..., Any], args: Any, kwargs: Any) -> Callable[..., Any]:
        if self._target is _nothing:
            return super()._make_runner(function_to_benchmark, args, kwargs)
        runner = super()._make_runner(self._target, args, kwargs)

        def round_of(loops_range: Any) -> Any:
            if self.stats is None:  # calibration
                return runner(loops_range)
            if self._warmup_rounds_left:
                self._warmup_rounds_left -= 1
                return runner(loops_range)
            window = self._window
            assert window is not None
            if self._each_round or not self._rounds:
                window.start()
            started_s = time.perf_counter()
            result = runner(loops_range)
            took_s = time.perf_counter() - started_s
            if self._each_round:
                window.stop()
            self._rounds += 1
            if self._timer in WALL_CLOCKS:  # another one may count the processor's seconds
                took_s = result if isinstance(result, float) else result[0]
            self._timed_s += took_s
            return result

        return round_of

    def _close(self) -> None:
        if self._window is not None:
            self._window.stop()

    def _count(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call it once, un-timed, under the FLOP counter."""
        if self.flops is False or "torch" not in sys.modules:
            return target(*args, **kwargs)
        from energybench.flops.counter import Counter

        counter = Counter()
        try:
            with counter:
                result = target(*args, **kwargs)
        except Exception as error:  # it has run well before, so this is the counter's
            self._flop = {"flop": None, "flop_reason": f"it does not run under the counter: {type(error).__name__}"}
            return target(*args, **kwargs)
        import torch

        self._flop = {
            "flop": counter.total or None,
            "flop_source": f"counter, torch {torch.__version__}",
            "flop_uncounted_calls": dict(counter.uncounted),
        }
        if not counter.total:
            self._flop["flop_reason"] = "the counter saw none: to it only torch's own operators exist, uncompiled"
        return result

    def _report(self) -> None:
        unlike = "the rounds that were metered are not those that were timed"
        energy = self.bill.facts() if self.bill else {"energy_j": None, "energy_reason": unlike}
        self.extra_info[KEY] = energy | (self._flop or {"flop": None, "flop_reason": self._no_count_reason()})

    def _no_count_reason(self) -> str:
        if self.flops is False:
            return "not asked for"
        if "torch" not in sys.modules:
            return "torch is not imported"
        return "no call was left to count: energy_benchmark.flops = True makes one more"


def _nothing() -> None: ...
