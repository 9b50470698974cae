"""h([REC]) after every prefix of every training window, computed once and kept in chunks.

One pass over a window of L items gives L states: a [REC] tail after each prefix (see model/prompt.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.config import Config
from model.encoder import UserEncoder
from model.heads import Normaliser, float_tensor
from model.prompt import Prompt, Tail
from offline.dataset import Dataset
from offline.fit import CachedStates, Examples
from offline.windows import Window, WindowSampler, cut_window, state_windows

CHUNK_WINDOWS = 256
"""Windows encoded between two writes: what an interruption can cost."""
MEASURED_WINDOWS = 64


def many_tails(encoder: UserEncoder, history: np.ndarray) -> Prompt:
    """A prompt that ends in the instruction and [REC] after every prefix of `history`."""
    instruction = encoder.builder.instruction
    tails = [Tail(instruction, length) for length in range(1, len(history) + 1)]
    return encoder.builder.build(history, encoder.segments, tails)


def cached_examples(
    encoder: UserEncoder, dataset: Dataset, config: Config, validation_users: np.ndarray, folder: Path
) -> tuple[Examples, Examples]:
    """(training examples, validation examples of `validation_users`); chunks found in `folder` are read back."""
    windows = state_windows(dataset, config.prompt.max_history, config.train.max_state_windows, config.seed)
    windows = [cut_window(window, encoder) for window in windows]
    states = _encode(encoder, windows, folder)
    users = np.concatenate([np.full(len(window.targets), window.user) for window in windows])
    targets = np.concatenate([window.targets for window in windows])
    held_out = np.concatenate([_held_out(window) for window in windows])
    validating = held_out & np.isin(users, validation_users)
    train, validation = (
        Examples(CachedStates(states[chosen]), users[chosen], targets[chosen]) for chosen in (~held_out, validating)
    )
    return train, validation


def measure_states(encoder: UserEncoder, dataset: Dataset, config: Config) -> None:
    """Fix mean and spread of h([REC]) before the first step, on windows of MEASURED_WINDOWS users."""
    norm = encoder.heads.state_norm
    if isinstance(norm, Normaliser):
        sampler = WindowSampler(dataset, config.prompt.max_history, config.seed)
        windows = sampler.draw(MEASURED_WINDOWS, np.random.default_rng([config.seed, 5]))
        prompts = [many_tails(encoder, cut_window(window, encoder).history) for window in windows]
        norm.measure(float_tensor(encoder.encode_states(prompts)).to(encoder.heads.device))


def _held_out(window: Window) -> np.ndarray:
    held_out = np.zeros(len(window.targets), bool)
    held_out[-1] = window.validates
    return held_out


def _encode(encoder: UserEncoder, windows: list[Window], folder: Path) -> np.ndarray:
    """float32 [number of targets, D], window by window."""
    folder.mkdir(exist_ok=True)
    chunks: list[np.ndarray] = []
    with tqdm(total=len(windows), desc="states", unit="window", disable=None) as bar:
        for start in range(0, len(windows), CHUNK_WINDOWS):
            path = folder / f"{start:08d}.npy"
            part = windows[start : start + CHUNK_WINDOWS]
            if not path.exists():
                prompts = [many_tails(encoder, window.history) for window in part]
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, encoder.encode_states(prompts), allow_pickle=False)
                temporary.replace(path)
            chunk: np.ndarray = np.load(path, allow_pickle=False)
            chunks.append(chunk)
            bar.update(len(part))
    states: np.ndarray = np.concatenate(chunks)
    return states
