"""`python -m offline.demo`: make the synthetic shop."""

from __future__ import annotations

import argparse
from pathlib import Path

from offline.demo.write import make_demo_data
from offline.jobs import run_job


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m offline.demo", description="Make the synthetic shop.")
    parser.add_argument("--out", type=Path, default=Path("store/raw/demo"), help="folder (default: store/raw/demo)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    arguments = parser.parse_args()
    print(make_demo_data(arguments.out, arguments.seed))
    return 0


if __name__ == "__main__":
    run_job(main)
