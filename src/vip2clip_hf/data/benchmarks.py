"""The 15 benchmarks of the paper: what they hold, how they lie on disk, who made them, what their licence is.

Where a count comes from is said with it (`counts_source`); where a licence could not be established it is None.
docs/benchmarks.md has the folder trees.
"""

from dataclasses import dataclass, field


# Reference numbers are those of the paper's list (arXiv:2505.17692).
_SALEHI = (
    "Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee: Multiresolution knowledge distillation for anomaly detection. "
    "CVPR 2021, pp. 14902-14912. (Reference [25] of the paper, which evaluates on the set; not its origin.)"
)
_FIGSHARE_POLYPS = "https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579"


@dataclass(frozen=True)
class Benchmark:
    """
    One data set of the paper.

    Args:
        name (`str`): short name, as `load_benchmark` takes it.
        title (`str`): full name.
        domain (`"industrial"` or `"medical"`): table of the paper it stands in (1 or 2).
        source (`str`): where it is downloaded.
        citation (`str`): what to cite, from the paper's references.
        layouts (`tuple[str, ...]`): layouts it is found in, see [`vip2clip_hf.data.layouts`], in the order in which
            they are tried.
        evaluated (`str`): which images the paper evaluates, in words.
        categories (`tuple[str, ...]`): names of the categories, in the order of the results. A set of one category
            carries its own name.
        normal, anomalous (`int`): images of the evaluated split, as published.
        counts (`dict[str, tuple[int, int]]`): the same by category, where known.
        train_counts (`dict[str, int]`): normal training images by category, where known.
        counts_source (`str`): who says so.
        licence (`str`, *optional*): as stated by its makers, or by whom else; None where not established.
        has_masks (`bool`): whether anomalous images have masks. Without, image metrics only.
        mask_threshold (`int`): mask values greater than this are anomalous. 127 where masks are stored lossily, so
            that compression noise around the defect is not marked; the released code takes 0 for every set.
        folders (`tuple[str, ...]`): what re-packs call the folder of a set of one category.
        notes (`dict[str, str]`): what to know about a layout, by its name.
    """

    name: str
    title: str
    domain: str
    source: str
    citation: str
    layouts: tuple[str, ...]
    evaluated: str
    categories: tuple[str, ...]
    normal: int
    anomalous: int
    counts_source: str
    licence: str | None = None
    has_masks: bool = True
    mask_threshold: int = 0
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    train_counts: dict[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def expected(self, category: str) -> tuple[int, int] | None:
        """Published number of normal and anomalous images of a category in the evaluated split, where known."""
        if len(self.categories) == 1:
            return self.normal, self.anomalous
        return self.counts.get(category)


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


_ALL = (
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
        counts_source="the published meta file",
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
        counts_source="the published meta file and the official split file",
        licence="CC BY 4.0 (official repository)",
        notes={"visa": "Masks hold ids of defect classes from 1 on and look black; every value above 0 is anomalous."},
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
        counts_source="the literature; the total of 458 by a data card",
        licence="CC BY-NC-SA 4.0 (stated by anomalib; the official readme states none)",
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
        counts_source="the literature; totals by category by third parties",
        licence="CC BY-NC-SA 4.0 (stated by anomalib; an official statement was not found)",
        notes={"tree": "One anomalous image, 02/test/ko/0145.png, has a mask that is all zero; it stays anomalous."},
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
        evaluated="thirds of the images: every anomalous third and a quarter of the normal ones",
        categories=("ksdd",),
        folders=("electrical commutators", "electrical_commutators", "SDD"),
        normal=286,
        anomalous=54,
        counts_source="the recipe of the re-pack the paper's code links, computed on the public images",
        licence="CC BY-NC-SA 4.0 (authors' repository)",
        notes={
            "kolektor": (
                "Whole images, 347 normal and 52 anomalous. The paper evaluates thirds of them (286 and 54); "
                "write_kolektor_thirds makes these, 'vip2clip data ROOT --write-thirds FOLDER' on the command line. "
                "Which normal thirds the paper drew is not known."
            ),
            "tree": "Thirds of the images. Which normal thirds were drawn differs between re-packs.",
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
        counts_source="the literature; the total of 8050 by third parties",
        licence='none stated ("publicly available", official page)',
        notes={
            "dagm": "Masks are rough filled ellipses, not outlines of the defects.",
            "tree": "Re-packs pool both halves (2100 normal, 2100 anomalous); the paper evaluates the Test halves.",
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
        counts_source="the literature",
        licence=None,
    ),
    Benchmark(
        name="headct",
        title="HeadCT (haemorrhage)",
        domain="medical",
        source="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        citation=_SALEHI,
        layouts=("meta", "headct", "tree"),
        evaluated="the whole set",
        categories=("headct",),
        folders=("brain",),
        normal=100,
        anomalous=100,
        counts_source="a public copy of the set",
        has_masks=False,
    ),
    Benchmark(
        name="brainmri",
        title="BrainMRI",
        domain="medical",
        source="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        citation=_SALEHI,
        layouts=("meta", "classes", "tree"),
        evaluated="the whole set",
        categories=("brainmri",),
        folders=("brain_mri", "brain", "brain_tumor"),
        normal=98,
        anomalous=155,
        counts_source="a public copy of the set",
        has_masks=False,
        notes={"classes": "Some images are byte-identical within a class; all are kept, as in the published counts."},
    ),
    Benchmark(
        name="br35h",
        title="Br35H",
        domain="medical",
        source="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        citation="Hamada: BR35H: Brain Tumor Detection 2020. Kaggle, 2020. [10]",
        layouts=("meta", "classes", "tree"),
        evaluated="the folders yes and no (the whole set)",
        categories=("br35h",),
        folders=("brain",),
        normal=1500,
        anomalous=1500,
        counts_source="the literature",
        has_masks=False,
    ),
    Benchmark(
        name="isic",
        title="ISIC 2016, part 1",
        domain="medical",
        source="https://challenge.isic-archive.com/data/",
        citation=(
            "Codella et al.: Skin lesion analysis toward melanoma detection: a challenge at the 2017 international "
            "symposium on biomedical imaging (ISBI). ISBI 2018, pp. 168-172. [7] (The files are those of the 2016 "
            "challenge.)"
        ),
        layouts=("meta", "isic", "tree"),
        evaluated="the official test set of 2016",
        categories=("isic",),
        folders=("skin",),
        normal=0,
        anomalous=379,
        counts_source="the official page",
        licence="CC0 (stated on the index page of the data set)",
    ),
    Benchmark(
        name="colondb",
        title="CVC-ColonDB",
        domain="medical",
        source=_FIGSHARE_POLYPS,
        citation=(
            "Tajbakhsh, Gurudu, Liang: Automated polyp detection in colonoscopy videos using shape and context "
            "information. IEEE Transactions on Medical Imaging 35(2), 2015, pp. 630-644. [27]"
        ),
        layouts=("meta", "pairs", "colondb", "tree"),
        evaluated="the whole re-pack of 380 images",
        categories=("colondb",),
        folders=("colon",),
        normal=0,
        anomalous=380,
        counts_source="the listing of a re-pack",
        notes={"colondb": "The official release has 300 frames; the paper's code evaluates a re-pack of 380 images."},
    ),
    Benchmark(
        name="clinicdb",
        title="CVC-ClinicDB",
        domain="medical",
        source="https://polyp.grand-challenge.org/CVCClinicDB/",
        citation=(
            "Bernal, Sánchez, Fernández-Esparrach, Gil, Rodríguez, Vilariño: WM-DOVA maps for accurate polyp "
            "highlighting in colonoscopy: validation vs. saliency maps from physicians. Computerized Medical Imaging "
            "and Graphics 43, 2015, pp. 99-111. [3]"
        ),
        layouts=("meta", "pairs", "tree"),
        evaluated="the whole set",
        categories=("clinicdb",),
        folders=("colon",),
        normal=0,
        anomalous=612,
        counts_source="the official page",
        licence="research and education only, no commercial use (readme in the archive)",
    ),
    Benchmark(
        name="endo",
        title="EndoTect 2020",
        domain="medical",
        source="https://endotect.com",
        citation=(
            "Hicks, Jha, Thambawita, Halvorsen, Hammer, Riegler: The EndoTect 2020 challenge: evaluation and "
            "comparison of classification, segmentation and inference time for endoscopy. ICPR 2021 workshops, "
            "pp. 263-274. [11]"
        ),
        layouts=("meta", "pairs", "tree"),
        evaluated="the segmentation test set",
        categories=("endo",),
        folders=("colon",),
        normal=0,
        anomalous=200,
        counts_source="third parties",
        mask_threshold=127,
        notes={
            "pairs": (
                "How masks are stored is not established; sets of the same group store them as JPEG, hence the mask "
                "threshold of 127."
            )
        },
    ),
    Benchmark(
        name="kvasir",
        title="Kvasir-SEG",
        domain="medical",
        source="https://datasets.simula.no/kvasir-seg/",
        citation=(
            "Jha, Smedsrud, Riegler, Halvorsen, de Lange, Johansen, Johansen: Kvasir-SEG: a segmented polyp dataset. "
            "MMM 2020, LNCS 11962. [14]"
        ),
        layouts=("meta", "pairs", "tree"),
        evaluated="the whole set",
        categories=("kvasir",),
        folders=("colon",),
        normal=0,
        anomalous=1000,
        counts_source="the official page",
        licence="research and education; commercial use needs permission (authors' repository)",
        mask_threshold=127,
        notes={
            "pairs": (
                "Masks are JPEG with noise around 0 and 255; they are cut at 127. The released code cuts at 0, which "
                "enlarges them by 1 to 5 %: pass mask_threshold=0 to the collator to reproduce it."
            )
        },
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def get_benchmark(name: str) -> Benchmark:
    """
    A benchmark by its name, in any case.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    found = BENCHMARKS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"Unknown benchmark {name!r}; known ones are {', '.join(BENCHMARKS)}.")
    return found


__all__ = ["BENCHMARKS", "Benchmark", "get_benchmark"]
