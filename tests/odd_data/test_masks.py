"""Odd masks: each is read right, or refused in one sentence."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from helpers.odd_data import Case, parametrize, run
from vip2clip_hf import MaskOptions, ViP2ClipCollator, ViP2ClipImageProcessor, load_mask
from vip2clip_hf.data.checks import check_data
from vip2clip_hf.data.loading import index_folder
from vip2clip_hf.models.vip2clip.mask_loading_vip2clip import marked_pixels, read_mask
from vip2clip_hf.models.vip2clip.mask_regions_vip2clip import count_regions, reduce_mask


HEIGHT, WIDTH = 20, 30
DEFECT = np.zeros((HEIGHT, WIDTH), dtype=bool)
DEFECT[4:9, 6:16] = True
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 128, 0)


def painted(background, defect) -> np.ndarray:
    """Image with one colour in the defect and one around it."""
    background, defect = np.asarray(background), np.asarray(defect)
    return np.where(DEFECT[..., None], defect, background).astype(np.uint8)


def saved(folder, image, name="mask.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


def read(folder, image, name="mask.png", options=None, **saving):
    return marked_pixels(saved(folder, image, name, **saving), options or MaskOptions())


def is_defect(marked):
    assert marked.dtype == bool
    assert np.array_equal(marked, DEFECT)


def is_inverted(marked):
    assert np.array_equal(marked, ~DEFECT)


def is_empty(marked):
    assert marked.shape == DEFECT.shape
    assert not marked.any()


def gray(values=None) -> Image.Image:
    return Image.fromarray((DEFECT * 255).astype(np.uint8) if values is None else values)


# The same mask in all modes and formats

MODES = {
    "1": lambda: gray().convert("1"),
    "L": gray,
    "P": lambda: gray().convert("P"),
    "LA": lambda: gray().convert("LA"),
    "RGB": lambda: gray().convert("RGB"),
    "RGBA": lambda: gray().convert("RGBA"),
    "CMYK": lambda: gray().convert("RGB").convert("CMYK"),
    "I": lambda: Image.fromarray(DEFECT.astype(np.int32) * 65535),
    "I;16": lambda: Image.fromarray(DEFECT.astype(np.uint16) * 40000),
    "F": lambda: Image.fromarray(DEFECT.astype(np.float32)),
}
FORMATS = {
    "png": ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"),
    "tif": ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "I;16", "F"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "gif": ("1", "L", "P", "RGB"),
    "webp": ("L", "RGB", "RGBA"),
    "tga": ("L", "P", "RGB", "RGBA"),
}
CASES = [
    Case(
        f"mask {mode} in {form}",
        lambda folder, mode=mode, form=form: read(
            folder, MODES[mode](), f"mask.{form}", **({"lossless": True} if form == "webp" else {})
        ),
        is_defect,
    )
    for form, modes in FORMATS.items()
    for mode in modes
]

# Alpha

LAYERS = {
    "white, defect opaque": ((*WHITE, 0), (*WHITE, 255)),
    "black marks on transparent black": ((*BLACK, 0), (*BLACK, 255)),
    "black marks on transparent white": ((*WHITE, 0), (*BLACK, 255)),
    "red marks on transparent black": ((*BLACK, 0), (*RED, 255)),
    "red marks on transparent white": ((*WHITE, 0), (*RED, 255)),
    "half transparent marks": ((*WHITE, 0), (*WHITE, 128)),
}
CASES += [
    Case(
        f"alpha: {name} in {form}",
        lambda folder, colors=colors, form=form: read(
            folder,
            Image.fromarray(painted(*colors)),
            f"mask.{form}",
            **({"lossless": True, "exact": True} if form == "webp" else {}),
        ),
        is_defect,
        None if name == "red marks on transparent black" else r"There are masks read from their alpha channel",
    )
    for name, colors in LAYERS.items()
    for form in ("png", "tif", "webp")
]
CASES += [
    Case(
        f"alpha: {name} in LA {form}",
        lambda folder, colors=colors, form=form: read(
            folder, Image.fromarray(painted(*colors)[..., [0, 3]], "LA"), f"mask.{form}"
        ),
        is_defect,
        "alpha channel",
    )
    for name, colors in LAYERS.items()
    if "red" not in name
    for form in ("png", "tif")
]
CASES += [
    Case(
        "alpha: eraser in an opaque layer, inverted",
        lambda folder: read(
            folder, Image.fromarray(painted((*BLACK, 255), (*BLACK, 0))), options=MaskOptions(invert=True)
        ),
        is_defect,
        "alpha channel",
    ),
    Case(
        "alpha: empty layer of transparent white",
        lambda folder: read(folder, Image.fromarray(painted((*WHITE, 0), (*WHITE, 0)))),
        is_empty,
        "alpha channel",
    ),
    Case(
        "alpha: constant and colours vary",
        lambda folder: read(folder, Image.fromarray(painted((*BLACK, 77), (*WHITE, 77)))),
        is_defect,
    ),
    Case(
        "alpha: everything transparent, colours vary",
        lambda folder: read(folder, Image.fromarray(painted((*BLACK, 0), (*WHITE, 0)))),
        is_defect,
        "fully transparent",
    ),
    Case(
        "alpha: colours and alpha mark different pixels",
        lambda folder: read(folder, Image.fromarray(painted((*WHITE, 255), (*BLACK, 200)) * corner(0))),
        r"^The colours and the alpha channel of Mask '.*mask.png' mark different pixels .* set mask_channel",
    ),
    *(
        Case(
            f"alpha: ambiguous, read by {channel}",
            lambda folder, channel=channel: read(
                folder,
                Image.fromarray(painted((*BLACK, 255), (*WHITE, 255)) * corner(0)),
                options=MaskOptions(channel=channel),
            ),
            expected,
        )
        for channel, expected in (("any", is_defect), ("luminance", is_defect), ("red", is_defect))
    ),
    Case(
        "alpha: chosen for an image without alpha",
        lambda folder: read(folder, gray(), options=MaskOptions(channel="alpha")),
        r"has no alpha channel \(mode L\); set mask_channel",
    ),
    Case(
        "a transparent gray value",
        lambda folder: read(folder, gray((~DEFECT * 255).astype(np.uint8)), transparency=255),
        is_defect,
        "alpha channel",
    ),
]


def corner(alpha: int) -> np.ndarray:
    """Factor that makes a corner transparent."""
    factor = np.ones((HEIGHT, WIDTH, 4), dtype=np.uint8)
    factor[-3:, -3:, 3] = alpha
    return factor


# Palettes


def palette(*colors, index=None) -> Image.Image:
    image = Image.fromarray((DEFECT * 1).astype(np.uint8) if index is None else index)
    image = image.convert("L")
    image.putpalette([value for color in colors for value in color])
    return image


PALETTES = {
    "black, black": (BLACK, BLACK),
    "black, almost black": (BLACK, (0, 0, 1)),
    "white, black": (WHITE, BLACK),
    "white, red": (WHITE, RED),
    "red, green": (RED, GREEN),
}
CASES += [
    Case(
        f"palette: {name} in {form}",
        lambda folder, colors=colors, form=form: read(folder, palette(*colors), f"mask.{form}"),
        is_defect,
        None if name == "black, almost black" else "palette read by index",
    )
    for name, colors in PALETTES.items()
    for form in ("png", "tif", "bmp")
]
CASES += [
    Case(
        f"palette: {name}, threshold {threshold}",
        lambda folder, colors=colors, threshold=threshold: read(
            folder, palette(*colors), options=MaskOptions(threshold=threshold)
        ),
        is_defect,
    )
    for name, colors in {**PALETTES, "black, white": (BLACK, WHITE), "black, gray": (BLACK, (9, 9, 9))}.items()
    for threshold in (1, 127)
]
CASES += [
    Case(
        f"palette: background is index 1, {name}",
        lambda folder, colors=colors: read(folder, palette(*colors, index=(~DEFECT).astype(np.uint8))),
        r"The palette of Mask '.*mask.png' is ambiguous: its index marks 92% .* set mask_channel",
    )
    for name, colors in {
        "red, black": (RED, BLACK),
        "white, red": (WHITE, RED),
        "gray, white": ((9, 9, 9), WHITE),
    }.items()
]
CASES += [
    Case(
        "palette: background is index 1, gray",
        lambda folder: read(folder, palette(WHITE, BLACK, index=(~DEFECT).astype(np.uint8))),
        is_defect,
        "gray palette read by gray value",
    ),
    Case(
        "palette: background is index 1, read by luminance",
        lambda folder: read(
            folder,
            palette(WHITE, BLACK, index=(~DEFECT).astype(np.uint8)),
            options=MaskOptions(channel="luminance"),
        ),
        is_defect,
    ),
    Case(
        "palette: only background, white",
        lambda folder: read(folder, palette(WHITE, index=DEFECT * np.uint8(0))),
        is_empty,
        "palette read by index",
    ),
    Case(
        "palette: index 1 everywhere, black",
        lambda folder: read(folder, palette(BLACK, BLACK, index=np.ones_like(DEFECT, dtype=np.uint8))),
        "is ambiguous: its index marks 100% of the pixels, its colours mark 0%",
    ),
    Case(
        "palette: transparent index 1",
        lambda folder: read(folder, palette(WHITE, BLACK, index=(~DEFECT).astype(np.uint8)), transparency=1),
        r"palette index and the transparency of Mask '.*' mark different pixels",
    ),
    Case(
        "palette: transparent index 0",
        lambda folder: read(folder, palette(WHITE, BLACK), transparency=0),
        is_defect,
    ),
    Case(
        "palette: index of a gray image",
        lambda folder: read(folder, gray(), options=MaskOptions(channel="index")),
        is_defect,
    ),
    Case(
        "palette: index of a colour image",
        lambda folder: read(folder, gray().convert("RGB"), options=MaskOptions(channel="index")),
        r"Mask '.*' has no palette \(mode RGB\)",
    ),
]

# Class ids in one colour channel

CASES += [
    Case(
        f"colours: {value} in {name}, {form}",
        lambda folder, number=number, value=value, form=form: read(
            folder, Image.fromarray(painted(BLACK, [value * (number == i) for i in range(3)])), f"mask.{form}"
        ),
        is_defect,
        "any channel is above" if (value, name) in ((1, "red"), (1, "blue"), (2, "blue"), (4, "blue")) else None,
    )
    for number, name in enumerate(("red", "green", "blue"))
    for value in (1, 2, 4, 255)
    for form in ("png", "bmp")
]
CASES += [
    Case(
        f"colours: {name} at threshold 127",
        lambda folder, color=color: read(
            folder, Image.fromarray(painted(BLACK, color)), options=MaskOptions(threshold=127)
        ),
        is_defect,
        "any channel is above",
    )
    for name, color in {"red": RED, "blue": (0, 0, 255), "dark green": GREEN}.items()
]
CASES += [
    Case(
        f"colours: {channel} of {name}",
        lambda folder, color=color, channel=channel: read(
            folder, Image.fromarray(painted(BLACK, color)), options=MaskOptions(channel=channel)
        ),
        expected,
    )
    for channel, name, color, expected in (
        ("red", "red", RED, is_defect),
        ("green", "red", RED, is_empty),
        ("blue", "blue", (0, 0, 1), is_defect),
        ("luminance", "blue 1", (0, 0, 1), is_empty),
    )
]
CASES += [
    Case(
        "colours: red on white, green inverted",
        lambda folder: read(
            folder, Image.fromarray(painted(WHITE, RED)), options=MaskOptions(channel="green", invert=True)
        ),
        is_defect,
    ),
]

# Inverted masks and thresholds

CASES += [
    Case(
        f"inverted: {mode}",
        lambda folder, mode=mode: read(
            folder, Image.fromarray((~DEFECT * 255).astype(np.uint8)).convert(mode), options=MaskOptions(invert=True)
        ),
        is_defect,
    )
    for mode in ("L", "1", "RGB", "RGBA", "LA")
]
CASES += [
    Case(
        f"values up to {value} of {name} at threshold 127",
        lambda folder, value=value, make=make: marked_pixels(make(DEFECT * value), MaskOptions(threshold=127)),
        is_empty,
        "values above 0, none of them above the mask threshold",
    )
    for name, make in {
        "uint8": lambda values: values.astype(np.uint8),
        "int64": lambda values: values.astype(np.int64),
        "a tensor": lambda values: torch.from_numpy(values.astype(np.int32)),
        "a PIL image": lambda values: Image.fromarray(values.astype(np.uint8)),
    }.items()
    for value in (1, 100)
]
CASES += [
    Case(
        f"boolean {name} at threshold 127",
        lambda folder, make=make: marked_pixels(make(), MaskOptions(threshold=127)),
        is_defect,
    )
    for name, make in {
        "array": lambda: DEFECT,
        "tensor": lambda: torch.from_numpy(DEFECT),
        "image": lambda: Image.fromarray(DEFECT),
    }.items()
]
CASES += [
    Case(
        f"threshold {value!r}",
        lambda folder, value=value: MaskOptions(threshold=value),
        f"mask_threshold is .*; expected a {'number of at least 0' if value == -1 else 'finite number'}",
    )
    for value in (-1, float("nan"), float("inf"), "127", True)
]
CASES += [
    Case(f"option {option}", lambda folder, option=option: MaskOptions(**option), expected)
    for option, expected in (
        ({"channel": "r"}, "mask_channel is 'r'; expected auto, luminance, any, red"),
        ({"channel": 0}, "mask_channel is 0; expected auto"),
        ({"invert": "yes"}, "mask_invert is 'yes'; expected True or False"),
        ({"invert": 1}, "mask_invert is 1; expected True or False"),
        ({"orientation": "stored"}, "mask_orientation is 'stored'; expected auto, image, own"),
        ({"keep_small_regions": 0.5}, "keep_small_regions is 0.5; expected True or False"),
    )
]

# Lossy formats


def noisy(folder, quality: int, form: str, threshold: float):
    image = gray().resize((5 * WIDTH, 5 * HEIGHT), Image.Resampling.NEAREST)
    return read(folder, image.convert("RGB"), f"mask.{form}", MaskOptions(threshold=threshold), quality=quality)


def is_large_defect(marked):
    assert np.array_equal(marked, np.kron(DEFECT, np.ones((5, 5), dtype=bool)))


def is_enlarged(marked):
    assert marked.sum() > 25 * DEFECT.sum()


CASES += [
    Case(
        f"lossy: {form} of quality {quality} at threshold {threshold}",
        lambda folder, quality=quality, form=form, threshold=threshold: noisy(folder, quality, form, threshold),
        is_large_defect if threshold else is_enlarged,
        None if threshold else "noise near 0 counted as anomalous; use a mask threshold of 127",
    )
    for form in ("jpg", "webp")
    for quality in (40, 75)
    for threshold in (0, 127)
]

# Values that are no marks

BAD_VALUES = {"NaN": np.nan, "infinity": np.inf, "negative": -1.0}
CASES += [
    Case(
        f"{name} in {kind}",
        lambda folder, value=value, make=make: marked_pixels(make(folder, np.where(DEFECT, value, 0)), MaskOptions()),
        f"{start}.*{'values from -1 to 0; expected values of at least 0' if value == -1 else 'finite mask values'}",
    )
    for name, value in BAD_VALUES.items()
    for kind, make, start in (
        ("a TIFF file", lambda folder, v: saved(folder, Image.fromarray(v.astype(np.float32)), "m.tif"), "m.tif"),
        ("a PIL image", lambda folder, v: Image.fromarray(v.astype(np.float32)), "The mask"),
        ("an array", lambda folder, v: v, "The mask"),
        ("a float16 array", lambda folder, v: v.astype(np.float16), "The mask"),
        ("a bfloat16 tensor", lambda folder, v: torch.from_numpy(v).bfloat16(), "The mask"),
        ("page 2", lambda folder, v: pages(folder, gray(), Image.fromarray(v.astype(np.float32))), "pages.tif"),
    )
]
CASES += [
    Case(
        f"-1 in {name}",
        lambda folder, make=make: marked_pixels(make(folder), MaskOptions()),
        "values from -1 to 0; expected values of at least 0",
    )
    for name, make in {
        "int8": lambda folder: -DEFECT.astype(np.int8),
        "int64": lambda folder: -DEFECT.astype(np.int64),
        "an int32 tensor": lambda folder: -torch.from_numpy(DEFECT.astype(np.int32)),
        "a signed TIFF": lambda folder: saved(folder, Image.fromarray(-DEFECT.astype(np.int32)), "mask.tif"),
    }.items()
]
CASES += [
    Case(f"array of {name}", lambda folder, value=value: marked_pixels(value, MaskOptions()), expected)
    for name, value, expected in (
        (
            "three channels",
            np.zeros((HEIGHT, WIDTH, 3)),
            r"Expected a mask of shape \(height, width\), found an array",
        ),
        ("one axis", np.zeros(5), "Expected a mask of shape"),
        ("four axes", np.zeros((1, 1, 4, 4)), "Expected a mask of shape"),
        ("no pixels", np.zeros((0, 4)), "Expected a mask of shape"),
        ("text", np.full((4, 4), "x"), "Expected a mask of numbers, found an array of type <U1"),
        ("complex numbers", np.zeros((4, 4), complex), "Expected a mask of numbers"),
        ("objects", np.full((4, 4), None), "Expected a mask of numbers"),
    )
]

# Several pages


def pages(folder, *images, name="pages.tif", **options):
    path = folder / name
    images[0].save(path, save_all=True, append_images=list(images[1:]), **options)
    return path


def half(part: int) -> Image.Image:
    """One half of the defect."""
    marked = DEFECT.copy()
    marked[:, 11:] &= part == 1
    marked[:, :11] &= part == 0
    return Image.fromarray(marked.astype(np.uint8) * 255)


CASES += [
    Case(
        f"pages: {name}",
        lambda folder, images=images: marked_pixels(pages(folder, *images()), MaskOptions()),
        is_defect,
        "There are masks with several pages, united",
    )
    for name, images in {
        "one defect per page": lambda: (half(0), half(1)),
        "defect on page 2": lambda: (gray(np.zeros(DEFECT.shape, np.uint8)), gray()),
        "defect on page 3": lambda: (*[gray(np.zeros(DEFECT.shape, np.uint8))] * 2, gray()),
        "other modes": lambda: (half(0).convert("1"), half(1).convert("RGB")),
        "8 and 16 bits": lambda: (half(0), Image.fromarray(np.asarray(half(1)).astype(np.uint16) * 200)),
        "a palette on page 2": lambda: (
            half(0),
            palette(WHITE, BLACK, index=(np.asarray(half(1)) > 0).astype(np.uint8)),
        ),
    }.items()
]


def with_thumbnail(folder):
    small = gray().resize((WIDTH // 2, HEIGHT // 2))
    path = folder / "pyramid.tif"
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as file:
        gray().save(file, format="TIFF")
        file.newFrame()
        small.save(file, format="TIFF", tiffinfo={254: 1})
    return path


CASES += [
    Case(
        "pages: a thumbnail",
        lambda folder: marked_pixels(with_thumbnail(folder), MaskOptions()),
        is_defect,
        "pages of lower resolution, which are left out",
    ),
    Case(
        "pages: different sizes",
        lambda folder: marked_pixels(pages(folder, gray(), gray().resize((9, 9))), MaskOptions()),
        r"The pages of Mask '.*pages.tif' differ in size; expected one size",
    ),
    *(
        Case(
            f"frames: {name}",
            lambda folder, name=name: marked_pixels(
                pages(folder, half(0), half(1), name=f"mask.{name}", duration=50), MaskOptions()
            ),
            r"Mask '.*' has 2 frames; expected one. Save one frame",
        )
        for name in ("gif", "png", "webp")
    ),
]

# EXIF orientation of the image

TURNED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # fmt: skip


def turned(folder, orientation, form="jpg", square=False, mask_tag=None, upright=False, options=None, mask="mask.png"):
    """Read a mask on the stored or the upright pixels of a photo. Returns the marked and the true pixels."""
    size = (20, 20) if square else (WIDTH, HEIGHT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(folder, Image.new("RGB", size, (99, 99, 99)), f"photo.{form}", exif=exif)
    drawn = gray().crop((0, 0, *size))
    truth = drawn.transpose(TURNED[orientation])
    saving = {}
    if mask_tag is not None:
        saving["exif"] = Image.Exif()
        saving["exif"][0x0112] = mask_tag
    saving.update({"lossless": True} if mask.endswith("webp") else {})
    path = saved(folder, truth if upright else drawn, mask, **saving)
    return marked_pixels(path, options or MaskOptions(), folder / f"photo.{form}"), np.asarray(truth) > 0


def agrees(result):
    assert np.array_equal(*result)
    assert result[0].any()


def differs(result):
    assert not np.array_equal(*result)


CASES += [
    Case(
        f"orientation {orientation}: mask of the stored pixels, {form}",
        lambda folder, orientation=orientation, form=form: turned(folder, orientation, form),
        agrees,
        "There are masks rotated by the EXIF orientation of their image"
        + (", because" if orientation > 4 else " that would also fit the upright"),
    )
    for orientation in TURNED
    for form in ("jpg", "png", "tif")
]
CASES += [
    Case(
        f"orientation {orientation}: the mask has the same in {form}{', square' if square else ''}",
        lambda folder, args=(orientation, form, square): turned(
            folder, args[0], args[1], args[2], mask_tag=args[0], mask=f"mask.{args[1]}"
        ),
        agrees,
    )
    for orientation in (2, 6, 7)
    for form in ("png", "tif", "webp")
    for square in (False, True)
]
CASES.append(
    Case(
        "orientation 6: mask with tag 1 in TIFF, square",
        lambda folder: turned(folder, 6, square=True, mask_tag=1, mask="mask.tif"),
        agrees,
        "would also fit the upright image",
    )
)
CASES += [
    Case(
        f"orientation {orientation}: square",
        lambda folder, orientation=orientation: turned(folder, orientation, square=True),
        agrees,
        "would also fit the upright image",
    )
    for orientation in (2, 5, 6, 8)
]
CASES += [
    Case(
        f"orientation {orientation}: mask of the upright pixels",
        lambda folder, orientation=orientation: turned(folder, orientation, upright=True),
        agrees,
    )
    for orientation in (5, 6, 7, 8)
]
CASES += [
    Case(
        f"orientation {orientation}: square upright mask with option own",
        lambda folder, orientation=orientation: turned(
            folder, orientation, square=True, upright=True, options=MaskOptions(orientation="own")
        ),
        agrees,
    )
    for orientation in (3, 6)
]
CASES += [
    Case("orientation 6: the mask has the same", lambda folder: turned(folder, 6, mask_tag=6), agrees),
    Case(
        "orientation 6: square, the mask has the same",
        lambda folder: turned(folder, 6, square=True, mask_tag=6),
        agrees,
    ),
    Case("orientation 3: upright mask with tag 1", lambda folder: turned(folder, 3, mask_tag=1, upright=True), agrees),
    Case(
        "orientation 6: mask with tag 1 of the stored size",
        lambda folder: turned(folder, 6, mask_tag=1),
        agrees,
        "because they have",
    ),
    Case(
        "orientation 6: square, option image",
        lambda folder: turned(folder, 6, square=True, options=MaskOptions(orientation="image")),
        agrees,
    ),
    Case(
        "orientation 6: option own",
        lambda folder: turned(folder, 6, options=MaskOptions(orientation="own")),
        r"Mask '.*mask.png' has 20 x 30 pixels \(height x width\); expected 30 x 20, the size of image '.*photo.jpg'",
    ),
    Case(
        "orientation 6: square, own, drawn on stored pixels",
        lambda folder: turned(folder, 6, square=True, options=MaskOptions(orientation="own")),
        differs,
    ),
]

# Sizes and files


def with_image(folder, size, image="photo.png", mask=None):
    """Process a mask of a size for a photo of 30 x 20 pixels."""
    photo = Image.new("RGB", (WIDTH, HEIGHT))
    if image is not None:
        photo = saved(folder, photo, image)
    mask = saved(folder, Image.new("L", size)) if mask is None else mask(size)
    return ViP2ClipImageProcessor(size=16)(photo, segmentation_maps=[mask])


CASES += [
    Case(
        f"size {size}",
        lambda folder, size=size: with_image(folder, size),
        rf"^Mask '.*mask.png' has {size[1]} x {size[0]} pixels .* expected 20 x 30, the size of image '.*photo.png'",
    )
    for size in ((20, 30), (31, 20), (30, 19), (60, 40), (15, 10), (1, 1))
]
CASES += [
    Case(
        f"size of {name}",
        lambda folder, make=make, image=image: with_image(folder, (20, 30), image, make),
        "The mask at position 0 has 30 x 20 pixels .* expected 20 x 30, the size of " + whose,
    )
    for name, make, image, whose in (
        ("an array", lambda size: np.zeros(size[::-1]), "photo.png", "image '.*photo.png'"),
        ("an array for a PIL image", lambda size: np.zeros(size[::-1]), None, "its image"),
        ("a PIL image for a PIL image", lambda size: Image.new("L", size), None, "its image"),
        ("a tensor", lambda size: torch.zeros(size[::-1]), None, "its image"),
    )
]


def content(folder) -> bytes:
    return saved(folder, gray()).read_bytes()


def orientation_of_content(folder, make):
    _, truth = turned(folder, 6)
    return marked_pixels(folder / "mask.png", MaskOptions(), make(folder / "photo.jpg")), truth


def broken(folder, content):
    path = folder / "mask.png"
    if content is not None:
        path.write_bytes(content(saved(folder, gray(), "whole.png").read_bytes()))
    return load_mask(path)


CASES += [
    Case(f"file: {name}", lambda folder, content=content: broken(folder, content), expected)
    for name, content, expected in (
        ("truncated", lambda whole: whole[: len(whole) // 2], "mask.png.*truncated or damaged"),
        ("header only", lambda whole: whole[:33], "mask.png.*(truncated|damaged|cannot be read)"),
        ("empty", lambda whole: b"", "mask.png.*is empty; expected an image file"),
        ("html", lambda whole: b"<html>404</html>", "mask.png.*cannot be read as an image"),
        ("missing", None, "mask.png.*not found"),
    )
]
CASES += [
    Case(f"content: {name}", lambda folder, make=make: marked_pixels(make(content(folder)), MaskOptions()), is_defect)
    for name, make in {
        "bytes": bytes,
        "bytearray": bytearray,
        "memoryview": memoryview,
        "file": lambda whole: io.BytesIO(whole),
        "undecoded": lambda whole: {"bytes": whole, "path": None},
    }.items()
]
CASES += [
    Case(
        f"content: orientation of a photo in {name}",
        lambda folder, make=make: orientation_of_content(folder, make),
        agrees,
        "rotated by the EXIF orientation of their image",
    )
    for name, make in {
        "bytes": lambda path: path.read_bytes(),
        "file": lambda path: io.BytesIO(path.read_bytes()),
        "PIL": lambda path: Image.open(path),
        "undecoded": lambda path: {"bytes": path.read_bytes(), "path": None},
        "undecoded path": lambda path: {"bytes": None, "path": str(path)},
    }.items()
]
CASES += [
    Case(f"content: {name}", lambda folder, value=value: load_mask(value), expected)
    for name, value, expected in (
        ("text as bytes", b"no image", "cannot be read as an image"),
        ("no bytes", b"", "is empty; expected an image file"),
        ("a number", 7, "Expected a mask of shape"),
        ("nothing", None, "Expected a mask of shape"),
        ("an empty dict", {}, "'bytes' or 'path'"),
    )
]
CASES.append(Case("file: folder", load_mask, "is a folder"))

# Small regions


def regions(count: int, side: int, size: int):
    """Square defects on a diagonal, at the size of a model."""
    marked = np.zeros((600, 600), dtype=bool)
    for number in range(count):
        start = 20 + 70 * number
        marked[start : start + side, start : start + side] = True
    return reduce_mask(marked, (size, size))


def has_regions(count, small):
    def check(found):
        assert (found.num_regions, found.num_small_regions, found.num_lost_regions) == (count, small, 0)
        assert count_regions(found.labels > 0) == count

    return check


CASES += [
    Case(
        f"{count} defects of {side} pixels at {size}",
        lambda folder, args=(count, side, size): regions(*args),
        has_regions(count, count if side < 600 / size / 1.5 else 0),
    )
    for count in (1, 4, 8)
    for side, size in ((1, 48), (2, 100), (5, 48), (30, 48), (50, 24), (4, 600))
]


# Warnings of the check


def checked(folder, marked: dict[str, np.ndarray], **options):
    """Check a folder with images and masks by name. `good` images have masks too."""
    for number, (name, mask) in enumerate(marked.items()):
        for path, image in ((name, gray(np.full(DEFECT.shape, 40 + number, np.uint8))),
                            (f"masks/{name}", Image.fromarray(mask.astype(np.uint8) * 255))):  # fmt: skip
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / path)
    return check_data(index_folder(folder), mask_options=MaskOptions(**options))


def warns(kind, count):
    def check(found):
        assert [len(names) for text, names in found.warnings.items() if kind in text] == [count], found

    return check


def warns_nothing(found):
    assert (found.warnings, found.problems) == ({}, {})


FULL, EMPTY = np.ones_like(DEFECT), np.zeros_like(DEFECT)
CASES += [
    Case(f"check: {name}", lambda folder, masks=masks, options=options: checked(folder, masks, **options), expected)
    for name, masks, options, expected in (
        ("clean", {"good/0.png": EMPTY, "bad/1.png": DEFECT}, {}, warns_nothing),
        ("inverted", {"bad/0.png": ~DEFECT, "bad/1.png": ~DEFECT, "bad/2.png": DEFECT}, {}, warns("inverted", 2)),
        ("inverted, with the option", {"bad/0.png": ~DEFECT, "good/1.png": FULL}, {"invert": True}, warns_nothing),
        ("one large defect", {"bad/0.png": ~DEFECT, "bad/1.png": DEFECT, "bad/2.png": DEFECT}, {}, warns_nothing),
        ("marked whole", {"bad/0.png": FULL, "bad/1.png": FULL}, {}, warns("mark the whole image", 2)),
        ("empty", {"bad/0.png": EMPTY, "bad/1.png": DEFECT}, {}, warns("empty mask", 1)),
    )
]


@parametrize(CASES)
def test_odd_masks(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


def test_clean_masks_say_nothing(tmp_path, caplog):
    for form, modes in FORMATS.items():
        for mode in modes:
            if (mode, form) == ("RGB", "gif"):
                continue  # Pillow chooses a palette with the defect at index 0
            read(tmp_path, MODES[mode](), f"mask.{form}", **({"lossless": True} if form == "webp" else {}))
    assert caplog.text == ""


def test_there_are_enough_cases():
    assert len(CASES) >= 90


@pytest.mark.parametrize("name", ["auto", "luminance", "any"])
def test_values_keep_their_type(name):
    for dtype in (bool, np.uint8, np.int64, np.float32):
        mask = DEFECT.astype(dtype)
        assert load_mask(mask, channel=name).dtype == dtype
    assert read_mask(mask, MaskOptions()).rules == ()


def test_collator_reads_the_options_of_rows(tmp_path, caplog):
    """A row can be read by other rules than the collator."""
    photo = saved(tmp_path, Image.new("RGB", (WIDTH, HEIGHT)), "photo.png")
    inverted = saved(tmp_path, Image.fromarray((~DEFECT * 100).astype(np.uint8)), "inverted.png")
    row = {"image": str(photo), "mask": str(inverted), "label": 1, "image_id": "x", "category": "c", "defect": "d"}
    processor = ViP2ClipImageProcessor(size=40, mask_threshold=127)
    collator = ViP2ClipCollator(processor, mask_options=MaskOptions(threshold=50, invert=True), return_metadata=True)
    expected = reduce_mask(DEFECT, (40, 40)).labels
    batch = collator([row, {**row, "mask_invert": False}, {**row, "mask_threshold": 200, "mask_invert": False}])
    assert np.array_equal(batch["mask_labels"][0].numpy(), expected)
    assert batch["mask_labels"][1].sum() == 1600 - expected.sum()
    assert batch["mask_labels"][2].sum() == 0
    assert batch["regions"] == [(1, 0, 0), (1, 0, 0), (0, 0, 0)]
