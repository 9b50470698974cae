"""Usable pictures, safe paths, public addresses."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from offline.ingest.addresses import is_public
from offline.ingest.pictures import (
    EXTENSIONS,
    BadPictureError,
    PictureLimits,
    check_picture,
    local_path,
    place,
    read_local,
)

LIMITS = PictureLimits()


def picture(kind: str = "JPEG", size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 64).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
def test_a_good_picture_tells_its_extension(kind: str, extension: str) -> None:
    assert check_picture(picture(kind), LIMITS) == extension


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"<html>Not found</html>", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (picture(size=(200, 200))[:-2000], "does not decode"),
        (picture("PNG", (64, 64))[:-200], "does not decode"),
        (png_that_claims(8000, 7000), "too many pixels"),
        (png_that_claims(60_000, 60_000), "too many pixels"),
        (picture("GIF", (1, 1)), "too small"),
        (b"\xff\xd8" + bytes(LIMITS.max_bytes), "too many bytes"),
    ],
)
def test_a_bad_picture_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadPictureError) as refusal:
        check_picture(content, LIMITS)
    assert refusal.value.reason == reason


@given(st.integers(0, 700), st.binary(min_size=1, max_size=8))
def test_a_damaged_picture_is_refused_or_decoded_but_never_an_accident(at: int, noise: bytes) -> None:
    content = bytearray(picture("PNG", (16, 16)))
    content[at : at + len(noise)] = noise
    with contextlib.suppress(BadPictureError):
        assert check_picture(bytes(content), LIMITS) in EXTENSIONS


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "link.jpg", "a\x00b.jpg"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    base = tmp_path / "items"
    base.mkdir()
    (tmp_path / "secret.jpg").write_bytes(picture())
    (base / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BadPictureError):
        local_path(base, name)


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.jpg", "no such file"), (".", "no such file"), ("big.jpg", "too many bytes")]
)
def test_a_local_file_that_cannot_serve_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "big.jpg").write_bytes(picture())
    with pytest.raises(BadPictureError) as refusal:
        read_local(tmp_path, name, PictureLimits(max_bytes=100))
    assert refusal.value.reason == reason
    assert name in refusal.value.detail


def test_a_placed_picture_has_a_name_that_no_item_id_can_bend(tmp_path: Path) -> None:
    source, images = tmp_path / "source", tmp_path / "images"
    images.mkdir()
    source.write_bytes(picture())
    placed = place(source, images, "../../etc/passwd\n", "jpg")
    assert placed.startswith("images/")
    assert (tmp_path / placed).parent == images
    assert (tmp_path / placed).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::",
        "2001:0:4136:e378::1", "::127.0.0.1",
    ],
)  # fmt: skip
def test_all_other_addresses_are_not(address: str) -> None:
    assert not is_public(address)
