import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vip2clip_hf.data import ViP2ClipCollator, load_folder
from vip2clip_hf.synthetic import CATEGORIES, DEFECTS, generate_image, write_dataset


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "grains"), num_normal=3, num_anomalous=2, size=32)


def test_folder(root):
    dataset = load_folder(root)
    assert len(dataset) == 2 * (3 + 3 * 2)
    assert dataset.features["label"].names == ["normal", "anomalous"]
    assert sorted(set(dataset["category"])) == ["grains", "stripes"]
    assert sum(dataset["label"]) == 12
    row = next(row for row in dataset if row["defect"] == "blob")
    assert row["image"].size == (32, 32)
    assert row["label"] == 1
    assert np.asarray(row["mask"]).max() == 255
    assert row["image_id"].startswith("grains/test/blob/")
    normal = next(row for row in dataset if row["label"] == 0)
    assert normal["mask"] is None
    assert normal["defect"] == ""


def test_one_category_and_a_choice(root):
    assert len(load_folder(root / "grains")) == 9
    assert set(load_folder(root / "grains")["category"]) == {"grains"}
    assert set(load_folder(root, categories=["stripes"])["category"]) == {"stripes"}


def test_masks_are_paired_by_stem(root):
    """A missing mask must not shift the others; both names of mask files are known."""
    masks = root / "grains" / "ground_truth" / "blob"
    (masks / "000_mask.png").unlink()
    (masks / "001_mask.png").rename(masks / "001.png")
    (root / "grains" / "test" / "blob" / "Thumbs.db").write_bytes(b"")
    (root / "grains" / "test" / "blob" / "._000.png").write_bytes(b"")
    (root / "grains" / "test" / ".ipynb_checkpoints").mkdir()
    shutil.copy(root / "grains" / "test" / "good" / "000.png", root / "grains" / "test" / ".ipynb_checkpoints")
    assert len(load_folder(root / "grains")) == 9
    rows = [row for row in load_folder(root / "grains") if row["defect"] == "blob"]
    assert [row["mask"] is None for row in rows] == [True, False]
    (masks / "001_mask.png").write_bytes((masks / "001.png").read_bytes())
    with pytest.raises(ValueError, match="more than one mask"):
        load_folder(root)


def test_names_with_pattern_characters(tmp_path):
    image, mask = generate_image("weave", "patch", 32)
    for folder, name, picture in (("test", "a[1].png", image), ("ground_truth", "a[1]_mask.png", mask)):
        (tmp_path / "c" / folder / "x").mkdir(parents=True)
        picture.save(tmp_path / "c" / folder / "x" / name)
    assert load_folder(tmp_path)[0]["mask"] is not None


def test_a_stem_that_begins_another(tmp_path):
    image, mask = generate_image("weave", "patch", 32)
    for folder in ("test", "ground_truth"):
        (tmp_path / "c" / folder / "x").mkdir(parents=True)
    for name in ("crop.png", "crop.flip.png"):
        image.save(tmp_path / "c" / "test" / "x" / name)
    mask.save(tmp_path / "c" / "ground_truth" / "x" / "crop.flip.png")
    assert {row["image_id"]: row["mask"] is not None for row in load_folder(tmp_path)} == {
        "c/test/x/crop.png": False,
        "c/test/x/crop.flip.png": True,
    }


def test_bad_folders(root, tmp_path):
    with pytest.raises(OSError, match="not found"):
        load_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No images found .*test/good.*holds: nothing"):
        load_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"No category wood .*found grains, stripes"):
        load_folder(root, categories=["wood"])
    with pytest.raises(ValueError, match="No images found"):
        load_folder(root, split="train")


def test_collator(root, image_processor, model):
    (root / "grains" / "ground_truth" / "blob" / "000_mask.png").unlink()
    dataset = load_folder(root / "grains")
    batch = ViP2ClipCollator(image_processor)([dataset[i] for i in range(len(dataset))])
    assert batch["pixel_values"].shape == (9, 3, 48, 48)
    assert batch["labels"].tolist() == dataset["label"]
    assert batch["mask_labels"].shape == (9, 48, 48)
    valid = [label == 0 or mask is not None for label, mask in zip(dataset["label"], dataset["mask"])]
    assert batch["mask_label_valid"].tolist() == valid
    assert valid.count(False) == 1
    with torch.no_grad():
        assert torch.isfinite(model(**batch).loss)
    batch = ViP2ClipCollator(image_processor, pixel_labels=False)([dataset[0]])
    assert set(batch) == {"pixel_values", "labels"}


def test_collator_errors_name_the_images(root, image_processor):
    dataset = load_folder(root / "grains")
    rows = [dataset[0], {**dataset[1], "mask": np.zeros((5, 5))}]
    with pytest.raises(ValueError, match=r"position 1 has 5 x 5 .*'test/blob/000.png', 'test/blob/001.png'"):
        ViP2ClipCollator(image_processor)(rows)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        ViP2ClipCollator(image_processor)([{"label": 0}])
    row = {"image": dataset[0]["image"], "label": 0}
    assert ViP2ClipCollator(image_processor)([row])["mask_labels"].sum() == 0


# Generated pictures


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_generated_pictures(category, defect):
    image, mask = generate_image(category, defect, 64, seed=3)
    assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (64, 64), "L", (64, 64))
    marked = np.asarray(mask) > 0
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert marked.any() == (defect is not None)
    assert marked.mean() < 0.2
    normal, _ = generate_image(category, None, 64, seed=3)
    changed = (np.asarray(image) != np.asarray(normal)).any(-1)
    assert not changed[~marked].any()  # the mask is exact
    if defect is not None:
        assert changed[marked].mean() > 0.9
    assert image.tobytes() == generate_image(category, defect, 64, seed=3)[0].tobytes()
    assert image.tobytes() != generate_image(category, defect, 64, seed=4)[0].tobytes()


def test_generated_set_depends_on_its_seed_only(tmp_path):
    roots = [write_dataset(tmp_path / str(i), ("waves",), 2, 1, 32, seed) for i, seed in enumerate((0, 0, 1))]
    first, second, third = ([np.asarray(Image.open(path)) for path in sorted(root.rglob("*.png"))] for root in roots)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not all(np.array_equal(a, b) for a, b in zip(first, third))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'wood'; expected one of stripes"):
        generate_image("wood")
    with pytest.raises(ValueError, match=r"'hole'; expected one of scratch"):
        generate_image("waves", "hole")
