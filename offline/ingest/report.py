"""What the operator is told: counts before and after each step, and what was dropped and why. JSON and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from offline.ingest.events import Events
from offline.ingest.reasons import Reasons
from offline.ingest.records import UNTITLED
from offline.ingest.sources import RowFile

_SHOWN = 5  # examples of one reason in the Markdown; the JSON has more
RULES = (
    "Times: numbers from 100,000,000,000 on are milliseconds, smaller ones seconds; text is ISO 8601, UTC if unsaid.",
    "An event is a (user, item) pair; of repeated ones the earliest counts.",
    "k-core: items keep at least k events, users also two more than there are test events, until nothing falls out.",
    "Split: a user's last events (one, unless asked) are test targets, the one before validates, the others train.",
    "Events of one user in the same second are ordered by a hash of user and item, which tells nothing of either.",
    "An item id that comes twice: the first row counts, what it lacks is taken from later rows.",
    f'A title that is missing or unusable after removing markup becomes "{UNTITLED}"; the item is kept.',
    "An item whose picture is missing or unusable is kept without one.",
)


@dataclass
class Step:
    name: str
    events: int
    users: int
    items: int
    note: str = ""


@dataclass
class Report:
    """Filled while the job runs, in the order of its steps."""

    format_name: str
    steps: list[Step] = field(default_factory=list)
    files: list[RowFile] = field(default_factory=list)
    items: dict[str, int] = field(default_factory=dict)
    item_remarks: Reasons = field(default_factory=Reasons)
    pictures: dict[str, int] = field(default_factory=dict)
    picture_failures: Reasons = field(default_factory=Reasons)
    hosts_given_up: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)

    def step(self, name: str, events: Events, note: str = "") -> None:
        self.steps.append(Step(name, len(events), events.num_users, events.num_items, note))

    def as_json(self) -> dict[str, Any]:
        return {
            "format": self.format_name,
            "rules": list(RULES),
            "steps": [vars(step) for step in self.steps],
            "files": [
                {"file": f.path.name, "rows": f.rows, "bad_rows": f.bad.total, "bad": f.bad.as_json()}
                for f in self.files
            ],
            "items": self.items,
            "item_remarks": self.item_remarks.as_json(),
            "pictures": self.pictures,
            "picture_failures": self.picture_failures.as_json(),
            "hosts_given_up": self.hosts_given_up,
            "splits": self.splits,
        }

    def as_markdown(self) -> str:
        return "\n\n".join([f"# Dataset from {self.format_name} files", *self._sections()]) + "\n"

    def summary(self) -> str:
        """The steps and the picture outcomes, for the end of the job."""
        return f"{self._steps_table()}\n\nitems: {_counts(self.items)}\npictures: {_counts(self.pictures)}"

    def _sections(self) -> list[str]:
        bad_rows = sum(file.bad.total for file in self.files)
        return [
            "## Steps\n\n" + self._steps_table(),
            "Split: " + _counts(self.splits),
            "## Files\n\n"
            + _table(["file", "rows", "bad rows"], [[f.path.name, f.rows, f.bad.total] for f in self.files]),
            *(_remarks(file.bad, f"Bad rows of {file.path.name}") for file in self.files if file.bad.total),
            *([] if bad_rows else ["No row was bad."]),
            "## Items\n\n" + _table(["what", "items"], [[k, v] for k, v in self.items.items()]),
            *([_remarks(self.item_remarks, "Remarks")] if self.item_remarks.total else []),
            "## Pictures\n\n" + _table(["outcome", "items"], [[k, v] for k, v in self.pictures.items()]),
            *self._picture_failures(),
            "## Rules\n\n" + "\n".join(f"- {rule}" for rule in RULES),
        ]

    def _picture_failures(self) -> list[str]:
        if not self.picture_failures.total:
            return []
        hosts = f"Hosts given up after repeated failures: {', '.join(self.hosts_given_up)}.\n\n"
        return [
            _remarks(self.picture_failures, "Without a usable picture"),
            (hosts if self.hosts_given_up else "")
            + "Run the same command with `--force` to try the failed downloads again; what was downloaded is kept.",
        ]

    def _steps_table(self) -> str:
        rows = [[step.name, step.events, step.users, step.items, step.note] for step in self.steps]
        return _table(["step", "events", "users", "items", "note"], rows)


def _remarks(reasons: Reasons, heading: str) -> str:
    lines = [f"### {heading}"]
    for entry in reasons.as_json():
        examples = "\n".join(f"  - `{example.replace('`', chr(39))}`" for example in entry["examples"][:_SHOWN])
        more = ", such as" if entry["count"] > _SHOWN else ""
        lines.append(f"- {entry['reason']}: {entry['count']:,}{more}\n{examples}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _table(header: list[str], rows: list[list[Any]]) -> str:
    """Markdown that is aligned as plain text too."""
    cells = [header, *([f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [bool(rows) and isinstance(rows[0][column], int) for column in range(len(header))]

    def line(row: list[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = (("-" * (w - 1) + ":") if n else "-" * w for w, n in zip(widths, numeric, strict=True))
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
