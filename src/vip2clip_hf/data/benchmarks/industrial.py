"""The industrial benchmarks of the paper (Table 1): image counts, layouts, citations and licences."""

from .benchmark import Benchmark


# Numbers in square brackets are references of the paper (arXiv:2505.17692).
# Number of normal training images, normal test images and anomalous test images of each category.
_MVTEC = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
_VISA = {
    "candle": (900, 100, 100),
    "capsules": (542, 60, 100),
    "cashew": (450, 50, 100),
    "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100),
    "macaroni1": (900, 100, 100),
    "macaroni2": (900, 100, 100),
    "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100),
    "pcb3": (905, 101, 100),
    "pcb4": (904, 101, 100),
    "pipe_fryum": (450, 50, 100),
}
_MPDD = {
    "bracket_black": (289, 32, 47),
    "bracket_brown": (185, 26, 51),
    "bracket_white": (110, 30, 30),
    "connector": (128, 30, 14),
    "metal_plate": (54, 26, 71),
    "tubes": (122, 32, 69),
}
_BTAD = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}


def _test(table: dict[str, tuple[int, int, int]]) -> dict[str, tuple[int, int]]:
    return {category: (normal, anomalous) for category, (_, normal, anomalous) in table.items()}


def _train(table: dict[str, tuple[int, int, int]]) -> dict[str, int]:
    return {category: train for category, (train, _, _) in table.items()}


INDUSTRIAL = (
    Benchmark(
        name="mvtec",
        title="MVTec AD",
        domain="industrial",
        source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        citation=(
            "Bergmann, Fauser, Sattlegger, Steger: MVTec AD - a comprehensive real-world dataset for unsupervised "
            "anomaly detection. CVPR 2019, pp. 9592-9600. [2]"
        ),
        layouts=("meta", "tree"),
        evaluated="the official test split",
        categories=tuple(_MVTEC),
        normal=467,
        anomalous=1258,
        counts=_test(_MVTEC),
        train_counts=_train(_MVTEC),
        counts_source="published meta file",
        licence="CC BY-NC-SA 4.0, no commercial use (official readme)",
    ),
    Benchmark(
        name="visa",
        title="VisA",
        domain="industrial",
        source="https://github.com/amazon-science/spot-diff",
        citation=(
            "Zou, Jeong, Pemula, Zhang, Dabeer: Spot-the-difference self-supervised pre-training for anomaly "
            "detection and segmentation. ECCV 2022, pp. 392-408. [34]"
        ),
        layouts=("meta", "visa", "tree"),
        evaluated="the official test split of split_csv/1cls.csv",
        categories=tuple(_VISA),
        normal=962,
        anomalous=1200,
        counts=_test(_VISA),
        train_counts=_train(_VISA),
        counts_source="published meta file and official split file",
        licence="CC BY 4.0 (official repository)",
        notes={"visa": "Mask values are defect class ids from 1, so masks look black. Values above 0 are anomalous."},
    ),
    Benchmark(
        name="mpdd",
        title="MPDD",
        domain="industrial",
        source="https://github.com/stepanje/MPDD",
        citation=(
            "Jezek, Jonak, Burget, Dvorak, Skotak: Deep learning-based defect detection of metal parts: evaluating "
            "current methods in complex conditions. ICUMT 2021, pp. 66-71. [13]"
        ),
        layouts=("meta", "tree"),
        evaluated="the official test split",
        categories=tuple(_MPDD),
        normal=176,
        anomalous=282,
        counts=_test(_MPDD),
        train_counts=_train(_MPDD),
        counts_source="literature; total of 458 from a data card",
        licence="CC BY-NC-SA 4.0 (according to anomalib; the official readme has none)",
    ),
    Benchmark(
        name="btad",
        title="BTAD",
        domain="industrial",
        source="http://avires.dimi.uniud.it/papers/btad/btad.zip",
        citation=(
            "Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: a vision transformer network for image anomaly "
            "detection and localization. ISIE 2021, pp. 1-6. [20]"
        ),
        layouts=("meta", "tree"),
        evaluated="the official test split",
        categories=tuple(_BTAD),
        normal=451,
        anomalous=290,
        counts=_test(_BTAD),
        train_counts=_train(_BTAD),
        counts_source="literature; totals per category from third-party sources",
        licence="CC BY-NC-SA 4.0 (according to anomalib; no official statement found)",
        notes={"tree": "The anomalous image 02/test/ko/0145.png has an empty mask. It is still counted as anomalous."},
    ),
    Benchmark(
        name="ksdd",
        title="KolektorSDD",
        domain="industrial",
        source="https://www.vicos.si/resources/kolektorsdd/",
        citation=(
            "Tabernik, Šela, Skvarč, Skočaj: Segmentation-based deep-learning approach for surface-defect detection. "
            "Journal of Intelligent Manufacturing 31(3), 2020, pp. 759-776. [26]"
        ),
        layouts=("meta", "kolektor", "tree"),
        evaluated="thirds of the images: all anomalous thirds and a quarter of the normal thirds",
        categories=("ksdd",),
        folders=("electrical commutators", "electrical_commutators", "SDD"),
        normal=286,
        anomalous=54,
        counts_source="computed on the public images, with the recipe of the copy linked by the paper's code",
        licence="CC BY-NC-SA 4.0 (authors' repository)",
        notes={
            "kolektor": (
                "These are whole images, 347 normal and 52 anomalous. The paper evaluates thirds of the images, 286 "
                "normal and 54 anomalous. Create thirds with 'vip2clip data ROOT --write-thirds FOLDER' or "
                "write_kolektor_thirds. Which normal thirds the paper uses is not known."
            ),
            "tree": "These are thirds of the images. The selection of normal thirds differs between copies.",
        },
    ),
    Benchmark(
        name="dagm",
        title="DAGM 2007",
        domain="industrial",
        source=("https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection"),
        citation=(
            "Wieler, Hahn: Weakly supervised learning for industrial optical inspection. DAGM symposium 2007. [29]"
        ),
        layouts=("meta", "dagm", "tree"),
        evaluated="the official Test halves",
        categories=tuple(f"Class{number}" for number in range(1, 11)),
        normal=6996,
        anomalous=1054,
        counts={"Class1": (504, 71)},
        counts_source="literature; total of 8050 from third-party sources",
        licence='not stated ("publicly available", official page)',
        notes={
            "dagm": "Masks are coarse filled ellipses, not outlines of the defects.",
            "tree": "Copies in this layout combine Train and Test (2100 normal, 2100 anomalous). The paper uses Test.",
        },
    ),
    Benchmark(
        name="dtd",
        title="DTD-Synthetic",
        domain="industrial",
        source="https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1",
        citation=(
            "Aota, Tong, Okatani: Zero-shot versus many-shot: unsupervised texture anomaly detection. WACV 2023, "
            "pp. 5564-5572. [1]"
        ),
        layouts=("meta", "tree"),
        evaluated="the official test split",
        categories=(
            "Blotchy_099",
            "Fibrous_183",
            "Marbled_078",
            "Matted_069",
            "Mesh_114",
            "Perforated_037",
            "Stratified_154",
            "Woven_001",
            "Woven_068",
            "Woven_104",
            "Woven_125",
            "Woven_127",
        ),
        normal=357,
        anomalous=947,
        counts_source="literature",
        licence=None,
    ),
)


__all__ = ["INDUSTRIAL"]
