"""`python -m docs.reference`: write `docs/configuration.md` from the configuration's and the settings' own fields."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from model.config import PRESETS, Config
from service.settings import Settings

PAGE = Path(__file__).resolve().parent / "configuration.md"
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "pattern": "pattern"}

_INTRODUCTION = """\
# Configuration

Made by `python -m docs.reference` from the fields of `model/config.py` and `service/settings.py`; change those, not
this page.

A run is described by one TOML file. `--config NAME` takes a preset of `offline/configs/`: {presets}.
`--config FILE` takes any other `.toml` file. `--set section.field=value`, as often as needed, overrides one field; the
value is read as JSON where it is JSON, as text otherwise. A field that is unknown or out of range stops the job and is
named. The checkpoint keeps the configuration that made it, so that reindexing and serving never ask for it again.

The service is set by environment variables alone; `deploy/service.env.example` has them all.
"""


def configuration_page() -> str:
    """The page as it is committed; the same on every machine."""
    presets = ", ".join(f"`{path.stem}`" for path in sorted(PRESETS.glob("*.toml")))
    top = {name: field for name, field in Config.model_fields.items() if not _is_section(field)}
    sections = _sections()
    parts = [
        _INTRODUCTION.format(presets=presets),
        _table("Top of the file", _first_line(Config), top),
        *(_table(f"[{name}]", _first_line(kind), kind.model_fields) for name, kind in sections.items()),
        _table(
            "Settings of the service",
            _first_line(Settings),
            {f"RECOMMENDER_{name.upper()}": field for name, field in Settings.model_fields.items()},
        ),
    ]
    return "\n".join(parts)


def undocumented() -> list[str]:
    """Fields whose effect no sentence says."""
    kinds: list[type[BaseModel]] = [Config, Settings, *_sections().values()]
    return [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if not _is_section(field) and not field.description
    ]


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: typing.cast(type[BaseModel], field.annotation)
        for name, field in Config.model_fields.items()
        if _is_section(field)
    }


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _table(title: str, introduction: str, fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{name}` | {_cell(_values(field))} | {_default(field)} | {_cell(field.description or '')} |"
        for name, field in fields.items()
    ]
    return "\n".join(
        [f"## {title}", "", introduction, "", "| field | values | default | effect |", "|---|---|---|---|", *rows, ""]
    )


def _values(field: FieldInfo) -> str:
    """What a field accepts: its type, then its bounds."""
    bounds = [
        f"{words} `{bound}`" if name == "pattern" else f"{words} {bound}"
        for part in field.metadata
        for name, words in _BOUNDS.items()
        if (bound := getattr(part, name, None)) is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type_name(arguments[0])}"
    if arguments:
        return " or ".join("unset" if kind is type(None) else _type_name(kind) for kind in arguments)
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names[annotation]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "unset"
    return f"`{json.dumps(field.default, default=str)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(configuration_page())
    print(f"wrote {PAGE.name}")
