import base64
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from helpers.tiny import TINY, tiny_config
from vip2clip_hf import Provenance, ViP2ClipForAnomalyDetection
from vip2clip_hf.data import image_hashes as hashes_module
from vip2clip_hf.data.image_hashes import among, image_hashes, pack_hashes, picture_hash, unpack_hashes
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set, find_training_overlap, zero_shot_claim
from vip2clip_hf.data.synthetic.dataset import write_dataset


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=6, num_anomalous=2, size=48)


def test_describe(root):
    entry = describe_training_set(load_folder(root), "mine")
    assert entry["categories"] == ["stripes", "weave"]
    assert (entry["name"], entry["benchmark"], entry["split"]) == ("mine", None, "test")
    assert (entry["num_images"], entry["num_anomalous_images"]) == (28, 16)
    assert len(base64.b64decode(entry["hashes"]["data"])) == 28 * 32  # all images
    assert unpack_hashes(json.loads(json.dumps(entry))["hashes"]).shape == (28, 4)
    assert str(root) not in str(entry)


def test_a_checkpoint_stores_training_sets(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    model = ViP2ClipForAnomalyDetection(tiny_config())
    assert model.provenance == Provenance()
    model.provenance.training_sets.append(entry)
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "checkpoint")
    assert loaded.provenance == Provenance(training_sets=[entry])
    assert Provenance.from_pretrained(tmp_path / "checkpoint") == loaded.provenance
    # The adapters of another model were not trained on these images.
    assert ViP2ClipForAnomalyDetection.from_clip(loaded, **TINY).provenance == Provenance()


def test_overlap_of_renamed_images(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    assert find_training_overlap([entry], load_folder(root)) == ["trained on mine (28 of 28 evaluated images)"]
    # A third of the images with other names.
    images = sorted(root.rglob("test/*/*.png"))
    for label in ("normal", "anomalous"):
        (tmp_path / "other" / label).mkdir(parents=True)
    chosen = [path for path in images if path.parent.name == "good"][:4]
    chosen += [path for path in images if path.parent.name != "good"][:5]
    for number, path in enumerate(chosen):
        label = "normal" if path.parent.name == "good" else "anomalous"
        shutil.copyfile(path, tmp_path / "other" / label / f"photo{number}.png")
    other = load_folder(tmp_path / "other")
    assert find_training_overlap([entry], other) == ["trained on mine (9 of 9 evaluated images)"]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("bmp", {}), ("tiff", {}), ("jpg", {"quality": 90}), ("webp", {"quality": 90})],
)
def test_another_format_is_found(root, tmp_path, suffix, options):
    """The whole training set saved again in another format was not found."""
    entry = describe_training_set(load_folder(root), "mine")
    for number, path in enumerate(sorted(root.rglob("test/*/*.png"))):
        target = tmp_path / "again" / ("normal" if path.parent.name == "good" else "anomalous") / f"{number}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, **options)
    (found,) = find_training_overlap([entry], load_folder(tmp_path / "again"))
    number = int(found.removeprefix("trained on mine (").split(" of 28 ")[0])
    assert number >= (22 if options else 28)  # small pictures without enough structure are compared by their pixels


def photos(count: int, seed: int = 0, side: int = 96) -> list[Image.Image]:
    """Pictures with the spectrum of photos."""
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]
    blurred = [sum(np.asarray(p.filter(ImageFilter.BoxBlur(r)), dtype=float) for r in (1, 4, 16)) for p in pictures]
    return [Image.fromarray(np.clip(3 * (b / 3 - 127) + 127, 0, 255).astype(np.uint8)) for b in blurred]


def write_photos(folder, pictures, suffix="png", **options):
    for number, picture in enumerate(pictures):
        target = folder / ("anomalous" if number % 5 == 0 else "normal") / f"{number}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, **options)
    return load_folder(folder)


def test_few_images_of_a_large_training_set(tmp_path):
    """20 images, all of them among many training images, were not found by the hashes of 32 images."""
    pictures = photos(300)
    entry = describe_training_set(write_photos(tmp_path / "train", pictures), "mine")
    few = write_photos(tmp_path / "few", pictures[100:120] + photos(10, seed=1), "jpg", quality=75)
    assert find_training_overlap([entry], few) == ["trained on mine (20 of 30 evaluated images)"]
    others = write_photos(tmp_path / "others", photos(100, seed=2))
    assert find_training_overlap([entry], others) == []


def test_pictures_with_a_uniform_border_differ(tmp_path):
    """Bitmaps of one size with the same first rows had the same hash."""

    def framed(pictures):
        return [Image.fromarray(np.pad(np.asarray(p), ((52, 52), (52, 52), (0, 0)))) for p in pictures]

    one = write_photos(tmp_path / "one", framed(photos(10)), "bmp")
    two = write_photos(tmp_path / "two", framed(photos(10, seed=1)), "bmp")
    entry = describe_training_set(one, "mine")
    assert find_training_overlap([entry], two) == []
    assert find_training_overlap([entry], one) == ["trained on mine (10 of 10 evaluated images)"]


def test_pictures_without_structure(tmp_path, caplog):
    """A uniform picture does not identify an image. Others with little structure are compared by their pixels."""
    assert picture_hash(Image.new("RGB", (32, 32), (7, 8, 9))) is None
    faint = []
    for number in range(60):
        picture = Image.new("RGB", (32, 32 + number % 2), (100, 100, 100))
        picture.putpixel((number // 2, 5), (104, 100, 100))
        faint.append(picture)
    hashes = np.array([picture_hash(picture) for picture in faint])
    for number in range(len(hashes)):
        assert not among(hashes[number : number + 1], np.delete(hashes[:, 0], number, axis=0)).any()
    assert among(hashes, hashes[:, 0]).all()
    pictures = [*(Image.new("RGB", (32, 32), (v, v, v)) for v in range(10)), *faint[:5]]
    dataset = write_photos(tmp_path / "one", pictures)
    entry = describe_training_set(dataset, "mine")
    assert find_training_overlap([entry], dataset) == ["trained on mine (5 of 5 evaluated images)"]
    assert "10 of 15 images are uniform and are not compared with training images." in caplog.text
    uniform = write_photos(tmp_path / "two", pictures[:10])
    assert find_training_overlap([describe_training_set(uniform, "uniform")], uniform) == []


@pytest.mark.parametrize("old_numpy", [False, True])
def test_distance(monkeypatch, old_numpy):
    if old_numpy:
        monkeypatch.delattr(hashes_module.np, "bitwise_count", raising=False)
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2**64, (500, 4), dtype=np.uint64)
    two = rng.integers(0, 2**64, (700, 4), dtype=np.uint64)
    one = np.stack([one, np.full_like(one, 2**64 - 1)], axis=1)
    two[3] = one[5, 0] ^ np.array([0, 0, 1 << 63, 0], dtype=np.uint64)  # 1 bit
    two[4] = one[6, 0] ^ np.array([0, 0b11, 0, 0], dtype=np.uint64)  # 2 bits
    two[5] = one[7, 0] ^ np.array([0b11, 0, 0, 0b111], dtype=np.uint64)  # 5 bits, 4 of them weak
    one[7, 1, 0], one[7, 1, 3] = 2**64 - 4, 2**64 - 4
    monkeypatch.setattr(hashes_module, "_PAIRS", 10_000)
    assert np.flatnonzero(among(one, two)).tolist() == [5, 7]
    assert not among(one, two[:0]).any()
    assert among(one[:0], two).shape == (0,)


@pytest.mark.parametrize("packed", [None, "", [], {}, {"method": "other", "data": ""}, {"method": "dct-256-1"},
                                    {"method": "dct-256-1", "data": "?"}, {"method": "dct-256-1", "data": "QUFB"},
                                    {"method": "dct-256-1", "data": 3}])  # fmt: skip
def test_hashes_that_cannot_be_read(packed, root):
    assert unpack_hashes(packed) is None
    entry = {"name": "x", "num_images": 3, "hashes": packed}
    assert find_training_overlap([entry], load_folder(root)) == []
    assert zero_shot_claim([entry], []).startswith("not verified: the checkpoint does not contain hashes")
    assert unpack_hashes(pack_hashes(np.zeros((0, 2, 4), dtype=np.uint64))).shape == (0, 4)


def old_entry(folder) -> dict:
    """An entry as earlier versions wrote it."""
    found = set()
    for path in folder.rglob("*.*"):
        content = path.read_bytes()
        found.add(hashlib.sha256(b"%d:" % len(content) + content[:4096]).hexdigest()[:8])
    return {"name": "old", "benchmark": None, "split": "test", "image_hashes": " ".join(sorted(found)[:32])}


def test_checkpoints_of_earlier_versions(tmp_path, caplog):
    pictures = photos(10)
    dataset = write_photos(tmp_path / "one", pictures)
    entry = old_entry(tmp_path / "one")
    assert find_training_overlap([entry], dataset) == ["trained on old (about 100% of its images are in this dataset)"]
    assert zero_shot_claim([entry], []).startswith("not verified: the checkpoint does not contain hashes of all")
    # Different bitmaps with the same first rows.
    borders = [Image.fromarray(np.pad(np.asarray(p), ((52, 52), (52, 52), (0, 0)))) for p in photos(20)]
    write_photos(tmp_path / "two", borders[:10], "bmp")
    three = write_photos(tmp_path / "three", borders[10:], "bmp")
    assert find_training_overlap([old_entry(tmp_path / "two")], three) == []
    assert "10 different images have the same hash of an earlier version" in caplog.text


def test_images_that_cannot_be_read_are_counted(root, caplog):
    entry = describe_training_set(load_folder(root), "mine")
    path = next(root.rglob("test/good/*.png"))
    path.write_bytes(path.read_bytes()[:60])
    assert find_training_overlap([entry], load_folder(root)) == ["trained on mine (27 of 27 evaluated images)"]
    assert "1 of 28 images cannot be read and are not compared with training images: " in caplog.text
    assert image_hashes(load_folder(root)).shape == (27, 2, 4)


def test_claims():
    assert zero_shot_claim([], []) == "not verified: the checkpoint does not record its training datasets"
    entry = {"name": "x", "num_images": 3, "hashes": pack_hashes(np.ones((3, 2, 4), dtype=np.uint64))}
    assert zero_shot_claim([entry, entry], []) == (
        "zero-shot: none of the evaluated images was found among the 6 recorded training images"
    )
    assert zero_shot_claim([entry], ["trained on x", "trained on y"]) == ("not zero-shot: trained on x; trained on y")


def test_no_overlap_with_other_images(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    other = write_dataset(tmp_path / "other", ("stripes", "weave"), num_normal=6, num_anomalous=2, size=48, seed=1)
    assert find_training_overlap([entry], load_folder(other)) == []
    assert find_training_overlap(None, load_folder(root)) == []
    assert find_training_overlap([{"name": "x"}], load_folder(root)) == []
    # The same benchmark without known images: another split or another download.
    entry["benchmark"] = "mvtec"
    assert find_training_overlap([entry], load_folder(other), "visa") == []
    assert find_training_overlap([entry], load_folder(other), "mvtec") == [
        "trained on the same benchmark, mvtec (test split)"
    ]
