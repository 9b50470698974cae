"""All that is learned: the adaptor, six projectors, [REC], and stand-ins for missing features.

# B histories, K states, n items at hand, V visual width, D language-model width, P shared width, S signals
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.config import SIGNALS, HeadsConfig, Signal

NOTHING, OWN, ALIGNED_TEXT = 0, 1, 2
"""Origin of a feature: missing, from the item's own content, from the aligned text tower in a picture's place."""


@dataclass(frozen=True)
class ItemFeatures:
    """What the frozen encoders say of N items, row-aligned; arrays may be memory-mapped."""

    vectors: Mapping[Signal, np.ndarray]
    """float32 [N, width of the signal]"""
    origin: Mapping[Signal, np.ndarray]
    """uint8 [N]: NOTHING, OWN or ALIGNED_TEXT"""

    def __len__(self) -> int:
        return len(self.vectors["image"])

    def widths(self) -> dict[Signal, int]:
        return {signal: int(self.vectors[signal].shape[1]) for signal in SIGNALS}


class ByteDropout(nn.Module):
    """Dropout that draws eight decisions from one random number, its rate rounded to 256ths.

    On a processor torch draws one number a decision, in one thread: a third of a step of projector training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._threshold = min(255, round(256 * rate))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self._threshold:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self._threshold
        return x * keep * (256 / (256 - self._threshold))


class Projector(nn.Sequential):
    """Linear, LayerNorm, ReLU, Linear: one side of one signal (paper, Eq. 4 and 6), with dropout before each Linear."""

    def __init__(self, in_width: int, shared_width: int, dropout: float) -> None:
        last = nn.Linear(2 * shared_width, shared_width)
        super().__init__(
            ByteDropout(dropout),
            nn.Linear(in_width, 2 * shared_width),
            nn.LayerNorm(2 * shared_width),
            nn.ReLU(),
            ByteDropout(dropout),
            last,
        )
        # Scores start near zero (standard deviation about 0.3): larger ones cost the first hundred steps to undo.
        nn.init.normal_(last.weight, std=(0.3 / shared_width**0.5) ** 0.5 / shared_width**0.5)
        nn.init.zeros_(last.bias)


class Adaptor(nn.Sequential):
    """Linear, LayerNorm, GELU, Linear: a visual feature becomes one token (paper, Eq. 1)."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, out_rms: float) -> None:
        last = nn.Linear(hidden_width, out_width)
        super().__init__(nn.Linear(in_width, hidden_width), nn.LayerNorm(hidden_width), nn.GELU(), last)
        # Tokens start as large as words; much larger ones drown what the frozen layers add to the residual stream.
        nn.init.normal_(last.weight, std=out_rms / (0.65 * hidden_width**0.5))
        nn.init.zeros_(last.bias)


class Normaliser(nn.Module):
    """(x - mean) / spread with constants measured once, by dimension; the identity until measured."""

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def measure(self, x_KD: Tensor) -> None:
        """Take mean and spread from samples [K, width]."""
        self.mean.copy_(x_KD.mean(0))
        self.spread.copy_(x_KD.std(0, correction=0).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


def _state_norm(config: HeadsConfig, state_width: int) -> nn.Module:
    if config.state_norm == "none":
        return nn.Identity()
    if config.state_norm == "layernorm":
        return nn.LayerNorm(state_width, elementwise_affine=False)
    return Normaliser(state_width)


class CFPredictor(nn.Module):
    """The CF feature that an item's picture and text suggest: ridge regression, fitted once on a catalog."""

    weight: Tensor
    mean: Tensor

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(in_width, out_width))
        self.register_buffer("mean", torch.zeros(out_width))

    def fit(self, content_nC: Tensor, cf_nF: Tensor) -> None:
        """`content_nC`: standardised, zero where missing. The penalty is what predicts a held-out fifth best."""
        held_out = torch.arange(len(content_nC)) % 5 == 0
        self.mean.copy_(cf_nF.mean(0))
        target_nF = cf_nF - self.mean

        def error(penalty: float) -> float:
            weight = _ridge(content_nC[~held_out], target_nF[~held_out], penalty)
            return float((content_nC[held_out] @ weight - target_nF[held_out]).square().mean())

        self.weight.copy_(_ridge(content_nC, target_nF, min(PENALTIES, key=error)))

    def forward(self, content_nC: Tensor) -> Tensor:
        return content_nC @ self.weight + self.mean


PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Of the ridge regression, relative to the number of items."""


def _ridge(x_nC: Tensor, y_nF: Tensor, penalty: float) -> Tensor:
    """Weights [C, F] of the least squares with a penalty."""
    gram_CC = x_nC.T @ x_nC + penalty * len(x_nC) * torch.eye(x_nC.shape[1], device=x_nC.device)
    weight_CF: Tensor = torch.linalg.solve(gram_CC, x_nC.T @ y_nF)
    return weight_CF


class Projectors(nn.Module):
    """Maps states and features into the shared space in which a score is one inner product (Eq. 4, 6 and 8).

    `state_width` is D, `widths` are the feature widths by signal. The state need not come from a language model: the
    control without one uses the same class on pooled features.
    """

    def __init__(self, config: HeadsConfig, state_width: int, widths: Mapping[Signal, int]) -> None:
        super().__init__()
        P, dropout = config.shared_width, config.dropout
        self.config = config
        self.user_projectors = nn.ModuleDict({signal: Projector(state_width, P, dropout) for signal in SIGNALS})
        self.item_projectors = nn.ModuleDict({signal: Projector(widths[signal], P, dropout) for signal in SIGNALS})
        self.stand_ins = nn.ParameterDict({signal: nn.Parameter(torch.zeros(widths[signal])) for signal in SIGNALS})
        self.feature_norms = nn.ModuleDict({signal: Normaliser(widths[signal]) for signal in SIGNALS})
        self.state_norm = _state_norm(config, state_width)
        if config.missing_cf == "predicted":
            self.cf_predictor = CFPredictor(widths["image"] + widths["text"], widths["cf"])

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def shared_width(self) -> int:
        return self.config.shared_width

    def measure_features(self, features: ItemFeatures) -> None:
        """Measure mean and spread of every feature on a catalog (once, before training; a sample of large catalogs)."""
        for signal in SIGNALS:
            rows = np.flatnonzero(features.origin[signal] == OWN)
            if len(rows):
                sample = rows[:: max(1, len(rows) // 50_000)]
                norm = self.feature_norms[signal]
                assert isinstance(norm, Normaliser)  # noqa: S101 - narrows for the type checker
                norm.measure(float_tensor(features.vectors[signal][sample]))
        if self.config.missing_cf == "predicted":
            self._fit_cf_predictor(features)

    def _fit_cf_predictor(self, features: ItemFeatures) -> None:
        known = np.flatnonzero(features.origin["cf"] != NOTHING)
        vectors, missing = gather(features, known[:: max(1, len(known) // 50_000)], self.device)
        self.cf_predictor.fit(self._content(vectors, missing), vectors["cf"])

    def _content(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """Picture and text [n, their widths], standardised, zero where missing."""
        parts = [self.feature_norms[s](vectors[s]).masked_fill(missing[s][:, None], 0.0) for s in ("image", "text")]
        return torch.cat(parts, dim=1)

    def cf_features(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """CF features [n, width]: their own, else zero, or under `predicted` what picture and text suggest."""
        if self.config.missing_cf != "predicted":
            return vectors["cf"].masked_fill(missing["cf"][:, None], 0.0)
        predicted = self.cf_predictor(self._content(vectors, missing))
        return torch.where(missing["cf"][:, None], predicted, vectors["cf"])

    def feature(self, signal: Signal, vector_nF: Tensor, missing_n: Tensor) -> Tensor:
        """Normalised features [n, width], the learned stand-in where `missing_n` is True."""
        return torch.where(missing_n[:, None], self.stand_ins[signal], self._normalised(signal, vector_nF))

    def _normalised(self, signal: Signal, vector_nF: Tensor) -> Tensor:
        if not self.config.normalize_features:
            return vector_nF
        normalised: Tensor = self.feature_norms[signal](vector_nF)
        return normalised

    def project_users(self, state_KD: Tensor) -> Tensor:
        """User vectors [K, 3P] of states [K, D]: the user side of Eq. 4 and 6, concatenated."""
        state_KD = self.state_norm(state_KD.float())
        parts = [self.user_projectors[signal](state_KD) for signal in SIGNALS]
        return torch.cat(parts, dim=1)

    def project_items(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """Item vectors [n, 3P]. A signal that takes no part in retrieval adds zeros."""
        if self.config.missing_cf == "predicted":
            vectors = {**vectors, "cf": self.cf_features(vectors, missing)}
        parts = [self._project_signal(signal, vectors[signal], missing[signal]) for signal in SIGNALS]
        return torch.cat(parts, dim=1) * self._missing_cf_scale(missing["cf"])[:, None]

    def _missing_cf_scale(self, missing_n: Tensor) -> Tensor:
        """[n]: 1, or under `rescale` what lets the present signals count for the missing one as well."""
        scale = self.config.missing_cf_scale if self.config.missing_cf == "rescale" else 1.0
        return torch.where(missing_n, scale, 1.0) if "cf" in self.config.signals else torch.ones_like(missing_n.float())

    def _project_signal(self, signal: Signal, vector_nF: Tensor, missing_n: Tensor) -> Tensor:
        if signal not in self.config.signals:
            return vector_nF.new_zeros(len(vector_nF), self.shared_width)
        if signal == "cf" and self.config.missing_cf == "mean":
            norm = self.feature_norms["cf"]
            assert isinstance(norm, Normaliser)  # noqa: S101 - narrows for the type checker
            feature = self._normalised("cf", torch.where(missing_n[:, None], norm.mean, vector_nF))
        elif signal == "cf" and self.config.missing_cf == "predicted":
            feature = self._normalised("cf", vector_nF)
        else:
            feature = self.feature(signal, vector_nF, missing_n)
        projected: Tensor = self.item_projectors[signal](feature)
        if signal == "cf" and self.config.missing_cf in ("zero", "rescale"):
            projected = projected.masked_fill(missing_n[:, None], 0.0)
        return projected

    @torch.inference_mode()
    def item_vectors(self, features: ItemFeatures, batch_size: int = 4096) -> np.ndarray:
        """float32 [N, 3P]: what the index holds."""
        blocks = []
        for start in range(0, len(features), batch_size):
            rows = np.arange(start, min(start + batch_size, len(features)))
            blocks.append(self.project_items(*gather(features, rows, self.device)).cpu().numpy())
        return np.concatenate(blocks)


class Heads(Projectors):
    """The projectors, and what is put into the prompt: the adaptor's tokens and [REC].

    `embedding_rms` is the root mean square of the language model's word embeddings, the size at which tokens start.
    """

    def __init__(
        self, config: HeadsConfig, state_width: int, widths: Mapping[Signal, int], embedding_rms: float
    ) -> None:
        super().__init__(config, state_width, widths)
        self.adaptor = Adaptor(widths["image"], config.adaptor_width, state_width, embedding_rms)
        self.cf_adaptor = Adaptor(widths["cf"], config.adaptor_width, state_width, embedding_rms)
        self.rec = nn.Parameter(torch.randn(state_width) * embedding_rms)
        self.text_adaptor = Adaptor(widths["text"], config.adaptor_width, state_width, embedding_rms)
        self.gate = nn.Linear(sum(widths.values()), len(SIGNALS))
        self.shown: tuple[Signal, ...] = SIGNALS
        """Signals that `item` tokens are made of; training may begin with fewer."""

    def image_tokens(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """One token [n, D] an item (Eq. 1)."""
        return self._token("image", vectors, missing)

    def cf_tokens(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """The CF feature as one token [n, D] an item."""
        return self._token("cf", vectors, missing)

    def item_tokens(self, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        """All signals as one token [n, D] an item: a mixture of the adaptors' (after Speeder's modality experts).

        The gate sees every feature; a missing signal takes no share, and an item without any is the zero token.
        """
        tokens_SnD = torch.stack([self._token(signal, vectors, missing) for signal in SIGNALS])
        features_nW = torch.cat([self.feature(s, vectors[s], missing[s]) for s in SIGNALS], dim=1)
        absent_nS = torch.stack([missing[s] | (s not in self.shown) for s in SIGNALS], dim=1)
        lowest = torch.finfo(features_nW.dtype).min  # not -inf, whose gradient is no number where nothing is left
        share_nS = self.gate(features_nW).masked_fill(absent_nS, lowest).softmax(dim=1) * ~absent_nS
        return torch.einsum("ns,snd->nd", share_nS, tokens_SnD)

    def _token(self, signal: Signal, vectors: Mapping[Signal, Tensor], missing: Mapping[Signal, Tensor]) -> Tensor:
        adaptors = {"image": self.adaptor, "cf": self.cf_adaptor, "text": self.text_adaptor}
        token: Tensor = adaptors[signal](self.feature(signal, vectors[signal], missing[signal]))
        return token


def float_tensor(array: np.ndarray) -> Tensor:
    """A float32 copy in memory of torch's own.

    Matrix products of the same numbers may differ in their last bits when they start at another alignment, and NumPy
    aligns by chance: without the copy, the same seed does not always train the same weights.
    """
    return torch.tensor(np.asarray(array, np.float32))


def products(left_nQ: np.ndarray, right_mQ: np.ndarray) -> np.ndarray:
    """Inner products float32 [n, m], equal for equal numbers wherever they lie in memory (see `float_tensor`)."""
    return (float_tensor(left_nQ) @ float_tensor(right_mQ).T).numpy()


def gather(
    features: ItemFeatures, rows: np.ndarray, device: torch.device, signals: Sequence[Signal] = SIGNALS
) -> tuple[dict[Signal, Tensor], dict[Signal, Tensor]]:
    """Feature vectors float32 [n, width] and missing masks bool [n] of some rows, by signal, on a device."""
    vectors = {s: float_tensor(features.vectors[s][rows]).to(device) for s in signals}
    missing = {s: torch.from_numpy(features.origin[s][rows] == NOTHING).to(device) for s in signals}
    return vectors, missing
