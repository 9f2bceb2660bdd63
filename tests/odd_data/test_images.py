"""Odd images and inputs: ranges, modes, pages, transparency, containers, damaged files and sizes."""

import base64
import contextlib
import functools
import io
import itertools
import struct
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from PIL import Image, ImageCms

from helpers.odd_data import Case, parametrize, run
from helpers.tiny import tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, load_image
from vip2clip_hf.models.vip2clip.tiling_vip2clip import MAX_TILES, tile_boxes


RAMP = np.linspace(0, 255, 12 * 10).reshape(12, 10).round().astype(np.uint8)
COLOR = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])


@functools.cache
def detector() -> AnomalyDetectionPipeline:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    processor = ViP2ClipImageProcessor(size=model.config.image_size)
    return AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")


@functools.cache
def score_of(values: bytes, shape: tuple[int, ...]) -> float:
    return detector()(Image.fromarray(np.frombuffer(values, np.uint8).reshape(shape)))["score"]


def fresh(**options) -> AnomalyDetectionPipeline:
    shared = detector()
    return AnomalyDetectionPipeline(
        model=shared.model, image_processor=shared.image_processor, device="cpu", **options
    )


def is_image(expected: np.ndarray, tolerance: int = 0):
    """Check of a loaded image: its RGB values."""
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected

    def check(found):
        found = np.asarray(found)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance

    return check


def scores_like(*photos):
    """Check of results: the scores of these photos, in this order."""

    def check(found):
        found = [found] if isinstance(found, dict) else list(found)
        expected = [score_of(photo.tobytes(), photo.shape) for photo in photos]
        assert [one["score"] for one in found] == pytest.approx(expected, abs=1e-5)

    return check


def saved(folder: Path, image, name: str = "photo.png", **options) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(folder / name, **options)
    return folder / name


def content(image=COLOR, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, **{"format": "PNG", **options})
    return file.getvalue()


def png(color_type: int, bits: int, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for kinds that Pillow cannot write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = values.reshape(values.shape[0], -1).astype(">u2" if bits == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    )


def gray_levels(bits: int) -> np.ndarray:
    """The ramp with more bits."""
    return np.round(RAMP / 255.0 * ((1 << bits) - 1)).astype(np.uint16)


CASES: list[Case] = []


def add(name, act, expected, says=None):
    CASES.append(Case(f"images: {name}", act, expected, says))


# Ranges


def as_array(folder, values):
    return values


def as_png(folder, values):
    return saved(folder, values.astype(np.uint16))


def as_tiff(folder, values):
    return saved(folder, values.astype(np.uint16), "photo.tif")


def as_pil_16(folder, values):
    return Image.fromarray(values.astype(np.uint16))


def as_pil_i(folder, values):
    return Image.fromarray(values.astype(np.int32))


def as_big_endian(folder, values):
    return values.astype(">u2")


def as_int32_tiff(folder, values):
    return saved(folder, values.astype(np.int32), "photo.tif")


CONTAINERS = (as_array, as_png, as_tiff, as_pil_16, as_pil_i, as_big_endian, as_int32_tiff)
for container, bits in itertools.product(CONTAINERS, (8, 10, 12, 14)):
    name = f"{bits} bits in 16, {container.__name__}"
    add(
        f"{name}, not stated",
        lambda folder, c=container, b=bits: load_image(c(folder, gray_levels(b))),
        rf"fit into {bits} bits; pass bit_depth={bits} \(--bit-depth",
    )
    add(
        f"{name}, stated",
        lambda folder, c=container, b=bits: load_image(c(folder, gray_levels(b)), bit_depth=b),
        is_image(RAMP),
    )
for container in CONTAINERS:
    add(
        f"16 bits, {container.__name__}",
        lambda folder, c=container: load_image(c(folder, gray_levels(16))),
        is_image(RAMP),
    )
    add(
        f"dark 16 bits stated, {container.__name__}",
        lambda folder, c=container: load_image(c(folder, gray_levels(12)), bit_depth=16),
        is_image(np.round(gray_levels(12) / 257.0)),
    )
    add(
        f"too wide for what is stated, {container.__name__}",
        lambda folder, c=container: load_image(c(folder, gray_levels(14)), bit_depth=12),
        "expected values from 0 to 4095, because bit_depth is 12|Expected values from 0 to 4095",
    )
add("a black photo of 16 bits", lambda folder: load_image(np.zeros((5, 6), np.uint16)), is_image(np.zeros((5, 6))))
add("8 bits do not need the bit depth", lambda folder: load_image(RAMP, bit_depth=12), is_image(RAMP))
add("values shifted to the upper 12 bits", lambda folder: load_image(gray_levels(12) << 4), is_image(RAMP, 1))
for dtype in (np.int16, np.int32, np.int64, np.uint32, np.uint64):
    add(
        f"{np.dtype(dtype).name} array of 12 bits",
        lambda folder, d=dtype: load_image(gray_levels(12).astype(d)),
        "expected 8-bit values.*bit_depth|Expected 8-bit values.*bit_depth",
    )
    add(
        f"{np.dtype(dtype).name} array of 12 bits, stated",
        lambda folder, d=dtype: load_image(gray_levels(12).astype(d), bit_depth=12),
        is_image(RAMP),
    )
    add(
        f"{np.dtype(dtype).name} array of 8 bits",
        lambda folder, d=dtype: load_image(RAMP.astype(d)),
        is_image(RAMP),
        says=f"Values of type {np.dtype(dtype).name} up to 255 are read as 8 bits",
    )
add(
    "int32 TIFF above 16 bits",
    lambda folder: load_image(saved(folder, RAMP.astype(np.int32) * 1000, "a.tif")),
    r"'.*a\.tif'.*0 to 65535",
)
add(
    "negative int32 TIFF",
    lambda folder: load_image(saved(folder, RAMP.astype(np.int32) - 9, "a.tif")),
    r"'.*a\.tif'.*0 to 65535.*from -9",
)
for top, bits in ((255, 8), (4095, 12), (65535, 16)):
    floats = (RAMP / 255.0 * top).astype(np.float32)
    add(
        f"float TIFF to {top}",
        lambda folder, f=floats: load_image(saved(folder, f, "a.tif")),
        rf"'.*a\.tif'.*floats in \[0, 1\].*to {top}",
    )
    add(
        f"float TIFF to {top}, stated",
        lambda folder, f=floats, b=bits: load_image(saved(folder, f, "a.tif"), bit_depth=b),
        is_image(RAMP),
    )
add(
    "float TIFF in [0, 1]",
    lambda folder: load_image(saved(folder, (RAMP / 255).astype(np.float32), "a.tif")),
    is_image(RAMP),
)
add(
    "floats in [0, 1] with a bit depth",
    lambda folder: load_image(RAMP / 255, bit_depth=12),
    is_image(RAMP),
    says="bit_depth does not change them",
)
add(
    "floats divided by 255 twice",
    lambda folder: load_image(RAMP / 255.0 / 255.0),
    is_image(np.round(RAMP / 255)),
    says="divided by 255 twice",
)
for value in ("nan", "inf", "-inf"):
    add(
        f"float TIFF with {value}",
        lambda folder, v=value: load_image(saved(folder, np.full((4, 5), float(v), np.float32), "a.tif")),
        r"'.*a\.tif'.*NaN or infinity",
    )
add(
    "uint8 array of 0 and 1",
    lambda folder: load_image((RAMP > 99).astype(np.uint8)),
    is_image(RAMP > 99),
    says="contains only 0 and 1",
)
add(
    "PNG of 0 and 1",
    lambda folder: load_image(saved(folder, (RAMP > 99).astype(np.uint8))),
    is_image(RAMP > 99),
    says="contains only 0 and 1",
)
add("booleans", lambda folder: load_image(RAMP > 99), is_image((RAMP > 99) * 255))
for bits in (12, 16):
    values = np.dstack([gray_levels(bits)] * 3)
    add(
        f"color PNG with 16 bits, {bits} used",
        lambda folder, v=values: load_image(png(2, 16, v)),
        is_image(RAMP, 1) if bits == 16 else "<bytes>.*only the upper 8 bits.*bit_depth=16",
    )
    add(
        f"color PNG with 16 bits, {bits} stated",
        lambda folder, v=values, b=bits: load_image(png(2, 16, v), bit_depth=b),
        is_image(RAMP, 1) if bits == 16 else "only the upper 8 bits",
    )
add(
    "gray PNG with 16 bits and alpha, 12 used",
    lambda folder: load_image(png(4, 16, np.dstack([gray_levels(12), np.full(RAMP.shape, 65535)]))),
    "only the upper 8 bits",
)
for maxval in (4095, 1023):
    values = np.round(RAMP / 255 * maxval).astype(">u2")
    pgm = f"P5 10 12 {maxval}\n".encode() + values.tobytes()
    add(f"PGM to {maxval}, which Pillow scales", lambda folder, p=pgm: load_image(p), is_image(RAMP, 1))
add(
    "PGM to 65535 with 12 bits",
    lambda folder: load_image(b"P5 10 12 65535\n" + gray_levels(12).astype(">u2").tobytes()),
    "fit into 12 bits",
)
for value in (7, 17, 12.5, True, "12", [12]):
    add(f"bit depth {value!r}", lambda folder, v=value: load_image(RAMP, bit_depth=v), "bit_depth is .*from 8 to 16")
for value in (0, -1, 1.5, "2"):
    add(f"page {value!r}", lambda folder, v=value: load_image(RAMP, page=v), "page is .*at least 1")
for value in ("BGR", "rbg", 3):
    add(f"channel order {value!r}", lambda folder, v=value: load_image(COLOR, channel_order=v), "'rgb' or 'bgr'")
add(
    "a pipeline with a bit depth", lambda folder: fresh(bit_depth=12)([gray_levels(12), RAMP]), scores_like(RAMP, RAMP)
)
add(
    "a call with a bit depth",
    lambda folder: detector()(as_png(folder, gray_levels(12)), bit_depth=12),
    scores_like(RAMP),
)
add(
    "a processor with a bit depth",
    lambda folder: ViP2ClipImageProcessor(size=8, bit_depth=12, do_normalize=False)(gray_levels(12))["pixel_values"][
        0
    ].max(),
    lambda found: found > 0.9 or pytest.fail(str(found)),
)

# Arrays

for shape in ((3, 12, 10), (4, 12, 10)):
    add(
        f"a stack of {shape[0]} gray photos",
        lambda folder, s=shape: detector()(np.stack([RAMP] * s[0])),
        rf"can be {shape[0]} gray photos or one color photo; expected a list",
    )
    add(
        f"a stack of {shape[0]} gray photos, loaded",
        lambda folder, s=shape: load_image(np.stack([RAMP] * s[0])).size,
        lambda found: found == (10, 12) or pytest.fail(str(found)),
        says="is read as one color photo",
    )
    add(
        f"a tensor of shape {shape}",
        lambda folder, s=shape: detector()(torch.from_numpy(np.stack([RAMP] * 3))),
        scores_like(RAMP),
    )
for count in (2, 5, 6):
    add(
        f"a stack of {count} gray photos",
        lambda folder, n=count: detector()(np.stack([RAMP] * n)),
        "found an array.*as a list",
    )
add(
    "a list of gray photos",
    lambda folder: detector()([RAMP, RAMP[::-1], RAMP.T]),
    scores_like(RAMP, RAMP[::-1], RAMP.T),
)
for order, image in (("rgb", COLOR), ("bgr", COLOR[..., ::-1])):
    add(f"{order} array", lambda folder, o=order, i=image: load_image(i, channel_order=o), is_image(COLOR))
    add(
        f"{order} array with alpha",
        lambda folder, o=order, i=image: load_image(
            np.dstack([i, np.full(RAMP.shape, 255, np.uint8)]), channel_order=o
        ),
        is_image(COLOR),
    )
    add(
        f"{order} array in a pipeline",
        lambda folder, o=order, i=image: detector()(i, channel_order=o),
        scores_like(COLOR),
    )
add(
    "the channel order is not that of files",
    lambda folder: load_image(content(), channel_order="bgr"),
    is_image(COLOR),
)

# Transparency

ALPHA = np.where(np.arange(10) < 5, 0, 255).astype(np.uint8) * np.ones((12, 1), np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, COLOR)
RGBA = Image.fromarray(np.dstack([COLOR, ALPHA]))
OPAQUE = Image.fromarray(np.dstack([COLOR, np.full_like(ALPHA, 255)]))
WHITE_GRAY = np.where(ALPHA == 0, 255, RAMP)
LA = Image.fromarray(np.dstack([RAMP, ALPHA]))
for name, image, expected in (
    ("RGBA", RGBA, ON_WHITE),
    ("LA", LA, WHITE_GRAY),
    ("RGBa", RGBA.convert("RGBa"), ON_WHITE),
    ("La", LA.convert("La"), WHITE_GRAY),
    ("RGBA array", np.asarray(RGBA), ON_WHITE),
):
    add(f"transparent {name}", lambda folder, i=image: load_image(i), is_image(expected, 1), says="shown on white")
for extension in ("png", "webp", "tif", "tga"):
    add(
        f"transparent .{extension}",
        lambda folder, e=extension: load_image(
            saved(folder, RGBA, f"a.{e}", **({"lossless": True} if e == "webp" else {}))
        ),
        is_image(ON_WHITE),
        says="shown on white",
    )
    add(
        f"opaque RGBA .{extension}",
        lambda folder, e=extension: load_image(
            saved(folder, OPAQUE, f"a.{e}", **({"lossless": True} if e == "webp" else {}))
        ),
        is_image(COLOR),
    )
add(
    "half transparent",
    lambda folder: load_image(np.dstack([COLOR * 0, ALPHA * 0 + 128])),
    is_image(COLOR * 0 + 127),
    says="shown on white",
)
add(
    "fully transparent",
    lambda folder: load_image(np.dstack([COLOR, ALPHA * 0])),
    is_image(COLOR * 0 + 255),
    says="shown on white",
)
add(
    "transparent palette",
    lambda folder: load_image(saved(folder, RGBA.quantize(16), "a.png")).getpixel((0, 0)),
    lambda found: found == (255, 255, 255) or pytest.fail(str(found)),
    says="shown on white",
)
add(
    "transparent color of a PNG",
    lambda folder: load_image(saved(folder, np.where(RAMP > 99, RAMP, 7).astype(np.uint8), transparency=7)),
    is_image(np.where(RAMP > 99, RAMP, 255)),
    says="shown on white",
)
add(
    "transparent GIF",
    lambda folder: load_image(
        saved(folder, Image.fromarray((RAMP > 99).astype(np.uint8) * 200).convert("P"), "a.gif", transparency=0)
    ).getpixel((0, 0)),
    lambda found: found == (255, 255, 255) or pytest.fail(str(found)),
    says="shown on white",
)

# Modes of Pillow

for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "PA"):
    if mode == "LAB":
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        converted = ImageCms.applyTransform(Image.fromarray(COLOR), transform)
    else:
        converted = Image.fromarray(COLOR).convert("P" if mode == "PA" else mode).convert(mode)
    add(f"mode {mode}", lambda folder, c=converted: load_image(c), is_image(np.asarray(converted.convert("RGB"))))


# Pages


def pages(folder, *arrays, name="stack.tif", **options) -> Path:
    first, *others = [Image.fromarray(array) for array in arrays]
    if name.endswith(".webp"):
        options["lossless"] = True
    first.save(folder / name, save_all=True, append_images=others, **options)
    return folder / name


FLIPPED = np.ascontiguousarray(COLOR[::-1])
for name in ("stack.tif", "film.gif", "film.webp", "film.png"):
    add(
        f"two pages in {name}",
        lambda folder, n=name: load_image(pages(folder, COLOR, FLIPPED, name=n)),
        rf"{name}' has 2 pages, 2 of them with 10 x 12 pixels; .*--page on the command line",
    )
    add(
        f"two pages in {name}, opened by Pillow",
        lambda folder, n=name: load_image(Image.open(pages(folder, COLOR, FLIPPED, name=n))),
        "has 2 pages",
    )
    add(
        f"two pages in {name}, in bytes",
        lambda folder, n=name: load_image(pages(folder, COLOR, FLIPPED, name=n).read_bytes()),
        "<bytes> has 2 pages",
    )
    add(
        f"page 3 of 2 in {name}",
        lambda folder, n=name: load_image(pages(folder, COLOR, FLIPPED, name=n), page=3),
        "has 2 pages; expected page 3",
    )
for name in ("stack.tif", "film.webp", "film.png"):
    for page, expected in ((1, COLOR), (2, FLIPPED)):
        add(
            f"page {page} of {name}",
            lambda folder, n=name, p=page: load_image(pages(folder, COLOR, FLIPPED, name=n), page=p),
            is_image(expected),
        )
        add(
            f"page {page} of {name} in a pipeline",
            lambda folder, n=name, p=page: fresh(page=p)(str(pages(folder, COLOR, FLIPPED, name=n))),
            scores_like(expected),
        )
for name, arrays in (
    ("a thumbnail first", (COLOR[:4, :4], COLOR)),
    ("a thumbnail last", (COLOR, COLOR[:4, :4])),
    ("two thumbnails", (COLOR[:4, :4], COLOR, COLOR[:2, :2])),
):
    add(
        f"{name} in a TIFF",
        lambda folder, a=arrays: load_image(pages(folder, *a)),
        is_image(COLOR),
        says="The largest page is read",
    )
add(
    "a photo of a phone with a preview",
    lambda folder: load_image(pages(folder, COLOR, COLOR[:4, :4], name="a.mpo", quality=95)).size,
    lambda found: found == (10, 12) or pytest.fail(str(found)),
    says="first page of MPO",
)
add(
    "page 2 of a photo with one",
    lambda folder: load_image(saved(folder, COLOR), page=2),
    "has 1 page; expected page 2",
)
add("page 1 of a photo with one", lambda folder: load_image(saved(folder, COLOR), page=1), is_image(COLOR))


def at_page_2(folder):
    opened = Image.open(pages(folder, COLOR, FLIPPED))
    opened.seek(1)
    return load_image(opened)


add("a page that the caller chose", at_page_2, is_image(FLIPPED))

# Content in memory

PNG = content()
TEXT = base64.b64encode(PNG).decode()
for name, image in (
    ("bytes", PNG),
    ("bytearray", bytearray(PNG)),
    ("memoryview", memoryview(PNG)),
    ("BytesIO", None),
    ("base64", TEXT),
    ("base64 with line breaks", "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))),
    ("base64 for URLs", base64.urlsafe_b64encode(PNG).decode()),
    ("data URL", f"data:image/png;base64,{TEXT}"),
    ("data URL without type", f"data:;base64,{TEXT}"),
    ("DATA URL in capitals", f"DATA:image/png;BASE64,{TEXT}"),
    ("data URL with escapes", "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)),
    ("dict with bytes", {"bytes": PNG, "path": None}),
    ("dict with bytearray", {"bytes": bytearray(PNG)}),
):
    add(f"{name}, loaded", lambda folder, i=image: load_image(io.BytesIO(PNG) if i is None else i), is_image(COLOR))
    add(
        f"{name}, in a pipeline",
        lambda folder, i=image: detector()(io.BytesIO(PNG) if i is None else i),
        scores_like(COLOR),
    )


def open_file(folder, mode, act):
    with open(saved(folder, COLOR), mode) as file:
        return act(file)


def read_to_the_end(folder):
    file = io.BytesIO(PNG)
    file.read()
    found = load_image(file)
    assert file.tell() == len(PNG)  # its position is not changed
    return found


add("an open file", lambda folder: open_file(folder, "rb", load_image), is_image(COLOR))
add("an open file in a pipeline", lambda folder: open_file(folder, "rb", detector()), scores_like(COLOR))
add(
    "a list of open files", lambda folder: open_file(folder, "rb", lambda file: detector()([file])), scores_like(COLOR)
)
add("a file that was read", read_to_the_end, is_image(COLOR))
add("a file opened as text", lambda folder: load_image(io.StringIO("abc")), "opened as text.*'rb'")
add("a closed file", lambda folder: load_image(open_file(folder, "rb", lambda file: file)), "closed file.*open file")
add("empty bytes", lambda folder: load_image(b""), "<bytes> is empty")
add("bytes of a text", lambda folder: load_image(b"no image"), "<bytes> cannot be read as an image")
add("half of the bytes", lambda folder: load_image(PNG[: len(PNG) // 2]), "<bytes> could not be decoded.*truncated")
add("a file URL", lambda folder: load_image(saved(folder, COLOR).as_uri()), is_image(COLOR))
add("a file URL with a space", lambda folder: load_image(saved(folder, COLOR, "a b.png").as_uri()), is_image(COLOR))
add("a file URL of another host", lambda folder: load_image("file://server/a.png"), "host 'server'.*this machine")
add("a file URL of nothing", lambda folder: load_image((folder / "absent.png").as_uri()), "not found; check the path")
for scheme in ("s3", "gs", "ftp", "hf"):
    add(f"a {scheme} URL", lambda folder, s=scheme: load_image(f"{s}://bucket/a.png"), "URL of another kind")
add("a data URL without a comma", lambda folder: load_image("data:image/png"), "is not a data URL")
add("a data URL that is no base64", lambda folder: load_image("data:image/png;base64,%%%"), "is not valid base64")
add("a data URL of a text", lambda folder: load_image("data:text/plain,hello"), "cannot be read as an image")
add("a very long text", lambda folder: load_image("x y!" * 2000), "too long for a path")
add("a text with a null character", lambda folder: load_image("a\0b.png"), "null character")

# Files


def truncated(folder, extension):
    path = saved(folder, np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8), f"half.{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


for extension in ("png", "jpg", "webp", "bmp", "tif", "gif", "ppm"):
    add(
        f"half a .{extension}",
        lambda folder, e=extension: load_image(truncated(folder, e)),
        rf"half\.{extension}'.*(truncated|cannot be read)",
    )
for text in ("<html></html>", "version https://git-lfs.github.com/spec/v1", " ", "\0" * 40):
    add(
        f"a text {text[:6]!r} named .png",
        lambda folder, t=text: ((folder / "a.png").write_text(t), load_image(folder / "a.png")),
        r"a\.png' cannot be read as an image",
    )
add("an empty file", lambda folder: ((folder / "a.png").touch(), load_image(folder / "a.png")), r"a\.png' is empty")
add("a folder named .png", lambda folder: ((folder / "a.png").mkdir(), load_image(folder / "a.png")), "is a folder")


def closed(folder):
    image = Image.open(saved(folder, COLOR))
    image.close()
    return load_image(image)


add("a closed image", closed, "closed")


def without_open_files(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for path in (pages(folder, COLOR, COLOR[:3]), truncated(folder, "jpg"), saved(folder, COLOR)):
            with contextlib.suppress(OSError):
                load_image(path)
            path.unlink()
    return True


add("files are closed", without_open_files, lambda found: None, says="The largest page")

# Containers

PHOTOS = (COLOR, FLIPPED, RAMP)


def paths(folder) -> list[str]:
    return [str(saved(folder, photo, f"{number}.png")) for number, photo in enumerate(PHOTOS)]


class Both:
    """Rows by label, but iterated by position, as many containers are."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, label):
        raise KeyError(label)

    def __iter__(self):
        return iter(self.items)


for name, index in (
    ("sorted", [2, 0, 1]),
    ("from 1", [1, 2, 3]),
    ("of texts", list("abc")),
    ("of dates", pd.date_range("2024", periods=3)),
    ("with repeats", [0, 0, 0]),
    ("reversed", [2, 1, 0]),
):
    add(
        f"a pandas column with an index {name}",
        lambda folder, i=index: detector()(pd.Series(paths(folder), index=i)),
        scores_like(*PHOTOS),
    )
    add(
        f"a pandas column of images with an index {name}",
        lambda folder, i=index: detector()(pd.Series([Image.fromarray(p) for p in PHOTOS], index=i), batch_size=2),
        scores_like(*PHOTOS),
    )
add(
    "a filtered pandas column",
    lambda folder: detector()(pd.Series([*paths(folder), "x"])[[True, False, True, False]]),
    scores_like(COLOR, RAMP),
)
add(
    "a table of pandas",
    lambda folder: detector()(pd.DataFrame({"file": paths(folder), "n": 1})),
    r"DataFrame with the columns file, n; .*inputs\['file'\]",
)
add(
    "a table of pandas with an image column",
    lambda folder: detector()(pd.DataFrame({"n": [1], "image": ["a"]})),
    r"inputs\['image'\]",
)
add("rows by label", lambda folder: detector()(Both(paths(folder))), scores_like(*PHOTOS))
for kind in (np.array, lambda items: np.array(items, object), lambda items: np.array([i.encode() for i in items])):
    add(f"an array of paths {len(CASES)}", lambda folder, k=kind: detector()(k(paths(folder))), scores_like(*PHOTOS))
add("an array of paths with two axes", lambda folder: detector()(np.array([["a", "b"]])), "one axis of images")
add(
    "an array of paths, in the processor",
    lambda folder: len(ViP2ClipImageProcessor(size=8)(np.array(paths(folder)))["pixel_values"]),
    lambda found: found == 3 or pytest.fail(str(found)),
)
add(
    "several paths as one image",
    lambda folder: load_image(np.array(["a", "b"])),
    "expected one image|Expected one image",
)
for label in (0, 1.0, np.int64(1), torch.tensor(0), None, {"boxes": []}):
    add(
        f"pairs with a label {type(label).__name__}",
        lambda folder, x=label: detector()([(Image.fromarray(p), x) for p in PHOTOS]),
        scores_like(*PHOTOS),
        says="the labels are not used",
    )
add("one pair", lambda folder: detector()((COLOR, 1)), scores_like(COLOR), says="labels are not used")


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, position):
        return PHOTOS[position], 0


add("a dataset of pairs", lambda folder: detector()(Pairs()), scores_like(*PHOTOS), says="labels are not used")
add("a generator of pairs", lambda folder: detector()((p, 1) for p in PHOTOS), scores_like(*PHOTOS), says="not used")
add("a DataLoader", lambda folder: detector()(torch.utils.data.DataLoader(Pairs())), "inputs is a DataLoader")
BATCH = torch.from_numpy(np.stack([COLOR, FLIPPED])).permute(0, 3, 1, 2)
add("a batch of a DataLoader", lambda folder: detector()(BATCH), scores_like(COLOR, FLIPPED))
add("a batch with labels", lambda folder: detector()([BATCH, torch.tensor([0, 1])]), "position 0 is a batch")
add("a batch in a dict", lambda folder: detector()({"image": BATCH, "label": torch.tensor([0, 1])}), "found a batch")
add("a list of lists", lambda folder: detector()([[COLOR, COLOR, COLOR]]), "position 0 is a list of 3")
add("a pair of texts in a list", lambda folder: detector()([("a.png", "good")]), "position 0 is a tuple of 2")
add("a set", lambda folder: detector()(set(paths(folder))), "is a set, which has no order; expected a list")
for bad in (3, None, 1.5, object()):
    add(
        f"a list with {type(bad).__name__}",
        lambda folder, b=bad: detector()([COLOR, b]),
        rf"position 1 is of type {type(bad).__name__}",
    )
    add(f"one {type(bad).__name__}", lambda folder, b=bad: detector()(b), f"found {type(bad).__name__}")
for name, rows in (("range", range(3)), ("column of numbers", pd.Series([1.5, 2.5])), ("deque", deque([None]))):
    add(f"a {name}", lambda folder, r=rows: detector()(r), "position 0 is of type .*; expected a path")
add("an empty column", lambda folder: detector()(pd.Series([], dtype=object)), "at least one image")
add(
    "a dataset without images",
    lambda folder: detector()(Dataset.from_dict({"photo": ["a.png"]})),
    r"column 'image', found the columns \['photo'\]",
)
add("a table of pyarrow", lambda folder: detector()(pa.table({"image": ["a"]})), r"Table .*inputs\['image'\]")
add(
    "a column of pyarrow",
    lambda folder: detector()(pa.table({"image": paths(folder)})["image"], batch_size=2),
    scores_like(*PHOTOS),
)
add(
    "a dataset of paths",
    lambda folder: detector()(Dataset.from_dict({"image": paths(folder)})),
    scores_like(*PHOTOS),
)
add("an empty tuple", lambda folder: detector()(()), "at least one image")
add("an empty batch", lambda folder: detector()(np.zeros((0, 5, 5, 3), np.uint8)), "at least one image")
add("a dict of paths", lambda folder: detector()({"a": "1.png"}), "column 'image', found the columns")
add(
    "a generator with workers",
    lambda folder: detector()((p for p in PHOTOS), num_workers=2),
    scores_like(*PHOTOS),
    says="num_workers is not used for generators",
)
add(
    "a pipeline without a processor",
    lambda folder: AnomalyDetectionPipeline(model=detector().model, device="cpu"),
    "image_processor is None",
)

# Sizes

for size in ((1, 51), (1, 4000), (10, 10000), (10000, 10), (16, 801)):
    add(
        f"tiles of {size[0]} x {size[1]} pixels",
        lambda folder, s=size: tile_boxes(*s, 16),
        "more than 50 times the other",
    )
for size in ((1, 50), (16, 800), (10, 500)):
    add(
        f"tiles of {size[0]} x {size[1]} pixels",
        lambda folder, s=size: len(tile_boxes(*s, 16, 0.9)),
        lambda found: 0 < found < 600 or pytest.fail(str(found)),
    )
add("too many tiles", lambda folder: tile_boxes(9000, 9000, 16), f"tile_size is 16 .*at most {MAX_TILES:,}")
add("too much overlap", lambda folder: tile_boxes(4000, 4000, 256, 0.9), "tile_overlap 0.9, which gives .* tiles")
add(
    "a strip in tiles names its file",
    lambda folder: detector()(str(saved(folder, np.zeros((2, 300, 3), np.uint8), "strip.png")), tile_size=16),
    r"'.*strip\.png': The photo has 300 x 2 pixels",
)
add(
    "a strip without tiles",
    lambda folder: len(detector()(np.zeros((2, 300, 3), np.uint8))),
    lambda found: None,
    says="more than 50 times as long as it is wide",
)


@parametrize(CASES)
def test_images(case, tmp_path, caplog):
    run(case, tmp_path, caplog)
