"""docs/suite.md: its tables are the schema's, its recipes are suites, and every name in it is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from json_schema import refusal

from energybench.cli.suite_page import BEGIN, END, TABLES, markdown
from energybench.cli.suite_schema import suite_schema
from energybench.suite.suite import Suite, load, schema_json
from energybench.suite.toml_positions import positions

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "suite.md").read_text(encoding="utf-8")
# Each recipe's question and its lines.
RECIPES = re.findall(
    r"^### ([^\n]+)\n(?:(?!^##).)*?^```toml\n(.*?)^```", PAGE.partition("## Every key")[0], re.M | re.S
)
WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 2, lr = 0.1 }
"""
METHOD = '[[method]]\nuse = "gradsamp"\n'
COMMAND = '[[method]]\nname = "gradsamp"\ncommand = "true"\n'


def completed(recipe: str) -> str:
    """The lines of a recipe with what they leave out of a suite."""
    text = 'schema = 1\nsuite = "s"\n' + recipe
    commands = "\ncommand" in recipe
    text += "" if "[[workload]]" in recipe else WORKLOAD
    return text + ("" if "[[method]]" in recipe else COMMAND if commands else METHOD)


def test_the_page_is_what_the_schema_gives() -> None:
    """After a new key, method, model or data set: energybench schema --markdown docs/suite.md"""
    assert markdown(PAGE) == PAGE
    assert markdown() in PAGE.replace("\n\n<!-- to here -->", "")


def test_every_key_of_every_table_has_a_row() -> None:
    schema = schema_json()
    sections = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert set(TABLES) == set(schema["$defs"])
    for name, table in schema["$defs"].items():
        rows = re.findall(r"^\| `(\w+)` \|", sections[TABLES[name]], re.MULTILINE)
        assert rows == list(table["properties"]), name
    required = {each for rows in sections.values() for each in re.findall(r"^\| `(\w+)` .*\*required\*", rows, re.M)}
    models = Suite.model_json_schema()
    tables = [models, *models["$defs"].values()]
    assert required == {key for table in tables for key in table.get("required", ())} - {"workload"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0])
def test_a_recipe_is_a_suite_that_an_editor_admits(recipe: tuple[str, str], tmp_path: Path) -> None:
    import tomllib

    text = completed(recipe[1])
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "s.toml").workloads
    assert refusal(suite_schema(), tomllib.loads(text)) is None
    assert positions(text)


def test_every_recipe_of_the_page_is_tried() -> None:
    recipes = PAGE.partition("## Recipes")[2].partition("\n## ")[0]
    assert recipes.count("\n### ") == recipes.count("```toml") == len(RECIPES)


def test_the_settings_that_the_page_shows_can_be_set(tmp_path: Path) -> None:
    shown = re.findall(r"^\|.*`--set '?([^`']+?)'?`", PAGE, re.MULTILINE)
    assert len(shown) == 6
    stack = '[[method]]\nname = "ssprop+dropout"\nuse = ["ssprop", "dropout"]\nssprop = { drop = 0.8 }\n'
    alone = completed(WORKLOAD.replace('"w"', '"small"') + METHOD)
    for text in shown:
        # Every method has it: so says the page, and a stack's parameters stand in tables.
        (tmp_path / "s.toml").write_text(alone if text.startswith("method.") else alone + stack, encoding="utf-8")
        assert load(tmp_path / "s.toml", overrides=[text]).stamp == [f"--set {text}"]


def test_the_tables_are_written_into_a_page_and_the_rest_of_it_is_kept(tmp_path: Path) -> None:
    before, _, rest = PAGE.partition(BEGIN)
    old = f"{before}mine\n\n{BEGIN}\nan older table\n{END}\nand mine"
    written = markdown(old)
    assert written == f"{before}mine\n\n{BEGIN}{rest.partition(END)[0]}{END}\nand mine"
    assert markdown(written) == written
    assert markdown("no marks") == markdown()
