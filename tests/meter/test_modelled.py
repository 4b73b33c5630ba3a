"""Modelled joules say what they are of: the whole machine, at the load that the model was given."""

from __future__ import annotations

import pytest
from fakes.replay import VirtualTime

from energybench.meter import carbon
from energybench.meter.carbon import CodecarbonModel
from energybench.meter.modelled import loads_of, whole_machine
from energybench.meter.reading import Energy
from energybench.meter.window import sum_pieces


def test_the_load_of_a_window_is_the_share_of_the_machine_that_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(0.0, 0.0), (3.0, 12.0), (3.0, 12.0), (12.0, 24.0)])  # a quarter, then three quarters
    monkeypatch.setattr(carbon, "_busy_and_total", lambda: next(ticks))
    virtual = VirtualTime()
    pieces = []
    for _ in range(2):
        model = CodecarbonModel({"tdp_w": 100.0, "ram_w": 5.0}, virtual)
        model.start()
        virtual.sleep(2)
        pieces.append(model.stop())
    first, both = pieces[0].energy, sum_pieces(pieces).energy
    assert whole_machine(loads_of(first)) == "of the whole machine at a load of 25\N{NO-BREAK SPACE}%"
    assert loads_of(both) == pytest.approx([0.25, 0.75])
    assert whole_machine(loads_of(both)) == "of the whole machine at a mean load of 50\N{NO-BREAK SPACE}%"


def test_memory_depends_on_no_load_and_what_others_measure_or_model_is_not_of_the_machine() -> None:
    ram = Energy(source="model(codecarbon ram)", scope="dram", energy_j=1.0)
    theirs = Energy(source="model(theirs)", scope="cpu", energy_j=1.0, detail={"load_rel": 0.5})
    measured = Energy(source="rapl", scope="cpu", energy_j=1.0, detail={"load_rel": 0.5})
    lost = Energy(
        source="model(codecarbon cpu_load)", scope="cpu", energy_j=None, reason="lost", detail={"load_rel": 1}
    )
    assert loads_of([ram, theirs, measured, lost]) == []
    assert whole_machine([]) == "of the whole machine"
