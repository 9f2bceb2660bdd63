"""Folders, layouts, names of masks, tables of labels and sources of data, each read correctly or refused."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.odd_data import Case, parametrize, run
from vip2clip_hf.cli.sources import find_photos, heatmap_names
from vip2clip_hf.data.index import DataIndex
from vip2clip_hf.data.loading import _report_warnings, index_folder, load_folder
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.inference.images import FolderImages
from vip2clip_hf.inference.names import unpacked
from vip2clip_hf.models.vip2clip.image_listing_vip2clip import list_images


PHOTO = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:4, 2:4] = 255
FORMATS = {"jpg": "JPEG", "tif": "TIFF", "jpe": "JPEG", "jfif": "JPEG", "dib": "BMP", "j2k": "JPEG2000"}


def write(root: Path, *paths: str) -> Path:
    """Write photos, masks (paths with `M:`), empty masks (`E:`) and texts (`T:`) by their names."""
    for path in paths:
        kind, _, name = path.rpartition(":") if path[:2] in ("M:", "E:", "T:") else ("", "", path)
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "T":
            target.write_text("x", encoding="utf-8")
            continue
        image = Image.fromarray({"M": MASK, "E": MASK * 0}.get(kind, PHOTO))
        extension = target.suffix[1:].lower()
        image.save(target, format=FORMATS.get(extension, extension.upper() if extension else "PNG"))
    return root


def said(index: DataIndex) -> DataIndex:
    """Log the warnings of an index as `load_folder` does."""
    return _report_warnings(index, strict=False)


def read(*paths: str, **options) -> Callable[[Path], DataIndex]:
    """Index a folder with these files, and log its warnings."""

    def act(folder: Path) -> DataIndex:
        return said(index_folder(write(folder / "data", *paths), **options))

    return act


def rows(expected: dict[str, tuple[int | None, str | None]], **others) -> Callable[[DataIndex], None]:
    """Check label and mask of every image."""

    def check(index: DataIndex) -> None:
        assert {row.image: (row.label, row.mask) for row in index.rows} == expected
        for name, value in others.items():
            assert getattr(index, name) == value

    return check


def labels(**expected: int) -> Callable[[DataIndex], None]:
    """Check the number of images by label: normal, anomalous, left_out, unlabelled."""

    def check(index: DataIndex) -> None:
        total = index.report.total
        found = {"normal": total.normal, "anomalous": total.anomalous, "unlabelled": total.unlabelled}
        found["left_out"] = len(index.left_out)
        assert {name: found[name] for name in expected} == expected, found
        assert index.left_out == [] or "are left out" in str(index.report).splitlines()[0]

    return check


def equals(expected: object) -> Callable[[object], None]:
    def check(found: object) -> None:
        assert found == expected

    return check


def count(expected: int) -> Callable[[list], None]:
    return lambda found: equals(expected)(len(found))


def own_data(source: DataSource) -> None:
    assert source.benchmark is None


def kinds(*patterns: str) -> Callable[[DataIndex], None]:
    """Check that there is a warning of each kind."""

    def check(index: DataIndex) -> None:
        for pattern in patterns:
            assert any(re.search(pattern, kind) for kind in index.warnings), (pattern, list(index.warnings))

    return check


# Names of class folders

PAIRS = [
    ("ok", "nok"),
    ("good", "defects"),
    ("good", "not_good"),
    ("ok", "no-ok"),
    ("good", "faulty"),
    ("good", "rejected"),
    ("good", "Defect "),
    ("normal", "anomalies"),
    ("non_defective", "defective"),
    ("pass", "fail"),
    ("io", "nio"),
    ("i.O.", "n.i.O."),
    ("healthy", "diseased"),
    ("0_good", "1_bad"),
    ("good images", "bad images"),
    ("goods", "bads"),
    ("good_parts", "bad_parts"),
    ("OK", "NG"),
    ("OK_parts", "NG_parts"),
    ("passed", "failed"),
    ("PASS", "FAIL"),
    ("accepted", "rejected"),
    ("intact", "broken"),
    ("undamaged", "damaged"),
    ("no_defect", "defect"),
    ("defect-free", "with_defect"),
    ("no anomaly", "anomaly"),
    ("01 ok", "02 nok"),
    ("images good", "images bad"),
    ("Good Samples", "Defect Samples"),
    ("okay", "ko"),
    ("conforming", "non-conforming"),
    ("qualified", "unqualified"),
    ("acceptable", "unacceptable"),
    ("normal", "not normal"),
    ("normal", "abnormal"),
    ("nominal", "anomalous"),
    ("healthy", "sick"),
    ("gut", "schlecht"),
    ("without defects", "with defects"),
    ("notdefective", "defective"),
    ("good", "Scrap"),
    ("flawless", "flawed"),
    ("not_defective", "defective"),
]
KNOWN = [pair for pair in PAIRS if pair[0] != "notdefective"]
CASES = [
    Case(
        f"classes {normal!r} and {anomalous!r}",
        read(f"{normal}/1.png", f"{normal}/2.png", f"{anomalous}/1.png"),
        labels(normal=2, anomalous=1, left_out=0),
    )
    for normal, anomalous in KNOWN
]
CASES += [
    Case(
        f"unknown {names} beside good",
        read("good/1.png", *(f"{name}/1.png" for name in names)),
        labels(normal=1, anomalous=len(names), left_out=0),
        says="read as kinds of defects",
    )
    for names in (("scratch", "dent"), ("b",), ("missing_part", "print", "color"), ("wrong_label",), ("riss", "delle"))
]
CASES += [
    Case(
        f"refuse {names}",
        read(*(f"{name}/1.png" for name in names)),
        r"--normal-label NAME and the anomalous ones with --anomalous-label NAME \(normal_labels=",
    )
    for names in (
        ("positive", "negative"),
        ("pos", "neg"),
        ("0", "1"),
        ("a", "b"),
        ("yes", "no"),
        ("true", "false"),
        ("dent", "x"),
        ("notdefective", "defective"),
        ("defect", "photos_may"),
        ("ok", "pass", "scratch"),
        ("bad", "rest"),
    )
]
CASES += [
    Case(
        f"normal_labels={normal} anomalous_labels={anomalous}",
        read("fein/1.png", "fein/2.png", "riss/1.png", "rest/1.png", normal_labels=normal, anomalous_labels=anomalous),
        labels(normal=2, anomalous=count, left_out=2 - count),
    )
    for normal, anomalous, count in (
        (["fein"], None, 2),
        (["Fein "], ["riss"], 1),
        (["fein"], ["riss", "rest"], 2),
        (["FEIN"], ["REST"], 1),
    )
]
CASES += [
    Case(
        "normal_labels decide positive and negative",
        read("positive/1.png", "negative/1.png", normal_labels=["positive"]),
        rows({"positive/1.png": (0, None), "negative/1.png": (1, None)}),
    ),
    Case(
        "normal_labels in the tree",
        read("test/fein/1.png", "test/riss/1.png", "test/rest/1.png", normal_labels=["fein"]),
        labels(normal=1, anomalous=2),
    ),
    Case(
        "normal_labels that are no folder",
        read("good/1.png", "bad/1.png", normal_labels=["fine"]),
        r"have 'fine', but .*image folders \(bad, good\)",
    ),
    Case(
        "anomalous_labels that are no folder",
        read("good/1.png", "bad/1.png", anomalous_labels=["nok"]),
        r"anomalous_labels has 'nok', but .* has no such folder",
    ),
    Case(
        "a name in both labels",
        read("good/1.png", normal_labels=["good"], anomalous_labels=["Good"]),
        "is in normal_labels and in anomalous_labels",
    ),
    Case("normal_labels as a string", read("good/1.png", normal_labels="good"), r"expected a list such as \['good'\]"),
    Case("empty normal_labels", read("good/1.png", normal_labels=[]), "normal_labels is empty"),
    Case(
        "normal_labels for images without classes",
        read("1.png", normal_labels=["good"]),
        "normal_labels and anomalous_labels cannot be used with the layout",
    ),
    Case("good and bad only, no images", read("T:good/x.txt", "bad/1.png"), labels(normal=0, anomalous=1)),
    Case(
        "an empty good folder and scratches",
        read("T:good/x.txt", "scratch/1.png"),
        labels(normal=0, anomalous=1),
        says="read as kinds of defects",
    ),
]

# Folders that are no classes

NO_CLASSES = [
    "__pycache__",
    "thumbs",
    "thumbnails",
    "heatmaps",
    "results",
    "unlabeled",
    "cache",
    "output",
    "predictions",
    "overlays",
    "tmp",
    "unsorted",
    "to_check",
    "visualization",
    "anomaly maps",
    "Previews",
]
CASES += [
    Case(
        f"{name} beside {where or 'good and bad'}",
        read(f"{where}good/1.png", f"{where}bad/1.png", f"{where}{name}/1.png"),
        labels(normal=1, anomalous=1, left_out=1),
        says=r"images outside the layout, left out \(1\)",
    )
    for name in NO_CLASSES
    for where in ("", "test/")
]
CASES += [
    Case(
        f"{name!r} in {where}",
        read(f"{where}good/1.png", f"{where}{name}/1.png", f"{where}bad/1.png"),
        labels(normal=2, anomalous=1),
        says="read by a part of their names",
    )
    for name in ("good_2", "Good ", "good (2)", "good copy", "ok2")
    for where in ("test/",)
]
CASES += [
    Case(
        "two copies of the good folder",
        read("good/1.png", "good_2/1.png", "bad/1.png"),
        labels(normal=2, anomalous=1),
        says="read by a part of their names",
    ),
    Case(
        "ok, nok and pass",
        read("test/ok/1.png", "test/nok/1.png", "test/pass/1.png"),
        labels(normal=2, anomalous=1),
        says="folders of several names read as normal",
    ),
    Case(
        "test without a normal folder",
        read("test/fein/1.png", "test/riss/1.png"),
        labels(normal=0, anomalous=2),
        says="types of splits without a folder of normal images",
    ),
    Case(
        "masks beside good",
        read("good/1.png", "M:masks/9.png"),
        labels(normal=1, anomalous=0),
        says="masks without an image",
    ),
    Case(
        "splits beside good",
        read("good/1.png", "bad/1.png", "train/1.png"),
        labels(normal=1, anomalous=1, left_out=1),
        says="images outside the layout",
    ),
]

# Subfolders and deeper trees

CASES += [
    Case(
        "cameras in good and bad",
        read("good/cam1/1.png", "good/cam2/2.png", "bad/cam1/1.png"),
        labels(normal=2, anomalous=1, left_out=0),
    ),
    Case(
        "cameras in the tree", read("test/good/cam1/1.png", "test/scratch/cam1/1.png"), labels(normal=1, anomalous=1)
    ),
    Case(
        "rgb of MVTec 3D",
        read("test/good/rgb/0.png", "test/good/xyz/0.tiff", "test/cut/rgb/0.png", "M:test/cut/gt/0.png"),
        rows({"test/good/rgb/0.png": (0, None), "test/cut/rgb/0.png": (1, "test/cut/gt/0.png")}),
        says="beside a folder rgb",
    ),
    Case(
        "tree of Real-IAD",
        read("OK/S1/a.jpg", "NG/AK/S2/b.jpg", "M:NG/AK/S2/b.png"),
        rows({"OK/S1/a.jpg": (0, None), "NG/AK/S2/b.jpg": (1, "NG/AK/S2/b.png")}),
        says="recognized by their few colors",
    ),
    Case("batches", read("2024-01/ok/1.png", "2024-01/nok/1.png", "2024-02/ok/1.png"), labels(normal=2, anomalous=1)),
    Case(
        "categories of other names",
        read("bolt/good/1.png", "bolt/bad/1.png", "nut/OK_parts/1.png", "nut/NG_parts/1.png"),
        labels(normal=2, anomalous=2),
    ),
    Case(
        "a category of unknown names",
        read("bolt/good/1.png", "bolt/bad/1.png", "nut/fein/1.png", "nut/riss/1.png"),
        labels(normal=1, anomalous=1, left_out=2),
        says=r"left out \(2\): nut/fein/1.png, nut/riss/1.png",
    ),
    Case("a dataset two levels down", read("a/b/good/1.png", "a/b/bad/1.png"), labels(normal=1, anomalous=1)),
    Case("datasets two levels down", read("line1/may/x/1.png", "line1/may/y/1.png"), r"line1/may/x, line1/may/y"),
    Case(
        "batches of lines",
        read("line1/may/ok/1.png", "line1/may/nok/1.png", "line2/may/ok/1.png"),
        "several datasets: line1, line2",
    ),
    Case(
        "images beside the dataset folder",
        read("set/good/1.png", "set/bad/1.png", "preview.png"),
        labels(normal=1, anomalous=1, left_out=1),
        says="preview.png",
    ),
    Case(
        "splits inside classes",
        read("good/train/1.png", "good/test/2.png", "bad/test/1.png"),
        "split 'good/test' inside a class folder; expected .* test/good",
    ),
    Case("a class inside the other", read("good/1.png", "good/bad/1.png"), labels(normal=2), says="names contradict"),
    Case("images without labels in subfolders", read("1.png", "day2/2.png"), labels(unlabelled=2, left_out=0)),
    Case(
        "only subfolders of unknown names", read("cam1/1.png", "cam2/1.png"), r"several image folders \(cam1, cam2\)"
    ),
    Case(
        "images directly in test",
        read("test/1.png", "test/good/1.png"),
        labels(normal=1, left_out=1),
        says="images outside the layout",
    ),
    Case("empty folder", read("T:x.txt"), "does not have a known layout; .*Found: 1 x .txt"),
]

# Names of masks and mask folders

NAMES = {
    "1_mask.png": "1.png", "1_gt.png": "1.png", "1_seg.png": "1.png", "mask_1.png": "1.png", "1-mask.png": "1.png",
    "1_Mask.png": "1.png", "1.mask.png": "1.png", "1 mask.png": "1.png", "1_label.png": "1.png", "gt_1.png": "1.png",
    "1_ground_truth.png": "1.png", "1_segmentation.png": "1.png", "A_MASK.PNG": "a.png", "1.png.png": "1.png",
    "seg-1.png": "1.png", "1_annotation.png": "1.png", "1.jpg_mask.png": "1.jpg", "mask1.png": "1.png",
}  # fmt: skip
PLACES = [
    "masks/bad/",
    "bad/masks/",
    "bad_masks/",
    "ground_truth/bad/",
    "gt/",
    "annotations/",
    "labels/bad/",
    "Masks/Bad/",
    "masks/",
    "bad/gt/",
    "bad/ground_truth/",
    "segmentation/",
    "ground truth/",
    "bad-mask/",
    "masks_bad/",
    "mask/",
]
CASES += [
    Case(
        f"mask {mask} beside its image",
        read("good/5.png", "bad/2.png", f"bad/{image}", f"M:bad/{mask}"),
        rows({"good/5.png": (0, None), "bad/2.png": (1, None), f"bad/{image}": (1, f"bad/{mask}")}),
        says="anomalous images without a mask.*bad/2.png",
    )
    for mask, image in NAMES.items()
]
CASES += [
    Case(
        f"mask {mask} in masks/",
        read("good/5.png", f"bad/{image}", f"M:masks/{mask}"),
        rows({"good/5.png": (0, None), f"bad/{image}": (1, f"masks/{mask}")}, warnings={}),
    )
    for mask, image in {**NAMES, "1.PNG": "1.png", "b.bmp": "B.png", "1.png": "1_image.png"}.items()
]
CASES += [
    Case(
        f"masks in {place}",
        read("good/1.png", "bad/1.png", f"M:{place}1.png"),
        rows({"good/1.png": (0, None), "bad/1.png": (1, f"{place}1.png")}, warnings={}),
    )
    for place in PLACES
]
CASES += [
    Case(
        "masks in test/masks",
        read("test/good/1.png", "test/cut/2.png", "M:test/masks/2.png"),
        rows({"test/good/1.png": (0, None), "test/cut/2.png": (1, "test/masks/2.png")}, warnings={}),
    ),
    Case(
        "masks in test/cut",
        read("test/good/1.png", "test/cut/1.png", "M:test/cut/1_mask.png"),
        rows({"test/good/1.png": (0, None), "test/cut/1.png": (1, "test/cut/1_mask.png")}, warnings={}),
    ),
    Case(
        "masks of splits",
        read("test/good/1.png", "test/cut/1.png", "M:masks/test/cut/1.png"),
        rows({"test/good/1.png": (0, None), "test/cut/1.png": (1, "masks/test/cut/1.png")}, warnings={}),
    ),
    Case(
        "mirrored trees",
        read("images/good/1.png", "images/bad/1.png", "M:masks/bad/1.png"),
        rows({"images/good/1.png": (0, None), "images/bad/1.png": (1, "masks/bad/1.png")}, warnings={}),
    ),
    Case(
        "mirrored trees of categories",
        read("bolt/images/good/1.png", "bolt/images/bad/1.png", "M:bolt/masks/bad/1.png"),
        rows({"bolt/images/good/1.png": (0, None), "bolt/images/bad/1.png": (1, "bolt/masks/bad/1.png")}),
    ),
    Case(
        "masks one level up",
        read("bolt/good/1.png", "bolt/bad/1.png", "M:masks/bolt/bad/1.png"),
        rows({"bolt/good/1.png": (0, None), "bolt/bad/1.png": (1, "masks/bolt/bad/1.png")}, warnings={}),
    ),
    Case(
        "masks of both classes in one folder",
        read("good/1.png", "bad/2.png", "E:masks/1.png", "M:masks/2.png"),
        rows({"good/1.png": (0, "masks/1.png"), "bad/2.png": (1, "masks/2.png")}, warnings={}),
    ),
    Case(
        "mask of another format",
        read("good/5.png", "NG/1.jpg", "M:NG/1.png"),
        rows({"good/5.png": (0, None), "NG/1.jpg": (1, "NG/1.png")}),
        says="recognized by their few colors",
    ),
    Case(
        "the same photo in two formats",
        read("good/5.png", "bad/1.jpg", "bad/1.png"),
        labels(normal=1, anomalous=2),
        says="read as separate images",
    ),
    Case(
        "masks without an image beside others",
        read("good/5.png", "bad/1.png", "M:bad/1_mask.png", "M:bad/7_mask.png"),
        labels(normal=1, anomalous=1),
        says=r"masks without an image \(1\): bad/7_mask.png",
    ),
    Case(
        "a photo called mask",
        read("good/5.png", "bad/mask_7.png"),
        labels(normal=1, anomalous=1),
        says="names look like masks, read as images",
    ),
    Case(
        "masks that match nothing",
        read("good/1.png", "bad/1.png", "M:masks/other.png"),
        labels(normal=1, anomalous=1),
        says=r"masks without an image \(1\): masks/other.png",
    ),
    Case(
        "two masks for one image",
        read("good/5.png", "bad/1.png", "M:bad/1_mask.png", "M:masks/1.png"),
        rows({"good/5.png": (0, None), "bad/1.png": (1, None)}),
        says="several masks, none used",
    ),
    Case(
        "masks beside the folder",
        lambda folder: read("good/1.png", "scratch/1.png")(write(folder, "M:ground_truth/1.png")),
        labels(normal=1, anomalous=1),
        says=r"mask folders beside this folder.*\.\./ground_truth/",
    ),
    Case("a defect called label", read("test/good/1.png", "test/label/1.png"), labels(normal=1, anomalous=1)),
]

# Images and masks without class folders

CASES += [
    Case(
        "empty masks",
        read("images/1.png", "images/2.png", "M:masks/1.png", "E:masks/2.png"),
        rows({"images/1.png": (1, "masks/1.png"), "images/2.png": (0, "masks/2.png")}, warnings={}),
    ),
    Case(
        "image_1 and mask_1",
        read("images/image_1.png", "images/image_2.png", "M:masks/mask_1.png"),
        rows({"images/image_1.png": (1, "masks/mask_1.png"), "images/image_2.png": (0, None)}, warnings={}),
    ),
    Case(
        "1_image and 1_mask",
        read("images/1_image.png", "M:masks/1_mask.png"),
        rows({"images/1_image.png": (1, "masks/1_mask.png")}, warnings={}),
    ),
    Case("masks of other names", read("images/a.png", "M:masks/b.png"), "no mask has the name of an image"),
    Case(
        "one mask without an image",
        read("images/1.png", "M:masks/1.png", "M:masks/2.png"),
        labels(anomalous=1),
        says=r"masks without an image \(1\): masks/2.png",
    ),
    Case(
        "pairs of categories", read("bolt/images/1.png", "M:bolt/masks/1.png", "nut/images/1.png"), labels(anomalous=1)
    ),
    Case(
        "pairs of two categories",
        read("bolt/images/1.png", "M:bolt/masks/1.png", "nut/images/1.png", "E:nut/masks/1.png"),
        rows({"bolt/images/1.png": (1, "bolt/masks/1.png"), "nut/images/1.png": (0, "nut/masks/1.png")}),
    ),
    Case(
        "pairs in subfolders",
        read("images/a/1.png", "images/b/1.png", "M:masks/a/1.png", "E:masks/b/1.png"),
        rows({"images/a/1.png": (1, "masks/a/1.png"), "images/b/1.png": (0, "masks/b/1.png")}),
    ),
    Case(
        "masks beside images without classes",
        read("1.png", "2.png", "M:1_mask.png"),
        rows({"1.png": (1, "1_mask.png"), "2.png": (0, None)}),
    ),
    Case(
        "a mask folder in a folder of images",
        read("1.png", "2.png", "M:masks/1.png"),
        rows({"1.png": (1, "masks/1.png"), "2.png": (0, None)}),
    ),
    Case(
        "a damaged mask",
        read("images/1.png", "images/2.png", "M:masks/2.png", "T:masks/1.png"),
        rows({"images/2.png": (1, "masks/2.png")}),
        says="unreadable masks, images left out",
    ),
    Case(
        "several masks of one image",
        read("images/1.png", "M:masks/1_mask.png", "E:masks/1_label.png"),
        rows({"images/1.png": (1, None)}),
        says="several masks, none used",
    ),
]

# Splits

CASES += [
    Case(
        f"split {split!r} of {folder}/",
        read(f"{folder}/good/1.png", f"{folder}/cut/1.png", split=split),
        labels(normal=1, anomalous=1),
    )
    for folder in ("val", "validation", "Valid", "Training", "testing")
    for split in ({"Training": ["train"], "testing": ["test"]}.get(folder, ["val", "validation"]))
]
CASES += [
    Case(
        "no test split",
        read("train/good/1.png", "val/good/1.png"),
        r"has no split 'test'; expected train or validation\. Choose it with split='train', or --split",
    ),
    Case(
        "a split that does not exist", read("test/good/1.png", split="val"), "has no split 'validation'; expected test"
    ),
    Case("a split of class folders", read("good/1.png", "bad/1.png", split="val"), "This layout has no splits"),
]


# Tables of labels


def table(labels: list[str], column: str = "label", encoding: str = "utf-8", **options):
    def act(folder: Path) -> DataIndex:
        root = write(folder / "data", *(f"{number}.png" for number in range(len(labels))))
        lines = [f"image,{column}", *(f"{number}.png,{label}" for number, label in enumerate(labels))]
        (root / "t.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
        return said(index_folder(root / "t.csv", **options))

    return act


def values(*expected: int | None) -> Callable[[DataIndex], None]:
    def check(index: DataIndex) -> None:
        assert [row.label for row in index.rows] == list(expected)

    return check


CASES += [
    Case(f"table with {normal!r} and {anomalous!r}", table([normal.strip(), anomalous.strip()]), values(0, 1))
    for normal, anomalous in KNOWN[:16]
]
CASES += [
    Case(f"table with {word!r}", table(["good", word, "bad"]), values(0, None, 1), says="read as no label")
    for word in ("unknown", "?", "n/a", "NaN", "unlabeled", "-", "TBD")
]
CASES += [
    Case(f"table column {column} with {first}", table([first, second], column), values(0, 1), says="mean normal")
    for column, first, second in (
        ("is_good", "1", "0"),
        ("is_ok", "true", "false"),
        ("passed", "yes", "no"),
        ("is_normal", "True", "False"),
    )
]
CASES += [
    Case("table of defects", table(["good", "scratch"]), values(0, 1), says="label words read as kinds of defects"),
    Case("table of defects, with labels", table(["good", "scratch"], normal_labels=["good"]), values(0, 1)),
    Case("table of positives", table(["positive", "negative"]), "the meaning of 'positive', 'negative' is unknown"),
    Case("table of positives beside good", table(["good", "positive"]), "the meaning of 'positive' is unknown"),
    Case("table of anomalies", table(["positive", "negative"], "anomaly"), values(1, 0)),
    Case("table of none", table(["none", "scratch"]), "the meaning of 'none', 'scratch' is unknown"),
    Case("table with both labels", table(["a", "b"], normal_labels=["a"], anomalous_labels=["b"]), values(0, 1)),
    Case(
        "table with a third label",
        table(["a", "b", "c"], normal_labels=["a"], anomalous_labels=["b"]),
        "the meaning of 'c' is unknown",
    ),
    Case(
        "table without these labels",
        table(["a", "b"], anomalous_labels=["c"]),
        r"expected at least one of anomalous_l",
    ),
    Case("table without a label column", table(["good"], "weight", normal_labels=["good"]), "has no label column"),
]


def unusable_table(content: bytes):
    def act(folder: Path) -> DataIndex:
        root = write(folder / "data", "1.png")
        (root / "t.csv").write_bytes(content)
        return said(index_folder(root))

    return act


CASES += [
    Case(
        f"folder with a table {name}", unusable_table(content), labels(unlabelled=1), says="tables that were not used"
    )
    for name, content in {
        "in cp1252": b"image,label\nprobe\xfc.png,ok\n",
        "without images": b"time,weight\n1,2\n",
        "with a bad row": b"image,label\n1.png,0,1\n",
    }.items()
]

# Names of benchmarks

CASES += [
    Case(
        f"benchmark {name!r}",
        lambda folder, name=name: DataSource.parse(f"{name}={folder}"),
        own_data,
        says=f"write {expected}=",
    )
    for name, expected in {
        "mvtek": "mvtec",
        "kvasir-seg": "kvasir",
        "mvtec_ad": "mvtec",
        "vissa": "visa",
        "brain_mri": "brainmri",
        "MVTecAD": "mvtec",
        "mvtec2": "mvtec",
        "br35": "br35h",
        "clinic_db": "clinicdb",
        "dagm2007": "dagm",
    }.items()
]

# Links, formats and the listing


def listed(*paths: str, prepare: Callable[[Path], None] = lambda root: None, images: list[str]):
    """All readers of a folder list the same images."""

    def act(folder: Path) -> dict[str, list[str]]:
        root = write(folder / "data", *paths)
        prepare(root)
        found = {"predict": [os.path.relpath(path, root).replace(os.sep, "/") for path in list_images(root)]}
        found["bulk"] = [os.fsdecode(name) for name in unpacked(FolderImages(root, folder / "out").names())]
        found["load_folder"] = sorted(load_folder(root, layout="flat")["image_id"])
        return found

    def check(found: dict[str, list[str]]) -> None:
        assert {name: sorted(paths) for name, paths in found.items()} == dict.fromkeys(found, sorted(images))

    return {"act": act, "expected": check}


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(target)


def result(root: Path) -> None:
    (root / "out").mkdir(exist_ok=True)
    (root / "out" / "settings.json").write_text(json.dumps({"kind": "prediction"}))
    write(root, "out/heatmaps/1.png")


def evaluation(root: Path) -> None:
    (root / "eval").mkdir()
    (root / "eval" / "settings.json").write_text(json.dumps({"model_checksum": "x", "data": {}}))
    write(root, "eval/data/sheets/1.png")


def manifest(root: Path) -> None:
    (root / "runs1").mkdir()
    (root / "runs1" / ".vip2clip.json").write_text(json.dumps({"written_by": "vip2clip_hf"}))
    write(root, "runs1/1.png")


def other_settings(root: Path) -> None:
    (root / "photos" / "settings.json").write_text(json.dumps({"theme": "dark"}))


def damaged_settings(root: Path) -> None:
    (root / "photos" / "settings.json").write_text("{")


CASES += [
    Case(
        "a link to itself",
        **listed("1.png", prepare=link("self", "self"), images=["1.png"]),
        says="lead nowhere.*self",
    ),
    Case(
        "a link to its folder", **listed("1.png", prepare=link("here", "."), images=["1.png"]), says="above them.*here"
    ),
    Case(
        "a link upwards",
        **listed("a/1.png", "1.png", prepare=link("a/up", ".."), images=["1.png", "a/1.png"]),
        says="above them.*a/up",
    ),
    Case(
        "a dead link to a folder",
        **listed("1.png", prepare=link("bad", "/absent"), images=["1.png"]),
        says="lead nowhere",
    ),
    Case(
        "a dead link to an image",
        **listed("1.png", prepare=link("2.png", "/absent"), images=["1.png", "2.png"]),
        says="links to files that do not exist",
    ),
    Case(
        "an image that links to itself", **listed("1.png", prepare=link("2.png", "2.png"), images=["1.png", "2.png"])
    ),
    Case("a link to an image", **listed("1.png", prepare=link("2.png", "1.png"), images=["1.png", "2.png"])),
    Case("hidden files", **listed("1.png", ".2.png", "._1.png", ".h/3.png", "__MACOSX/4.png", images=["1.png"])),
    Case("capital extensions", **listed("1.PNG", "2.Jpg", "3.TIF", images=["1.PNG", "2.Jpg", "3.TIF"])),
    Case(
        "other formats",
        **listed(
            "1.dib",
            "2.j2k",
            "3.avif",
            "4.jfif",
            "5.jpe",
            "6.tga",
            "7.ico",
            "8.pcx",
            images=["1.dib", "2.j2k", "3.avif", "4.jfif", "5.jpe", "6.tga", "7.ico", "8.pcx"],
        ),
    ),
    Case("subfolders", **listed("1.png", "a/2.png", "a/b/c/3.png", images=["1.png", "a/2.png", "a/b/c/3.png"])),
    Case("files that are no images", **listed("1.png", "T:a.txt", "T:b.pdf", "T:c.mp4", "T:d.h5", images=["1.png"])),
    Case(
        "results of a prediction",
        **listed("1.png", prepare=result, images=["1.png"]),
        says=r"results of this package.*out",
    ),
    Case(
        "results of an evaluation",
        **listed("1.png", prepare=evaluation, images=["1.png"]),
        says="results of this package",
    ),
    Case(
        "results with a manifest", **listed("1.png", prepare=manifest, images=["1.png"]), says=r"left out \(1\): runs1"
    ),
    Case(
        "settings of another program",
        **listed("1.png", "photos/2.png", prepare=other_settings, images=["1.png", "photos/2.png"]),
    ),
    Case(
        "damaged settings",
        **listed("1.png", "photos/2.png", prepare=damaged_settings, images=["1.png", "photos/2.png"]),
    ),
    Case(
        "an image without an extension",
        lambda folder: index_folder(write(folder, "good/1.png", "good/IMG0001")),
        kinds("image files without an extension"),
    ),
]
CASES += [
    Case(
        f"photos as .{extension}",
        lambda folder, extension=extension: list_images(write(folder, "1.png", f"T:a.{extension}")),
        count(1),
        says=rf"a format that Pillow cannot open, left out \(1\): a.{extension}",
    )
    for extension in ("dng", "CR2", "jxl", "nef")
]
CASES += [
    Case(
        "raw photo beside good",
        read("good/1.png", "bad/1.png", "T:good/2.dng"),
        labels(normal=1, anomalous=1),
        says=r"Pillow cannot open, left out \(1\): good/2.dng",
    ),
    Case(
        "masks in a folder of photos",
        lambda folder: list_images(write(folder, "1.png", "M:masks/1.png")),
        count(2),
        says="look like masks, read as images",
    ),
    Case(
        "no images", lambda folder: list_images(write(folder, "T:a.txt")), "contains no images; expected files such as"
    ),
    Case(
        "no images without subfolders",
        lambda folder: list_images(write(folder, "a/1.png"), recursive=False),
        r"contains no images; expected files such as .png or .jpg in the folder\.",
    ),
    Case(
        "without subfolders",
        lambda folder: list_images(write(folder, "1.png", "a/2.png"), recursive=False),
        count(1),
        says="because recursive is False",
    ),
]

# Images outside the layout


def strict(*paths: str) -> Callable[[Path], int]:
    return lambda folder: len(load_folder(write(folder / "data", *paths), strict=True))


MANY = [f"good/{number}.png" for number in range(100)]
CASES += [
    Case(
        "strict, 1 of 3 outside",
        strict("good/1.png", "M:bad/1_mask.png", "bad/1.png", "x.png"),
        "images outside the lay",
    ),
    Case("strict, 1 of 101 outside", strict(*MANY, "x.png"), equals(100), says=r"left out \(1\): x.png"),
    Case("strict, 2 of 102 outside", strict(*MANY, "x.png", "y.png"), r"images outside the layout, left out \(2\)"),
    Case("strict, siblings", strict("good/1.png", "scratch/1.png", "M:masks/1.png"), "read as kinds of defects"),
    Case("strict, a link", lambda folder: strict("good/1.png")(linked(folder)), "lead nowhere"),
]


def linked(folder: Path) -> Path:
    write(folder / "data", "good/1.png")
    (folder / "data" / "good" / "self").symlink_to("self")
    return folder


# Names of masks that are not masks

CASES += [
    Case(
        "a folder label of masks",
        read("good/5.png", "bad/1.png", "M:label/1.png"),
        rows({"good/5.png": (0, None), "bad/1.png": (1, "label/1.png")}, warnings={}),
    ),
    Case(
        "a category called mask",
        read("mask/good/1.png", "mask/bad/1.png", "bolt/good/1.png"),
        "'mask' .* holds photos",
    ),
    Case(
        "a category called mask in the tree",
        read("mask/test/good/1.png", "bolt/test/good/1.png"),
        "'mask' .* holds phot",
    ),
    *(
        Case(
            f"drawing {name} beside its image",
            read("good/5.png", "bad/1.png", f"bad/{name}"),
            rows({"good/5.png": (0, None), "bad/1.png": (1, None)}),
            says="drawings beside their images, left out",
        )
        for name in ("1_overlay.png", "1_heatmap.png", "1-anomaly_map.png", "1.png.png", "1_thumb.jpg", "1_Pred.png")
    ),
    Case("photos in masks beside good", read("good/1.png", "masks/9.png"), "'masks' .* holds photos"),
    Case("a defect called mask", read("test/good/1.png", "test/mask/1.png"), "'test/mask' .* holds photos; .*Rename"),
    Case(
        "splits of images and masks",
        read(
            "train/images/1.png", "M:train/masks/1.png", "test/images/2.png", "test/images/3.png", "M:test/masks/2.png"
        ),
        rows(
            {"test/images/2.png": (1, "test/masks/2.png"), "test/images/3.png": (0, None)},
            splits={"train": 1, "test": 2},
        ),
    ),
    Case(
        "splits of images without masks",
        read("train/images/1.png", "test/images/2.png"),
        r"several image folders|known la",
    ),
]


@parametrize(CASES)
def test_folders(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


def test_number_of_cases():
    assert len(CASES) >= 90


@pytest.mark.parametrize("number", [2, 7])
def test_a_looping_link_loses_only_itself(tmp_path, number):
    root = write(tmp_path, *(f"{name}/{n}.png" for name in ("normal", "anomalous") for n in range(number)))
    (root / "normal" / "self").symlink_to("self")
    (root / "loop").symlink_to("loop")
    index = index_folder(root)
    assert [row.label for row in index.rows] == [0] * number + [1] * number
    assert index.warnings["links that lead nowhere or to a folder above them, left out"] == ["loop", "normal/self"]


def test_heatmaps_of_photos_with_the_same_name(tmp_path):
    root = write(tmp_path / "photos", "1.png", "a/1.png", "b/1.png")
    files = heatmap_names(find_photos([str(root)]))
    assert {path.as_posix() for path in files.values()} == {"1.png.png", "a/1.png.png", "b/1.png.png"}
