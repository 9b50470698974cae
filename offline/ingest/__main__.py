"""`python -m offline.ingest {generic,amazon2018,amazon2023} --out DIR ...`: raw files to a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from offline.ingest.download import DownloadSettings
from offline.ingest.job import FORMATS, Arguments, run
from offline.ingest.pictures import PictureLimits
from offline.jobs import run_job

_FILES = {
    "generic": ("--interactions", "--items"),
    "amazon2018": ("--reviews", "--metadata"),
    "amazon2023": ("--reviews", "--metadata"),
}
_HELP = {
    "generic": "items and interactions as JSON lines, CSV or Parquet",
    "amazon2018": "Amazon reviews 2018 (and 2014): reviewerID, asin, unixReviewTime",
    "amazon2023": "Amazon reviews 2023: user_id, parent_asin, timestamp",
}


def parser() -> argparse.ArgumentParser:
    """The command line; every format has its own two files and shares all other options."""
    top = argparse.ArgumentParser(prog="python -m offline.ingest", description="Make a dataset from raw files.")
    formats = top.add_subparsers(dest="format", required=True)
    for name in FORMATS:
        command = formats.add_parser(
            name, help=_HELP[name], description=_HELP[name], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        events, items = _FILES[name]
        command.add_argument(events, dest="events", type=Path, required=True, metavar="FILE", help="the events")
        command.add_argument(items, dest="items", type=Path, required=True, metavar="FILE", help="the catalog")
        _add_common(command)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    downloads, pictures = DownloadSettings(), PictureLimits()
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="dataset folder to make")
    add("--k-core", type=int, default=5, metavar="K", help="fewest events of a user and of an item")
    add("--test-events", type=int, default=1, metavar="N", help="newest events of a user that are the test")
    add("--drop-unknown-items", action="store_true", help="drop events of items that the items file does not have")
    add("--no-download", action="store_true", help="fetch no picture; URLs are kept in the table")
    add("--allow-private-addresses", action="store_true", help="let downloads reach private and loopback addresses")
    add("--download-time-limit-s", type=float, default=downloads.time_limit_s, help="for all pictures together")
    add("--download-timeout-s", type=float, default=downloads.timeout_s, help="for one request")
    add("--download-concurrency", type=int, default=downloads.concurrency, help="requests at a time")
    add("--download-attempts", type=int, default=downloads.attempts, help="for one picture")
    add("--max-image-bytes", type=int, default=pictures.max_bytes, help="larger files are refused")
    add("--max-image-pixels", type=int, default=pictures.max_pixels, help="larger pictures are refused undecoded")
    add("--force", action="store_true", help="run even if the result is up to date")


def arguments_of(options: argparse.Namespace) -> Arguments:
    return Arguments(
        format=options.format,
        events=options.events,
        items=options.items,
        out=options.out,
        k_core=options.k_core,
        num_test=options.test_events,
        keep_unknown_items=not options.drop_unknown_items,
        download=not options.no_download,
        downloads=DownloadSettings(
            concurrency=options.download_concurrency,
            timeout_s=options.download_timeout_s,
            attempts=options.download_attempts,
            time_limit_s=options.download_time_limit_s,
            allow_private=options.allow_private_addresses,
        ),
        pictures=PictureLimits(max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels),
        force=options.force,
    )


def main() -> None:
    options = parser().parse_args()
    print(run(arguments_of(options)))


if __name__ == "__main__":
    run_job(main)
