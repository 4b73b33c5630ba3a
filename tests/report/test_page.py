"""The page in a real browser: whole, silent, alone, and safe from any name. Without one: its bytes and its size."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium
from synthetic import GPU, Run
from traced import EVIL, WATTS, example, traced

from energybench.records.reader import read_folder
from energybench.report.html import LIMIT_B, page
from energybench.report.rows import GLOSSARY
from energybench.verdict.summary import summarise

ROOT = Path(__file__).resolve().parents[2]
PHONE = {"viewport": {"width": 400, "height": 800}}
HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "<!--",
    "{{ 7*7 }}",
    "\u202eevil\u202c",
    "مرحبا",
    "a\nb",
    "</style></svg><b>bold</b>",
    "__proto__",
    "constructor",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "long" * 60,
]


def hostile() -> Run:
    run = example(workload=EVIL, machine=dict.fromkeys(HOSTILE, HOSTILE))
    for name in HOSTILE:
        run.method(name, time=0.9, energy=0.9)
    run.change(HOSTILE[0], 0, status="failed", reason=HOSTILE[1])
    return run.skip(f"skipped {EVIL}", HOSTILE[2])


def written(run: Run, folder: Path) -> Path:
    failing = any(change.get("status") == "failed" for change in run.changes.values())
    meta, trials, counting_runs = run.records() if failing else traced(run, folder)
    path = folder / "report.html"
    path.write_text(page(summarise(meta, trials, counting_runs), trials, folder), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(example(blocks=5), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(hostile(), tmp_path_factory.mktemp("evil"))


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_records_give_the_same_page_under_2_mb(tmp_path: Path) -> None:
    first = written(example(), tmp_path).read_bytes()
    assert written(example(), tmp_path).read_bytes() == first
    assert len(first) < LIMIT_B


def test_every_name_is_escaped_and_no_script_but_ours_is_in_the_page(evil: Path) -> None:
    text = evil.read_text(encoding="utf-8")
    scripts = re.findall(r"<script([^>]*)>", text)
    assert scripts == [' type="application/json" id="data"', "", ""]
    assert "<img" not in text
    assert "<b>bold" not in text
    assert html.escape(HOSTILE[0], quote=False).replace("'", "&#39;") in text


def test_the_page_may_run_its_own_two_scripts_and_ask_for_nothing(plain: Path) -> None:
    import base64
    import hashlib

    text = plain.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy[1]).split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    ours = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in ours]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    elsewhere = re.findall(r'(?:src|href)="((?!data:,|records/|#)[^"]*)', text)
    assert elsewhere == [GLOSSARY]


def test_a_run_too_large_for_a_page_says_what_is_not_in_it_and_links_the_records(tmp_path: Path) -> None:
    run = Run(blocks=300)
    for number in range(8):
        run.method(f"m{number}", time=0.9)
    for block in range(300):
        run.change("m1", block, reason="x" * 8000)
    meta, trials, counting_runs = run.records()
    text = page(summarise(meta, trials, counting_runs), trials, tmp_path)
    assert len(text.encode()) < LIMIT_B
    listed = len(re.findall(r'data-record="\d+"', text))
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert data is not None
    records = json.loads(data[1])["records"]
    inside = sum(record is not None for record in records)
    assert 0 < inside < listed == len(records) < len(trials)
    assert f"{len(trials) - inside} of {len(trials)} records are not in this page" in text
    assert f"The first {listed} of {len(trials)} trials are listed" in text


# ── in the browser ────────────────────────────────────────────────────────────────────────────────────────────


def silent(opened: Page, file: Path) -> None:
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("data:", file.as_uri()))] == []
    assert opened.evaluate("document.documentElement.dataset.ready") == "yes"


def test_every_picture_is_there_and_drawn_the_console_is_empty_and_no_request_leaves(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain)
    silent(opened, plain)
    expected = re.findall(r'data-picture="([^"]+)"', plain.read_text(encoding="utf-8"))
    kinds = {name.rsplit("-cnn", 1)[0] for name in expected}
    assert kinds == {"ladder", "where", "trade-off", "blocks", "curves", "power"}
    for name in expected:
        box = opened.locator(f'[data-picture="{name}"] svg').bounding_box()
        if name.startswith(("curves", "power")):
            assert box is None  # drawn to zoom, below, and not twice
            continue
        assert box["width"] > 300
        assert box["height"] > 80
    drawn = opened.evaluate("""[...document.querySelectorAll('.chart canvas')].map(canvas =>
        new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size)""")
    assert len(drawn) == 4  # loss over epochs, seconds and joules; power of one card
    assert all(colours > 3 for colours in drawn)


@pytest.mark.parametrize("options", [{}, PHONE, {"color_scheme": "dark"}])
def test_hostile_names_are_shown_as_text_and_nothing_of_them_runs(
    browser: Any, evil: Path, options: dict[str, Any]
) -> None:
    opened = Page(browser, evil, **options)
    silent(opened, evil)
    assert opened.title() != "owned"
    shown = opened.evaluate("[...document.querySelectorAll('#methods tbody th')].map(cell => cell.textContent)")
    for name in HOSTILE:
        assert "".join(c if c.isprintable() else " " for c in name) in shown
    assert opened.evaluate("document.querySelectorAll('img, b, iframe, object').length") == 0
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_hostile_names_record_opens_as_its_own_and_as_text(browser: Any, evil: Path) -> None:
    opened = Page(browser, evil)
    for name in ("__proto__", HOSTILE[1]):
        opened.fill("#trials input", name)
        link = opened.locator("#trials tbody tr:not([hidden]) a").first
        link.click()
        record = json.loads(opened.inner_text("#record pre"))
        assert record["method"] == name
        assert opened.inner_text("#record h3").split() == record["trial"].split()
        opened.keyboard.press("Escape")
    assert opened.said == []


def test_a_column_sorts_up_and_down_by_its_numbers_with_what_is_missing_last(browser: Any, tmp_path: Path) -> None:
    run = Run(noise=0.02, sensors=(GPU,)).method("b", energy=0.5).method("a", energy=1.5).method("c", energy=0.8)
    for block in range(3):
        run.change("a", block, status="failed", reason="cable")  # never measured
    opened = Page(browser, written(run, tmp_path))

    def column() -> list[str]:
        return opened.evaluate("[...document.querySelectorAll('#methods tbody th')].map(cell => cell.textContent)")

    head = opened.locator("#methods thead th", has_text="measured")
    for order, state in ((["c", "b", "a"], "ascending"), (["b", "c", "a"], "descending")):
        head.locator("button").focus()
        opened.keyboard.press("Enter")  # by keyboard alone
        assert head.get_attribute("aria-sort") == state
        assert column() == order
    opened.locator("#methods thead th", has_text="method").locator("button").click()
    assert column() == ["a", "b", "c"]
    assert opened.locator("#methods [aria-sort]").count() == 1


def test_a_filter_keeps_the_rows_that_hold_every_word_and_counts_them(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain)
    every = opened.locator("#trials tbody tr").count()
    opened.fill("#trials input", "HALF b1-")
    shown = opened.evaluate(
        "[...document.querySelectorAll('#trials tbody tr:not([hidden]) th')].map(c => c.textContent)"
    )
    assert sorted(shown) == ["b1-i0-cnn-digits.half", "b1-i0-cnn-digits.half@control"]
    assert opened.inner_text("#trials .count") == f"2 of {every}"
    opened.fill("#trials input", "")
    assert opened.locator("#trials tbody tr:not([hidden])").count() == every


def test_power_is_zoomed_by_keyboard_and_by_button_and_never_beyond_its_ends(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain)
    chart = opened.locator(".chart", has_text="Power of GPU-0")

    def limits() -> list[float]:
        return chart.evaluate("box => [box.plot.scales.x.min, box.plot.scales.x.max]")

    low, high = limits()
    assert high - low == pytest.approx(chart.evaluate("box => box.plot.data[0].at(-1) - box.plot.data[0][0]"))
    power = chart.evaluate("box => box.plot.data.slice(1).flat().filter(w => w !== null && w !== undefined)")
    assert set(power) == {WATTS}
    chart.locator(".plot").focus()
    opened.keyboard.press("+")
    assert limits()[1] - limits()[0] == pytest.approx((high - low) / 2)
    for _ in range(9):
        opened.keyboard.press("ArrowLeft")
    assert limits()[0] == pytest.approx(low)
    chart.locator("[data-do='0']").click()
    assert limits() == pytest.approx([low, high])
    chart.locator("[data-do='-']").click()
    assert limits() == pytest.approx([low, high])


def test_a_phone_scrolls_tables_and_pictures_but_never_the_page(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain, **PHONE)
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    scrolls = opened.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0)")
    assert scrolls  # what scrolls can be reached by keyboard


def test_dark_is_dark_and_paper_is_light_whatever_the_screen(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain, color_scheme="dark")
    paint = "getComputedStyle(document.querySelector('figure svg path')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(ground) == opened.evaluate(paint) == "rgb(13, 17, 23)"
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate(ground) == opened.evaluate(paint) == "rgb(255, 255, 255)"


def test_without_scripts_every_figure_and_sentence_is_still_there(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain, java_script_enabled=False)
    assert opened.locator("#methods tbody tr").count() == 2
    assert opened.locator("figure svg").first.is_visible()
    for kind in ("curves", "power"):  # what would zoom stands still
        assert opened.locator(f'[data-picture^="{kind}"] svg').is_visible()
    assert not any(chart.is_visible() for chart in opened.locator(".chart").all())
    assert opened.locator("noscript p").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted((ROOT / "reports").glob("*/*/run.json")), ids=lambda f: f.parent.name)
def test_the_page_of_a_committed_run_opens_whole(browser: Any, folder: Path, tmp_path: Path) -> None:
    meta, trials, counting_runs = read_folder(folder.parent)
    file = tmp_path / "report.html"
    file.write_text(page(summarise(meta, trials, counting_runs), trials, folder.parent), encoding="utf-8")
    opened = Page(browser, file, **PHONE)
    silent(opened, file)
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    assert file.stat().st_size < LIMIT_B
