"""HEIC photos with and without pillow-heif."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from vip2clip_hf import AnomalyDetectionPipeline, load_image
from vip2clip_hf.data import index_folder
from vip2clip_hf.models.vip2clip.heif_vip2clip import is_heif, register_heif
from vip2clip_hf.models.vip2clip.image_listing_vip2clip import list_images


pillow_heif = pytest.importorskip("pillow_heif")
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def phone_photo() -> Image.Image:
    """A photo with a bright corner at the left top, so that its orientation can be seen."""
    pixels = np.full((64, 96, 3), 60, dtype=np.uint8)
    pixels[:16, :24] = 230
    pixels[48:, 72:] = (200, 40, 40)
    return Image.fromarray(pixels)


@pytest.fixture
def heic(phone_photo, tmp_path):
    register_heif()

    def save(name: str = "photo.heic", orientation: int = 1, **options):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        # As phones do: the rotation is in the container, and repeated in the EXIF data.
        phone_photo.save(tmp_path / name, format="HEIF", quality=95, exif=exif.tobytes(), **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_applied_once(heic, phone_photo, tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    phone_photo.save(tmp_path / "photo.png", exif=exif)
    expected = np.asarray(load_image(tmp_path / "photo.png"), dtype=int)
    path = heic(orientation=orientation)
    for given in (path, path.read_bytes(), Image.open(path)):
        found = np.asarray(load_image(given), dtype=int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 4
    assert (expected.shape[0] > expected.shape[1]) == (orientation in (6, 8))
    with Image.open(path) as opened:
        assert opened.info["original_orientation"] == (None if orientation == 1 else orientation)
    turned = ImageOps.exif_transpose(Image.open(tmp_path / "photo.png"))
    assert np.array_equal(np.asarray(turned), expected)


def test_folders(heic, photo, tmp_path, model, image_processor):
    for name in ("a.heic", "b.HEIF", "c.hif"):
        heic(name)
    photo.save(tmp_path / "d.png")
    assert [path.rpartition("/")[2] for path in map(str, list_images(tmp_path))] == [
        "a.heic", "b.HEIF", "c.hif", "d.png",
    ]  # fmt: skip
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    assert [result["mask"].shape for result in detector(str(tmp_path))] == [(64, 96)] * 3 + [(40, 60)]


def test_datasets(heic, phone_photo, tmp_path):
    path = heic()
    for label in ("good", "bad"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "1.heic").write_bytes(path.read_bytes())
    rows = index_folder(tmp_path / "set").to_dataset()
    assert sorted(rows["label"]) == [0, 1]
    assert np.abs(np.asarray(load_image(rows[0]["image"]), dtype=int) - np.asarray(phone_photo)).mean() < 4


def test_the_photo_of_several_pictures_is_read(phone_photo, tmp_path):
    """Phones store bursts and other views in one file, and name the photo."""
    pictures = pillow_heif.from_pillow(Image.new("RGB", phone_photo.size, "white"))
    pictures.add_from_pillow(phone_photo)
    pictures.save(tmp_path / "burst.heic", quality=95, primary_index=1)
    found = np.asarray(load_image(tmp_path / "burst.heic"), dtype=int)
    assert np.abs(found - np.asarray(phone_photo)).mean() < 4
    assert np.asarray(load_image(tmp_path / "burst.heic", page=1)).min() > 240


def test_damaged_photos(heic):
    path = heic()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match=r"photo\.heic' (could not be decoded|cannot be read)"):
        load_image(path)


def test_kinds_of_files(heic, phone_photo, tmp_path):
    assert is_heif(heic().read_bytes()[:64])
    if features.check("avif"):
        phone_photo.save(tmp_path / "photo.avif")
        assert not is_heif((tmp_path / "photo.avif").read_bytes()[:64])
        assert load_image(tmp_path / "photo.avif").size == phone_photo.size
        assert list_images(tmp_path)[0].endswith("photo.avif")
    phone_photo.save(tmp_path / "photo.png")
    assert not is_heif((tmp_path / "photo.png").read_bytes()[:64])
    assert not is_heif(b"")
    assert not is_heif(b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2")  # a video


@pytest.mark.slow
def test_without_pillow_heif(heic):
    path = heic()
    code = f"""
import sys
sys.modules["pillow_heif"] = None
import json, logging, io
from vip2clip_hf import load_image
from vip2clip_hf.data import index_folder
from vip2clip_hf.models.vip2clip.image_listing_vip2clip import NEEDS_HEIF, LeftOut, has_image_extension
try:
    load_image({str(path)!r})
except OSError as error:
    left_out = LeftOut({str(path.parent)!r})
    left_out.add_file("photo.heic")
    print(json.dumps([str(error), has_image_extension("photo.heic"), left_out.counts, NEEDS_HEIF]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    message, is_listed, counts, reason = json.loads(done.stdout.splitlines()[-1])
    assert "photo.heic' is a HEIC photo. Reading it needs pillow-heif" in message
    assert message.endswith("pip install 'vip2clip_hf[heic]'.")
    assert not is_listed
    assert counts == {reason: 1}
    assert "vip2clip_hf[heic]" in reason
