"""The medical benchmarks of the paper (Table 2): image counts, layouts, citations and licences."""

from .benchmark import Benchmark


# Numbers in square brackets are references of the paper (arXiv:2505.17692).
_SALEHI = (
    "Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee: Multiresolution knowledge distillation for anomaly detection. "
    "CVPR 2021, pp. 14902-14912. (Reference [25] of the paper. It evaluates on the dataset but did not create it.)"
)
_FIGSHARE_POLYPS = "https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579"


MEDICAL = (
    Benchmark(
        name="headct",
        title="HeadCT (haemorrhage)",
        domain="medical",
        source="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        citation=_SALEHI,
        layouts=("meta", "headct", "tree"),
        evaluated="the whole dataset",
        categories=("headct",),
        folders=("brain",),
        normal=100,
        anomalous=100,
        counts_source="a public copy of the dataset",
        has_masks=False,
    ),
    Benchmark(
        name="brainmri",
        title="BrainMRI",
        domain="medical",
        source="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        citation=_SALEHI,
        layouts=("meta", "classes", "tree"),
        evaluated="the whole dataset",
        categories=("brainmri",),
        folders=("brain_mri", "brain", "brain_tumor"),
        normal=98,
        anomalous=155,
        counts_source="a public copy of the dataset",
        has_masks=False,
        notes={"classes": "Some images of a class are identical files. All are kept, as in the published counts."},
    ),
    Benchmark(
        name="br35h",
        title="Br35H",
        domain="medical",
        source="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        citation="Hamada: BR35H: Brain Tumor Detection 2020. Kaggle, 2020. [10]",
        layouts=("meta", "classes", "tree"),
        evaluated="the folders yes and no (the whole dataset)",
        categories=("br35h",),
        folders=("brain",),
        normal=1500,
        anomalous=1500,
        counts_source="literature",
        has_masks=False,
    ),
    Benchmark(
        name="isic",
        title="ISIC 2016, part 1",
        domain="medical",
        source="https://challenge.isic-archive.com/data/",
        citation=(
            "Codella et al.: Skin lesion analysis toward melanoma detection: a challenge at the 2017 international "
            "symposium on biomedical imaging (ISBI). ISBI 2018, pp. 168-172. [7] (The files are from the 2016 "
            "challenge.)"
        ),
        layouts=("meta", "isic", "tree"),
        evaluated="the official test set of 2016",
        categories=("isic",),
        folders=("skin",),
        normal=0,
        anomalous=379,
        counts_source="official page",
        licence="CC0 (index page of the dataset)",
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
        evaluated="all images of a re-packaged copy with 380 images",
        categories=("colondb",),
        folders=("colon",),
        normal=0,
        anomalous=380,
        counts_source="file list of the re-packaged copy",
        notes={
            "colondb": "The official release has 300 frames. The paper evaluates a re-packaged copy with 380 images."
        },
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
        evaluated="the whole dataset",
        categories=("clinicdb",),
        folders=("colon",),
        normal=0,
        anomalous=612,
        counts_source="official page",
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
        counts_source="third-party sources",
        mask_threshold=127,
        notes={
            "pairs": (
                "The file format of the masks is not established. The mask threshold is 127 because other datasets of "
                "the same group have JPEG masks."
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
        evaluated="the whole dataset",
        categories=("kvasir",),
        folders=("colon",),
        normal=0,
        anomalous=1000,
        counts_source="official page",
        licence="research and education; commercial use needs permission (authors' repository)",
        mask_threshold=127,
        notes={
            "pairs": (
                "Masks are JPEG files with noise near 0 and 255, so the mask threshold is 127. The released code uses "
                "0, which enlarges the masks by 1 to 5 %; to reproduce it, pass mask_threshold=0 to the collator."
            )
        },
    ),
)


__all__ = ["MEDICAL"]
