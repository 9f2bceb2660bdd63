"""Tiny folder trees of the 15 benchmarks, as downloaded and as re-packaged, with their irregularities.

Every image has one grey value, four times its number, and its mask marks the pixel with that number. Tests use this to
check that each image gets its own mask.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


SIDE = 8


@dataclass
class Tree:
    """
    A benchmark on disk and the expected index.

    Args:
        root (`pathlib.Path`): folder to pass to `load_benchmark`.
        layout (`str`): layout to detect.
        counts (`dict[str, tuple[int, int]]`): normal and anomalous test images by category.
        masks (`int`): anomalous test images with a mask.
        train (`int`, defaults to 0): training images.
        ignored (`dict[str, int]`): number of ignored files by reason.
        warnings (`tuple[str, ...]`): start of each warning.
        empty_masks (`int`, defaults to 0): masks without anomalous pixels.
    """

    root: Path
    layout: str
    counts: dict[str, tuple[int, int]]
    masks: int
    train: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    empty_masks: int = 0


class Writer:
    """Write numbered images, and masks for the last image."""

    def __init__(self, root: Path) -> None:
        self.root, self.number = root, 0

    def image(self, path: str, mode: str = "RGB", format: str | None = None) -> int:
        self.number = self.number % 60 + 1
        value = 4 * self.number
        target = self._path(path)
        image = Image.fromarray(np.full((SIDE, SIDE), value, dtype=np.uint8)).convert("RGB")
        if mode == "P":
            image = image.quantize(4)
        elif mode != "RGB":
            image = image.convert(mode)
        image.save(target, format=format or {"JPG": "JPEG", "TIF": "TIFF"}.get(target.suffix[1:].upper()))
        return self.number

    def mask(
        self, path: str, value: int = 255, mode: str = "L", number: int | None = None, empty: bool = False
    ) -> None:
        marked = np.zeros(SIDE * SIDE, dtype=np.uint8)
        if not empty:
            marked[self.number if number is None else number] = value
        Image.fromarray(marked.reshape(SIDE, SIDE)).convert(mode).save(self._path(path))

    def lossy_mask(self, path: str) -> None:
        """Write a JPEG mask with noise near 0 and values near 255 in the defect."""
        marked = np.full(SIDE * SIDE, 3, dtype=np.uint8)
        marked[self.number] = 250
        Image.fromarray(marked.reshape(SIDE, SIDE)).convert("RGB").save(self._path(path), quality=100, subsampling=0)

    def text(self, path: str, content: str = "x") -> None:
        self._path(path).write_text(content, encoding="utf-8")

    def _path(self, path: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _mvtec_like(
    writer: Writer, category: str, defects: dict[str, int], normal: int = 2, train: int = 2, good: str = "good",
    extension: str = "png", mask_extension: str = "png", suffix: str = "_mask", prefix: str = "",
) -> None:  # fmt: skip
    for number in range(train):
        writer.image(f"{category}/train/{good}/{prefix}{number:03d}.{extension}")
    for number in range(normal):
        writer.image(f"{category}/test/{good}/{prefix}{number:03d}.{extension}")
    for defect, count in defects.items():
        for number in range(count):
            writer.image(f"{category}/test/{defect}/{prefix}{number:03d}.{extension}")
            writer.mask(f"{category}/ground_truth/{defect}/{prefix}{number:03d}{suffix}.{mask_extension}")


def mvtec_official(root: Path) -> Tree:
    writer = Writer(root)
    _mvtec_like(writer, "zipper", {"rough": 2})
    _mvtec_like(writer, "bottle", {"broken_large": 2, "contamination": 1})
    writer.image("bottle/test/good/900.png", mode="L")
    for name in ("bottle/license.txt", "bottle/readme.txt", "zipper/license.txt"):
        writer.text(name)
    writer.text("bottle/test/broken_large/Thumbs.db")
    writer.text("bottle/ground_truth/broken_large/Thumbs.db")
    writer.text("__MACOSX/bottle/test/good/._000.png")
    writer.image("preview.png")
    return Tree(
        root, "tree", {"bottle": (3, 3), "zipper": (2, 2)}, 5, train=4,
        ignored={"system files": 3, "files that are not images": 3, "images outside the layout": 1},
    )  # fmt: skip


def mvtec_vcp(root: Path) -> Tree:
    writer = Writer(root / "mvtec")
    for number in range(2):
        writer.image(f"bottle/train/good/mvtec_good_{number:06d}.bmp")
        writer.image(f"bottle/test/good/mvtec_good_{number:06d}.bmp")
        writer.image(f"bottle/test/anomaly/mvtec_broken_large_{number:06d}.bmp")
        writer.mask(f"bottle/ground_truth/anomaly/mvtec_broken_large_{number:06d}.png")
    return Tree(root, "tree", {"bottle": (2, 2)}, 2, train=2)


def visa_official(root: Path) -> Tree:
    writer = Writer(root)
    lines = ["object,split,label,image,mask"]
    for category in ("pcb1", "candle"):
        for number, split in enumerate(("train", "train", "test")):
            path = f"{category}/Data/Images/Normal/{number:03d}.JPG"  # normal and anomalous images share stems
            writer.image(path)
            lines.append(f"{category},{split},normal,{path},")
        for number in range(2):
            path, mask = (f"{category}/Data/{kind}/Anomaly/{number:03d}" for kind in ("Images", "Masks"))
            writer.image(f"{path}.JPG")
            writer.mask(f"{mask}.png", value=1 + number)  # ids of defect classes
            lines.append(f"{category},test,anomaly,{path}.JPG,{mask}.png")
    writer.text("split_csv/1cls.csv", "\n".join(lines) + "\n")
    writer.text("split_csv/2cls_fewshot.csv", "object,split,label,image,mask\n")
    writer.image("candle/Data/Images/Normal/999.JPG")  # not listed in the CSV file
    return Tree(
        root, "visa", {"candle": (1, 2), "pcb1": (1, 2)}, 4, train=4,
        ignored={"files that are not images": 1, "images outside the layout": 1},
    )  # fmt: skip


def visa_pytorch(root: Path) -> Tree:
    writer = Writer(root / "1cls")
    for category in ("candle", "pcb1"):
        for number in range(2):
            writer.image(f"{category}/train/good/{number:04d}.JPG")
            writer.image(f"{category}/test/good/{number + 7:04d}.JPG")
            writer.image(f"{category}/test/bad/{number:03d}.JPG")
            writer.mask(f"{category}/ground_truth/bad/{number:03d}.png")
    return Tree(root, "tree", {"candle": (2, 2), "pcb1": (2, 2)}, 4, train=4)


def mpdd_official(root: Path) -> Tree:
    writer = Writer(root)
    _mvtec_like(writer, "metal_plate", {"scratches": 2, "major_rust": 1})
    _mvtec_like(writer, "tubes", {"anomalous": 2})
    return Tree(root, "tree", {"metal_plate": (2, 3), "tubes": (2, 2)}, 5, train=4)


def write_meta(
    root: Path, test: dict, train: dict | None = None, name: str = "meta.json", capital: bool = False
) -> None:
    content = {"Train": train or {}, "Test": test} if capital else {"train": train or {}, "test": test}
    (root / name).write_text(json.dumps(content), encoding="utf-8")


def meta_entry(image: str, mask: str | None, category: str, kind: str, anomaly: int, **fields: Any) -> dict:
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": category,
        "specie_name": kind,
        "anomaly": anomaly,
        **fields,
    }


def mpdd_meta(root: Path) -> Tree:
    """A meta file that does not list all images, and masks that sort order would pair wrongly."""
    writer = Writer(root / "MPDD")
    _mvtec_like(writer, "tubes", {"anomalous": 2}, normal=2, train=1)
    base = "tubes/test"
    entries = [
        meta_entry(f"{base}/good/000.png", "", "tubes", "good", 0, normal_path="tubes/train/good/000.png"),
        meta_entry(f"{base}/anomalous/000.png", "tubes/ground_truth/anomalous/000_mask.png", "tubes", "anomalous", 1),
        meta_entry(f"{base}/anomalous/001.png", "tubes/ground_truth/anomalous/001_mask.png", "tubes", "anomalous", 1),
    ]
    train = {"tubes": [meta_entry("tubes/train/good/000.png", "", "tubes", "good", 0)]}
    write_meta(root / "MPDD", {"tubes": entries}, train)
    return Tree(root, "meta", {"tubes": (1, 2)}, 2, train=1, ignored={"images outside the layout": 1})


def btad_official(root: Path) -> Tree:
    writer = Writer(root / "BTech_Dataset_transformed")
    for category, extension, mask_extension in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        writer.image(f"{category}/train/ok/0000.{extension}")
        writer.image(f"{category}/test/ok/0000.{extension}")
        for number in range(2):
            writer.image(f"{category}/test/ko/{number:04d}.{extension}")
            empty = category == "02" and number == 1  # as 02/test/ko/0145.png
            writer.mask(f"{category}/ground_truth/ko/{number:04d}.{mask_extension}", empty=empty)
    counts = {"01": (1, 2), "02": (1, 2), "03": (1, 2)}
    return Tree(root, "tree", counts, 6, train=3, empty_masks=1)


def btad_png(root: Path) -> Tree:
    writer = Writer(root)
    for category in ("01", "03"):
        _mvtec_like(writer, category, {"ko": 2}, good="ok", suffix="")
    return Tree(root, "tree", {"01": (2, 2), "03": (2, 2)}, 4, train=4)


def ksdd_official(root: Path) -> Tree:
    writer = Writer(root)
    for item in (1, 2, 10):
        for part in range(2):
            writer.image(f"kos{item:02d}/Part{part}.jpg", mode="L")
            writer.mask(f"kos{item:02d}/Part{part}_label.bmp", empty=part == 0)
    writer.image("kos02/Part7.jpg")  # without a label bitmap
    return Tree(
        root, "kolektor", {"ksdd": (3, 3)}, 3, ignored={"images without a label": 1},
        warnings=("images without exactly one label bitmap",),
    )  # fmt: skip


def ksdd_thirds(root: Path) -> Tree:
    writer = Writer(root / "SDD")
    for number in range(3):
        writer.image(f"train/good/kos01_Part0_{number}.png")
        writer.image(f"test/good/kos02_Part0_{number}.png")
        writer.image(f"test/defect/kos03_Part0_{number}.png")
        writer.mask(f"ground_truth/defect/kos03_Part0_{number}_mask.png", mode="RGB")
    return Tree(root, "tree", {"ksdd": (3, 3)}, 3, train=3)


def _dagm_class(writer: Writer, category: str) -> None:
    for split, first in (("Train", 11), ("Test", 1)):
        lines = ["1"]
        for number in range(first, first + 4):
            name, defective = f"{number:04d}", number % 2
            writer.image(f"{category}/{split}/{name}.PNG", mode="L")
            if defective:
                writer.mask(f"{category}/{split}/Label/{name}_label.PNG")
            label = f"{name}_label.PNG" if defective else "0\t"
            lines.append(f"{name}\t{defective}\t{name}.PNG\t0\t{label}")
        writer.text(f"{category}/{split}/Label/Labels.txt", "\n".join(lines) + "\n")
        writer.text(f"{category}/{split}/Thumbs.db")
        writer.text(f"{category}/{split}/Label/Thumbs.db")


def dagm_official(root: Path) -> Tree:
    writer = Writer(root)
    for category in ("Class1", "Class10", "Class2"):
        _dagm_class(writer, category)
    _dagm_class(writer, "dagm_kaggleupload/DAGM_KaggleUpload/Class1")
    return Tree(
        root, "dagm", {"Class1": (2, 2), "Class2": (2, 2), "Class10": (2, 2)}, 6, train=12,
        ignored={"system files": 16, "files in another copy of the dataset": 14},
    )  # fmt: skip


def dagm_adaclip(root: Path) -> Tree:
    writer = Writer(root / "DAGM_anomaly_detection")
    for category in ("Class1", "Class2"):
        for number in range(2):
            writer.image(f"{category}/train/good/{number:04d}.PNG")
            writer.image(f"{category}/test/good/{number + 5:04d}.PNG")
            writer.image(f"{category}/test/defect/{number:04d}.PNG")
            writer.mask(f"{category}/ground_truth/defect/{number:04d}_label.PNG", mode="RGB")
    return Tree(root, "tree", {"Class1": (2, 2), "Class2": (2, 2)}, 4, train=4)


def dagm_meta(root: Path) -> Tree:
    """AnomalyCLIP: official folders and a meta file with capitalized keys."""
    writer = Writer(root)
    _dagm_class(writer, "Class1")
    entries = [meta_entry(f"Class1/Test/000{n}.PNG", f"Class1/Test/Label/000{n}_label.PNG" if n % 2 else "", "Class1",
                          "", n % 2) for n in range(1, 5)]  # fmt: skip
    write_meta(root, {"Class1": entries}, {"Class1": []}, capital=True)
    ignored = {"system files": 4, "files that are not images": 2, "images outside the layout": 6}
    return Tree(root, "meta", {"Class1": (2, 2)}, 2, ignored=ignored)


def dtd_official(root: Path) -> Tree:
    writer = Writer(root)
    for category in ("Woven_001", "Blotchy_099"):
        _mvtec_like(writer, category, {"bad": 2})
    return Tree(root, "tree", {"Blotchy_099": (2, 2), "Woven_001": (2, 2)}, 4, train=4)


def dtd_plain_masks(root: Path) -> Tree:
    writer = Writer(root / "DTD-Synthetic")
    _mvtec_like(writer, "Mesh_114", {"bad": 2}, suffix="")
    writer.image("Mesh_114/ground_truth/bad/077.png")
    return Tree(root, "tree", {"Mesh_114": (2, 2)}, 2, train=2, ignored={"masks without an image": 1})


def headct_official(root: Path) -> Tree:
    writer = Writer(root)
    numbers = (0, 1, 2, 197, 198, 199)
    for number in numbers:
        writer.image(f"head_ct/head_ct/{number:03d}.png", mode="RGBA" if number > 196 else "RGB")
    lines = ["id, hemorrhage", *(f"{n},{int(n < 100)}" for n in numbers)]
    writer.text("labels.csv", "\n".join(lines) + "\n")
    return Tree(root, "headct", {"headct": (3, 3)}, 0)


def headct_vip2clip(root: Path) -> Tree:
    """labels.csv is next to the root folder."""
    writer = Writer(root / "HeadCT")
    for number in (0, 100, 101):
        writer.image(f"brain/{number:03d}.png")
    (root / "labels.csv").write_text("id, hemorrhage\n0,1\n100,0\n101,0\n")
    return Tree(root / "HeadCT", "headct", {"headct": (2, 1)}, 0)


def headct_anomalyclip(root: Path) -> Tree:
    writer = Writer(root / "HeadCT_anomaly_detection")
    for number in range(2):
        writer.image(f"brain/test/good/{number:03d}.png")
        writer.image(f"brain/test/hemorrhage/{number + 5:03d}.png")
    return Tree(root / "HeadCT_anomaly_detection", "tree", {"headct": (2, 2)}, 0)


def headct_adaclip(root: Path) -> Tree:
    writer = Writer(root)
    (root / "headct" / "train" / "good").mkdir(parents=True)
    for number in range(2):
        writer.image(f"headct/test/good/{number:03d}.png")
        writer.image(f"headct/test/defect/{number + 5:03d}.png")
    return Tree(root, "tree", {"headct": (2, 2)}, 0)


def brainmri_official(root: Path) -> Tree:
    writer = Writer(root)
    for base in ("", "brain_tumor_dataset/"):
        writer.image(f"{base}yes/Y1.jpg", mode="L")
        writer.image(f"{base}yes/Y100.JPG")
        writer.image(f"{base}yes/Y92.png", mode="P")
        writer.image(f"{base}no/1 no.jpeg")
        writer.image(f"{base}no/No15.jpg", mode="RGBA", format="PNG")  # PNG data in a .jpg file
        writer.image(f"{base}no/no 9.png")
        writer.image(f"{base}no/N1.JPG")
    (root / "yes" / "Y2.jpg").write_bytes((root / "yes" / "Y1.jpg").read_bytes())  # a duplicate, still counted
    return Tree(root, "classes", {"brainmri": (4, 4)}, 0, ignored={"files in another copy of the dataset": 7})


def brainmri_vip2clip(root: Path) -> Tree:
    writer = Writer(root / "brain_tumor")
    writer.image("yes/Y1.jpg")
    writer.image("no/no.jpg", mode="RGBA", format="PNG")
    writer.image("no/no 98.jpg", mode="P", format="PNG")
    return Tree(root, "classes", {"brainmri": (2, 1)}, 0)


def brainmri_adaclip(root: Path) -> Tree:
    writer = Writer(root / "BrainMRI")
    writer.image("brain_mri/test/good/1.png")
    writer.image("brain_mri/test/yes/2.png")
    return Tree(root / "BrainMRI", "tree", {"brainmri": (1, 1)}, 0)


def br35h_official(root: Path) -> Tree:
    writer = Writer(root)
    for number in range(3):
        writer.image(f"yes/y{number}.jpg")
        writer.image(f"no/no{number}.jpg")
        writer.image(f"pred/pred{number}.jpg")
        writer.image(f"Br35H-Mask-RCNN/TRAIN/y{number}.jpg")
    writer.text("Br35H-Mask-RCNN/annotations_all.json", "{}")
    return Tree(root, "classes", {"br35h": (3, 3)}, 0, ignored={"files outside the class folders": 7})


def br35h_adaclip(root: Path) -> Tree:
    writer = Writer(root / "Br35h_anomaly_detection")
    for number in range(2):
        writer.image(f"br35h/test/good/{number}.jpg")
        writer.image(f"br35h/test/yes/{number + 5}.jpg")
    return Tree(root / "Br35h_anomaly_detection", "tree", {"br35h": (2, 2)}, 0)


def br35h_foreign_meta(root: Path) -> Tree:
    """ViP²-CLIP: absolute paths from another machine."""
    writer = Writer(root)
    writer.image("yes/y0.jpg")
    writer.image("no/no0.jpg")
    entries = [
        meta_entry("/home/someone/data/Br35H/yes/y0.jpg", "", "brain", "yes", 1),
        meta_entry("/home/someone/data/Br35H/no/no0.jpg", None, "brain", "no", 0),
    ]
    write_meta(root, {"brain": entries})
    return Tree(root, "meta", {"br35h": (1, 1)}, 0)


def isic_official(root: Path) -> Tree:
    writer = Writer(root)
    for split in ("Test", "Training"):
        for number in (3, 12, 13):
            base = f"ISBI2016_ISIC_Part1_{split}"
            writer.image(f"{base}_Data/ISIC_{number:07d}.jpg")
            writer.mask(f"{base}_GroundTruth/ISIC_{number:07d}_Segmentation.png")
    writer.text("ISBI2016_ISIC_Part3_Training_GroundTruth.csv")
    return Tree(root, "isic", {"isic": (0, 3)}, 3, train=3, ignored={"files that are not images": 1})


def isic_anomalyclip(root: Path) -> Tree:
    writer = Writer(root / "ISBI" / "skin")
    for number in (3, 12):
        writer.image(f"test/bad/ISIC_{number:07d}.jpg")
        writer.mask(f"ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_{number:07d}_Segmentation.png")
    return Tree(root / "ISBI", "tree", {"isic": (0, 2)}, 2)


def isic_vip2clip(root: Path) -> Tree:
    writer = Writer(root / "ISIC" / "skin")
    for number in (3, 12):
        for split in ("train", "test"):
            writer.image(f"{split}/lesion/ISIC_{split}{number:07d}.jpg")
            writer.mask(f"ground_truth/lesion/ISIC_{split}{number:07d}_Segmentation.png")
    return Tree(root / "ISIC", "tree", {"isic": (0, 2)}, 2, train=2)


def colondb_official(root: Path) -> Tree:
    writer = Writer(root / "CVC-ColonDB")
    for number in (1, 2, 10):
        writer.image(f"{number}.bmp")
        writer.mask(f"p{number}.bmp")
        for prefix in "sc":
            writer.mask(f"{prefix}{number}.bmp", number=0)
    return Tree(root, "colondb", {"colondb": (0, 3)}, 3, ignored={"files not used by the benchmark": 6})


def _pairs(
    writer: Writer, images: str, masks: str, names: tuple[str, ...], extension: str, mask_extension: str
) -> None:
    for name in names:
        writer.image(f"{images}/{name}.{extension}")
        writer.mask(f"{masks}/{name}.{mask_extension}")


def colondb_repack(root: Path) -> Tree:
    writer = Writer(root)
    _pairs(writer, "images", "masks", ("1", "2", "10"), "png", "png")
    writer.image("images/11.png")  # without a mask
    return Tree(root, "pairs", {"colondb": (0, 4)}, 3, warnings=("anomalous images without a mask",))


def clinicdb_official(root: Path) -> Tree:
    writer = Writer(root)
    _pairs(writer, "Original", "Ground Truth", ("1", "2", "10"), "tif", "tif")
    writer.text("README.txt")
    return Tree(root, "pairs", {"clinicdb": (0, 3)}, 3, ignored={"files that are not images": 1})


def clinicdb_kaggle(root: Path) -> Tree:
    """The same images as PNG and TIF. Only one copy is read."""
    for copy in ("PNG", "TIF"):
        writer = Writer(root / copy)
        _pairs(writer, "Original", "Ground_Truth", ("1", "2"), copy.lower(), copy.lower())
    return Tree(root, "pairs", {"clinicdb": (0, 2)}, 2)


def clinicdb_repack(root: Path) -> Tree:
    _pairs(Writer(root / "CVC-ClinicDB"), "images", "masks", ("1", "2"), "png", "png")
    return Tree(root, "pairs", {"clinicdb": (0, 2)}, 2)


def endo_official(root: Path) -> Tree:
    writer = Writer(root / "EndoTect")
    for name in ("a1", "b2"):
        writer.image(f"images/{name}.jpg")
        writer.lossy_mask(f"masks/{name}.jpg")
        writer.text(f"bboxes/{name}.csv")
    return Tree(root, "pairs", {"endo": (0, 2)}, 2, ignored={"files that are not images": 2})


def endo_adaclip(root: Path) -> Tree:
    writer = Writer(root / "EndoTect" / "endo")
    for name in ("a1", "b2"):
        writer.image(f"test/polyp/{name}.jpg")
        writer.mask(f"ground_truth/polyp/{name}.png")
    return Tree(root / "EndoTect", "tree", {"endo": (0, 2)}, 2)


def kvasir_official(root: Path) -> Tree:
    writer = Writer(root)
    for name in ("cju0qkwl35piu", "cju0roawvklrq"):
        writer.image(f"images/{name}.jpg")
        writer.lossy_mask(f"masks/{name}.jpg")
    writer.text("kavsir_bboxes.json", "{}")
    return Tree(root, "pairs", {"kvasir": (0, 2)}, 2, ignored={"files that are not images": 1})


def kvasir_repack(root: Path) -> Tree:
    _pairs(Writer(root / "Kvasir"), "images", "masks", ("cju0", "cju1"), "png", "png")
    return Tree(root, "pairs", {"kvasir": (0, 2)}, 2)


BUILDERS: tuple[Callable[[Path], Tree], ...] = (
    mvtec_official, mvtec_vcp, visa_official, visa_pytorch, mpdd_official, mpdd_meta, btad_official, btad_png,
    ksdd_official, ksdd_thirds, dagm_official, dagm_adaclip, dagm_meta, dtd_official, dtd_plain_masks,
    headct_official, headct_vip2clip, headct_anomalyclip, headct_adaclip, brainmri_official, brainmri_vip2clip,
    brainmri_adaclip, br35h_official, br35h_adaclip, br35h_foreign_meta, isic_official, isic_anomalyclip,
    isic_vip2clip, colondb_official, colondb_repack, clinicdb_official, clinicdb_kaggle, clinicdb_repack,
    endo_official, endo_adaclip, kvasir_official, kvasir_repack,
)  # fmt: skip
