"""Configurations: every mistake is named with its field."""

import pytest

from model.config import PRESETS, load_config
from model.errors import InvalidInputError


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_bears_its_file_name(path):
    assert load_config(path.stem).name == path.stem


def test_an_override_reaches_its_field_with_its_type():
    config = load_config("demo", ["prompt.max_history=7", "language_model.source=some/model"])
    assert (config.prompt.max_history, config.language_model.source) == (7, "some/model")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompt.max_history=many"], r"prompt\.max_history.*'many'"),
        (["prompt.colour=red"], r"prompt\.colour"),
        (["train.two_stage=true", "train.head_epochs=0"], "head_epochs"),
        (["train.steps"], "section.field=value"),
    ],
)
def test_a_bad_override_is_named(overrides, message):
    with pytest.raises(InvalidInputError, match=message):
        load_config("demo", overrides)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(InvalidInputError, match="demo"):
        load_config("nothing")
