"""What the serving benchmark makes of batches and rows, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.served import Batch, steady_state
from benchmarks.serving_figures import best_rate, plot, stages_text, table

# Five batches of 0.8 s, one a second; the first and the last are smaller than the others.
BATCHES = [
    Batch(float(at), at + 0.8, num, 100 * num, queue_s=2.0 * num, cpu_s=1.5 * at, stage_s={"forward": 0.5 * at})
    for at, num in enumerate((1, 4, 4, 4, 2))
]


def row(**changes: Any) -> dict[str, Any]:
    figures = steady_state(BATCHES, 4.0)
    same = {"prompts": "image tokens", "lengths": "10 items", "system": "ours", "round": 0, "failed": 0}
    return {
        **same,
        **figures,
        "requests/core_s": 2.0,
        "tokens/s": 400.0,
        "share_of_peak": 0.5,
        "p50_ms": 1.0,
        **changes,
    }


def open_loop(*points: tuple[float, float, int]) -> list[dict[str, Any]]:
    return [{"offered/s": rate, "p50_ms": p99 / 2, "p99_ms": p99, "failed": failed} for rate, p99, failed in points]


def test_the_rate_is_that_between_the_ends_of_full_batches() -> None:
    assert steady_state(BATCHES, 4.0)["requests/s"] == pytest.approx(4.0)


def test_what_the_server_did_after_the_callers_stopped_does_not_count() -> None:
    assert steady_state(BATCHES, 4.0)["batches"] == 2
    assert steady_state(BATCHES, 5.0)["requests/s"] == pytest.approx((4 + 4 + 2) / 3)


def test_cores_queue_and_stages_are_shares_of_the_same_batches() -> None:
    figures = steady_state(BATCHES, 4.0)
    assert figures["cores"] == pytest.approx(1.5)
    assert figures["queue_ms"] == pytest.approx(2000)
    assert figures["stage_ms_per_request"] == {"forward": pytest.approx(125)}
    assert figures["device_busy"] == pytest.approx(0.8)


def test_too_few_batches_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="too few to measure"):
        steady_state(BATCHES, 2.0)


def test_the_best_rate_keeps_the_bound_and_answers_everyone() -> None:
    assert best_rate(row(open_loop=open_loop((1, 50, 0), (2, 90, 0), (3, 200, 0))), 100) == 2
    assert best_rate(row(open_loop=open_loop((1, 50, 0), (2, 90, 3))), 100) == 1
    assert best_rate(row(open_loop=open_loop((1, 500, 0))), 100) == 0


def test_stages_leave_no_device_time_out() -> None:
    assert stages_text(row()) == "queue 2000.00  device 200.00  forward 125.00  other 75.00"


def test_the_table_shows_medians_and_every_round() -> None:
    rows = [row(), row(round=1, **{"requests/s": 2.0})]
    line = table(rows, 100).splitlines()[1].split()
    assert line[:8] == ["image", "tokens", "10", "items", "ours", "3.00", "4.00", "2.00"]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot([row(), row(open_loop=open_loop((1, 50, 0), (2, 90, 0)))], 100, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
