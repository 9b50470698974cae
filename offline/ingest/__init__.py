"""From raw files to a dataset: read, clean, filter, split, fetch pictures, report. Run `python -m offline.ingest`."""
