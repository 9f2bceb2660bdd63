import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny import TINY
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import ViP2ClipCollator, load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training import augmentation as augmentation_module, feature_cache
from vip2clip_hf.training.augmentation import Augmentation
from vip2clip_hf.training.feature_cache import CachedRows, FeatureCache
from vip2clip_hf.training.rows import TrainingRows
from vip2clip_hf.utils import code_version


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)


@pytest.fixture
def dataset(root):
    return load_folder(root)


@pytest.fixture
def model(clip):
    return ViP2ClipForAnomalyDetection.from_clip(clip, **TINY).eval()


@pytest.fixture
def build(model, image_processor, dataset, tmp_path):
    def build(**options):
        options = {"folder": tmp_path / "cache", "dtype": "float32", "batch_size": 4, **options}
        arguments = [options.pop(name, default) for name, default in (
            ("model", model), ("image_processor", image_processor), ("dataset", dataset)
        )]  # fmt: skip
        return FeatureCache.build(*arguments, options.pop("folder"), **options)

    return build


def _processor() -> ViP2ClipImageProcessor:
    return ViP2ClipImageProcessor(size=TINY["image_size"])


def count_forwards(model, monkeypatch) -> list[int]:
    seen, original = [], model.get_image_features

    def counting(pixel_values, **options):
        seen.append(len(pixel_values))
        return original(pixel_values, **options)

    monkeypatch.setattr(model, "get_image_features", counting)
    return seen


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_rows_equal_the_backbone_outputs(build, model, image_processor, dataset, dtype, tolerance):
    cache = build(dtype=dtype)
    assert len(cache) == len(dataset) == 14
    collator = ViP2ClipCollator(image_processor)
    cached = collator([cache.row(position) for position in range(14)])
    plain = collator([dataset[position] for position in range(14)])
    with torch.no_grad():
        images = model.get_image_features(plain["pixel_values"])
        image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
    torch.testing.assert_close(cached["image_embeds"], image_embeds, rtol=0, atol=1e-6)
    assert cached["patch_embeds"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(cached["patch_embeds"].float(), patch_embeds, rtol=0, atol=tolerance)
    for name in ("labels", "mask_labels", "mask_valid"):
        assert torch.equal(cached[name], plain[name]), name


def test_rows_are_computed_once(build, model, monkeypatch):
    seen = count_forwards(model, monkeypatch)
    first = build()
    assert seen == [4, 4, 4, 2]
    assert build().folder == first.folder
    assert len(seen) == 4


def test_resumes_after_an_interruption(build, model, monkeypatch, dataset):
    original, calls = model.get_image_features, []

    def interrupted(pixel_values, **options):
        calls.append(len(pixel_values))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(pixel_values, **options)

    monkeypatch.setattr(model, "get_image_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    cache = build()
    assert calls == [4, 4, 4, 4, 2]  # eight rows were already stored
    monkeypatch.undo()
    with torch.no_grad():
        for position in (0, 9, 13):
            pixels = ViP2ClipCollator(_processor())([dataset[position]])["pixel_values"]
            expected = model.get_image_features(pixels).patch_embeds[0]
            torch.testing.assert_close(cache.row(position)["patch_embeds"], expected, rtol=0, atol=1e-6)


def test_damaged_rows_are_computed_again(build, model, monkeypatch, caplog):
    cache = build()
    good = cache.row(5)["patch_embeds"].clone()
    path = cache.folder / "patch_embeds.npy"
    content = bytearray(path.read_bytes())
    row_bytes = np.load(path, mmap_mode="r")[0].nbytes
    content[-14 * row_bytes + 5 * row_bytes + 7] ^= 0x40
    path.write_bytes(content)
    seen = count_forwards(model, monkeypatch)
    again = build()
    assert sum(seen) == 1
    assert "1 rows of the feature cache are damaged. Computing them again." in caplog.text
    torch.testing.assert_close(again.row(5)["patch_embeds"], good, rtol=0, atol=1e-6)


@pytest.mark.parametrize("damage", ["truncated", "missing", "meta", "other shape"])
def test_an_incomplete_cache_is_built_again(build, model, monkeypatch, damage, caplog):
    cache = build()
    path = cache.folder / "patch_embeds.npy"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "missing":
        path.unlink()
    elif damage == "meta":
        (cache.folder / "meta.json").write_text("{")
    else:
        np.save(path, np.zeros((14, 3, 36, 15), dtype=np.float32))
    seen = count_forwards(model, monkeypatch)
    again = build()
    assert sum(seen) == 14
    assert "is incomplete. Building it again." in caplog.text
    assert again.row(13)["patch_embeds"].abs().max() > 0


def test_all_inputs_are_part_of_the_key(build, model, image_processor, dataset, root, monkeypatch):
    folders = {build().folder}
    folders.add(build(dtype="float16").folder)
    folders.add(build(precision="bfloat16").folder)
    folders.add(build(mask_threshold=127).folder)
    folders.add(build(augmentation=Augmentation(["flip"]), num_views=2).folder)
    folders.add(build(augmentation=Augmentation(["flip"], seed=1), num_views=2).folder)
    folders.add(build(dataset=dataset.select(range(13))).folder)
    folders.add(build(dataset=dataset.select(range(13, -1, -1))).folder)
    image_processor.image_mean = [0.5, 0.5, 0.5]
    folders.add(build().folder)
    with torch.no_grad():
        model.clip.vision_model.encoder.layers[0].mlp.fc1.bias[0] += 1e-3
    folders.add(build().folder)
    model.config.feature_layers = (1, 2, 3)
    folders.add(build().folder)
    # Same names and sizes, different content.
    path = next(root.rglob("test/good/000.png"))
    content = bytearray(path.read_bytes())
    mask = next(root.rglob("*_mask.png"))
    path.write_bytes(bytes(content) + b"\0")
    folders.add(build().folder)
    mask.write_bytes(mask.read_bytes() + b"\0")
    folders.add(build().folder)
    assert len(folders) == 13
    # The adapters and the text tower are not part of the key.
    with torch.no_grad():
        model.prompt_learner.normal_context += 1
        model.clip.text_projection.weight += 1
    assert build().folder in folders


@pytest.mark.parametrize(
    ("name", "value"), [("COLOR_CHANGE", 0.5), ("PIECE_SIDES", (0.1, 0.2)), ("AUGMENTATIONS", ("flip", "cut_paste"))]
)
def test_constants_of_the_augmentation_are_part_of_the_key(build, monkeypatch, name, value):
    options = {"augmentation": Augmentation(["flip", "color", "cut_paste"]), "num_views": 2}
    before = build(**options).folder
    monkeypatch.setattr(augmentation_module, name, value)
    assert build(**options).folder != before


def test_code_that_reads_images_is_part_of_the_key(build, monkeypatch):
    """Also of the readers of images and masks, whose modules are found by their names."""
    before, source = build().folder, code_version._source
    for name in ("image_loading_vip2clip.py", "image_processing_vip2clip.py", "collator.py", "augmentation.py"):
        changed = lambda path, name=name: source(path) + ("x = 1\n" if path.endswith(f"/{name}") else "")  # noqa: E731
        monkeypatch.setattr(code_version, "_source", changed)
        assert build().folder != before, name
    monkeypatch.setattr(code_version, "_source", source)
    assert build().folder == before
    monkeypatch.setattr(feature_cache.PIL, "__version__", "0.0")
    assert build().folder != before


def test_an_incomplete_cache_keeps_other_files(build):
    folder = build().folder
    (folder / "notes.txt").write_text("mine")
    (folder / "meta.json").write_text("{")
    assert build().folder == folder
    assert (folder / "notes.txt").read_text() == "mine"


def test_views(build, dataset, image_processor, model):
    augmentation = Augmentation(["flip", "cut_paste"], seed=3)
    cache = build(augmentation=augmentation, num_views=3)
    assert len(cache) == 42
    rows, collator = TrainingRows(dataset, augmentation), ViP2ClipCollator(image_processor)
    cached_rows = CachedRows(dataset, cache)
    for index in (0, 20, 41):
        batch, cached = collator([rows[index]]), collator([cached_rows[index]])
        with torch.no_grad():
            expected = model.get_image_features(batch["pixel_values"]).patch_embeds
        torch.testing.assert_close(cached["patch_embeds"], expected, rtol=0, atol=1e-6)
        assert torch.equal(cached["mask_labels"], batch["mask_labels"])
        assert torch.equal(cached["labels"], batch["labels"])
        assert cached["image_ids"] == batch["image_ids"]


def test_size_and_disk_space(build, monkeypatch, tmp_path):
    class Usage:
        free = 50_000

    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match=r"needs 0\.0 GB \(14 rows of 0\.0 MB\), but 0\.0 GB are free"):
        build()
    assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())
    monkeypatch.undo()
    cache = build()
    on_disk = sum(path.stat().st_size for path in cache.folder.glob("*.npy"))
    assert cache.size_of() == pytest.approx(on_disk, abs=128 * 7)


def test_size_at_vit_large():
    """8.4 MB per image at 518 pixels in float16."""
    meta = {"num_rows": 1, "image_size": 518, "patch_shape": [4, 1369, 768], "dtype": "float16"}
    meta["image_feature_size"] = 768
    assert 8.41e6 < FeatureCache(Path("x"), meta).size_of() < 8.46e6


def test_bad_arguments(build, root):
    with pytest.raises(ValueError, match="expected float16 or float32"):
        build(dtype="bfloat16")
    with pytest.raises(
        ValueError, match="num_views is 2; expected 1, or an integer greater than 1 with an augmentation"
    ):
        build(num_views=2)
    broken = next(root.rglob("test/blob/000.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(OSError, match="truncated or damaged"):
        build()


def test_pickles_without_arrays(build):
    cache = build()
    row = cache.row(3)
    size = len(pickle.dumps(cache))
    assert size < 5000
    torch.testing.assert_close(pickle.loads(pickle.dumps(cache)).row(3), row)
