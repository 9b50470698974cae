import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file
from tiny_models import tiny_clip, tiny_language_model, tiny_sentence_encoder, tiny_siglip, tiny_siglip2
from transformers import AutoModel, AutoProcessor

from model.config import TextConfig, VisionConfig
from model.errors import InvalidInputError
from offline.encoders import ImageEncoder, load_image_encoder, load_text_encoder
from offline.encoders.picture import BrokenPictureError, open_picture

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"siglip": tiny_siglip, "siglip2": tiny_siglip2, "clip": tiny_clip}
FP32 = {"rtol": 1e-4, "atol": 1e-5}
TEXTS = ["red lamp", "a chair", "the next item is a very long description that no tower of this size reads to its end"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("vision") / request.param)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    return tiny_siglip(tmp_path / "siglip")


def vision(folder: Path | str, models: Path, **settings: str) -> ImageEncoder:
    return load_image_encoder(VisionConfig.model_validate({"source": str(folder), **settings}), models, "cpu")


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        for height, width in ((32, 32), (40, 64), (90, 30))
    ]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_features_equal_a_plain_forward_pass_of_the_saved_model(folder: Path, tmp_path: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    encoder = vision(folder, tmp_path)
    picture = pictures()[1]
    with torch.inference_mode():
        expected = model.get_image_features(**processor.image_processor(picture, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(encoder.encode_images([picture]), expected.numpy(), **FP32)


def test_pictures_encoded_together_equal_pictures_encoded_one_by_one(folder: Path, tmp_path: Path) -> None:
    encoder = vision(folder, tmp_path)
    together = encoder.encode_images(pictures())
    assert (together.dtype, together.shape) == (np.float32, (3, encoder.width))
    np.testing.assert_allclose(together, np.concatenate([encoder.encode_images([p]) for p in pictures()]), **FP32)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_texts_encoded_together_equal_texts_encoded_one_by_one(folder: Path, tmp_path: Path) -> None:
    encoder = vision(folder, tmp_path)
    together = encoder.encode_texts(TEXTS)
    assert encoder.has_text_tower
    assert (together.dtype, together.shape) == (np.float32, (3, encoder.width))
    np.testing.assert_allclose(together, np.concatenate([encoder.encode_texts([t]) for t in TEXTS]), **FP32)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_siglip_text_is_padded_to_full_length_without_a_mask(siglip: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(siglip).eval(), AutoProcessor.from_pretrained(siglip).tokenizer
    ids = tokenizer("red lamp").input_ids
    with torch.inference_mode():
        expected = model.get_text_features(torch.tensor([ids + [2] * (16 - len(ids))])).pooler_output
    np.testing.assert_allclose(vision(siglip, tmp_path).encode_texts(["red lamp"]), expected.numpy(), **FP32)


def test_a_copied_folder_has_the_same_fingerprint_and_a_readme_does_not_change_it(siglip: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(siglip, tmp_path / "copy")
    (copy / "README.md").write_text("hello")
    assert vision(copy, tmp_path).fingerprint == vision(siglip, tmp_path).fingerprint


def test_one_changed_weight_or_another_dtype_changes_the_fingerprint(siglip: Path, tmp_path: Path) -> None:
    before = vision(siglip, tmp_path).fingerprint
    assert vision(siglip, tmp_path, dtype="bfloat16").fingerprint != before
    weights = load_file(siglip / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, siglip / "model.safetensors", metadata={"format": "pt"})
    assert vision(siglip, tmp_path).fingerprint != before


def test_bfloat16_features_stay_near_the_float32_ones(siglip: Path, tmp_path: Path) -> None:
    exact = vision(siglip, tmp_path).encode_images(pictures())
    rounded = vision(siglip, tmp_path, dtype="bfloat16").encode_images(pictures())
    assert rounded.dtype == np.float32
    # Eight bits of mantissa through two layers: a few times 2**-8 of the largest value.
    assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


def test_weights_that_could_run_code_are_refused(siglip: Path, tmp_path: Path) -> None:
    (siglip / "model.safetensors").rename(siglip / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match=r"no \.safetensors file"):
        vision(siglip, tmp_path)


def test_a_model_of_another_kind_is_refused_by_its_type(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is of type 'llama'; give a model of siglip, siglip2, clip, efficient"):
        vision(tiny_language_model(tmp_path / "llama"), tmp_path)


def test_a_damaged_model_configuration_is_named(siglip: Path, tmp_path: Path) -> None:
    (siglip / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"config\.json is not a JSON object"):
        vision(siglip, tmp_path)


def test_a_declared_tokenizer_that_cannot_be_had_is_not_replaced_silently(siglip: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is installed, so the declared tokenizer can be had")
    settings = json.loads((siglip / "tokenizer_config.json").read_text())
    (siglip / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "SiglipTokenizer"}))
    encoder = vision(siglip, tmp_path)
    assert len(encoder.encode_images(pictures())) == 3
    with pytest.raises(InvalidInputError, match="pip install sentencepiece"):
        encoder.encode_texts(["red lamp"])


def test_a_hub_id_that_cannot_be_had_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from model.config import VisionConfig\n"
        "from model.errors import InvalidInputError; from offline.encoders import load_image_encoder\n"
        "try: load_image_encoder(VisionConfig(source='someone/something'), Path(sys.argv[1]), 'cpu')\n"
        "except InvalidInputError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "'someone/something' cannot be had from the model hub" in said
    assert "give an existing folder" in said


def test_a_hub_id_in_the_hub_cache_is_pinned_to_its_commit_and_needs_no_network(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tiny_siglip(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "import sys; from pathlib import Path; from PIL import Image; from model.config import VisionConfig\n"
        "from offline.encoders import load_image_encoder\n"
        "for source in ('someone/tiny', sys.argv[2]):\n"
        "    encoder = load_image_encoder(VisionConfig(source=source), Path(sys.argv[1]), 'cpu')\n"
        "    print(encoder.fingerprint, encoder.encode_images([Image.new('RGB', (9, 9), 'red')]).sum())\n"
        "    print(encoder._source.revision)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path), str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    hub_print, hub_sum, hub_commit, folder_print, folder_sum, folder_commit = said
    assert (hub_commit, folder_commit) == (commit, "None")
    assert hub_print != folder_print
    assert hub_sum == folder_sum


def test_sentence_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    config = TextConfig(source=str(tiny_sentence_encoder(tmp_path / "sentences")))
    encoder = load_text_encoder(config, tmp_path, "cpu")
    together = encoder.encode_texts(TEXTS)
    assert (together.dtype, together.shape, encoder.width) == (np.float32, (3, 16), 16)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode_texts([t]) for t in TEXTS]), **FP32)


def test_the_packaged_text_encoder_puts_like_texts_together(tmp_path: Path) -> None:
    encoder = load_text_encoder(TextConfig(source="package:all-minilm-l6-v2"), tmp_path, "cpu")
    lamp, light, boots = encoder.encode_texts(["a small red desk lamp", "a reading light", "leather hiking boots"])
    assert encoder.width == lamp.size == 384
    assert lamp @ light > lamp @ boots + 0.1


def test_the_packaged_vision_encoder_puts_like_pictures_together(tmp_path: Path) -> None:
    encoder = vision("package:efficientnet-lite0", tmp_path)
    red_disc, near_disc, blue_stripes = encoder.encode_images([_disc(60), _disc(66), _stripes()])
    assert encoder.width == red_disc.size == 1280
    assert not encoder.has_text_tower
    assert _cosine(red_disc, near_disc) > _cosine(red_disc, blue_stripes) + 0.2


def test_the_packaged_vision_encoder_gives_the_same_twice_and_in_any_batch(tmp_path: Path) -> None:
    first = vision("package:efficientnet-lite0", tmp_path).encode_images([_disc(60), _stripes()])
    second = vision("package:efficientnet-lite0", tmp_path)
    np.testing.assert_array_equal(first, second.encode_images([_disc(60), _stripes()]))
    np.testing.assert_allclose(first[1:], second.encode_images([_stripes()]), **FP32)


def test_a_text_given_to_an_encoder_without_a_text_tower_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no text tower"):
        vision("package:efficientnet-lite0", tmp_path).encode_texts(["red lamp"])


def test_transparency_is_shown_over_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    opened = open_picture(encoded(half, "PNG"))
    assert (opened.mode, opened.getpixel((0, 0)), opened.getpixel((3, 3))) == ("RGB", (255, 0, 0), (255, 255, 255))


def test_a_transparent_palette_colour_is_shown_over_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    opened = open_picture(encoded(palette, "PNG", transparency=0))
    assert (opened.getpixel((0, 0)), opened.getpixel((3, 3))) == ((0, 0, 255), (255, 255, 255))


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = Image.fromarray(np.array([[0, 32896, 65535]] * 3, np.uint16))
    assert [open_picture(encoded(grey, "PNG")).getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in (0, 128, 255)]


def test_cmyk_becomes_rgb() -> None:
    opened = open_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = np.asarray(opened).mean(axis=(0, 1))
    assert red > 240
    assert max(green, blue) < 15


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert open_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((4, 4)) == (
        255,
        0,
        0,
    )


def test_a_picture_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert open_picture(encoded(Image.new("RGB", (30, 10)), "JPEG", exif=exif)).size == (10, 30)


def test_a_large_picture_is_reduced_with_its_proportions_kept() -> None:
    assert open_picture(encoded(Image.new("RGB", (4000, 1000)), "JPEG")).size == (1024, 256)


def _bomb() -> bytes:
    return encoded(Image.new("1", (9000, 9000)), "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"", "does not decode"),
        (lambda: b"<html>not found</html>", "does not decode"),
        (lambda: encoded(pictures()[1], "PNG")[:2000], "does not decode"),
        (_bomb, "9000 x 9000 pixels, over 50,000,000"),
    ],
    ids=["empty", "html", "truncated", "bomb"],
)
def test_bytes_that_are_no_usable_picture_are_refused(content: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BrokenPictureError, match=reason):
        open_picture(content())


def _disc(radius: int) -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((100 - radius, 100 - radius, 100 + radius, 100 + radius), fill=(200, 30, 30))
    return image


def _stripes() -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    for x in range(0, 200, 20):
        ImageDraw.Draw(image).rectangle((x, 0, x + 9, 199), fill=(30, 60, 190))
    return image


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
