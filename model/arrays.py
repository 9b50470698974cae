"""Plain arrays, in memory and memory-mapped from disk. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import ArtifactError


def right_aligned(rows: Sequence[np.ndarray], length: int, padding: int) -> npt.NDArray[np.int64]:
    """int64 [len(rows), length]: the last entries of every array at the end, `padding` in front of them."""
    aligned = np.full((len(rows), length), padding, np.int64)
    for line, own in zip(aligned, rows, strict=True):
        newest = own[-length:]
        line[length - len(newest) :] = newest
    return aligned


def read_array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """Map one array, never unpickling; None in `shape` stands for any length.

    Raises ArtifactError when the file is missing, damaged, or holds another type or shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is missing or no plain array ({error}): make the catalog again") from None
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{path} is no plain array: make the catalog again")
    fits = array.ndim == len(shape) and all(e in (None, a) for e, a in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = f"{np.dtype(dtype)} {['any' if n is None else n for n in shape]}"
        raise ArtifactError(f"{path} holds {array.dtype} {list(array.shape)} where {wanted} belongs")
    return array.view(np.ndarray)  # np.memmap, a subclass, makes every small access several times slower
