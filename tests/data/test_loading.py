import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.benchmark_trees import Writer, ksdd_official, meta_entry, visa_official, write_meta
from helpers.tiny import ROOT
from vip2clip_hf.data.collator import ViP2ClipCollator
from vip2clip_hf.data.index import features
from vip2clip_hf.data.layouts.paths import PathResolver
from vip2clip_hf.data.listing import Listing, natural_key
from vip2clip_hf.data.loading import index_folder, load_benchmark, load_folder
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.data.synthetic.defects import DEFECTS


SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "grains"), num_normal=3, num_anomalous=2, size=32)


@pytest.fixture
def writer(tmp_path):
    return Writer(tmp_path / "data")


def labels_of(dataset) -> dict[str, int | None]:
    return dict(zip(dataset["image_id"], dataset["label"]))


# The tree


def test_folder(root):
    dataset = load_folder(root)
    assert dataset.features == features()
    assert len(dataset) == 2 * (3 + 2 * len(DEFECTS))
    assert dataset.features["label"].names == ["normal", "anomalous"]
    assert sorted(set(dataset["category"])) == ["grains", "stripes"]
    assert sum(dataset["label"]) == 2 * 2 * len(DEFECTS)
    row = next(row for row in dataset if row["defect"] == "blob")
    assert row["image"].size == (32, 32)
    assert row["label"] == 1
    assert np.asarray(row["mask"]).max() == 255
    assert row["image_id"].startswith("grains/test/blob/")
    normal = next(row for row in dataset if row["label"] == 0)
    assert normal["mask"] is None
    assert normal["defect"] == ""


def test_one_category_and_a_choice(root, monkeypatch):
    assert len(load_folder(root / "grains")) == 3 + 2 * len(DEFECTS)
    assert set(load_folder(root / "grains")["category"]) == {"grains"}
    assert set(load_folder(root, categories=["stripes"])["category"]) == {"stripes"}
    monkeypatch.chdir(root / "grains")
    dataset = load_folder(".")
    monkeypatch.chdir(root.parent)
    assert set(dataset["category"]) == {"grains"}
    assert dataset[0]["image"].size == (32, 32)  # after a change of the working directory
    assert len(load_folder(root.parent)) == len(load_folder(root))  # the parent folder


def test_masks_are_paired_by_stem(root):
    """A missing mask does not shift the others. Both names of mask files are supported."""
    masks = root / "grains" / "ground_truth" / "blob"
    (masks / "000_mask.png").unlink()
    (masks / "001_mask.png").rename(masks / "001.png")
    (root / "grains" / "test" / "blob" / "Thumbs.db").write_bytes(b"")
    (root / "grains" / "test" / "blob" / "._000.png").write_bytes(b"")
    (root / "grains" / "test" / ".ipynb_checkpoints").mkdir()
    shutil.copy(root / "grains" / "test" / "good" / "000.png", root / "grains" / "test" / ".ipynb_checkpoints")
    assert len(load_folder(root / "grains")) == 3 + 2 * len(DEFECTS)
    rows = [row for row in load_folder(root / "grains") if row["defect"] == "blob"]
    assert [row["mask"] is None for row in rows] == [True, False]
    assert len(index_folder(root).report.ignored["system files"]) == 3


def test_two_masks_for_one_image(root):
    """If several masks match an image, none is used and there is a warning. Other images are not affected."""
    masks = root / "grains" / "ground_truth" / "blob"
    shutil.copy(masks / "001_mask.png", masks / "001.bmp")
    index = index_folder(root)
    assert sum(row.mask is None and row.label == 1 for row in index.rows) == 1
    kind = "images with several masks, none used"
    assert index.warnings[kind] == [
        "grains/test/blob/001.png: grains/ground_truth/blob/001.bmp, grains/ground_truth/blob/001_mask.png"
    ]
    assert index.report.ignored["masks of images with several masks"] == [
        "grains/ground_truth/blob/001.bmp",
        "grains/ground_truth/blob/001_mask.png",
    ]
    with pytest.raises(
        ValueError, match=r"images with several masks, none used \(1\): grains/test/blob/001.png: .*set strict=False"
    ):
        load_folder(root, strict=True)


def test_one_mask_for_two_images(writer):
    """A mask folder without subfolders, and two defect types that both have a 000.png."""
    for kind in ("scratch", "dent"):
        writer.image(f"c/test/{kind}/000.png")
    writer.mask("c/ground_truth/000.png")
    writer.image("c/test/dent/001.png")
    writer.mask("c/ground_truth/001.png")
    index = index_folder(writer.root)
    assert [row.mask for row in index.rows] == [None, "c/ground_truth/001.png", None]
    assert len(index.warnings["images that share a mask with another image, mask not used"]) == 2


def test_names_with_pattern_characters(tmp_path):
    image, mask = generate_image("weave", "cut_paste", 32)
    for folder, name, picture in (("test", "a[1].png", image), ("ground_truth", "a[1]_mask.png", mask)):
        (tmp_path / "c" / folder / "x").mkdir(parents=True)
        picture.save(tmp_path / "c" / folder / "x" / name)
    assert load_folder(tmp_path)[0]["mask"] is not None


def test_a_stem_that_starts_another(writer):
    writer.image("c/test/x/crop.png")
    writer.image("c/test/x/crop.flip.png")
    writer.mask("c/ground_truth/x/crop.flip.png")
    assert {row["image_id"]: row["mask"] is not None for row in load_folder(writer.root)} == {
        "c/test/x/crop.png": False,
        "c/test/x/crop.flip.png": True,
    }


def test_masks_of_normal_images_and_of_splits(writer):
    writer.image("c/test/good/1.png")
    writer.mask("c/ground_truth/good/1_mask.png", empty=True)
    writer.image("c/train/bad/1.png")
    writer.mask("c/ground_truth/train/bad/1_MASK.PNG")
    assert load_folder(writer.root)[0]["mask"] is not None
    assert load_folder(writer.root, "train")[0]["mask"] is not None


def test_bad_folders(root, tmp_path):
    with pytest.raises(OSError, match="not found"):
        load_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"does not have a known layout; expected .*test/good.* Found: nothing"):
        load_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"has no category wood; expected some of grains, stripes\."):
        load_folder(root, categories=["wood"])
    with pytest.raises(ValueError, match=r"has no split 'train'; expected test\.$"):
        load_folder(root, split="train")
    with pytest.raises(ValueError, match=r"layout is 'trees'; expected one of meta, tree, .*hub"):
        load_folder(root, layout="trees")
    with pytest.raises(ValueError, match="does not have a known layout; expected image and mask folders"):
        load_folder(root / "grains" / "test", layout="pairs")
    with pytest.raises(
        TypeError, match="Unexpected arguments revision; additional arguments are for Hub datasets only"
    ):
        load_folder(root, revision="main")


def test_an_empty_category(root):
    for path in (root / "grains").rglob("*.png"):
        path.unlink()
    index = index_folder(root)
    assert {row.category for row in index.rows} == {"stripes"}
    assert index.warnings["categories without images"] == ["grains"]


def test_train_only(writer):
    writer.image("c/train/good/1.png")
    assert len(load_folder(writer.root, "train")) == 1
    with pytest.raises(ValueError, match=r"has no split 'test'; expected train"):
        load_folder(writer.root)


def test_error_suggests_a_benchmark(tmp_path):
    with pytest.raises(ValueError, match=r"It looks like the official VisA release; use load_benchmark\('visa'"):
        load_folder(visa_official(tmp_path / "visa").root)


# Class folders, image and mask folders, images without labels


def test_class_folders(writer):
    for path in ("normal/1.png", "normal/2.png", "anomalous/1.png", "anomalous/scratch/7.png", "other/9.png"):
        writer.image(path)
    index = index_folder(writer.root)
    assert index.layout.name == "classes"
    assert [(row.image, row.label, row.defect, row.mask) for row in index.rows] == [
        ("normal/1.png", 0, "", None),
        ("normal/2.png", 0, "", None),
        ("anomalous/1.png", 1, "", None),
        ("anomalous/scratch/7.png", 1, "scratch", None),
        ("other/9.png", 1, "other", None),
    ]
    assert {row.category for row in index.rows} == {"data"}
    assert index.report.ignored == {}
    kind = "folders of unknown names beside the only folder of normal images, read as kinds of defects"
    assert index.warnings[kind] == ["other (1 images)"]
    with pytest.raises(
        ValueError, match=r"has no split 'train'; expected test\. This layout has no splits; leave out split"
    ):
        load_folder(writer.root, "train")


@pytest.mark.parametrize("where", ["masks", "masks/bad", "ground_truth/bad"])
def test_class_folders_with_masks(writer, where):
    for path in ("Good/1.PNG", "bad/1.PNG", "bad/2.PNG"):
        writer.image(path)
    writer.mask(f"{where}/1_mask.png", number=2)
    assert [row["mask"] is None for row in load_folder(writer.root)] == [True, False, True]


def test_class_folders_with_masks_by_kind(writer):
    for kind in ("dent", "scratch"):
        writer.image(f"bad/{kind}/1.png")
        writer.mask(f"masks/{kind}/1.png")
    writer.image("ok/1.png")
    rows = index_folder(writer.root).rows
    assert [row.mask for row in rows] == [None, "masks/dent/1.png", "masks/scratch/1.png"]


def test_class_folders_of_several_categories(writer):
    for category in ("bolt", "nut"):
        writer.image(f"{category}/ok/1.png")
        writer.image(f"{category}/defect/1.png")
    dataset = load_folder(writer.root)
    assert dataset["category"] == ["bolt", "bolt", "nut", "nut"]
    assert dataset["label"] == [0, 1, 0, 1]


def test_normal_images_only(writer):
    writer.image("good/1.png")
    assert load_folder(writer.root)["label"] == [0]


def test_pairs(writer):
    for name in ("1", "2", "10"):
        writer.image(f"images/{name}.jpg")
    writer.mask("masks/2.png")
    index = index_folder(writer.root)
    assert [(row.image, row.label) for row in index.rows] == [
        ("images/1.jpg", 0),
        ("images/2.jpg", 1),
        ("images/10.jpg", 0),
    ]
    assert "Images without a mask count as normal" in str(index.report)


def test_images_without_labels(writer):
    for path in ("b.png", "a.JPG", "deeper/c.png"):
        writer.image(path)
    writer.text("notes.txt")
    index = index_folder(writer.root)
    assert index.layout.name == "flat"
    dataset = index.to_dataset()
    assert dataset["label"] == [None, None, None]
    assert dataset["image_id"] == ["a.JPG", "b.png", "deeper/c.png"]
    assert index.report.ignored == {"files that are not images": ["notes.txt"]}
    assert "unlabelled" in str(index.report)


def test_folders_of_unknown_meaning(writer):
    for kind in ("dent", "fine"):
        writer.image(f"{kind}/1.png")
    with pytest.raises(ValueError, match=r"contains several image folders \(dent, fine\).* expected .*normal/\*\.png"):
        load_folder(writer.root)


def test_a_stray_image_next_to_the_data(root):
    Image.new("RGB", (4, 4)).save(root.parent / "preview.png")
    assert len(load_folder(root.parent)) == len(load_folder(root))


def test_layout_argument(writer):
    writer.image("good/1.png")
    writer.image("2.png")
    assert index_folder(writer.root).layout.name == "classes"
    assert [row.image for row in index_folder(writer.root, layout="flat").rows] == ["2.png", "good/1.png"]


def test_folders_that_link_to_themselves(root):
    try:
        (root / "grains" / "again").symlink_to(root, target_is_directory=True)
        (root / "stripes" / "other").symlink_to(root / "grains", target_is_directory=True)
        (root / "grains" / "stripes").symlink_to(root / "stripes", target_is_directory=True)
    except OSError:
        pytest.skip("no permission to create symbolic links")
    report = index_folder(root).report
    assert report.total.normal == 6
    assert len(report.ignored["images outside the layout"]) < 100


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root can read all folders",
)
def test_a_folder_that_cannot_be_read(root):
    locked = root / "grains" / "locked"
    locked.mkdir()
    locked.chmod(0)
    report = index_folder(root).report
    locked.chmod(0o755)
    assert report.ignored["unreadable folders"] == ["grains/locked"]


# meta.json


def test_meta(writer):
    writer.image("c/test/good/1.png")
    writer.image("c/test/dent/2.png")
    writer.mask("c/ground_truth/dent/2_mask.png")
    write_meta(
        writer.root,
        {
            "c": [
                meta_entry("c/test/good/1.png", "", "c", "good", 0, dataset_name="x"),
                meta_entry("c/test/dent/2.png", "c/ground_truth/dent/2_mask.png", "c", "dent", 1),
                meta_entry("", "", "c", "", 0),  # VCP-CLIP's placeholder for an empty folder
            ]
        },
    )
    index = index_folder(writer.root)
    assert index.layout.name == "meta"
    assert [(r.image, r.label, r.defect, r.mask) for r in index.rows] == [
        ("c/test/good/1.png", 0, "", None),
        ("c/test/dent/2.png", 1, "dent", "c/ground_truth/dent/2_mask.png"),
    ]
    assert index.warnings == {}
    assert len(index_folder(writer.root / "meta.json").rows) == 2
    assert len(index_folder(writer.root.parent).rows) == 2
    assert len(index_folder(writer.root, layout="tree").rows) == 2


def test_several_meta_files(writer):
    """VCP-CLIP stores its meta files one level above the data folders."""
    for name in ("mvtec", "visa"):
        writer.image(f"{name}/candle/test/good/{name}.bmp")
        entry = meta_entry(f"{name}/candle/test/good/{name}.bmp", "", "candle", "good", 0)
        write_meta(writer.root, {"candle": [entry]}, name=f"meta_{name}.json")
    with pytest.raises(
        ValueError, match=r"several meta files \(meta_mvtec.json, meta_visa.json\); expected the path of one"
    ):
        load_folder(writer.root)
    assert load_folder(writer.root / "meta_visa.json")["image_id"] == ["visa/candle/test/good/visa.bmp"]
    assert load_benchmark("visa", writer.root)["image_id"] == ["visa/candle/test/good/visa.bmp"]
    (writer.root / "meta_visa.json").rename(writer.root / "list.json")
    assert load_folder(writer.root / "list.json")["image_id"] == ["visa/candle/test/good/visa.bmp"]
    assert load_folder(writer.root)["image_id"] == ["mvtec/candle/test/good/mvtec.bmp"]
    for path in writer.root.rglob("*.bmp"):
        path.unlink()
    with pytest.raises(ValueError, match=r"None of the images listed in .*list.json' exists; .*visa.bmp"):
        load_folder(writer.root / "list.json")


@pytest.mark.parametrize(
    "prefix", ["/home/x/set/", "C:\\Users\\x\\set\\", "set/", "data/", "./", "some/where/else/", "c/../"]
)
def test_paths_from_another_machine(writer, prefix):
    writer.image("c/test/dent/2.png")
    writer.mask("c/ground_truth/dent/2.png")
    separator = "\\" if "\\" in prefix else "/"
    image, mask = (prefix + p.replace("/", separator) for p in ("c/test/dent/2.png", "c/ground_truth/dent/2.png"))
    write_meta(writer.root, {"c": [meta_entry(image, mask, "c", "dent", 1)]})
    row = index_folder(writer.root).rows[0]
    assert (row.image, row.mask) == ("c/test/dent/2.png", "c/ground_truth/dent/2.png")


@pytest.mark.parametrize("mask", ["", None, "ground_truth", "/home/x/set", "missing"])
def test_entries_without_a_mask(writer, mask):
    writer.image("1.png")
    (writer.root / "ground_truth").mkdir()
    entry = meta_entry("1.png", mask, "c", "dent", 1)
    if mask == "missing":
        del entry["mask_path"]
    write_meta(writer.root, {"c": [entry]})
    index = index_folder(writer.root)
    assert index.rows[0].mask is None
    assert list(index.warnings) == ["anomalous images without a mask, used for image metrics and image loss only"]


def test_paths_outside_the_dataset(writer):
    Writer(writer.root.parent).image("secret.png")
    writer.image("1.png")
    entries = [
        meta_entry("1.png", "../secret.png", "c", "dent", 1),
        meta_entry("../secret.png", "", "c", "dent", 1),
        meta_entry("c/../../secret.png", "", "c", "dent", 1),
        meta_entry(str(writer.root.parent / "secret.png"), "", "c", "dent", 1),
        meta_entry("absent.png", "", "c", "dent", 1),
    ]
    write_meta(writer.root, {"c": entries})
    index = index_folder(writer.root)
    assert [(row.image, row.mask) for row in index.rows] == [("1.png", None)]
    assert len(index.warnings["paths that point outside the dataset, left out"]) == 2
    assert len(index.warnings["listed images that do not exist, left out"]) == 2
    assert index.warnings["mask paths that point outside the dataset, left out"] == ["../secret.png"]
    with pytest.raises(ValueError, match="mask paths that point outside the dataset"):
        load_folder(writer.root, strict=True)


def test_entries_for_the_same_image(writer):
    """The root is one category of the original dataset."""
    writer.image("test/good/1.png")
    entries = {c: [meta_entry(f"/data/{c}/test/good/1.png", "", c, "good", 0)] for c in ("bolt", "nut")}
    write_meta(writer.root, entries)
    index = index_folder(writer.root)
    assert len(index.rows) == 1
    kind = "meta entries for an image that another entry already has, left out"
    assert index.warnings[kind] == ["/data/nut/test/good/1.png"]


def test_masks_with_other_names(writer):
    """In files that pair by sort order, an extra file shifts all masks after it."""
    for number in (1, 2):
        writer.image(f"test/{number:03d}.png")
        writer.mask(f"gt/{number:03d}_mask.png")
    entries = [
        meta_entry(f"test/{a}.png", f"gt/{b}_mask.png", "c", "", 1) for a, b in (("001", "002"), ("002", "001"))
    ]
    write_meta(writer.root, {"c": entries})
    warnings = index_folder(writer.root).warnings
    assert warnings["images paired with a differently named mask in meta.json, pairs may be wrong"] == [
        "test/001.png",
        "test/002.png",
    ]


@pytest.mark.parametrize(
    ("image", "mask", "belongs"),
    [
        ("001", "001_mask", True), ("001", "mask_001", True), ("ISIC_01", "isic_01_Segmentation", True),
        ("1", "1", True), ("1", "10_mask", False), ("1", "21", False), ("a[1]", "a[1]_mask", True), ("a", "b", False),
    ],
)  # fmt: skip
def test_names_of_masks(writer, image, mask, belongs):
    writer.image(f"test/{image}.png")
    writer.mask(f"gt/{mask}.png")
    write_meta(writer.root, {"c": [meta_entry(f"test/{image}.png", f"gt/{mask}.png", "c", "", 1)]})
    assert (index_folder(writer.root).warnings == {}) == belongs


def test_damaged_entries_of_a_meta_file(writer):
    writer.image("1.png")
    write_meta(writer.root, {"c": [meta_entry("1.png", "", "c", "", 0), "nonsense", {"img_path": "1.png"}]})
    index = index_folder(writer.root)
    assert len(index.rows) == 1
    assert len(index.warnings["meta entries without anomaly 0 or 1, left out"]) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"test": {"c": "x"}}', '{"test": ["c"]}'])
def test_json_files_that_are_not_meta_files(root, content):
    (root / "meta.json").write_text(content)
    assert index_folder(root).layout.name == "tree"
    with pytest.raises(ValueError, match=r"meta.json' is not a dataset; expected a folder, meta.json or a table"):
        load_folder(root / "meta.json")


def test_a_meta_file_without_existing_images(root):
    write_meta(root, {"c": [meta_entry("/other/disk/1.png", "", "c", "", 0)]})
    index = index_folder(root)
    assert index.layout.name == "tree"
    assert len(index.rows) == len(index_folder(root, layout="tree").rows)
    assert "The layout 'meta.json from research code' was not used because none of its images exists." in str(
        index.report
    )


def test_a_table_next_to_a_meta_file_without_existing_images(writer):
    writer.image("1.png")
    write_csv(writer.root / "t.csv", [{"image": "1.png", "label": "ok"}])
    write_meta(writer.root, {"c": [meta_entry("/other/disk/2.png", "", "c", "", 0)]})
    index = index_folder(writer.root)
    assert index.layout.name == "table"
    assert [(row.image, row.label) for row in index.rows] == [("1.png", 0)]
    assert "The layout 'meta.json from research code' was not used" in str(index.report)


def test_layouts_of_benchmarks_in_folders(tmp_path):
    """Without a benchmark, the category is the name of the folder."""
    tree = ksdd_official(tmp_path / "parts")
    assert {row.category for row in index_folder(tree.root, layout="kolektor").rows} == {"parts"}


# Tables


def write_csv(path: Path, rows: list[dict], delimiter: str = ",", encoding: str = "utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def table_rows(writer):
    for path in ("photos/1.png", "photos/2.png", "photos/3.png"):
        writer.image(path)
    writer.mask("marks/2.png", number=2)
    return [
        {"image": "photos/1.png", "mask": "", "label": "ok", "category": "bolt", "split": "train"},
        {"image": "photos/2.png", "mask": "marks/2.png", "label": "scratch", "category": "bolt", "split": "test"},
        {"image": "photos/3.png", "mask": "", "label": "ok", "category": "nut", "split": "test"},
    ]


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "bom", "jsonl", "parquet"])
def test_tables(writer, table_rows, kind):
    path = writer.root / {"jsonl": "t.jsonl", "parquet": "t.parquet", "tsv": "t.tsv"}.get(kind, "t.csv")
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table_rows) + "\n\n")
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(table_rows), path)
    else:
        delimiter = {"semicolon": ";", "tsv": "\t"}.get(kind, ",")
        write_csv(path, table_rows, delimiter, "utf-8-sig" if kind == "bom" else "utf-8")
    for root in (path, writer.root):
        index = index_folder(root)
        assert index.layout.name == "table"
        assert [(r.image, r.mask, r.label, r.category, r.defect) for r in index.rows] == [
            ("photos/2.png", "marks/2.png", 1, "bolt", "scratch"),
            ("photos/3.png", None, 0, "nut", ""),
        ]
        assert index.splits == {"train": 1, "test": 2}
        assert "normal: 'ok'; anomalous: 'scratch'" in str(index.report)
    dataset = load_folder(path, "train")
    assert dataset.features == features()
    assert labels_of(dataset) == {"photos/1.png": 0}


def test_columns_of_other_names(writer, table_rows):
    rows = [{"bild": r["image"], "maske": r["mask"], "befund": r["label"]} for r in table_rows]
    write_csv(writer.root / "t.csv", rows)
    with pytest.raises(ValueError, match=r"columns bild, maske, befund; expected an image column such as 'image'"):
        load_folder(writer.root / "t.csv")
    dataset = load_folder(
        writer.root / "t.csv", columns={"image": "bild", "mask": "maske", "label": "befund"}, normal_labels=["OK"]
    )
    assert dataset["label"] == [0, 1, 0]
    assert [mask is None for mask in dataset["mask"]] == [True, False, True]
    with pytest.raises(ValueError, match="no column 'x' for 'label'; expected one of bild, maske, befund"):
        load_folder(writer.root / "t.csv", columns={"image": "bild", "label": "x"})
    with pytest.raises(ValueError, match="columns has the field 'picture'; expected some of image, mask"):
        load_folder(writer.root / "t.csv", columns={"picture": "bild"})
    with pytest.raises(
        ValueError, match=r"has the values 'ok', 'scratch'; expected at least one of normal_labels=\['fine'\]"
    ):
        load_folder(writer.root / "t.csv", columns={"image": "bild", "label": "befund"}, normal_labels=["fine"])
    assert load_folder(writer.root / "t.csv", columns={"image": "bild"})["label"] == [None] * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0", "1", ""], [0, 1, None]),
        (["0.0", "1.0", "1"], [0, 1, 1]),
        (["good", "broken", "cut"], [0, 1, 1]),
        (["True", "False", "false"], [1, 0, 0]),
        (["OK", "NG", "ok"], [0, 1, 0]),
        (["bad", "anomaly", "defect"], [1, 1, 1]),
    ],
)
def test_label_words(writer, table_rows, values, expected):
    rows = [{"image": row["image"], "label": value} for row, value in zip(table_rows, values)]
    write_csv(writer.root / "t.csv", rows)
    assert load_folder(writer.root / "t.csv")["label"] == expected


@pytest.mark.parametrize("values", [["0", "1", "2"], ["a", "b", "c"], ["ok", "3", "4"], ["1", "-1", "1"]])
def test_label_words_of_unknown_meaning(writer, table_rows, values):
    write_csv(writer.root / "t.csv", [{"image": r["image"], "label": v} for r, v in zip(table_rows, values)])
    with pytest.raises(ValueError, match=r"the meaning of .* is unknown; expected 0 and 1, .*normal_labels"):
        load_folder(writer.root / "t.csv")


def test_anomaly_column_takes_precedence(writer, table_rows):
    rows = [{"image": r["image"], "label": r["label"], "anomaly": int(r["label"] != "ok")} for r in table_rows]
    write_csv(writer.root / "t.csv", rows)
    dataset = load_folder(writer.root / "t.csv")
    assert dataset["label"] == [0, 1, 0]
    assert dataset["defect"] == ["", "scratch", ""]


def test_metadata_file_of_datasets(writer):
    """metadata.jsonl with file_name, as in imagefolder, takes precedence over folders."""
    writer.image("good/1.png")
    writer.image("good/2.png")
    writer.mask("good/2m.png")
    lines = [{"file_name": "good/1.png"}, {"file_name": "good/2.png", "mask_file_name": "good/2m.png", "label": 1}]
    (writer.root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = load_folder(writer.root)
    assert dataset["label"] == [None, 1]
    assert dataset[1]["mask"] is not None


def test_invalid_tables(writer, table_rows):
    path = writer.root / "t.csv"
    rows = [
        {"image": "../outside.png", "label": 0},
        {"image": "absent.png", "label": 0},
        {"image": "photos/1.png", "label": 0},
        {"image": "photos/1.png", "label": 0},
        {"image": "", "label": 1},
    ]
    write_csv(path, rows)
    index = index_folder(path)
    assert len(index.rows) == 1
    assert index.warnings == {
        "paths that point outside the dataset, left out": ["../outside.png"],
        "listed images that do not exist, left out": ["absent.png"],
        "table rows for an image that another row already has, left out": ["photos/1.png"],
        "table rows without an image, left out": ["''"],
    }
    write_csv(path, rows[:2])
    with pytest.raises(ValueError, match=r"None of the images listed in .*t.csv' exists; .*absent.png"):
        load_folder(path)
    path.write_text("image,label\nphotos/1.png,0,1\n")
    with pytest.raises(ValueError, match=r"t.csv', line 2: wrong number of values; expected 2, one for each column"):
        load_folder(path)
    path.write_bytes("image,label\nphotos/ü.png,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not encoded as UTF-8"):
        load_folder(path)
    (writer.root / "t.jsonl").write_text('{"image": "photos/1.png"}\n{')
    with pytest.raises(ValueError, match=r"t.jsonl', line 2: invalid JSON"):
        load_folder(writer.root / "t.jsonl")
    (writer.root / "t.jsonl").write_text("[1]")
    with pytest.raises(ValueError, match="line 1: found list"):
        load_folder(writer.root / "t.jsonl")
    with pytest.raises(ValueError, match=r"contains several tables \(t.csv, t.jsonl\); expected one"):
        load_folder(writer.root, layout="table")
    (writer.root / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="is not a valid Parquet file"):
        load_folder(writer.root / "t.parquet")
    with pytest.raises(ValueError, match=r"1.png' is not a dataset; expected a folder"):
        load_folder(writer.root / "photos" / "1.png")
    with pytest.raises(ValueError, match=r"contains no table; expected one"):
        load_folder(writer.root / "photos", layout="table")
    with pytest.raises(ValueError, match=r"cannot be used with layout='flat'; they are for tables and Hub datasets"):
        load_folder(writer.root, layout="flat", columns={"image": "x"})


def test_a_table_of_measurements_next_to_images(writer):
    writer.image("1.png")
    writer.text("measured.csv", "time,weight\n1,2\n")
    assert index_folder(writer.root).layout.name == "flat"


# Datasets that contain their images


def stored_dataset(tmp_path, **columns):
    from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, Value

    images = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (6, 4), (number, 0, 0)).save(path)
        images.append({"bytes": path.read_bytes(), "path": None})
    mask = {"bytes": (tmp_path / "1.png").read_bytes(), "path": None}
    content = {"image": images, "ground_truth": [None, mask, None], "label": [0, 1, 2], "product": ["a", "a", "b"]}
    schema = {
        "image": ImageFeature(),
        "ground_truth": ImageFeature(),
        "label": ClassLabel(names=["good", "scratch", "dent"]),
        "product": Value("string"),
    }
    return Dataset.from_dict(content, features=Features(schema))


def test_parquet_with_images(tmp_path, monkeypatch):
    stored_dataset(tmp_path).to_parquet(tmp_path / "t.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", None)  # no image is decoded
        index = index_folder(tmp_path / "t.parquet")
        dataset = index.to_dataset()
    assert dataset.features == features()
    assert dataset["label"] == [0, 1, 1]
    assert dataset["defect"] == ["", "scratch", "dent"]
    assert dataset["category"] == ["a", "a", "b"]
    assert [row["image"].getpixel((0, 0))[0] for row in dataset] == [0, 1, 2]
    assert [row["mask"] is None for row in dataset] == [True, False, True]
    assert load_folder(tmp_path / "t.parquet", categories=["b"])["image_id"] == ["2"]
    assert "t.parquet" in str(index.report)
    assert index.report.total.masks == 1
    monkeypatch.chdir(tmp_path)  # the default category does not depend on how the path is written
    stored_dataset(tmp_path).remove_columns("product").to_parquet("t.parquet")
    assert {row.category for row in index_folder("t.parquet").rows} == {tmp_path.name}


def test_hub(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, split, **options):
        calls.append((name, split, options))
        if split != "test":
            raise ValueError(f"Unknown split {split!r}. Should be one of ['test'].")
        return stored_dataset(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    dataset = load_folder("org/parts", columns={"category": "product"}, revision="v1")
    assert calls == [("org/parts", "test", {"revision": "v1"})]
    assert dataset["label"] == [0, 1, 1]
    assert dataset["image_id"] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"'org/parts' could not be loaded with split 'train'.*one of \['test'\]"):
        load_folder("org/parts", "train")
    with pytest.raises(ValueError, match="'org/parts' has no category c; expected some of a, b"):
        load_folder("org/parts", categories=["c"])
    with pytest.raises(ValueError, match=r"has the type .*; expected Image"):
        load_folder("org/parts", columns={"image": "product"})
    with pytest.raises(ValueError, match="expected Image"):
        load_folder("org/parts", columns={"mask": "product"})
    (tmp_path / "org" / "parts").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "org" / "parts" / "1.png")
    assert index_folder("org/parts").layout.name == "flat"  # a folder with this name takes precedence


def test_unknown_hub_dataset(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OSError, match="'org/absent' is not a folder on this machine and could not be loaded as a Hub dataset"
    ):
        load_folder("org/absent")
    with pytest.raises(OSError, match="not found"):
        load_folder("./org/absent")


# Listing and paths


def test_natural_order():
    assert sorted(["Class10", "class2", "Class1", "b", "10", "9"], key=natural_key) == [
        "9", "10", "b", "Class1", "class2", "Class10",
    ]  # fmt: skip


def test_path_resolver(writer):
    writer.image("a/b.png")
    resolve = PathResolver(Listing(writer.root))
    assert resolve("a/./b.png") == "a/b.png"
    assert resolve("a/c/../b.png") == "a/b.png"
    assert resolve("data/a/b.png") == "a/b.png"
    assert resolve("//server/share/a/b.png") == "a/b.png"
    writer.image("c/a/b.png")
    assert PathResolver(Listing(writer.root))("/elsewhere/c/a/b.png") == "c/a/b.png"  # the longest part that exists
    for path in ("", ".", "..", "/", "../a/b.png", "a/../../data/a/b.png", "b.png/", "a"):
        assert resolve(path) is None, path


def test_indexing_opens_no_image_and_is_fast(tmp_path):
    """5,000 images in 2 seconds, on a busy machine. docs/performance.md has measurements."""
    image = tmp_path / "1.png"
    Image.new("L", (1, 1)).save(image)
    content = image.read_bytes()
    for category in range(10):
        for kind in ("good", "bad"):
            folder = tmp_path / "set" / f"c{category}" / "test" / kind
            folder.mkdir(parents=True)
            for number in range(250):
                (folder / f"{number}.png").write_bytes(content[:10])  # cannot be decoded
    start = time.perf_counter()
    dataset = load_folder(tmp_path / "set")
    duration = time.perf_counter() - start
    assert len(dataset) == 5000
    assert duration < 2


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the three real datasets")
@pytest.mark.parametrize(
    ("name", "train", "normal", "anomalous"),
    [("cookies", 31, 14, 32), ("hazelnut_toy", 28, 6, 17), ("magnetic_tile", 100, 200, 386)],
)
def test_real_data(name, train, normal, anomalous):
    report = index_folder(SHARED_DATA / name).report
    assert (report.total.normal, report.total.anomalous, report.total.masks) == (normal, anomalous, anomalous)
    assert report.splits == {"train": train, "test": normal + anomalous}
    assert report.warnings == {}
    table = index_folder(SHARED_DATA / name / "meta.csv").report
    assert (table.total.normal, table.total.anomalous, table.total.masks) == (normal, anomalous, anomalous)


# The collator


def test_collator(root, image_processor, model):
    (root / "grains" / "ground_truth" / "blob" / "000_mask.png").unlink()
    dataset = load_folder(root / "grains")
    count = 3 + 2 * len(DEFECTS)
    batch = ViP2ClipCollator(image_processor)([dataset[i] for i in range(len(dataset))])
    assert batch["pixel_values"].shape == (count, 3, 48, 48)
    assert batch["labels"].tolist() == dataset["label"]
    assert batch["mask_labels"].shape == (count, 48, 48)
    valid = [label == 0 or mask is not None for label, mask in zip(dataset["label"], dataset["mask"])]
    assert batch["mask_valid"].tolist() == valid
    assert valid.count(False) == 1
    with torch.no_grad():
        assert torch.isfinite(model(**batch).loss)
    batch = ViP2ClipCollator(image_processor, pixel_labels=False)([dataset[0]])
    assert set(batch) == {"pixel_values", "labels"}


def test_collator_metadata(root, image_processor):
    dataset = load_folder(root / "grains")
    batch = ViP2ClipCollator(image_processor, return_metadata=True)([dataset[0], dataset[5]])
    assert batch["categories"] == ["grains", "grains"]
    assert batch["image_ids"] == dataset["image_id"][0:6:5]
    assert batch["defects"] == dataset["defect"][0:6:5]


def test_collator_of_images_without_labels(writer, image_processor, model):
    writer.image("1.png")
    writer.image("2.png")
    rows = list(load_folder(writer.root))
    batch = ViP2ClipCollator(image_processor)(rows)
    assert set(batch) == {"pixel_values"}
    with torch.no_grad():
        assert model(**batch).scores.shape == (2,)
    with pytest.raises(
        ValueError, match=r"The images \['2.png'\] have no label; expected labels for all images of a batch or none"
    ):
        ViP2ClipCollator(image_processor)([{**rows[0], "label": 0}, rows[1]])


def test_pixel_labels_depend_on_the_masks(root, image_processor):
    dataset = load_folder(root)
    assert ViP2ClipCollator.for_dataset(image_processor, dataset).pixel_labels
    normal = dataset.select([i for i, label in enumerate(dataset["label"]) if label == 0])
    assert not ViP2ClipCollator.for_dataset(image_processor, normal).pixel_labels


def test_collator_errors_name_the_images(root, image_processor):
    dataset = load_folder(root / "grains")
    blob = dataset["image_id"].index("test/blob/000.png")
    rows = [dataset[blob], {**dataset[blob + 1], "mask": np.zeros((5, 5))}]
    with pytest.raises(ValueError, match=r"position 1 has 5 x 5 .*'test/blob/000.png', 'test/blob/001.png'"):
        ViP2ClipCollator(image_processor)(rows)
    with pytest.raises(
        ValueError, match=r"Rows have the columns label; expected image and label\. .*remove_unused_columns=False"
    ):
        ViP2ClipCollator(image_processor)([{"label": 0}])
    row = {"image": dataset[0]["image"], "label": 0}
    assert ViP2ClipCollator(image_processor)([row])["mask_labels"].sum() == 0
    contradictory = [dataset[blob], {**dataset[blob + 1], "label": 0}]
    with pytest.raises(
        ValueError, match=r"\['test/blob/001.png'\] are labelled normal but have anomalous pixels in their masks"
    ):
        ViP2ClipCollator(image_processor)(contradictory)
