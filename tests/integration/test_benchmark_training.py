"""The two-pass rival of the training benchmark learns what ours learns: otherwise its speed would say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallRun

from benchmarks.flops import matmul_flops
from benchmarks.training import (
    ALL,
    HARD,
    LAST,
    RELEASED,
    TOGETHER,
    Step,
    compare,
    largest_difference,
    measure,
    prompt_flops,
    summary,
    systems,
)
from benchmarks.training_rival import write_files
from model.prompt import Tail


def small_run(folder: Path, fields: tuple[str, ...] = ("title", "image", "cf"), **train: Any) -> SmallRun:
    """As small runs are, with the CF token in the prompt too and dropout in the heads."""
    config = SmallRun(folder, **train).config
    update = {
        "prompt": config.prompt.model_copy(update={"fields": fields}),
        "heads": config.heads.model_copy(update={"dropout": 0.5}),
    }
    return SmallRun(folder, config.model_copy(update=update))


@pytest.mark.parametrize("loss", ["bce", "softmax_per_signal"])
@pytest.mark.parametrize("fields", [("title", "image"), ("brand", "title", "cf", "image")])
def test_every_other_way_has_the_losses_and_gradients_of_one_pass(
    tmp_path: Path, loss: str, fields: tuple[str, ...]
) -> None:
    run = small_run(tmp_path, fields, loss=loss, risa_weight=0.3, batch_size=6).run
    rows = compare(run, tmp_path / "files")
    assert [row["system"] for row in rows] == [TOGETHER, HARD, RELEASED]
    assert all(0 <= row["loss"] < 1e-5 and 0 <= row["gradient"] < 1e-4 for row in rows)  # float32


def test_a_rival_that_learned_otherwise_is_told_apart() -> None:
    ours = {"risa": torch.tensor([1.0, 2.0]), "rec": torch.tensor([4.0])}
    theirs = {"risa": torch.tensor([1.0, 2.5]), "rec": torch.tensor([4.0])}
    assert largest_difference(ours, theirs) == pytest.approx(0.25)
    assert not largest_difference(ours, {**ours, "rec": torch.tensor([float("nan")])}) <= 1  # not a number is no match
    with pytest.raises(ValueError, match="rec"):
        largest_difference(ours, {"risa": ours["risa"]})


def test_a_rival_reads_the_tokens_that_ours_does(tmp_path: Path) -> None:
    small = small_run(tmp_path)
    step = Step.draw(0, small.run)
    rival = systems(small.run, tmp_path / "files")[HARD]
    prompts = rival.prompts(step.windows, step.generator())
    for window, prompt in zip(step.windows, prompts[len(step.windows) :], strict=True):
        ours = small.encoder.builder.recommend(window.history, small.encoder.segments)
        np.testing.assert_array_equal(prompt.token, ours.token)
    shown = np.concatenate([prompt.item[prompt.item >= 0] for prompt in prompts[: len(step.windows)]])
    assert np.unique(shown).tolist() == list(range(sum(len(window.history) for window in step.windows)))


def test_features_read_one_file_an_item_are_those_of_the_array(tmp_path: Path) -> None:
    small = SmallRun(tmp_path)
    files = write_files(small.features, tmp_path / "files")
    for signal, vectors in small.features.vectors.items():
        np.testing.assert_array_equal(files.vectors[signal][np.array([5, 0, 5])], vectors[[5, 0, 5]])


def test_a_tail_costs_what_going_on_from_its_branch_costs(tmp_path: Path) -> None:
    small = SmallRun(tmp_path)
    builder, segments, shape = small.encoder.builder, small.encoder.segments, small.language_model.decoder.config
    history = np.array([3, 5, 7])
    whole = builder.recommend(history, segments)
    assert prompt_flops(shape, whole) == matmul_flops(shape, [len(whole)])
    two = builder.build(history, segments, [Tail(builder.instruction, 3), Tail(builder.instruction, 2)])
    early = builder.recommend(history[:2], segments)
    trunk = len(early) - len(builder.instruction)
    more = matmul_flops(shape, [len(early)]) - matmul_flops(shape, [trunk])
    assert prompt_flops(shape, two) == matmul_flops(shape, [len(whole)]) + more


def test_every_system_takes_the_same_steps_and_many_tails_have_more_targets(tmp_path: Path) -> None:
    rounds = measure(small_run(tmp_path).run, tmp_path / "files", num_rounds=2, num_steps=2)
    assert [row["samples"] for name in rounds for row in rounds[name]] == [8] * 10
    assert all(row["targets"] == 8 for name in (LAST, HARD, RELEASED) for row in rounds[name])
    assert all(row["targets"] > 8 for row in rounds[ALL])
    assert all(two["tokens"] > 1.2 * one["tokens"] for one, two in zip(rounds[LAST], rounds[HARD], strict=True))
    rows = {name: summary(name, rounds, peak=1e12) for name in rounds}
    assert rows[HARD][f"samples/s over {HARD}"] == 1
    assert all(row["share_of_peak"] > 0 and row["forward_ms"] > 0 for row in rows.values())
