"""What the README shows is so: its request, its answer, its commands, its tables, its tree."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from service.schemas import RecommendRequest, RecommendResponse

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def block(language: str, start: str = "") -> str:
    """The first fenced block of a language after `start`."""
    found = re.search(rf"```{language}\n(.*?)```", README[README.index(start) :], re.DOTALL)
    assert found, f"no {language} block after {start!r}"
    return found[1]


def request() -> RecommendRequest:
    """The body of the curl line, as the service would read it."""
    words = shlex.split(block("sh", "## Ask").replace("\\\n", " "))
    assert words[0] == "curl"
    return RecommendRequest.model_validate_json(words[words.index("-d") + 1])


def tree() -> list[str]:
    """Paths of the file tree, by indentation."""
    paths, folder = [], ""
    for line in block("", "## What lies where").splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        paths.append(name if name is folder else folder + name)
    return paths


def test_the_answer_is_one_of_the_service() -> None:
    shown = json.loads(block("json", "<!-- answer -->"))
    answer = RecommendResponse.model_validate(shown)
    assert answer.model_dump(exclude_unset=True) == shown


def test_the_answer_fits_the_question() -> None:
    answer = RecommendResponse.model_validate_json(block("json", "<!-- answer -->"))
    assert len(answer.items) == request().k
    assert len(request().history) == answer.history_used + len(answer.unknown_items)
    for item in answer.items:
        assert set(request().include) <= item.model_fields_set


def test_the_addends_of_the_answer_sum_to_its_scores() -> None:
    answer = RecommendResponse.model_validate_json(block("json", "<!-- answer -->"))
    for item in answer.items:
        assert item.signals
        assert item.signals.image + item.signals.cf + item.signals.text == pytest.approx(item.score, abs=1e-5)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/own-data.md"])
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert targets
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []


def test_every_file_of_the_tree_exists() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_folder_of_code_is_in_the_tree() -> None:
    packages = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} - {"benchmarks/"}
    assert packages <= set(tree())


def test_the_table_of_routes_is_the_one_of_the_service() -> None:
    described = json.loads((ROOT / "openapi.json").read_text())["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)`", README, re.MULTILINE)) == routes


def test_every_status_of_the_readme_is_one_of_the_service() -> None:
    described = json.loads((ROOT / "openapi.json").read_text())["paths"]
    answered = {
        int(s) for methods in described.values() for operation in methods.values() for s in operation["responses"]
    }
    sentence = README[README.index("Every error is") :].split("\n\n")[0]
    assert {int(status) for status in re.findall(r"\b[45]\d\d\b", sentence)} == {
        s for s in answered if 400 <= s < 500 or s > 500
    }
