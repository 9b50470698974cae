"""What every benchmark writes: machine, versions, commit, seed, settings, rows, and checks that hold or do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy", "accelerate")


@dataclass(frozen=True)
class Check:
    """A measured value and the bound that it must keep; `holds` decides the exit status."""

    name: str
    value: float
    bound: float
    unit: str
    holds: bool


def at_least(name: str, value: float, bound: float, unit: str) -> Check:
    return Check(name, value, bound, unit, value >= bound)


def at_most(name: str, value: float, bound: float, unit: str) -> Check:
    return Check(name, value, bound, unit, value <= bound)


@dataclass
class Report:
    """One run of one benchmark."""

    name: str
    seed: int
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"machine": machine(), "versions": versions(), "commit": commit()}

    def checks_text(self) -> str:
        lines = [
            f"{'holds' if c.holds else 'FAILS'}  {c.name}: {c.value:.4g} {c.unit} (bound {c.bound:.4g})"
            for c in self.checks
        ]
        return "\n".join(lines)


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """--quick, --json and --store, as every benchmark has them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the same checks at a small size, about a minute")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--store", type=Path, default=Path("store"), help="artifact store (default: store)")
    return parser


def finish(report: Report, path: Path | None, show: Callable[[str], None] = print) -> int:
    """Print the checks, write the JSON, and return the exit status: 1 when a check does not hold."""
    where = machine()
    show(f"\n{report.name}: {where['processor']}, {where['cores']} cores, {versions()}, commit {commit()}")
    show(report.checks_text())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if all(check.holds for check in report.checks) else 1


def machine() -> dict[str, Any]:
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(terse=True)}


def versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def commit() -> str:
    return _output(["git", "rev-parse", "--short", "HEAD"]) or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
