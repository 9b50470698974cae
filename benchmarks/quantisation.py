"""What eight-bit weights would do to the answers: the overlap of top tens with bfloat16, on the catalog that is served.

    python -m benchmarks.quantisation [--quick] [--json PATH] [--store store]

The numbers of int8 are emulated exactly, in float32: weights with one scale an output channel, activations with one a
token. It is a question about answers alone; nothing here is fast. DESIGN's bound for keeping such a path is 0.95.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engine import NOTHING, Subject, compare
from benchmarks.report import Report, at_least, benchmark_parser, finish
from model.engine import Engine
from model.language_model import choose_device
from model.packed_decoder import PackedDecoder, Products
from model.store import Store

BFLOAT16, WEIGHTS, BOTH = "bfloat16", "int8 weights", "int8 weights and activations"
MIN_OVERLAP = 0.95


class Int8Products:
    """Products of numbers that int8 can hold, times their scales."""

    def __init__(self, activations: bool) -> None:
        self._activations = activations

    def pack(self, weight: Tensor) -> Tensor:
        return rounded(weight)

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(rounded(x) if self._activations else x, weight, bias)

    def silu(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.silu(self.plain(x, weight))

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        return self.plain(x, weight) * other


def rounded(x: Tensor) -> Tensor:
    """Every row of `x` to the nearest of 255 levels, the largest of them its largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127
    return (x / scale).round() * scale


def main() -> int:
    arguments = benchmark_parser(__doc__.splitlines()[0]).parse_args()
    subject = Subject.load(Store(arguments.store), choose_device("cpu"))
    histories = subject.real_histories(50 if arguments.quick else 300)
    paths: dict[str, tuple[str, Products | None]] = {
        "float32": ("float32", None),
        BFLOAT16: ("bfloat16", None),
        WEIGHTS: ("float32", Int8Products(activations=False)),
        BOTH: ("float32", Int8Products(activations=True)),
    }
    vectors = {}
    for name, (dtype, products) in paths.items():
        encoder = subject.encoder(subject.language_model(dtype))
        decoder = PackedDecoder(encoder.language_model.decoder, consume=True, products=products)
        vectors[name] = Engine(encoder, decoder, NOTHING).encode(histories)
    rows: list[dict[str, Any]] = [
        compare(subject, vectors, path, reference)
        for reference in ("float32", BFLOAT16)
        for path in (BFLOAT16, WEIGHTS, BOTH)
        if path != reference
    ]
    for row in rows:
        print(f"{row['path']:30} against {row['against']:10}", end="")
        print(f"cosine {row['cosine_mean']:.4f} overlap {row['overlap@10']:.3f}")
    settings = {"checkpoint": subject.checkpoint.id, "histories": len(histories), "torch": torch.__version__}
    report = Report("quantisation", 0, settings, rows)
    report.checks = [at_least("overlap of the top ten, bfloat16 with float32", rows[0]["overlap@10"], MIN_OVERLAP, "")]
    return finish(report, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
