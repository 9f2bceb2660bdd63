"""Readers of the layouts data sets come in. Each finds images, labels and masks in a listing; none opens an image,
except the official KolektorSDD, which says nowhere else than in its masks what is anomalous.

Labels come from folders or label files, never from masks (with that one exception). Masks are paired by stem.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..image_processing_vip2clip import load_mask
from .benchmarks import Benchmark
from .listing import LAYOUT_FILE, MASK_FOLDERS, Listing, MaskFinder, PathResolver, natural_key, stem


NORMAL_NAMES = frozenset({"good", "ok", "normal", "nominal"})
ANOMALOUS_NAMES = frozenset({"anomalous", "anomaly", "abnormal", "bad", "ko", "ng", "defect", "defective", "damaged"})
SPLITS = ("train", "test")

NO_CATEGORY = "folder of no known category"
ANOTHER_COPY = "another copy of the images"
UNKNOWN_TYPE = "folder whose name says neither normal nor anomalous"
NO_TYPE = "image outside the folders of normal and anomalous images"
NO_LABEL = "image without a label"
NOT_USED = "not used by the benchmark"


@dataclass
class Row:
    """One image. Paths are relative to the root of the index; label 0 normal, 1 anomalous, None unknown."""

    image: str
    label: int | None
    category: str
    mask: str | None = None
    defect: str = ""
    split: str = "test"


@dataclass
class Reading:
    """What a reader works on and what it found out."""

    listing: Listing
    benchmark: Benchmark | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_splits: bool = True
    empty: list[str] = field(default_factory=list)

    def warn(self, kind: str, *examples: str):
        self.warnings.setdefault(kind, []).extend(examples)

    def category(self, folder_name: str) -> str | None:
        """Name of a category from that of its folder; None when it is none of the benchmark's."""
        if self.benchmark is None:
            return folder_name
        if len(self.benchmark.categories) == 1:
            return self.benchmark.categories[0]
        return next((c for c in self.benchmark.categories if c.lower() == folder_name.lower()), None)

    def add(self, image: str, label: int | None, category: str, masks: list[str] | None = None, **more):
        """Add an image. Of several masks none is taken: which one is right cannot be told."""
        masks = masks or []
        if len(masks) > 1:
            self.warn("images with more than one mask, none of them used", f"{image}: {', '.join(masks)}")
            self.listing.mark(masks, "one of several masks of an image")
        self.rows.append(Row(image, label, category, masks[0] if len(masks) == 1 else None, **more))


def is_normal_name(name: str) -> bool:
    return name.lower() in NORMAL_NAMES


def _mask_folder(listing: Listing, folder: str) -> str | None:
    found = listing.find_folder(folder, *MASK_FOLDERS)
    if found is None:  # ISBI2016_ISIC_Part1_Test_GroundTruth
        found = next((f for f in listing.subfolders(folder) if f.lower().endswith("groundtruth")), None)
    return found


# <category>/{train,test}/<type>/ and <category>/ground_truth/<type>/: MVTec AD and what is modelled on it


def _tree_categories(listing: Listing) -> list[str]:
    if any(listing.find_folder("", split) for split in SPLITS):
        return [""]
    folders = listing.subfolders("")
    return [folder for folder in folders if any(listing.find_folder(folder, split) for split in SPLITS)]


def _wanted_trees(reading: Reading) -> list[str]:
    """Folders of categories; of a benchmark with one category only the one folder that can be it."""
    folders, benchmark = _tree_categories(reading.listing), reading.benchmark
    if benchmark is None or len(benchmark.categories) > 1 or len(folders) < 2:
        return folders
    names = {name.lower() for name in (*benchmark.categories, *benchmark.folders)}
    known = [folder for folder in folders if folder.lower() in names]
    return known if len(known) == 1 else []


def tree_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    reading = Reading(listing, benchmark)
    for folder in _wanted_trees(reading):
        splits = [found for split in SPLITS if (found := listing.find_folder(folder, split)) is not None]
        typed = any(listing.subfolders(split) for split in splits)
        if typed and reading.category(listing.folder_name(folder)) is not None:
            return True
    return False


def read_tree(reading: Reading):
    listing, wanted = reading.listing, _wanted_trees(reading)
    for folder in _tree_categories(listing):
        category = reading.category(listing.folder_name(folder)) if folder in wanted else None
        if category is None:
            listing.mark(listing.below(folder), NO_CATEGORY)
            continue
        before = len(reading.rows)
        masks_root = _mask_folder(listing, folder)
        for split in SPLITS:
            split_folder = listing.find_folder(folder, split)
            if split_folder is None:
                continue
            listing.mark(listing.images(split_folder), NO_TYPE)
            for type_folder in listing.subfolders(split_folder):
                kind = type_folder.rsplit("/", 1)[-1]
                normal = is_normal_name(kind)
                masks = MaskFinder(listing, _typed_mask_folder(listing, masks_root, kind, split, normal))
                for image in listing.images(type_folder):
                    defect = "" if normal else kind
                    reading.add(image, int(not normal), category, masks(image), defect=defect, split=split)
        if len(reading.rows) == before:
            reading.empty.append(category)


def _typed_mask_folder(listing: Listing, masks_root: str | None, kind: str, split: str, normal: bool) -> str | None:
    """ground_truth/<type>, ground_truth/<split>/<type>, or ground_truth itself where it has no such folders."""
    if masks_root is None:
        return None
    found = listing.find_folder(masks_root, kind)
    if found is None and (inner := listing.find_folder(masks_root, split)) is not None:
        found = listing.find_folder(inner, kind)
    if found is None and not normal and not listing.subfolders(masks_root):
        found = masks_root
    return found


# normal/ and anomalous/: one's own photos; yes/ and no/: BrainMRI and Br35H


def _class_folders(listing: Listing, folder: str, benchmark: Benchmark | None) -> dict[str, int]:
    """Folders of images by class: path -> label."""
    labels = {**dict.fromkeys(NORMAL_NAMES, 0), **dict.fromkeys(ANOMALOUS_NAMES, 1)}
    if benchmark is not None:
        labels = {"no": 0, "yes": 1}
    found = {}
    for path in listing.subfolders(folder):
        label = labels.get(listing.folder_name(path).lower())
        if label is not None and (listing.images(path) or listing.subfolders(path)):
            found[path] = label
    return found


def _class_categories(listing: Listing, benchmark: Benchmark | None) -> list[str]:
    if _class_folders(listing, "", benchmark):
        return [""]
    if benchmark is not None:
        return []
    return [folder for folder in listing.subfolders("") if _class_folders(listing, folder, None)]


def classes_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(_class_categories(listing, benchmark))


def read_classes(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    for folder in _class_categories(listing, reading.benchmark):
        category = reading.category(listing.folder_name(folder))
        classes = _class_folders(listing, folder, reading.benchmark)
        masks_root = _mask_folder(listing, folder)
        for path, label in sorted(classes.items(), key=lambda item: (item[1], natural_key(item[0]))):
            # The kinds of defects may have folders of their own inside.
            inner = listing.subfolders(path) if label and reading.benchmark is None else []
            for images in (path, *inner):
                masks = MaskFinder(listing, _class_mask_folder(listing, masks_root, folder, images, label))
                defect = "" if images == path else images.rsplit("/", 1)[-1]
                for image in listing.images(images):
                    reading.add(image, label, category, masks(image), defect=defect)
        for other in listing.subfolders(folder):
            if other in classes or other == masks_root:
                continue
            inside = _class_folders(listing, other, reading.benchmark)
            listing.mark(listing.below(other), ANOTHER_COPY if inside else UNKNOWN_TYPE)


def _class_mask_folder(listing: Listing, masks_root: str | None, folder: str, images: str, label: int) -> str | None:
    """masks/<class>/<type>, masks/<class>, masks/<type>, or for anomalous images masks itself."""
    if masks_root is None:
        return None
    below = images[len(folder) :].lstrip("/")
    for candidate in (below, below.rsplit("/", 1)[-1], below.split("/")[0]):
        if listing.has_folder(f"{masks_root}/{candidate}"):
            return f"{masks_root}/{candidate}"
    return masks_root if label else None


# images/ and masks/: the polyp sets and ISIC, where every image is anomalous

_IMAGE_FOLDERS = ("images", "image", "original", "imgs")


def _pair_folders(listing: Listing) -> tuple[str, str] | None:
    images, masks = listing.find_folder("", *_IMAGE_FOLDERS), listing.find_folder("", *MASK_FOLDERS)
    return None if images is None or masks is None else (images, masks)


def pairs_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    folders = _pair_folders(listing)
    return folders is not None and bool(listing.images(folders[0]))


def read_pairs(reading: Reading):
    images, masks = _pair_folders(reading.listing)
    reading.has_splits = False
    if reading.benchmark is None:
        reading.notes.append("Images whose mask is missing count as normal: the layout has no other label.")
    _read_paired(reading, images, masks)


def _read_paired(reading: Reading, images: str, masks: str, split: str = "test"):
    listing, find = reading.listing, MaskFinder(reading.listing, masks)
    category = reading.category(listing.folder_name(""))
    for image in listing.images(images):
        found = find(image)
        label = 1 if reading.benchmark is not None or found else 0
        reading.add(image, label, category, found, split=split)


def _isic_folders(listing: Listing) -> dict[str, tuple[str, str]]:
    names = {"test": "Test", "train": "Training"}
    found = {}
    for split, name in names.items():
        images = listing.find_folder("", f"ISBI2016_ISIC_Part1_{name}_Data")
        masks = listing.find_folder("", f"ISBI2016_ISIC_Part1_{name}_GroundTruth")
        if images is not None and masks is not None:
            found[split] = images, masks
    return found


def isic_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return "test" in _isic_folders(listing)


def read_isic(reading: Reading):
    for split, (images, masks) in _isic_folders(reading.listing).items():
        _read_paired(reading, images, masks, split)


# CVC-ColonDB as released: N.bmp, and beside it pN.bmp (polyp), sN.bmp and cN.bmp


def _colondb_folder(listing: Listing) -> str | None:
    for folder in ("", *listing.subfolders("")):
        names = {name.lower() for name in listing.files(folder)}
        if any(name.endswith(".bmp") and name[:-4].isdigit() and f"p{name}" in names for name in names):
            return folder
    return None


def colondb_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return _colondb_folder(listing) is not None


def read_colondb(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    folder = _colondb_folder(listing)
    masks = MaskFinder(listing, folder, prefix="p")
    for path in listing.images(folder):
        if stem(path).isdigit():
            reading.add(path, 1, reading.category(""), masks(path))
        elif re.fullmatch(r"[sc]\d+", stem(path), re.IGNORECASE):
            listing.mark([path], NOT_USED)


# VisA as released: split_csv/1cls.csv


def _visa_csv(listing: Listing) -> str | None:
    folder = listing.find_folder("", "split_csv")
    return None if folder is None else listing.find_file(folder, "1cls.csv")


def visa_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return any(listing.find_folder(folder, "Data") is not None for folder in listing.subfolders("")) or (
        _visa_csv(listing) is not None
    )


def read_visa(reading: Reading):
    listing = reading.listing
    path = _visa_csv(listing)
    if path is None:
        raise ValueError(
            f"{str(listing.root)!r} holds the images of VisA but not split_csv/1cls.csv, without which its split "
            "cannot be rebuilt; expected that file from the official archive."
        )
    listing.mark([path], LAYOUT_FILE)
    resolve = PathResolver(listing)
    with open(listing.root / path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        expected = {"object", "split", "label", "image", "mask"}
        if not expected <= set(table.fieldnames or ()):
            raise ValueError(f"{path} has the columns {table.fieldnames}; expected {', '.join(sorted(expected))}.")
        for line in table:
            category, image = reading.category(line["object"]), resolve(line["image"])
            if category is None or line["split"] not in SPLITS or line["label"] not in ("normal", "anomaly"):
                reading.warn("lines of 1cls.csv that cannot be understood", str(list(line.values())))
            elif image is None:
                reading.warn(*resolve.refused(line["image"]))
            else:
                anomalous = line["label"] == "anomaly"
                mask = resolve(line["mask"]) if anomalous and line["mask"] else None
                masks = [] if mask is None else [mask]
                defect = "anomaly" if anomalous else ""
                reading.add(image, int(anomalous), category, masks, defect=defect, split=line["split"])


# KolektorSDD as released: kosNN/PartM.jpg and kosNN/PartM_label.bmp


def _kolektor_folders(listing: Listing) -> list[str]:
    return [folder for folder in listing.subfolders("") if re.fullmatch(r"kos\d+", folder.lower())]


def kolektor_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(_kolektor_folders(listing))


def read_kolektor(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    for folder in _kolektor_folders(listing):
        masks = MaskFinder(listing, folder, suffix="_label")
        for image in listing.images(folder):
            if stem(image).lower().endswith("_label"):
                continue
            found = masks(image)
            if len(found) != 1:
                reading.warn("images of KolektorSDD without one label bitmap, left out", image)
                listing.mark([image], NO_LABEL)
                continue
            try:
                anomalous = bool((load_mask(listing.absolute(found[0])) > 0).any())
            except OSError as error:
                reading.warn("label bitmaps that cannot be read, their images left out", f"{found[0]} ({error})")
                listing.mark([image], NO_LABEL)
                continue
            if not anomalous:
                listing.mark(found, LAYOUT_FILE)
            reading.add(
                image, int(anomalous), reading.category(""), found if anomalous else [],
                defect="defect" if anomalous else "",
            )  # fmt: skip


# DAGM 2007 as released: ClassN/{Train,Test}/NNNN.PNG with Label/NNNN_label.PNG and Label/Labels.txt


def _dagm_labels(listing: Listing, folder: str) -> str | None:
    for split in SPLITS:
        inner = listing.find_folder(folder, split)
        if inner is not None and (label := listing.find_folder(inner, "Label")) is not None:
            return label
    return None


def dagm_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return any(_dagm_labels(listing, folder) is not None for folder in listing.subfolders(""))


def read_dagm(reading: Reading):
    listing = reading.listing
    for folder in listing.subfolders(""):
        category = reading.category(listing.folder_name(folder))
        if category is None:
            copy = any(_dagm_labels(listing, f) for sub in (folder, *listing.subfolders(folder))
                       for f in listing.subfolders(sub))  # fmt: skip
            listing.mark(listing.below(folder), ANOTHER_COPY if copy else NO_CATEGORY)
            continue
        before = len(reading.rows)
        for split in SPLITS:
            images = listing.find_folder(folder, split)
            if images is None:
                continue
            label_folder = listing.find_folder(images, "Label")
            masks = MaskFinder(listing, label_folder)
            listed = _read_dagm_labels(reading, label_folder)
            for image in listing.images(images):
                found = masks(image)
                if listed and listed.get(stem(image), int(bool(found))) != int(bool(found)):
                    reading.warn("images whose mask and entry in Labels.txt disagree, taken as anomalous", image)
                anomalous = bool(found) or listed.get(stem(image)) == 1
                defect = "defect" if anomalous else ""
                reading.add(image, int(anomalous), category, found, defect=defect, split=split)
        if len(reading.rows) == before:
            reading.empty.append(category)


def _read_dagm_labels(reading: Reading, folder: str | None) -> dict[str, int]:
    """Labels.txt: a first line, then number, label, file, 0, mask or 0, separated by tabs."""
    path = None if folder is None else reading.listing.find_file(folder, "Labels.txt")
    if path is None:
        return {}
    reading.listing.mark([path], LAYOUT_FILE)
    labels = {}
    lines = (reading.listing.root / path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for line in lines[1:]:
        cells = line.split()
        if not cells:
            continue
        if len(cells) < 3 or cells[1] not in ("0", "1"):
            reading.warn("lines of Labels.txt that cannot be understood", f"{path}: {line.strip()!r}")
            continue
        labels[stem(cells[2])] = int(cells[1])
    return labels


# HeadCT as released: labels.csv and numbered images


def _headct_csv(listing: Listing) -> Path | None:
    """labels.csv in the folder or, where the re-pack of the released code puts it, beside it."""
    path = listing.find_file("", "labels.csv")
    found = listing.root / path if path is not None else Path(os.path.abspath(listing.root)).parent / "labels.csv"
    try:
        with open(found, encoding="utf-8-sig", newline="") as file:
            header = [cell.strip().lower() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError):
        return None
    return found if header[:2] == ["id", "hemorrhage"] else None


def _headct_images(listing: Listing, folder: str = "", depth: int = 2) -> list[str]:
    """Numbered images at the first level where there are any."""
    images = [path for path in listing.images(folder) if stem(path).isdigit()]
    if images or not depth:
        return images
    return [path for inner in listing.subfolders(folder) for path in _headct_images(listing, inner, depth - 1)]


def headct_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return _headct_csv(listing) is not None and bool(_headct_images(listing))


def read_headct(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    path = _headct_csv(listing)
    listing.mark([listing.find_file("", "labels.csv")], LAYOUT_FILE)
    labels = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(csv.reader(file)):
            if not number or not line:
                continue
            cells = [cell.strip() for cell in line]
            if len(cells) < 2 or not cells[0].isdigit() or cells[1] not in ("0", "1"):
                reading.warn("lines of labels.csv that cannot be understood", ",".join(line))
                continue
            labels[int(cells[0])] = int(cells[1])  # ids are not padded, file names are
    for image in _headct_images(listing):
        label = labels.get(int(stem(image)))
        if label is None:
            reading.warn("images without a line in labels.csv, left out", image)
            listing.mark([image], NO_LABEL)
            continue
        reading.add(image, label, reading.category(""))


# Images alone


def flat_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(listing.images(""))


def read_flat(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    for image in listing.images(""):
        reading.add(image, None, listing.folder_name(""))
    for folder in listing.subfolders(""):
        listing.mark(listing.below(folder), "in a folder below")


@dataclass(frozen=True)
class Layout:
    """
    A way data lie on disk.

    Args:
        name (`str`): as `layout=` takes it.
        title (`str`): in words.
        matches: whether a folder is laid out so, from the names in it.
        read (*optional*): finds the rows.
        expected (`str`): the tree, for error messages.
    """

    name: str
    title: str
    matches: Callable[[Listing, Benchmark | None], bool]
    read: Callable[[Reading], None] | None
    expected: str


TREE_EXPECTED = (
    "<category>/test/good/*.png, <category>/test/<defect>/*.png, <category>/ground_truth/<defect>/*_mask.png"
)


def layouts_of(layouts: Iterable[Layout]) -> dict[str, Layout]:
    return {layout.name: layout for layout in layouts}


FOLDER_LAYOUTS = layouts_of(
    (
        Layout("tree", "tree like that of MVTec AD", tree_matches, read_tree, TREE_EXPECTED),
        Layout(
            "classes", "one folder for each class", classes_match, read_classes,
            "normal/*.png, anomalous/*.png (for BrainMRI and Br35H no/ and yes/); masks/ where there are any",
        ),
        Layout("pairs", "images and masks", pairs_match, read_pairs, "images/*.png, masks/*.png of the same stem"),
        Layout("flat", "images without labels", flat_matches, read_flat, "*.png"),
    )
)  # fmt: skip
BENCHMARK_LAYOUTS = layouts_of(
    (
        Layout(
            "visa", "VisA as released", visa_matches, read_visa,
            "split_csv/1cls.csv, <category>/Data/Images/{Normal,Anomaly}/*.JPG, <category>/Data/Masks/Anomaly/*.png",
        ),
        Layout(
            "kolektor", "KolektorSDD as released", kolektor_matches, read_kolektor,
            "kos01/Part0.jpg, kos01/Part0_label.bmp, ...",
        ),
        Layout(
            "dagm", "DAGM 2007 as released", dagm_matches, read_dagm,
            "Class1/Test/*.PNG, Class1/Test/Label/Labels.txt, Class1/Test/Label/*_label.PNG, ...",
        ),
        Layout(
            "headct", "HeadCT as released", headct_matches, read_headct, "labels.csv, head_ct/head_ct/000.png, ..."
        ),
        Layout(
            "isic", "ISIC 2016 as released", isic_matches, read_isic,
            "ISBI2016_ISIC_Part1_Test_Data/*.jpg, ISBI2016_ISIC_Part1_Test_GroundTruth/*_Segmentation.png",
        ),
        Layout("colondb", "CVC-ColonDB as released", colondb_matches, read_colondb, "1.bmp, p1.bmp, ..."),
    )
)  # fmt: skip


__all__ = ["BENCHMARK_LAYOUTS", "FOLDER_LAYOUTS", "Layout", "Reading", "Row"]
