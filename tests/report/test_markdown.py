"""The page: the same bytes for the same records, safe from any name, with links that lead somewhere."""

from __future__ import annotations

import random
import re
from urllib.parse import unquote

import pytest
from synthetic import GPU, JOULES, MODEL, Run

from energybench.records.record import Claim, write_json
from energybench.report.markdown import markdown
from energybench.report.markdown_syntax import escape, fence
from energybench.report.rows import GLOSSARY
from energybench.verdict import wording
from energybench.verdict.summary import summarise

EVIL = "a|b`c<script>alert(1)</script>\n# d [x](http://evil) ![y](z) *e* _f_ @someone &amp; ~~g~~ \\"


def page(run: Run) -> str:
    return markdown(summarise(*run.records()))


def example(**options: object) -> Run:
    run = Run(noise=0.02, **options)  # type: ignore[arg-type]
    run.method("half", time=0.7, flop=0.5, claim=Claim(saving_rel=0.4, of="backward", source="Table 4"))
    return run.method("other", time=1.1).skip("ssprop", "no convolution")


def tables(text: str) -> list[list[str]]:
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.M)
    return [block.strip().splitlines() for block in blocks]


def test_the_same_records_in_any_order_give_the_same_bytes() -> None:
    meta, trials, counting_runs = example().records()
    expected = markdown(summarise(meta, trials, counting_runs))
    random.Random(1).shuffle(trials)
    assert markdown(summarise(meta, trials, counting_runs[::-1])) == expected


def test_the_stamp_stands_in_the_title_and_the_headline_below_it() -> None:
    run = example(stamp=["quick", "--set workload.train.epochs=2"])
    lines = page(run).splitlines()
    assert lines[0] == "# synthetic (quick, --set workload.train.epochs=2)"
    assert lines[2].startswith("**")


def test_every_part_is_there_in_order() -> None:
    text = page(example().change("other", 0, status="failed", reason="cable"))
    heads = [
        "## cnn-digits",
        "### Where the saving went",
        "### Quality",
        "## Can these numbers be trusted?",
        "## Energy and carbon",
        "## What failed",
        "## Not run or not counted, and why",
        "## How to get these numbers again",
    ]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)


def test_every_table_has_as_many_cells_in_each_line() -> None:
    for rows in tables(page(example().method(EVIL, time=0.9))):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_hostile_name_adds_no_cell_tag_link_image_mention_or_heading() -> None:
    run = example(workload=EVIL, machine={EVIL: EVIL}).method(EVIL, time=0.9).skip(f"s{EVIL}", EVIL)
    run.change(EVIL, 0, status="failed", reason=EVIL)
    text = page(run)
    assert "<script" not in text
    assert "http://evil" not in text
    assert "@someone" not in text
    assert "\n# d" not in text
    assert not re.search(r"(?<!\\)!\[", text.replace("!\\[", ""))
    for target in re.findall(r"(?<!\\)\]\(([^)]*)\)", text):
        assert target.startswith("records/") or target == GLOSSARY
        assert not re.search(r"[\s<>|`]", target)


@pytest.mark.parametrize("text", ["1. one", "- x", "+ x", "# x", "==="])
def test_a_name_cannot_begin_a_list_or_a_heading(text: str) -> None:
    assert not re.match(r"(\d+[.)]\s|[-+#=])", escape(text))


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("cnn-wide-digits", "2.11.0", "ssprop+dropout", "model(cpu load, tdp=85 W)"):
        assert escape(name) == name


def test_a_fence_is_longer_than_any_run_of_backticks_inside() -> None:
    text = fence("a ```` b")
    assert text.startswith("`````text\n")
    assert text.endswith("\n`````")


def test_the_links_of_a_row_lead_to_its_records(tmp_path: object) -> None:
    meta, trials, counting_runs = example().records()
    text = markdown(summarise(meta, trials, counting_runs))
    names = {f"records/{trial.trial}.json" for trial in trials}
    targets = {unquote(target) for target in re.findall(r"\]\((records/[^)]+)\)", text)}
    assert targets
    assert targets <= names
    for trial in trials[:1]:
        write_json(tmp_path / f"records/{trial.trial}.json", trial)  # type: ignore[operator]


def test_modelled_energy_is_named_so_and_never_a_saving() -> None:
    text = page(example())
    assert "Energy is modelled, not measured" in text.split("## cnn-digits")[0]
    energy = text.split("## Energy and carbon")[1].split("## ")[0]
    assert "modelled" in energy
    assert "| measured |" not in energy
    assert "**saves**" not in text


def test_measured_energy_is_named_with_its_source() -> None:
    text = page(example(sensors=(GPU,)))
    assert re.search(r"\| plain training \| measured \| gpu\\_counter \| gpu \|", text)
    assert "Energy is modelled" not in text


@pytest.mark.parametrize("unit", [("intensity_kg_per_kwh", 1.0), ("intensity_kg_per_j", 1 / 3.6e6)])
def test_carbon_is_energy_times_intensity_with_its_source_zone_and_year(unit: tuple[str, float]) -> None:
    carbon = {"zone": "FRA", unit[0]: 0.05604 * unit[1], "source": "codecarbon 3.3.2", "year": 2023, "pue": 1.0}
    run = Run(sensors=(GPU,), machine={"carbon": carbon}).method("half")
    text = page(run)
    grams = JOULES / 3.6e6 * 0.05604 * 1000  # 500 J are 7.78 mg in France
    assert f"{grams * 1000:.2f} mg" in text
    assert "FRA, 56.04 g/kWh (codecarbon 3.3.2, 2023)" in text


def test_without_an_intensity_no_carbon_is_printed() -> None:
    assert "Carbon intensity" not in page(example())


def test_every_check_of_the_list_is_answered() -> None:
    from energybench.verdict import flag_codes

    text = page(example())
    trusted = text.split("## Can these numbers be trusted?")[1].split("## ")[0]
    for kind in flag_codes.REGISTRY:
        assert f"| `{kind.code}` |" in trusted


def test_an_empty_run_still_makes_a_page() -> None:
    meta, _, _ = example().records()
    assert markdown(summarise(meta, [], [])).endswith("\n")


def test_the_call_can_be_typed_again() -> None:
    assert "```text\nenergybench run synthetic\n```" in page(example())


@pytest.mark.parametrize(("sensor", "told"), [(GPU, True), (MODEL, False)])
def test_modelled_energy_is_multiplied_by_nothing(sensor: tuple[str, str], told: bool) -> None:
    run = Run(sensors=(sensor,)).method("half", time=0.8, energy=0.7)
    run.machine["carbon"] = {"zone": "FRA", "intensity_kg_per_kwh": 0.056}
    page = markdown(summarise(*run.records()))
    grams = 1000 * JOULES / 3.6e6 * 0.056
    row = next(line for line in page.splitlines() if line.startswith("| cnn-digits | plain training |"))
    assert (row.split("|")[-2].strip() == wording.plain(wording.si(grams, "g"))) is told
    assert (row.split("|")[-2].strip() == wording.NOTHING) is not told
