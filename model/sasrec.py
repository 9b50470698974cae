"""SASRec (Kang & McAuley 2018): causal self-attention over a history, scored against the item embeddings.

Items that were too young to train on are outside the vocabulary: they are passed over in histories, scored -inf and
have a zero vector. Histories are right-aligned, so the newest item always has the last position, however long the
padding in front of it is. A state can be had from the item embeddings alone, as a catalog keeps them: serving knows no
vocabulary. Knows no dataset, no training loop and no metric.
"""

# B histories, L positions, W width, H heads, K items of the vocabulary, N items of the dataset

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model.arrays import right_aligned
from model.config import CFConfig, parse_config
from model.errors import ArtifactError, InvalidInputError

WEIGHTS = "sasrec.safetensors"
INIT_STD = 0.02  # scores start near zero, so that the first softmax is nearly uniform
SCORE_BATCH = 256  # histories scored at once: bounds the memory to 256 x N floats


class Block(nn.Module):
    """Attention and a position-wise network, each x + dropout(f(norm(x))) as published."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x_BLW: Tensor, visible_B1LL: Tensor) -> Tensor:
        x_BLW = x_BLW + self._drop(self._attend(self.attention_norm(x_BLW), visible_B1LL))
        return x_BLW + self._drop(self.network(self.network_norm(x_BLW)))

    def _attend(self, x_BLW: Tensor, visible_B1LL: Tensor) -> Tensor:
        B, L, W = x_BLW.shape
        query_key_value = self.query_key_value(x_BLW).view(B, L, 3, self.num_heads, W // self.num_heads)
        query_BHLw, key_BHLw, value_BHLw = query_key_value.permute(2, 0, 3, 1, 4)
        mixed_BHLw = F.scaled_dot_product_attention(
            query_BHLw,
            key_BHLw,
            value_BHLw,
            attn_mask=visible_B1LL,
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BLW: Tensor = self.attention_out(mixed_BHLw.transpose(1, 2).reshape(B, L, W))
        return mixed_BLW

    def _drop(self, x_BLW: Tensor) -> Tensor:
        return F.dropout(x_BLW, self.dropout, self.training)


class SASRec(nn.Module):
    """The published model over the K dataset rows `rows_K` (ascending) of a dataset of `num_items` items.

    Raises InvalidInputError when the width is not a multiple of the number of heads.
    """

    rows_K: Tensor

    def __init__(self, config: CFConfig, rows_K: np.ndarray, num_items: int) -> None:
        super().__init__()
        if config.width % config.num_heads:
            raise InvalidInputError(
                f"cf.width {config.width} is not a multiple of cf.num_heads {config.num_heads}: change one", "cf.width"
            )
        self.config = config
        self.num_items = num_items
        self.padding = len(rows_K)
        self.register_buffer("rows_K", torch.from_numpy(rows_K.astype(np.int64)))
        self._token_of_row_N = np.full(num_items, self.padding, np.int64)
        self._token_of_row_N[rows_K] = np.arange(len(rows_K))
        self.items = nn.Embedding(len(rows_K) + 1, config.width, padding_idx=self.padding)
        self.positions = nn.Embedding(config.max_history, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(config.width)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight anew from `generator`: equal seeds give equal models."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" in name:
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                elif "blocks" in name:
                    nn.init.xavier_uniform_(parameter, generator=generator)
                else:
                    parameter.normal_(0, INIT_STD, generator=generator)
            self.items.weight[self.padding].zero_()

    @property
    def vectors_KW(self) -> Tensor:
        """The item embeddings, without the padding's."""
        return self.items.weight[: self.padding]

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """int64[B, L], right-aligned, padded in front -> states [B, L, W]; the state at a padded position is noise.

        A state depends on its own position and the real ones before it only.
        """
        return self.encode(self.items(tokens_BL), tokens_BL != self.padding)

    def encode(self, item_BLW: Tensor, real_BL: Tensor) -> Tensor:
        """The same of item embeddings [B, L, W]; `real_BL` is False at padded positions."""
        L = real_BL.shape[1]
        positions_LW = self.positions.weight[self.config.max_history - L :]
        x_BLW = item_BLW * self.config.width**0.5 + positions_LW
        x_BLW = F.dropout(x_BLW, self.config.dropout, self.training)
        visible_B1LL = _visible(real_BL)
        for block in self.blocks:
            x_BLW = block(x_BLW, visible_B1LL)
        state_BLW: Tensor = self.norm(x_BLW)
        return state_BLW

    def known_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64: the tokens of the dataset rows that are in the vocabulary, in their order."""
        tokens = self._token_of_row_N[rows]
        return np.asarray(tokens[tokens != self.padding])

    def pad(self, windows: Sequence[np.ndarray]) -> Tensor:
        """int64[B, L] on the CPU: right-aligned, as wide as the longest window and one at least."""
        return torch.from_numpy(right_aligned(windows, _widest(windows), self.padding))

    @torch.inference_mode()
    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32[B, N] for histories of dataset rows, oldest first; items outside the vocabulary are -inf.

        Items of the history are scored like others. A history without any known item scores every known item 0.
        """
        was_training = self.training
        self.eval()
        scores_BN = np.full((len(histories), self.num_items), -np.inf, np.float32)
        rows_K = self.rows_K.cpu().numpy()
        for start in range(0, len(histories), SCORE_BATCH):
            state_BW = self._last_state(histories[start : start + SCORE_BATCH])
            scores_BN[start : start + SCORE_BATCH, rows_K] = (state_BW @ self.vectors_KW.T).float().cpu().numpy()
        self.train(was_training)
        return scores_BN

    @torch.inference_mode()
    def states(self, vector_NW: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, W]: states after histories of any catalog's rows, oldest first; in evaluation mode.

        `vector_NW` holds the item embeddings by row; every row of a history has one. An empty history has the state 0.
        """
        device = self.items.weight.device
        newest = [rows[-self.config.max_history :] for rows in histories]
        states = np.zeros((len(histories), self.config.width), np.float32)
        for start in range(0, len(histories), SCORE_BATCH):
            part = newest[start : start + SCORE_BATCH]
            rows_BL = right_aligned(part, _widest(part), -1)  # the last row's vector, until it is masked
            real_BL = rows_BL >= 0
            item_BLW = torch.from_numpy(np.asarray(vector_NW[rows_BL], np.float32))
            real = torch.from_numpy(real_BL)
            last_BW = self.encode((item_BLW * real[..., None]).to(device), real.to(device))[:, -1]
            states[start : start + SCORE_BATCH] = last_BW.cpu().numpy() * real_BL[:, -1:]
        return states

    def item_vectors(self) -> np.ndarray:
        """float32[N, W]: the item embeddings by dataset row, zero outside the vocabulary."""
        vectors_NW = np.zeros((self.num_items, self.config.width), np.float32)
        vectors_NW[self.rows_K.cpu().numpy()] = self.vectors_KW.detach().float().cpu().numpy()
        return vectors_NW

    def known(self) -> np.ndarray:
        """bool[N]: which items are in the vocabulary."""
        return np.asarray(self._token_of_row_N != self.padding)

    def _last_state(self, histories: Sequence[np.ndarray]) -> Tensor:
        """[B, W]: the state at the newest item; zero for a history without any."""
        tokens_BL = self.pad([self.known_tokens(rows)[-self.config.max_history :] for rows in histories])
        tokens_BL = tokens_BL.to(self.items.weight.device)
        state_BW: Tensor = self(tokens_BL)[:, -1]
        return state_BW.masked_fill((tokens_BL[:, -1] == self.padding)[:, None], 0.0)


def _widest(windows: Sequence[np.ndarray]) -> int:
    return max((1, *map(len, windows)))


def _visible(real_BL: Tensor) -> Tensor:
    """bool[B, 1, L, L]: earlier real positions and oneself (a padded position must see something, or it is NaN)."""
    L = real_BL.shape[1]
    causal_LL = torch.ones(L, L, dtype=torch.bool, device=real_BL.device).tril()
    itself_LL = torch.eye(L, dtype=torch.bool, device=real_BL.device)
    return ((causal_LL & real_BL[:, None, :]) | itself_LL)[:, None]


def save_sasrec(model: SASRec, folder: Path) -> None:
    """Write `sasrec.safetensors`: weights, vocabulary, and the configuration in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"cf": model.config.model_dump_json(), "num_items": str(model.num_items)}
    save_file(tensors, folder / WEIGHTS, metadata=header)


def load_sasrec(folder: Path) -> SASRec:
    """The model that `save_sasrec` wrote, on the CPU, in evaluation mode. Raises ArtifactError naming the file."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: run `python -m offline.cf`")
    try:
        header, tensors = _read(path)
        config = parse_config(json.loads(header["cf"]), CFConfig)
        model = SASRec(config, tensors["rows_K"].numpy(), int(header["num_items"]))
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, IndexError, RuntimeError, InvalidInputError) as error:
        raise ArtifactError(f"{path} is not a SASRec of this program ({error}): run `python -m offline.cf`") from None
    return model.eval()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
