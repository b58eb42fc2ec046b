from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trtq.data import decode as decoding
from trtq.data.decode import UndecodableError, decode, decode_mask, turn
from trtq.data.labels import open_labels
from trtq.data.preprocess import batches, resolve_preprocess
from trtq.data.source import describe, open_source
from trtq.errors import DataError
from trtq.testing.images import write_images

BASE = (np.add.outer(np.arange(48), np.arange(64) * 2) % 176).astype(np.uint8)
RGB = np.stack([BASE, 255 - BASE, BASE // 2], -1)
GRAY, _ = resolve_preprocess(input_size=(1, 48, 64), mean=(0.0,), std=(1.0,))


def save(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def png(values: np.ndarray, *, sbit: int | None = None) -> bytes:
    """Return a 16-bit PNG, gray or RGB: Pillow writes no 16-bit colours and no sBIT."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    middle = b"" if sbit is None else chunk(b"sBIT", bytes([sbit] * (3 if colour else 1)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def folder(tmp_path: Path, **files: bytes) -> Path:
    for name, data in files.items():
        (tmp_path / name.replace("_", ".")).write_bytes(data)
    return tmp_path


WIDE = BASE.astype(np.uint16)
SCALED = {
    "16 bits in PNG": (save(WIDE * 257, "PNG"), BASE),
    "16 bits in TIFF": (save(WIDE * 257, "TIFF"), BASE),
    "16 bits, big endian": (
        save(Image.frombytes("I;16B", (64, 48), (WIDE * 257).astype(">u2").tobytes()), "TIFF"),
        BASE,
    ),
    "white is zero": (save(WIDE * 257, "TIFF", tiffinfo={262: 0}), 255 - BASE),
    "12 bits by sBIT": (png(np.rint(WIDE * (4095 / 255)), sbit=12), BASE),
    "12 bits by MaxSampleValue": (
        save(np.rint(WIDE * (4095 / 255)).astype(np.uint16), "TIFF", tiffinfo={281: 4095}),
        BASE,
    ),
    "float of 0 to 1": (save(BASE.astype(np.float32) / 255, "TIFF"), BASE),
    "PGM of 4095": (
        b"P5 64 48 4095\n" + np.rint(WIDE * (4095 / 255)).astype(">u2").tobytes(),
        BASE,
    ),
    "PGM of 100": (b"P5 64 48 100\n" + (BASE // 2).tobytes(), np.rint(BASE // 2 * 2.55)),
    "16-bit colours": (png(RGB.astype(np.uint16) * 257), RGB),
    "bilevel": (save(Image.fromarray(BASE > 88), "PNG"), (BASE > 88) * 255),
    "palette": (save(Image.fromarray(BASE).convert("P"), "PNG"), None),
}


@pytest.mark.parametrize("name", SCALED)
def test_every_bit_depth_is_scaled_by_its_own_range(name: str) -> None:
    data, wanted = SCALED[name]
    found = np.asarray(decode(data).image).astype(int)
    wanted = np.stack([BASE] * 3, -1) if wanted is None else np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1


def test_left_aligned_samples_of_a_png_keep_their_range() -> None:
    dark = (WIDE // 16).astype(np.uint16)  # at most 10 of 255
    scaled = (dark << 8).astype(np.uint16)
    found = decode(png(scaled, sbit=12))
    assert np.abs(np.asarray(found.image).astype(int) - np.rint(scaled / 257)).max() <= 1


REFUSED = {
    "signed": (
        save(BASE.astype(np.int32) * 257, "TIFF"),
        "signed integers, whose range is unknown",
    ),
    "kelvin": (
        save(BASE.astype(np.float32) / 10 + 290, "TIFF"),
        "floats from 290 to 307.3; only 0 to 1",
    ),
    "nan": (save(np.full((4, 4), np.nan, np.float32), "TIFF"), "floats from nan"),
    "12 bits of colours": (png(RGB.astype(np.uint16) * 16, sbit=12), "use only the 12 low bits"),
    "eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "content is PostScript",
    ),
    "gif": (save(BASE, "GIF"), "content is GIF"),
    "text": (b"hello\n", "content is text"),
    "html": (b"<html>404</html>", "content is HTML or XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "truncated": (save(RGB, "JPEG")[:-400], "[Tt]runcated"),
    "cut header": (save(RGB, "PNG")[:20], "."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_right_pixels_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    data, why = REFUSED[name]
    source = open_source(str(folder(tmp_path, x_png=data)))
    with pytest.raises(DataError, match=rf"Cannot decode the image x\.png of .*: .*{why}"):
        source.image(0)
    with pytest.raises(DataError, match=r"x\.png"):  # out of the decoding thread, too
        list(batches(source, [0], GRAY, 1))


def test_damaged_bytes_end_in_one_kind_of_error() -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    kinds = [
        save(RGB, "JPEG", exif=exif),
        save(RGB, "PNG", exif=exif),
        save(RGB, "TIFF", tiffinfo={274: 6}),
        save(RGB, "WEBP", exif=exif),
        save(RGB, "BMP"),
        png(WIDE * 257, sbit=12),
        save(WIDE, "TIFF"),
    ]
    for data in kinds:
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 3):
                broken[at] = rng.integers(256)
            for read in (decode, decode_mask, decoding.read_geometry):
                try:
                    read(bytes(broken[: rng.integers(1, len(data) + 1)]))
                except UndecodableError as exc:
                    assert str(exc)


def test_eps_content_starts_no_program(tmp_path: Path, monkeypatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    images = tmp_path / "images"
    images.mkdir()
    source = open_source(str(folder(images, x_png=REFUSED["eps"][0])))
    with pytest.raises(DataError, match="PostScript"):
        source.image(0)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = (
        {"quality": 100, "subsampling": 0}
        if kind == "JPEG"
        else {"lossless": True}
        if kind == "WEBP"
        else {}
    )
    data = save(RGB, kind, exif=exif, **options)
    plain = Image.fromarray(RGB)
    plain.getexif()[274] = orientation
    wanted = ImageOps.exif_transpose(plain)
    found = decode(data)
    assert found.image.size == wanted.size
    assert np.abs(np.asarray(found.image).astype(int) - np.asarray(wanted)).max() <= 4
    assert ("turned" in found.facts) == (orientation != 1)
    assert np.array_equal(turn(BASE, orientation), np.asarray(wanted)[..., 0])


def test_what_is_dropped_is_noted_once_and_counted(tmp_path: Path) -> None:
    clear = np.dstack([RGB, np.zeros_like(BASE)])
    opaque = np.dstack([RGB, np.full_like(BASE, 255)])
    files = {
        "a_png": save(clear, "PNG"),
        "b_png": save(clear, "PNG"),
        "c_png": save(opaque, "PNG"),
        "d_webp": save(
            RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)], lossless=True
        ),
        "e_tif": save(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        "f_png": save(WIDE, "PNG"),
        "g_tif": save(
            Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]
        ),
        "h_png": save(Image.fromarray(BASE).convert("P"), "PNG", transparency=bytes(range(256))),
    }
    lines: list[str] = []
    source = open_source(str(folder(tmp_path, **files)), None, lines.append)
    for index in (*range(len(source)), 0):
        assert source.image(index).mode in ("L", "RGB")
    assert describe(source)["changed"] == {
        "alpha": 3,
        "colour": 1,
        "deep": 1,
        "dim": 1,
        "frames": 2,
    }
    assert [line.split(" of ")[0] for line in lines] == [
        "a.png",
        "d.webp",
        "e.tif",
        "f.png",
        "f.png",
    ]
    said = " ".join(lines)
    for words in (
        "alpha channel is dropped",
        "2 frames; the first is used",
        "CMYK was converted",
        "is 173 of 65535",
    ):
        assert words in said


def test_alpha_is_dropped_as_training_pipelines_do() -> None:
    clear = np.dstack([RGB, np.zeros_like(BASE)])
    assert np.array_equal(np.asarray(decode(save(clear, "PNG")).image), RGB)
    assert np.array_equal(np.asarray(decode(save(RGB, "PNG", transparency=(1, 2, 3))).image), RGB)


def test_adobe_cmyk_and_lab() -> None:
    cmyk = save(
        Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100
    )  # Pillow writes it inverted, as Adobe does
    assert np.abs(np.asarray(decode(cmyk).image).astype(int) - RGB).max() <= 8
    lab = np.dstack([BASE, np.full_like(BASE, 0), np.full_like(BASE, 0)])
    image = decode(save(Image.frombytes("LAB", (64, 48), lab.tobytes()), "TIFF")).image
    assert image.mode == "RGB"
    assert np.ptp(np.asarray(image)[5, 5].astype(int)) <= 2  # gray


def test_a_programs_own_image_of_any_mode() -> None:
    deep = GRAY.apply(Image.fromarray(WIDE * 257))
    assert np.abs(deep.numpy()[0] * 255 - BASE).max() < 0.51
    assert GRAY.apply(Image.fromarray(BASE.astype(np.float32) / 255)).max() == pytest.approx(
        BASE.max() / 255
    )
    with pytest.raises(UndecodableError, match="32-bit integers"):
        GRAY.apply(Image.fromarray(BASE.astype(np.int32)))


def test_limits_name_the_file(tmp_path: Path, monkeypatch) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a/bomb.png", bytes(200_000))
    write_images(tmp_path / "plain/c", 1)
    monkeypatch.setattr("trtq.data.source.MAX_BYTES", 1000)
    for where, name in ((tmp_path / "z.zip/a", "bomb.png"), (tmp_path / "plain", "c/000.png")):
        with pytest.raises(
            DataError, match=rf"Cannot read {name} in .*: it has \d+ bytes, the limit is 1000"
        ):
            open_source(str(where)).image(0)
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(
        DataError, match=r"c/000.png of .*: it has 40 x 40 pixels, more than the limit of 1000"
    ):
        open_source(str(tmp_path / "plain")).image(0)


def test_an_entry_that_unpacks_to_more_than_it_announces(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.png", bytes(5_000_000))
    raw = path.read_bytes().replace(struct.pack("<I", 5_000_000), struct.pack("<I", 50))
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"Cannot (read|decode the image) x\.png"):
        open_source(str(path)).image(0)


def test_a_pixel_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = bytearray(save(RGB, "BMP"))
    bomb[18:26] = struct.pack("<ii", 60_000, 60_000)
    with pytest.raises(UndecodableError, match="pixels"):
        decode(bytes(bomb))


# ---- masks -------------------------------------------------------------------------------------


INDICES = (np.add.outer(np.arange(6), np.arange(8)) % 4).astype(np.uint8)


def test_masks_keep_their_values() -> None:
    wide = INDICES.astype(np.uint16) * 300
    palette = Image.fromarray(INDICES).convert("P")
    palette.putdata(INDICES.ravel().tolist())
    for data, wanted in (
        (save(INDICES, "PNG"), INDICES),
        (save(wide, "PNG"), wide),
        (save(wide, "TIFF"), wide),
        (save(palette, "PNG", transparency=0), INDICES),
        (save(palette, "PNG", bits=2), INDICES),
        (save(INDICES.astype(np.int32), "TIFF"), INDICES),
        (save(INDICES.astype(np.float32), "TIFF"), INDICES),
        (save(Image.fromarray(INDICES > 1), "PNG"), INDICES > 1),
        (small_gray(INDICES), INDICES),
    ):
        assert np.array_equal(decode_mask(data), wanted)


def small_gray(values: np.ndarray) -> bytes:
    """Return a gray PNG of 4 bits, as optimizers of PNG files write masks of few classes."""
    data = bytearray(png(np.zeros(values.shape, np.uint16)))

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 4, 0, 0, 0, 0)
    rows = b"".join(
        b"\0" + ((row[::2] << 4) | row[1::2]).astype(np.uint8).tobytes() for row in values
    )
    return (
        bytes(data[:8])
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (save(RGB, "PNG"), "it holds colours: its mode is RGB"),
        (save(INDICES, "JPEG"), "JPEG compression changes class indices"),
        (save(INDICES.astype(np.float32) + 0.5, "TIFF"), "its values are fractions"),
        (b"P5 8 6 20\n" + INDICES.tobytes(), "neither 255 nor 65535"),
        (
            save(
                Image.fromarray(INDICES),
                "TIFF",
                save_all=True,
                append_images=[Image.fromarray(INDICES)],
            ),
            "2 frames",
        ),
        (b"", "the file is empty"),
    ],
)
def test_masks_that_are_no_indices(data: bytes, why: str) -> None:
    with pytest.raises(UndecodableError, match=why):
        decode_mask(data)


def pair(
    tmp_path: Path, orientation: int, mask: np.ndarray, image: np.ndarray = RGB
) -> tuple[str, str]:
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "i/0.jpg").write_bytes(save(image, "JPEG", exif=exif))
    (tmp_path / "m/0.png").write_bytes(save(mask, "PNG"))
    return str(tmp_path / "i"), str(tmp_path / "m")


def test_masks_follow_the_orientation_of_their_image(tmp_path: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :10] = 1  # the left of the stored image, the top of the upright one
    upright, _ = resolve_preprocess(input_size=(3, 64, 48), preset="imagenet")
    for place, drawn in (("stored", mask), ("upright", turn(mask, 6))):
        (tmp_path / place).mkdir()
        images, masks = pair(tmp_path / place, 6, drawn)
        targets = open_labels(open_source(images), masks, upright, 255)
        assert targets is not None
        assert np.array_equal(targets.of([0])[0].numpy(), turn(mask, 6))


def test_a_mask_of_unclear_orientation_is_refused(tmp_path: Path) -> None:
    images, masks = pair(tmp_path, 3, np.zeros((48, 64), np.uint8))
    targets = open_labels(open_source(images), masks, GRAY, 255)
    assert targets is not None
    with pytest.raises(
        DataError, match=r"mask of 0.jpg of .* EXIF orientation 3, and sizes do not tell"
    ):
        targets.of([0])


def test_two_masks_for_one_image_are_refused(tmp_path: Path) -> None:
    images, masks = pair(tmp_path, 1, np.zeros((48, 64), np.uint8))
    (Path(masks) / "0.tif").write_bytes(save(INDICES, "TIFF"))
    with pytest.raises(DataError, match="has two masks for one image: 0.png and 0.tif"):
        open_labels(open_source(images), masks, GRAY, 255)
