"""The deployment files fit the program that they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_example_environment_names_every_setting_at_its_default() -> None:
    lines = (ROOT / "deploy" / "service.env.example").read_text().splitlines()
    named = dict(line[1:].split("=", 1) for line in lines if re.match(r"#RECOMMENDER_\w+=", line))
    assert named == {f"RECOMMENDER_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}


def test_service_reindex_and_redis_are_composed() -> None:
    assert COMPOSE["services"].keys() == {"service", "reindex", "redis"}
    assert COMPOSE["services"]["reindex"]["entrypoint"][:3] == ["python", "-m", "offline.reindex"]
    assert "restart" not in COMPOSE["services"]["reindex"]


def test_service_and_reindex_share_image_and_store() -> None:
    service, reindex = COMPOSE["services"]["service"], COMPOSE["services"]["reindex"]
    assert (service["image"], service["volumes"]) == (reindex["image"], reindex["volumes"])


def test_the_service_does_not_wait_for_redis() -> None:
    assert "depends_on" not in COMPOSE["services"]["service"]


def test_the_orchestrator_waits_longer_than_the_drain() -> None:
    grace_s = int(COMPOSE["services"]["service"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout_s"].default


def test_every_file_that_the_image_copies_gets_past_dockerignore() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert set(copied) == allowed


def test_the_image_runs_the_service_and_not_as_root() -> None:
    assert re.findall(r"^(USER .*|CMD .*)$", DOCKERFILE, re.M) == [
        "USER recommender",
        'CMD ["python", "-m", "service"]',
    ]
