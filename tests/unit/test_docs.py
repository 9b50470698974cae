"""What the pages under docs/ say of the program is so."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from model.catalog import FILES
from model.catalog_items import CATALOG_SCHEMA
from model.config import Config, parse_config
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
REFERENCE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "reference.py"))


def test_the_configuration_page_is_up_to_date() -> None:
    page = REFERENCE["configuration_page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == page, "run python -m docs.reference"


def test_a_sentence_says_what_each_field_does() -> None:
    assert REFERENCE["undocumented"]() == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    shown = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", shown)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_runs_exists(page: Path) -> None:
    modules = set(re.findall(r"python -m ((?:service|model|offline|benchmarks)[\w.]*)", page.read_text()))
    assert [module for module in sorted(modules) if find_spec(module) is None] == []


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(module, options) of every job that a page runs."""
    found = re.findall(r"python -m (offline[\w.]*)([^\n`]*)", page.read_text())
    return [(module, re.findall(r"(?<= )--(?!help)[\w-]+", arguments)) for module, arguments in found]


def sources(module: str) -> str:
    """The code that may define a job's options."""
    spec = find_spec(module)
    assert spec
    assert spec.origin
    path = Path(spec.origin)
    main = path.with_name("__main__.py") if path.name == "__init__.py" else path
    return main.read_text() + (ROOT / "offline" / "jobs.py").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_gives_to_a_job_exists(page: Path) -> None:
    unknown = [(m, option) for m, options in commands(page) for option in options if f'"{option}"' not in sources(m)]
    assert unknown == []


def test_the_example_configuration_is_valid() -> None:
    page = (ROOT / "docs" / "own-data.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example
    assert parse_config(tomllib.loads(example[1]), Config).dataset == "shop"


def test_the_file_formats_name_every_column_and_every_file_of_a_catalog() -> None:
    page = (ROOT / "docs" / "files.md").read_text()
    columns = [*ITEM_SCHEMA.names, *INTERACTION_SCHEMA.names, *CATALOG_SCHEMA.names]
    files = [name.replace("image.npy", "<signal>.npy").replace("image_o", "<signal>_o") for name in FILES]
    files = [name for name in files if not name.startswith(("cf", "text"))]
    assert [name for name in [*columns, *files] if f"`{name}`" not in page] == []


def test_every_decision_is_dated() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert headings
    assert [heading for heading in headings if not re.match(r"20\d\d-\d\d-\d\d · \S", heading)] == []


def test_the_drawing_scales_to_the_page() -> None:
    drawing = (ROOT / "docs" / "dataflow.svg").read_text()
    assert re.search(r"<svg[^>]* viewBox=", drawing)
    assert "<title>" in drawing
