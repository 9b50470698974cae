"""Stretches of training events: what a training step is shown, and what it must foresee.

Only training events ever enter (Dataset.train_events); the validation target appears in `state_windows` alone, where it
is marked and kept apart.

# L items of a window
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from model.encoder import UserEncoder
from offline.dataset import Dataset


@dataclass(frozen=True)
class Window:
    """A history of L items and the L events that follow each of its prefixes; `targets[-1]` follows the whole."""

    user: int
    history: np.ndarray
    """int [L]: item rows, oldest first"""
    targets: np.ndarray
    """int [L]"""
    validates: bool = False
    """Whether `targets[-1]` is the validation target, never to be trained on."""


class WindowSampler:
    """Random windows; the draw depends on (seed, step) alone, so that a resumed run continues as if never stopped."""

    def __init__(self, dataset: Dataset, max_history: int, seed: int) -> None:
        self._dataset = dataset
        self._max_history = max_history
        self._seed = seed
        self._users = np.array([u for u in range(len(dataset.users)) if len(dataset.train_events(u)) >= 2])

    def generator(self, step: int) -> np.random.Generator:
        """The randomness of one step's windows, tails and negatives."""
        return np.random.default_rng([self._seed, step, 0])

    def draw(self, num: int, generator: np.random.Generator) -> list[Window]:
        """`num` windows of 2 to `max_history` items where possible, of different users where there are so many."""
        users = generator.choice(self._users, num, replace=num > len(self._users))
        return [self._window(int(user), generator) for user in users]

    def _window(self, user: int, generator: np.random.Generator) -> Window:
        events = self._dataset.train_events(user)
        longest = min(self._max_history, len(events) - 1)
        length = int(generator.integers(min(2, longest), longest + 1))
        start = int(generator.integers(0, len(events) - length))
        return Window(user, events[start : start + length], events[start + 1 : start + length + 1])


def state_windows(dataset: Dataset, max_history: int, max_windows: int | None, seed: int) -> list[Window]:
    """Windows that cover every training event once as a target, and every validation target.

    The last window of a user holds the newest training events, as serving would show them; earlier ones lie before it
    without overlap. With more than `max_windows`, the earlier ones are thinned at random.
    """
    last: list[Window] = []
    earlier: list[Window] = []
    for user in range(len(dataset.users)):
        events = dataset.train_events(user)
        follow = np.append(events, dataset.validation_target(user))[1:]
        for end in range(len(events), 0, -max_history):
            part = slice(max(0, end - max_history), end)
            window = Window(user, events[part], follow[part], validates=end == len(events))
            (last if window.validates else earlier).append(window)
    room = len(earlier) if max_windows is None else max(0, max_windows - len(last))
    if room < len(earlier):
        kept = np.sort(np.random.default_rng(seed).choice(len(earlier), room, replace=False))
        earlier = [earlier[at] for at in kept]
    return last + earlier


def cut_window(window: Window, encoder: UserEncoder) -> Window:
    """The window with its oldest items dropped until its prompt fits, as serving would drop them."""
    history = encoder.builder.keep_newest(window.history, encoder.segments)
    return replace(window, history=history, targets=window.targets[len(window.targets) - len(history) :])
