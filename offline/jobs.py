"""What every offline job shares on the command line: which configuration, which store, how errors end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from model.config import Config, load_config
from model.errors import RecommenderError
from model.store import Store


def job_parser(description: str) -> argparse.ArgumentParser:
    """A parser with --config, --set and --store."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", default="demo", help="preset name or .toml file (default: demo)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field; repeatable"
    )
    add_store(parser)
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=Path("store"), help="artifact store (default: store)")


def configured(arguments: argparse.Namespace) -> tuple[Config, Store]:
    return load_config(arguments.config, arguments.set), Store(arguments.store)


def run_job(main: Callable[[], int | None]) -> None:
    """Run a job's main; an error of our family ends it with one readable line and exit status 2."""
    try:
        status = main() or 0
    except RecommenderError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
