"""One frozen object, checked at the start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_every_setting_says_what_it_does() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undocumented == []


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_the_body_limit_holds_the_longest_valid_request() -> None:
    four_byte_id = "𝕏" * 256
    longest = (1000 + 500) * (len(four_byte_id.encode()) + len('"",'))
    assert Settings().max_body_bytes > longest + 1000


def test_a_bad_value_stops_the_start_and_is_named() -> None:
    environment = {"RECOMMENDER_PORT": "eighty", "RECOMMENDER_DEVICE": "abacus"}
    run = subprocess.run([sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "RECOMMENDER_PORT='eighty'" in run.stderr
    assert "RECOMMENDER_DEVICE='abacus'" in run.stderr
    assert "Traceback" not in run.stderr
