"""Tiling of large and elongated images."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vip2clip_hf import AnomalyDetectionPipeline
from vip2clip_hf.models.vip2clip.tiling_vip2clip import TileBlender, tile_boxes


@pytest.fixture
def detector(model, image_processor):
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"),
    [(200, 5000, 518, 0.25), (5000, 200, 100, 0.5), (4000, 6000, 1000, 0.25), (101, 33, 40, 0.0), (50, 51, 50, 0.9)],
)
def test_tiles_cover_the_image(height, width, size, overlap):
    boxes = tile_boxes(height, width, size, overlap)
    side = min(size, height, width)
    covered = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (side, side)
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        covered[top:bottom, left:right] = True
    assert covered.all()
    lefts = sorted({box[0] for box in boxes})
    steps = np.diff(lefts)
    assert (steps <= max(1, side * (1 - overlap)) + 1).all()  # rounding
    assert len(set(boxes)) == len(boxes)


def test_an_image_that_fits_into_one_tile_is_not_tiled():
    assert tile_boxes(100, 80, 100) == []
    assert tile_boxes(100, 80, 5000) == []
    assert len(tile_boxes(101, 80, 100)) > 1


def test_numbers_of_numpy():
    expected = tile_boxes(100, 80, 50, 0.5)
    found = tile_boxes(100, 80, np.int64(50), np.float32(0.5))
    assert found == expected
    assert {type(value) for box in found for value in box} == {int}


@pytest.mark.parametrize("size", [0, 15, -1, 2.5, True])
def test_invalid_sizes(size):
    with pytest.raises(ValueError, match="tile_size"):
        tile_boxes(100, 100, size)


@pytest.mark.parametrize("overlap", [-0.1, 0.95, float("nan"), True])
def test_invalid_overlaps(overlap):
    with pytest.raises(ValueError, match="tile_overlap"):
        tile_boxes(100, 100, 50, overlap)


def test_blending_keeps_values_on_which_all_tiles_agree():
    """A constant map and a plane are reproduced, up to the rounding of resized maps."""
    height, width = 90, 230
    boxes = tile_boxes(height, width, 64, 0.3)
    blender = TileBlender(height, width, boxes)
    for box in boxes:
        blender.add(box, np.full((16, 16), 0.3, dtype=np.float32))
    np.testing.assert_allclose(blender.result(), np.full((height, width), 0.3), rtol=1.3e-6, atol=1e-5)
    plane = np.broadcast_to(np.arange(width) / width, (height, width)).astype(np.float32)
    blender = TileBlender(height, width, boxes)
    for left, top, right, bottom in boxes:
        blender.add((left, top, right, bottom), plane[top:bottom, left:right])
    np.testing.assert_allclose(blender.result(), plane, rtol=0, atol=1e-5)


def triangle(side: int) -> np.ndarray:
    """Weights of a tile along an axis: distance of each pixel's centre to the nearer edge."""
    return np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)


def test_seam_of_two_tiles():
    """The weights at each pixel are the distances to the edges of the tiles. There is no step at the seam."""
    boxes = tile_boxes(20, 30, 20, 0.5)
    assert boxes == [(0, 0, 20, 20), (10, 0, 30, 20)]
    blender = TileBlender(20, 30, boxes)
    blender.add(boxes[0], np.full((8, 8), 0.2))
    blender.add(boxes[1], np.full((8, 8), 1.0))
    found = blender.result()
    weights = np.zeros((2, 30))
    weights[0, :20] = weights[1, 10:] = triangle(20)
    share = weights[1] / weights.sum(axis=0)  # of the right tile
    np.testing.assert_allclose(found, np.broadcast_to(0.2 + 0.8 * share, (20, 30)), rtol=0, atol=1e-6)
    # In the overlap of 10 pixels, the weights fall from 9.5 to 0.5 and rise from 0.5 to 9.5.
    np.testing.assert_allclose(share[10:20], (np.arange(10) + 0.5) / 10, rtol=0, atol=1e-12)
    steps = np.diff(found[7])
    assert (steps >= -1e-6).all()
    assert steps.max() <= 0.8 / 10 + 1e-6


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"), [(50, 90, 32, 0.25), (64, 64, 40, 0.6), (33, 80, 33, 0)]
)
def test_weights_of_tiles(height, width, size, overlap):
    """Each tile is blended with the product of its weights along rows and columns."""
    boxes = tile_boxes(height, width, size, overlap)
    maps = np.random.default_rng(0).random((len(boxes), size, size)).astype(np.float32)
    blender, total, weights = TileBlender(height, width, boxes), np.zeros((height, width)), np.zeros((height, width))
    for (left, top, right, bottom), one in zip(boxes, maps):
        blender.add((left, top, right, bottom), one)
        weight = np.outer(triangle(size), triangle(size))
        total[top:bottom, left:right] += weight * one
        weights[top:bottom, left:right] += weight
    np.testing.assert_allclose(blender.result(), total / weights, rtol=0, atol=1e-5)


def test_nan_is_not_hidden_by_blending():
    boxes = tile_boxes(20, 30, 20, 0.5)
    blender = TileBlender(20, 30, boxes)
    blender.add(boxes[0], np.full((20, 20), np.nan))
    blender.add(boxes[1], np.full((20, 20), 0.5))
    assert np.isnan(blender.result()[:, :20]).all()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_only_tiles_are_prepared_for_the_model(detector, photo, batch_size, monkeypatch):
    """Not the whole photo as well, which takes a second for 48 megapixels."""
    sizes = []
    prepare = type(detector.image_processor).preprocess

    def preprocess(self, images, *args, **kwargs):
        sizes.extend(image.size for image in images)
        return prepare(self, images, *args, **kwargs)

    monkeypatch.setattr(type(detector.image_processor), "preprocess", preprocess)
    large, small = photo.resize((150, 60)), photo.resize((50, 60))
    number = len(tile_boxes(60, 150, 60, 0.25))
    detector(large, tile_size=60)
    assert sizes == [(60, 60)] * number
    sizes.clear()
    list(detector([large, small, large], tile_size=60, batch_size=batch_size))
    assert sorted(sizes) == [(50, 60)] + [(60, 60)] * 2 * number


def test_tiles_in_the_pipeline(detector, photo):
    """Compared with the results of the individual tiles."""
    large = photo.resize((150, 60))
    result = detector(large, tile_size=60, tile_overlap=0.5)
    boxes = tile_boxes(60, 150, 60, 0.5)
    alone = [detector(large.crop(box)) for box in boxes]
    assert result["score"] == pytest.approx(max(one["score"] for one in alone), abs=1e-6)
    assert result["anomaly_map"].shape == result["mask"].shape == (60, 150)
    blender = TileBlender(60, 150, boxes)
    for box, one in zip(boxes, alone):
        blender.add(box, one["anomaly_map"])
    np.testing.assert_allclose(result["anomaly_map"], blender.result(), atol=1e-5)
    assert result["anomaly_map"].max() <= 1
    heatmap = detector(large, tile_size=60, heatmap=True, regions=True)
    assert heatmap["heatmap"].size == (150, 60)
    assert isinstance(heatmap["regions"], list)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_tiled_and_whole_photos_in_one_batch(detector, photo, batch_size):
    photos = [photo, photo.resize((150, 60)), photo.resize((30, 30)), photo.resize((60, 200))]
    expected = [detector(one, tile_size=60) for one in photos]
    found = list(detector(photos, tile_size=60, batch_size=batch_size))
    for one, two in zip(found, expected):
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        np.testing.assert_allclose(one["anomaly_map"], two["anomaly_map"], atol=1e-5)


def test_invalid_arguments(detector, photo):
    with pytest.raises(ValueError, match="tile_size is 5"):
        detector(photo, tile_size=5)
    with pytest.raises(ValueError, match="tile_overlap is 1"):
        detector(photo, tile_size=50, tile_overlap=1)


def test_line_scan(detector):
    scan = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 5000, 3), dtype=np.uint8))
    result = detector(scan, tile_size=518)
    assert result["anomaly_map"].shape == (200, 5000)


PROGRAM = """
import resource
import numpy as np
from PIL import Image
from vip2clip_hf import AnomalyDetectionPipeline
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint

detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
detector(Image.new("RGB", (300, 300)), tile_size=224)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
photo = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
result = detector(photo, tile_size=1000)
assert result["anomaly_map"].shape == (4000, 6000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is only reported in kilobytes on Linux")
def test_memory_of_a_large_photo():
    """24 megapixels: image 72 MB, map 96 MB, mask 24 MB. Memory allows for a few of each, not for one per tile."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) / 1024 < 900
