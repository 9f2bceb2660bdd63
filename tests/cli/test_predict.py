"""`vip2clip predict` on photos: no file of the user is replaced, and one bad photo does not stop the others."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vip2clip_hf.checkpoints.bundled import example_photos
from vip2clip_hf.cli import app


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("hazelnut_normal_1.jpg", "hazelnut_damaged_1.jpg"):
        shutil.copy(example_photos() / name, folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_heatmap_never_replaces_a_photo(photos, tmp_path):
    """The photo was replaced by its heatmap, with exit code 0."""
    before = contents(photos)
    photo = photos / "hazelnut_normal_1.jpg"
    linked = tmp_path / "linked.jpg"
    linked.symlink_to(photo)
    for target in (photo, linked, photos / ".." / "photos" / photo.name):
        for flags in ((), ("--overwrite",)):
            done = predict(photo, "--heatmap", target, *flags)
            assert done.exit_code == 1
            assert "would replace a photo" in str(done.exception)
    assert contents(photos) == before


@pytest.mark.parametrize("target", ["", "heatmaps", "../photos"])
def test_heatmaps_are_not_written_among_the_photos(photos, target):
    """The next prediction read the heatmaps as photos."""
    before = contents(photos)
    done = predict(photos, "--heatmap", photos / target, "--overwrite")
    assert done.exit_code == 1
    assert "inside the folder of the photos" in str(done.exception)
    assert contents(photos) == before


def test_existing_heatmaps_are_kept_without_overwrite(photos, tmp_path):
    file = tmp_path / "mine.png"
    file.write_bytes(b"mine")
    done = predict(photos / "hazelnut_normal_1.jpg", "--heatmap", file)
    assert done.exit_code == 1
    assert "already exists; choose another path, or replace" in str(done.exception)
    assert file.read_bytes() == b"mine"
    assert predict(photos / "hazelnut_normal_1.jpg", "--heatmap", file, "--overwrite").exit_code == 0
    assert Image.open(file).format == "PNG"
    heatmaps = tmp_path / "heatmaps"
    assert predict(photos, "--heatmap", heatmaps).exit_code == 0
    written = contents(heatmaps)
    assert sorted(written) == ["hazelnut_damaged_1.jpg.png", "hazelnut_normal_1.jpg.png"]
    done = predict(photos, "--heatmap", heatmaps)
    assert done.exit_code == 1
    assert "already exists, and 1 more" in str(done.exception)
    assert predict(photos, "--heatmap", heatmaps, "--overwrite").exit_code == 0
    assert contents(heatmaps) == written
    assert predict(photos, "--overwrite").exit_code == 2  # without --heatmap and --output


def test_the_format_of_a_heatmap_is_that_of_its_name(photos, tmp_path):
    """It was always PNG."""
    photo = photos / "hazelnut_normal_1.jpg"
    for name, kind in (("a.jpg", "JPEG"), ("a.TIF", "TIFF"), ("a.webp", "WEBP"), ("a.png", "PNG")):
        assert predict(photo, "--heatmap", tmp_path / name).exit_code == 0
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
    for name in ("a", "a.txt", "a.jpg.part"):
        done = predict(photo, "--heatmap", tmp_path / name)
        assert done.exit_code == 1
        assert "unknown format; expected a name with .png, .jpg" in str(done.exception)


def test_one_odd_photo_does_not_stop_the_others(photos):
    """A float TIFF and a negative image stopped the prediction, and all results were lost."""
    Image.fromarray(np.full((40, 40), 255.0, dtype=np.float32)).save(photos / "float.tif")
    Image.fromarray(np.full((40, 40), -5, dtype=np.int32)).save(photos / "negative.tif")
    Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32)).save(photos / "nan.tif")
    (photos / "page.png").write_text("<html>")
    done = predict(photos, "--json")
    assert done.exit_code == 3, done.output
    rows = {os.path.basename(row["image"]): row for row in json.loads(done.stdout)}
    assert sorted(name for name, row in rows.items() if "error" in row) == [
        "float.tif", "nan.tif", "negative.tif", "page.png",
    ]  # fmt: skip
    assert all("score" in row for row in rows.values() if "error" not in row)
    done = predict(photos / "float.tif")
    assert done.exit_code == 1
    assert "float.tif" in str(done.exception)
