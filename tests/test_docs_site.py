"""The docs as a site: every page in its contents, a card for each method, no link that leads out of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from energybench.train import discovery

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (ROOT / "methods").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / ".ci" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_contents_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = [page for part in settings["nav"] for pages in part.values() for page in pages]
    assert sorted(named) == sorted([*(path.name for path in (ROOT / "docs").glob("*.md")), "cards.md"])
    assert settings["theme"]["font"] is False  # nothing is fetched by who reads it


def test_every_method_has_a_card_of_its_own_words(site: ModuleType) -> None:
    page = site.methods_page()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == METHODS
    cards = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for name, card in cards.items():
        known = discovery.card(discovery.Source(name, ROOT / "methods" / f"{name}.py", "shipped"))
        text = known.text.removeprefix(f"{name}: ")
        assert text[1:] in card
        assert re.findall(r"^\| `(\w+)` \|", card, re.MULTILINE) == [each.name for each in known.details]
        assert all(row.replace("\\|", "").count("|") == 5 for row in card.splitlines() if row.startswith("| "))
        assert f'use = "{name}"' in re.sub(" +", " ", card)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_no_link_of_the_site_leads_out_of_it(page: Path, site: ModuleType) -> None:
    text = site.inside(page.read_text(encoding="utf-8"))
    cards = set(METHODS)
    for target, anchor in re.findall(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)", text):
        if "://" in target:
            continue
        assert (page.parent / target).is_file() or (target == "cards.md" and anchor in cards), target


def test_a_link_out_of_the_docs_becomes_words_and_a_methods_one_its_card(site: ModuleType) -> None:
    assert site.inside("see [it](../methods/gradsamp.py) and [that](other.md#x)") == (
        "see [it](cards.md#gradsamp) and [that](other.md#x)"
    )
    assert site.inside("[a report](../reports/q/1/report.md#top)") == (
        "a report (`reports/q/1/report.md` in the repository)"
    )
    assert site.inside("[`SECURITY.md`](../SECURITY.md)") == "`SECURITY.md`"
