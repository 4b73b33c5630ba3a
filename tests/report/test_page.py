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


# ── phone and desk, light and dark ────────────────────────────────────────────────────────────────────────────

SCREENS = [
    {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    for width, height in ((1280, 800), (390, 844))
    for scheme in ("light", "dark")
]
CONTRAST = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.99) return colour.slice(0, 3);
        }
        return [255, 255, 255];
    };
    const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.textContent.trim() || !element.getClientRects().length) continue;
        if (element.closest("script, style, title")) continue;
        const style = getComputedStyle(element), inPicture = element.closest("[data-picture] svg");
        const front = light(parse(inPicture ? style.fill : style.color)), back = light(ground(element));
        const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        // a figure beside its mark has the mark's colour: 3 is enough for what is drawn
        if (ratio < (inPicture ? 3 : 4.5)) bad.push([node.textContent.trim().slice(0, 40), ratio]);
    }
    return bad;
}"""


def many(**options: Any) -> Run:
    """Methods of long names, two workloads' worth of controls, an outlier, losses over decades."""
    run = Run(noise=0.02, quality_noise=0.002, sensors=(GPU,), **options)
    for number in range(12):
        name = f"gradsamp[skip=late-random:0.{number},epsilon=0.0001]"
        run.method(name, time=0.9, energy=0.9 - 0.02 * number, quality=-0.001 * number).control(name, time=0.9)
    return run.method("ruined", time=1.4, energy=1.5, quality=-0.8)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(many(), tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module", params=SCREENS, ids=lambda s: f"{s['viewport']['width']}-{s['color_scheme']}")
def screen(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def on_first_screen(opened: Page, selector: str) -> bool:
    """Whether the first such element is wholly seen before anybody scrolls, in any direction."""
    return bool(
        opened.evaluate(
            """selector => {
                const element = document.querySelector(selector), box = element.getBoundingClientRect();
                const frame = element.closest(".scroll").getBoundingClientRect();
                return box.width > 0 && box.left >= frame.left && box.right <= frame.right + 0.5
                    && box.right <= innerWidth && box.bottom <= innerHeight && box.top >= 0;
            }""",
            selector,
        )
    )


@pytest.mark.parametrize("which", ["plain", "long"])
def test_verdict_measured_and_quality_are_on_the_first_screen_and_the_page_never_scrolls_sideways(
    browser: Any, which: str, screen: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(which)
    opened = Page(browser, file, **screen)
    silent(opened, file)
    assert opened.evaluate("document.documentElement.scrollWidth") == screen["viewport"]["width"]
    heads = opened.evaluate("[...document.querySelectorAll('#methods thead th')].map(cell => cell.textContent)")
    first = [head.split()[0] for head in heads if head != "workload"][:3]
    assert first == ["method", "verdict", "measured"]  # before whatever was promised
    verdict, measured = heads.index("verdict"), next(i for i, h in enumerate(heads) if h.startswith("measured"))
    quality = next(i for i, head in enumerate(heads) if head.endswith("Δ"))
    assert quality == measured + 1
    for column in (verdict, measured, quality):
        assert on_first_screen(opened, f"#methods tbody tr > :nth-child({column + 1})"), heads[column]
    assert opened.evaluate(CONTRAST) == []


def test_beside_each_change_of_quality_stands_whether_it_is_held(browser: Any, tmp_path: Path) -> None:
    run = Run(noise=0.02, quality_noise=0.001, sensors=(GPU,), blocks=5)
    run.method("good", energy=0.5).method("bad", energy=0.5, quality=-0.2)
    opened = Page(browser, written(run, tmp_path))
    heads = opened.evaluate("[...document.querySelectorAll('#methods thead th')].map(cell => cell.textContent)")
    at = 1 + next(i for i, head in enumerate(heads) if head.endswith("Δ"))
    for row, word in ((1, "held"), (2, "lost")):
        assert opened.inner_text(f"#methods tbody tr:nth-child({row}) > :nth-child({at})").endswith(f"\u00a0{word}")
    assert opened.locator("#methods tbody .lost").count() == 1


def test_the_contents_say_where_one_is_from_the_start_to_the_end(browser: Any, long: Path) -> None:
    opened = Page(browser, long, viewport={"width": 390, "height": 300})  # which the header fills
    opened.until("document.querySelector('nav a[aria-current]')?.hash === '#results'")
    opened.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    opened.until("document.querySelector('nav a[aria-current]')?.hash === '#again'")


def test_the_contents_stay_and_every_link_of_them_leads_to_a_section(
    browser: Any, long: Path, screen: dict[str, Any]
) -> None:
    opened = Page(browser, long, **screen)
    links = opened.evaluate("[...document.querySelectorAll('nav a')].map(link => link.getAttribute('href'))")
    assert len(links) >= 6
    sections = opened.evaluate("[...document.querySelectorAll('main > section')].map(part => `#${part.id}`)")
    assert links == sections
    for href in (links[-1], links[2]):
        opened.locator(f"nav a[href='{href}']").click()
        top, bar = opened.evaluate(
            f"[document.querySelector('{href}').getBoundingClientRect().top, "
            "document.querySelector('nav').getBoundingClientRect().toJSON()]"
        )
        assert bar["top"] == 0  # at the top, wherever one reads
        at_the_end = opened.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
        assert bar["height"] - 1 <= top < screen["viewport"]["height"] / 3 or at_the_end
    opened.until("document.querySelector('nav a[aria-current]')?.hash === '" + links[2] + "'")
    seen = opened.evaluate(
        "(() => { const bar = document.querySelector('nav').getBoundingClientRect(),"
        " link = document.querySelector('nav a[aria-current]').getBoundingClientRect();"
        " return link.left >= bar.left && link.right <= bar.right + 1; })()"
    )
    assert seen  # where one is, is told by what is seen


def test_a_method_in_the_table_leads_to_what_is_said_of_it_and_opens_it(browser: Any, long: Path) -> None:
    opened = Page(browser, long, **PHONE)
    link = opened.locator("#methods tbody th a").first
    name = link.text_content()
    link.click()
    opened.until("document.querySelector(location.hash).open")
    assert opened.locator("details:target summary strong").text_content() == name
    assert opened.locator("details:target li").first.is_visible()


def test_entries_of_a_legend_differ_in_name_and_in_line_or_mark(browser: Any, long: Path) -> None:
    opened = Page(browser, long)
    legends = opened.evaluate("""[...document.querySelectorAll('.chart')].map(chart =>
        [...chart.querySelectorAll('.u-legend tr:not(:first-child)')].map(row =>
            [row.querySelector('.u-label').textContent, row.querySelector('svg').innerHTML]))""")
    assert len(legends) == 4
    for entries in legends:
        assert len(entries) >= 2
        assert len({name for name, _ in entries}) == len(entries)
        assert len({sample for _, sample in entries}) == len(entries)


def test_epochs_are_whole_and_losses_over_decades_are_on_a_logarithm_that_says_so(browser: Any, tmp_path: Path) -> None:
    meta, trials, counting_runs = Run().method("m").records()
    curve = [{"epoch": float(e), "loss": 10.0**-e, "wall_s": float(e)} for e in (1, 2, 3)]
    trials = [t.model_copy(update={"curve": curve}) for t in trials]
    file = tmp_path / "report.html"
    file.write_text(page(summarise(meta, trials, counting_runs), trials, tmp_path), encoding="utf-8")
    opened = Page(browser, file)
    silent(opened, file)
    over_epochs = opened.locator(".chart", has_text="over epochs")
    ticks, label, scale = over_epochs.evaluate(
        "box => [box.plot.axes[0]._splits, box.plot.axes[1].label, box.plot.scales.y.distr]"
    )
    assert ticks
    assert all(tick == int(tick) for tick in ticks)
    assert (label, scale) == ("loss (log scale)", 3)
    shown = over_epochs.evaluate("box => box.plot.axes[1]._values")
    assert {"0.1", "0.01", "0.001"} <= set(shown)


def test_a_column_that_says_the_same_in_every_row_is_said_once_above_the_table(browser: Any, plain: Path) -> None:
    opened = Page(browser, plain)
    heads = opened.evaluate("[...document.querySelectorAll('#methods thead th')].map(cell => cell.textContent)")
    assert not {"workload", "of", "blocks"} & set(heads)
    assert "measured energy (gpu) [95 %]" in heads
    said = opened.evaluate("document.querySelector('#results .same').textContent")
    assert "workload cnn-digits" in said
    assert "blocks 5" in said


def test_the_index_of_a_site_filters_sorts_and_leads_to_a_method_on_a_phone(browser: Any, tmp_path: Path) -> None:
    from energybench.records.record import write_json
    from energybench.report import pages, site

    for number, run in enumerate((example(), many(workload="other"))):
        meta, trials, counting_runs = run.records()
        folder = tmp_path / "r" / str(number)
        write_json(folder / "run.json", meta.model_copy(update={"suite": f"s{number}", "finished": True}))
        for kind, records in (("records", trials), ("witness", counting_runs)):
            for at, record in enumerate(records):
                write_json(folder / kind / f"{at:03}.json", record)
    index = site.write(pages.runs(tmp_path / "r"), tmp_path / "site", lambda text: None)
    for screen in SCREENS:
        opened = Page(browser, index, **screen)
        silent(opened, index)
        assert opened.evaluate("document.documentElement.scrollWidth") == screen["viewport"]["width"]
        assert on_first_screen(opened, "#methods tbody td:nth-child(2)")
        assert on_first_screen(opened, "#methods tbody td:nth-child(3)")
        assert opened.evaluate(CONTRAST) == []
    opened.fill("#methods input", "half s0")
    shown = opened.locator("#methods tbody tr:not([hidden]) th a")
    assert shown.all_text_contents() == ["half"]
    shown.first.click()
    opened.until("document.documentElement.dataset.ready && document.querySelector('details:target').open")
    assert opened.locator("details:target summary strong").text_content() == "half"
    opened.locator("nav a", has_text="All runs").click()
    assert opened.title().startswith("All runs")
    assert opened.said == []
