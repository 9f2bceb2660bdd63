import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vip2clip_hf.models.vip2clip.mask_orientation_vip2clip import ORIENTATION, read_header, turn
from vip2clip_hf.models.vip2clip.mask_regions_vip2clip import count_regions, reduce_mask


def overlapping(y: int, x: int, shape, size):
    """Pixels of the resized mask that overlap a pixel."""
    rows = slice(y * size[0] // shape[0], -(-(y + 1) * size[0] // shape[0]))
    return rows, slice(x * size[1] // shape[1], -(-(x + 1) * size[1] // shape[1]))


@pytest.mark.parametrize("seed", range(40))
def test_no_region_vanishes_and_others_do_not_change(seed):
    """Random masks of all densities and sizes, compared with scipy and with plain resizing."""
    rng = np.random.default_rng(seed)
    shape, size = tuple(rng.integers(1, 60, 2).tolist()), tuple(rng.integers(1, 60, 2).tolist())
    marked = rng.random(shape) < rng.random() * rng.choice([0.02, 0.2, 0.7])
    regions, count = ndimage.label(marked, np.ones((3, 3)))
    assert count_regions(marked) == count
    kept, lost = reduce_mask(marked, size), reduce_mask(marked, size, keep_small_regions=False)
    plain = Image.fromarray(marked.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BILINEAR)
    plain = np.asarray(plain) > 127.5
    assert np.array_equal(lost.labels, plain)
    assert (kept.num_regions, lost.num_regions) == (count, count)
    assert kept.num_small_regions == lost.num_small_regions == lost.num_lost_regions
    assert kept.num_lost_regions == 0
    assert (kept.labels >= lost.labels).all()
    small = 0
    for number in range(1, count + 1):
        pixels = [overlapping(y, x, shape, size) for y, x in np.argwhere(regions == number)]
        assert any(kept.labels[box].any() for box in pixels)
        small += not any(plain[box].any() for box in pixels)
    assert kept.num_small_regions == small
    if not small:
        assert np.array_equal(kept.labels, lost.labels)


def test_a_long_scratch_is_not_one_pixel():
    marked = np.zeros((600, 600), dtype=bool)
    marked[300, 50:550] = True
    found = reduce_mask(marked, (100, 100))
    assert (found.num_small_regions, int(found.labels.sum())) == (1, 84)
    marked = np.zeros((6000, 6000), dtype=bool)
    marked[3000, 3000:3400] = True  # rounded to 0 everywhere
    assert reduce_mask(marked, (48, 48)).labels.sum() >= 1


def test_four_defects_in_a_large_photo():
    """Of 5 x 5 pixels in 1500 x 1500, as in the report of this fault."""
    marked = np.zeros((1500, 1500), dtype=bool)
    for top, left in ((100, 100), (100, 1200), (700, 700), (1300, 300)):
        marked[top : top + 5, left : left + 5] = True
    found = reduce_mask(marked, (224, 224))
    assert found.num_regions == 4
    assert found.num_small_regions >= 3
    assert count_regions(found.labels > 0) == 4


def test_empty_and_full_masks():
    for size in ((5, 5), (48, 48)):
        assert reduce_mask(np.zeros((5, 5), dtype=bool), size).labels.sum() == 0
        full = reduce_mask(np.ones((5, 5), dtype=bool), size)
        assert (int(full.labels.sum()), full.num_regions, full.num_small_regions) == (size[0] * size[1], 1, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "jpg", "tif", "webp"])
def test_header(tmp_path, orientation, form):
    """Equal to what Pillow does with the decoded image."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    path = tmp_path / f"photo.{form}"
    Image.fromarray(pixels).convert("RGB").save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    for source in (path, str(path), {"path": str(path), "bytes": None}, {"path": None, "bytes": path.read_bytes()}):
        stored, size, found = read_header(source)
        assert (stored, size, found) == ((3, 4), upright.size[::-1], orientation)
    if orientation > 1 and form == "png":
        assert np.array_equal(turn(pixels, orientation), np.asarray(upright)[..., 0])


def test_header_of_a_png_file_with_tags_behind_its_pixels(tmp_path):
    """Pillow reads them only when it decodes the image."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 3)).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    path.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    assert read_header(path) == ((3, 4), (4, 3), 6)
    assert (
        read_header(np.zeros((3, 4))) is read_header("http://127.0.0.1:9/x.png") is read_header(tmp_path / "x") is None
    )
