"""The committed description is the service's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import ErrorBody
from service.openapi import OPENAPI_FILE, openapi_text
from service.schemas import RecommendRequest

DESCRIPTION = json.loads(OPENAPI_FILE.read_text())
OPERATIONS = [(f"{m} {path}", o) for path, methods in DESCRIPTION["paths"].items() for m, o in methods.items()]


def test_the_committed_description_is_up_to_date() -> None:
    assert OPENAPI_FILE.read_text() == openapi_text(), "run python -m service.openapi"


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_error_of_a_route_has_the_one_form_and_an_example(name: str, operation: dict[str, Any]) -> None:
    errors = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
    assert "500" in errors
    for answer in errors.values():
        content = answer["content"]["application/json"]
        assert content["schema"]["$ref"].endswith("/ErrorBody")
        assert ErrorBody.model_validate(content["example"]).code


@pytest.mark.parametrize("schema", ["RecommendRequest", "RecommendResponse", "ItemResponse", "ItemsResponse"])
def test_what_travels_has_an_example(schema: str) -> None:
    assert DESCRIPTION["components"]["schemas"][schema]["examples"]


def test_the_examples_of_a_request_are_valid() -> None:
    for example in DESCRIPTION["components"]["schemas"]["RecommendRequest"]["examples"]:
        assert RecommendRequest.model_validate(example).query().k
