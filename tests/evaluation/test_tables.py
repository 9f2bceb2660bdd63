import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest

from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.published import (
    AVERAGES,
    METHODS,
    PUBLISHED,
    TAKEN_OVER,
    published,
    published_average,
    published_sets,
)
from vip2clip_hf.evaluation.reports import (
    csv_report,
    dataset_lines,
    latex_report,
    markdown_report,
    not_compared,
    settings_lines,
)
from vip2clip_hf.evaluation.tables import category_table, comparison_rows, comparison_tables, notes


SETTINGS = {
    "fpr_limit": 0.3, "aupro_convention": "exact", "dtype": "float32", "image_size": 518, "mask_threshold": 0,
}  # fmt: skip


def result_of(name, benchmark=None, trained_on=(), categories=None, **values):
    """A result of a whole dataset, as published, with the given metrics; all others are 0.5."""
    names = list(BENCHMARKS[benchmark].categories) if benchmark else ["c0"]
    names = names if categories is None else [*names, *(f"c{n}" for n in range(1, 99))][:categories]
    settings = {**SETTINGS, **values.pop("settings", {})}
    split = values.pop("split", "test")
    absent = ""
    if benchmark:  # what its images cannot have
        absent = "" if BENCHMARKS[benchmark].normal else "image_"
        absent = absent if BENCHMARKS[benchmark].has_masks else "pixel_"
    metrics = {
        metric: values.get(metric, math.nan if absent and metric.startswith(absent) else 0.5) for metric in METRICS
    }
    metrics["pixel_aupro_exact"] = metrics["pixel_aupro"]
    metrics["pixel_aupro_release"] = values.get("pixel_aupro_release", metrics["pixel_aupro"])
    undefined = {metric: "no anomalous images (c0)" for metric, value in metrics.items() if math.isnan(value)}
    found = {}
    rest = (BENCHMARKS[benchmark].normal, BENCHMARKS[benchmark].anomalous) if benchmark else (2, 1)
    for number, category in enumerate(names):
        counts = BENCHMARKS[benchmark].expected(category) if benchmark else (2, 1)
        if counts is None:  # published as a total only
            counts = rest if number == len(names) - 1 else (1, 1)
        rest = rest[0] - counts[0], rest[1] - counts[1]
        found[category] = {
            **metrics, "num_images": sum(counts), "num_anomalous_images": counts[1], "num_maps": sum(counts),
            "num_pixels": 12, "num_regions": 1, "image_f1_threshold": 0.25, "pixel_f1_threshold": math.nan,
            "undefined": undefined,
        }  # fmt: skip
    return {
        "name": name,
        "benchmark": benchmark,
        "split": split,
        "trained_on": list(trained_on),
        "mean": {**metrics, "undefined": undefined},
        "categories": found,
        "settings": settings,
    }


# Published results


def test_published_results():
    assert published("mvtec", "image") == (91.2, 96.0, 92.0)
    assert published("mvtec", "pixel") == (90.5, 87.1, 43.1)
    assert published("visa", "pixel", "AdaCLIP") == (95.5, 56.8, 37.0)
    assert published("kvasir", "pixel", "WinCLIP") == (69.7, 24.5, 35.9)
    assert published("br35h", "image", "APRIL-GAN").ranking == 92.1
    for arguments in (("isic", "image"), ("headct", "pixel"), ("mvtec", "patch"), ("mvtec", "image", "PaDiM")):
        with pytest.raises(ValueError, match="The paper contains no"):
            published(*arguments)


def test_published_datasets():
    assert {name for rows in PUBLISHED.values() for name in rows} == set(BENCHMARKS)
    assert published_sets("industrial", "image") == published_sets("industrial", "pixel")
    assert published_sets("industrial", "image") == ["mvtec", "visa", "mpdd", "ksdd", "btad", "dagm", "dtd"]
    # Pixel-level results exactly for the benchmarks with masks.
    assert set(PUBLISHED["pixel"]) == {b.name for b in BENCHMARKS.values() if b.has_masks}
    assert all(len(row) == len(METHODS) for rows in PUBLISHED.values() for row in rows.values())
    assert {method for method, _ in TAKEN_OVER} <= set(METHODS)


@pytest.mark.parametrize(("domain", "level"), list(AVERAGES))
def test_printed_averages(domain, level):
    """They are the means of the rows, except for WinCLIP's industrial averages, as noted in published.py."""
    rows = np.mean([PUBLISHED[level][name] for name in published_sets(domain, level)], axis=0)
    for method, mean, printed in zip(METHODS, rows, AVERAGES[domain, level]):
        assert published_average(published_sets(domain, level), domain, level, method) == printed
        if (method, domain) == ("WinCLIP", "industrial"):
            assert abs(mean - printed).max() > 0.3
        else:
            np.testing.assert_allclose(mean, printed, atol=0.08)
    assert published_average(["mvtec", "visa"], "industrial", "image").auroc == pytest.approx((91.2 + 88.5) / 2)


# Tables


def test_comparison_rows():
    results = [result_of("visa", "visa"), result_of("mvtec", "mvtec", image_auroc=0.9)]
    tables = comparison_rows(results)
    assert list(tables) == ["industrial"]
    rows = tables["industrial"]
    assert [row[0] for row in rows] == [
        "Image-level (AUROC, AP, F1)", "", "", "Pixel-level (AUROC, PRO, F1)", "", "",
    ]  # fmt: skip
    assert [row[1] for row in rows] == ["MVTec AD", "VisA", "AVERAGE"] * 2  # the order of the paper
    assert [row[2] for row in rows[:3]] == ["15", "12", "2 of 2"]
    assert rows[0][3:] == [
        "(66.5, 82.6, 86.7)", "(91.8, 96.5, 92.7)*", "(86.1, 93.5, 90.4)", "(91.6, 96.4, 92.7)", "(90.1, 95.6, 92.3)",
        "(91.2, 96.0, 92.0)", "(90.0, 50.0, 50.0)",
    ]  # fmt: skip
    # The mean over both datasets, not over all seven.
    assert rows[2][-2:] == ["(89.8, 93.2, 88.4)", "(70.0, 50.0, 50.0)"]
    assert notes(results) == []
    assert [not_compared(result) for result in results] == [{"image": [], "pixel": []}] * 2


def counted(result, category, **changes):
    """The result with other counts in a category."""
    categories = {**result["categories"], category: {**result["categories"][category], **changes}}
    return {**result, "categories": categories}


OTHER_PROTOCOLS = {
    "split train": (
        result_of("mvtec", "mvtec", split="train"),
        "the split is 'train'; the paper evaluates the official test split",
    ),
    "split not recorded": (result_of("mvtec", "mvtec", split=None), "the split is not recorded"),
    "one category": (result_of("mvtec", "mvtec", categories=1), "1 of 15 categories are evaluated"),
    "fewer images": (
        counted(result_of("kvasir", "kvasir"), "kvasir", num_images=8, num_anomalous_images=8, num_maps=8),
        r"there are 0 normal and 8 anomalous images \(published: 0 normal and 1000 anomalous\)",
    ),
    "fewer images of a category": (
        counted(result_of("mvtec", "mvtec"), "zipper", num_images=150, num_maps=150),
        r"there are 466 normal and 1258 anomalous .*; zipper has 31 normal and 119 anomalous images \(published: 32",
    ),
    "images moved between categories": (
        counted(
            counted(result_of("visa", "visa"), "pcb1", num_images=201, num_maps=201),
            "pcb3",
            num_images=200,
            num_maps=200,
        ),
        "pcb1 has 101 normal and 100 anomalous images .*; pcb3 has 100 normal",
    ),
    "labels exchanged": (
        counted(result_of("visa", "visa"), "pcb1", num_anomalous_images=99),
        "there are 963 normal and 1199 anomalous images",
    ),
}


@pytest.mark.parametrize(("result", "reason"), OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS)
def test_results_of_another_protocol_are_not_compared(result, reason):
    """Any split and number of images stood beside the published results, and in AVERAGE."""
    other = (
        result_of("ksdd", "ksdd")
        if BENCHMARKS[result["benchmark"]].domain == "industrial"
        else result_of("endo", "endo")
    )
    tables = comparison_rows([result, other])
    ((_, rows),) = tables.items()
    (row,) = [row for row in rows if row[1].startswith(BENCHMARKS[result["benchmark"]].title)][-1:]
    assert row[1].endswith("‡")
    assert row[3:9] == ["-"] * 6
    assert row[-1] == "(50.0, 50.0, 50.0)"
    averages = [row for row in rows if row[1] == "AVERAGE"]
    for row in averages:
        assert row[2] == f"1 of {2 if len(averages) == 2 or other['name'] == 'endo' else 1}"
    assert averages[-1][-2] == ("(98.5, 96.2, 53.0)" if other["name"] == "ksdd" else "(84.5, 63.7, 49.2)")
    assert "AVERAGE" not in str(comparison_rows([result]))
    text = "\n".join(notes([result]))
    assert re.search(rf"‡ \w+, pixel level: not compared with published results and not in AVERAGE: .*{reason}", text)
    assert re.search(reason, "; ".join(not_compared(result)["pixel"]))
    assert "-" not in notes([result], with_average=False)
    assert re.search(reason, markdown_report([result], "mine"))
    assert "not compared with published results" in latex_report([result], "mine")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_maps": 100}, "51 of 1725 images have no mask"),
        ({"num_small_regions": 3, "num_lost_regions": 1}, "2 regions smaller than a pixel of the model are kept"),
        ({"num_small_regions": math.nan, "num_lost_regions": math.nan}, None),
        ({"num_small_regions": 3, "num_lost_regions": 3}, None),
    ],
)
def test_masks_of_another_protocol(changes, reason):
    result = counted(result_of("mvtec", "mvtec"), "zipper", **changes)
    assert not_compared(result)["image"] == []
    found = not_compared(result)["pixel"]
    assert found == [] if reason is None else found[0].startswith(reason)
    rows = comparison_rows([result])["industrial"]
    assert [row[-2] for row in rows if row[1] != "AVERAGE"] == [
        "(91.2, 96.0, 92.0)",
        "-" if reason else "(90.5, 87.1, 43.1)",
    ]


@pytest.mark.parametrize(
    ("name", "threshold", "compared"),
    [("mvtec", 0, True), ("mvtec", 127, False), ("kvasir", 127, True), ("kvasir", 0, True), ("kvasir", 5, False)],
)
def test_mask_thresholds_of_the_paper(name, threshold, compared):
    """The released code uses 0, which is noise in the masks of Kvasir-SEG."""
    result = result_of(name, name, settings={"mask_threshold": threshold})
    assert (not_compared(result)["pixel"] == []) == compared
    as_options = {**result_of(name, name), "mask_options": {"threshold": threshold}}
    assert (not_compared(as_options)["pixel"] == []) == compared


def test_aupro_is_compared_in_the_convention_of_the_paper():
    """The exact AUPRO stood beside the one of the released code, and that of another limit as well."""
    result = result_of("mvtec", "mvtec", pixel_aupro=0.9, pixel_aupro_release=0.8)
    rows = comparison_rows([result])["industrial"]
    assert rows[2][-2:] == ["(90.5, 87.1, 43.1)", "(50.0, 80.0, 50.0)"]
    assert category_table(result).splitlines()[-1].split()[-2] == "90.0"  # the convention of the evaluation
    limited = result_of("mvtec", "mvtec", settings={"fpr_limit": 1.0})
    both = [limited, result_of("visa", "visa")]
    rows = comparison_rows(both)["industrial"]
    assert rows[3][1] == "MVTec AD‡"
    assert rows[3][-2:] == ["(90.5, -, 43.1)", "(50.0, 50.0, 50.0)"]
    assert rows[5][1:3] == ["AVERAGE", "2, 1, 2 of 2"]
    assert rows[5][-2:] == ["(93.0, 92.2, 38.4)", "(50.0, 50.0, 50.0)"]
    assert notes(both) == [
        "‡ mvtec, pixel level: PRO is not compared with published results: the false positive rate limit is 1 "
        "(published: 0.3)."
    ]
    rows = comparison_rows([limited])["industrial"]
    assert rows[3][1:3] == ["AVERAGE", "1, 0, 1 of 1"]
    assert rows[3][-1] == "(50.0, -, 50.0)"
    old = {**result_of("mvtec", "mvtec"), "settings": None}
    assert comparison_rows([old])["industrial"][2][-2] == "(90.5, -, 43.1)"
    assert "PRO is not compared with published results: its settings are not recorded" in "".join(notes([old]))


def test_average_never_mixes_datasets():
    """90, undefined and 50 were printed as 70 in one column and as 90 in the next."""
    nan = math.nan
    results = [
        result_of("mvtec", "mvtec", image_auroc=0.9, image_ap=0.9),
        result_of("visa", "visa", image_auroc=nan, image_ap=0.7),
        result_of("ksdd", "ksdd", image_auroc=0.5, image_ap=nan, image_f1=nan),
    ]
    (row,) = [row for row in comparison_rows(results)["industrial"] if row[1] == "AVERAGE"][:1]
    assert row[2] == "2 of 3"
    pairs = (("mvtec", "ksdd"), ("mvtec", "visa"), ("mvtec", "visa"))
    means = [np.mean([PUBLISHED["image"][name][-1][k] for name in pair]) for k, pair in enumerate(pairs)]
    assert row[-2] == "(" + ", ".join(f"{mean:.1f}" for mean in means) + ")"
    assert row[-1] == "(70.0, 80.0, 50.0)"
    own = [result_of("a", image_auroc=0.9), result_of("b", image_auroc=nan), result_of("c", image_auroc=0.5)]
    (row,) = [row for row in comparison_rows(own)["own"] if row[1] == "AVERAGE"][:1]
    assert row[1:] == ["AVERAGE", "2, 3, 3 of 3", "(70.0, 50.0, 50.0)"]


def test_a_mean_without_some_categories_is_not_compared():
    result = result_of("mvtec", "mvtec")
    result["mean"]["undefined"] = {"image_ap": "no normal images (zipper)"}
    rows = comparison_rows([result, result_of("visa", "visa")])["industrial"]
    assert rows[0][-2:] == ["(91.2, -, 92.0)", "(50.0, 50.0, 50.0)"]
    assert rows[2][2] == "2, 1, 2 of 2"
    assert "AP is not compared with published results: it is undefined for some categories" in "".join(notes([result]))


def test_benchmarks_without_published_results(monkeypatch):
    """They were in no table."""
    benchmark = dataclasses.replace(BENCHMARKS["ksdd"], name="new", title="New set", categories=("new",))
    monkeypatch.setitem(BENCHMARKS, "new", benchmark)
    new = result_of("new", "new")
    rows = comparison_rows([new, result_of("mvtec", "mvtec")])["industrial"]
    assert [row[1] for row in rows] == ["MVTec AD", "New set‡", "AVERAGE"] * 2
    assert rows[1][3:] == ["-"] * 6 + ["(50.0, 50.0, 50.0)"]
    assert rows[2][2] == "1 of 2"
    assert "the paper has no image-level results of this benchmark" in notes([new])[0]
    # With masks of one's own.
    rows = comparison_rows([result_of("headct", "headct", pixel_auroc=0.5)])["medical"]
    assert rows[-1][:2] == ["Pixel-level (AUROC, PRO, F1)", "HeadCT (haemorrhage)‡"]


def test_one_benchmark_under_two_names():
    """Only the last of them was in the table."""
    results = [
        result_of("first", "mvtec", image_auroc=0.9),
        result_of("train", "mvtec", split="train"),
        result_of("second", "mvtec", image_auroc=0.7),
    ]
    rows = comparison_rows(results)["industrial"]
    assert [row[1] for row in rows[:4]] == ["MVTec AD (first)", "MVTec AD (train)‡", "MVTec AD (second)", "AVERAGE"]
    assert rows[3][2] == "1 of 3"
    assert rows[3][-1] == "(90.0, 50.0, 50.0)"


def test_all_datasets_have_the_printed_average():
    rows = comparison_rows([result_of(name, name) for name in BENCHMARKS])
    assert rows["industrial"][7][-2] == "(92.4, 93.9, 90.6)"
    assert rows["industrial"][7][4] == "(82.1, 82.1, 80.5)"
    assert rows["medical"][-1][-2] == "(85.1, 68.1, 50.3)"
    # Medical datasets are only in the half of the table for which the paper has results.
    assert [row[1] for row in rows["medical"]][:4] == ["HeadCT (haemorrhage)", "BrainMRI", "Br35H", "AVERAGE"]
    assert len(rows["medical"]) == 4 + 6


def test_training_datasets_are_marked_and_not_averaged():
    seen = result_of("mvtec", "mvtec", ["trained on mvtec"], image_auroc=1.0)
    results = [seen, result_of("visa", "visa", image_auroc=0.8)]
    rows = comparison_rows(results)["industrial"]
    assert rows[0][1] == "MVTec AD†"
    assert rows[2][-2:] == ["(88.5, 90.4, 84.8)", "(80.0, 50.0, 50.0)"]
    excluded = " AVERAGE excludes these datasets for all methods."
    lines = ["† mvtec: trained on mvtec.", "† These results are not zero-shot."]
    assert notes(results) == [lines[0], lines[1] + excluded]
    assert notes(results, with_average=False) == lines
    assert [row[1] for row in comparison_rows([seen])["industrial"]] == ["MVTec AD†", "MVTec AD†"]


def test_undefined_metrics():
    nan = math.nan
    pixel_only = result_of("isic", "isic", image_auroc=nan, image_ap=nan, image_f1=nan)
    assert {row[0] for row in comparison_rows([pixel_only])["medical"]} == {"Pixel-level (AUROC, PRO, F1)", ""}
    partly = [result_of("a", image_auroc=nan), result_of("b", image_auroc=0.9)]
    rows = comparison_rows(partly)["own"]
    assert [row[-1] for row in rows[:3]] == ["(-, 50.0, 50.0)", "(90.0, 50.0, 50.0)", "(90.0, 50.0, 50.0)"]
    assert rows[2][1:3] == ["AVERAGE", "1, 2, 2 of 2"]
    assert notes(partly) == ["a: image AUROC is undefined: no anomalous images (c0)."]
    some = {**partly[0], "mean": {**partly[0]["mean"], "image_auroc": 0.5}}
    assert notes([some]) == ["a: the mean image AUROC excludes some categories: no anomalous images (c0)."]
    assert "-" in category_table(partly[0]).splitlines()[2].split()
    (row,) = [row for row in csv.DictReader(io.StringIO(csv_report(partly[:1]))) if row["category"] == "MEAN"]
    assert row["image_auroc"] == ""


def test_reports():
    results = [result_of("mvtec", "mvtec"), result_of("my parts", categories=2, pixel_aupro=0.123456)]
    page = markdown_report(results, "mine")
    assert "Table 1 of the paper" in page
    assert "## Other datasets" in page
    assert "| Pixel-level (AUROC, PRO, F1) | my parts" in page
    assert "| c1 " in page
    assert page.count("| MEAN ") == 2
    text = latex_report(results, "mine_1")
    assert text.count(r"\begin{tabular}") == 2
    assert r"\toprule" in text
    assert r"mine\_1" in text
    rows = list(csv.DictReader(io.StringIO(csv_report(results))))
    assert len(rows) == 16 + 3
    assert (rows[-1]["dataset"], rows[-1]["category"], rows[-1]["pixel_aupro"]) == ("my parts", "MEAN", "0.123456")
    assert (rows[0]["num_images"], rows[0]["pixel_f1_threshold"], rows[0]["image_f1_threshold"]) == ("83", "", "0.25")
    terminal = comparison_tables(results, "mine", "simple", methods=("ViP²-CLIP",))
    assert len(terminal["industrial"].splitlines()[0].split("  ")) > 4
    assert "WinCLIP" not in terminal["industrial"]
    assert "MEAN" not in category_table(result_of("one"))


def test_every_report_contains_the_settings():
    """tables.md, tables.tex and results.csv did not say how AUPRO was computed."""
    changed = {
        "fpr_limit": 0.05,
        "aupro_convention": "release",
        "dtype": "bfloat16",
        "image_size": 224,
        "mask_threshold": 127,
    }
    results = [result_of("a"), result_of("b", settings=changed, split="val"), result_of("c")]
    one, two = settings_lines(results)
    assert one == (
        "Settings of a, c: split test, image size 518 x 518, float32, mask values above 0 are anomalous. AUPRO is "
        "integrated up to a false positive rate of 0.3, with every value as a threshold."
    )
    assert two == (
        "Settings of b: split val, image size 224 x 224, bfloat16, mask values above 127 are anomalous. AUPRO is "
        "integrated up to a false positive rate of 0.05, with the 200 thresholds of the authors' released code."
    )
    page, text = markdown_report(results, "mine"), latex_report(results, "mine")
    for line in (one, two):
        assert line in page
        assert line in text
    rows = list(csv.DictReader(io.StringIO(csv_report(results))))
    assert {
        **{name: str(value) for name, value in changed.items()},
        "split": "val",
    }.items() <= (rows[2].items())
    assert settings_lines([{**results[0], "settings": None}]) == ["Settings of a: their settings are not recorded."]


def test_datasets_of_a_report():
    known = {"zero_shot": "zero-shot: none of the evaluated images was found", "remarks": ["Masks are coarse."]}
    results = [
        {**result_of("mvtec", "mvtec"), **known},
        {**result_of("mine"), "licence": "mit"},
        result_of("x", None, ["trained on y"]),
    ]
    lines = dataset_lines(results)
    assert lines[0].startswith(
        "mvtec: zero-shot: none of the evaluated images was found. Licence: CC BY-NC-SA 4.0, no commercial use "
        "(official readme). Cite: Bergmann"
    )
    assert lines[0].endswith(" [2] Masks are coarse.")
    (line,) = dataset_lines([{**results[0], "remarks": []}])
    assert line.endswith(" The paper evaluates the official test split.")
    (note,) = notes(
        [{**results[1], "zero_shot": "not verified: the checkpoint does not record its training datasets"}]
    )
    assert note == "mine: zero-shot is not verified: the checkpoint does not record its training datasets."
    assert lines[1:] == ["mine: zero-shot: not known. Licence: mit.", "x: not zero-shot: trained on y."]
    for report in (markdown_report(results, "m"), latex_report(results, "m")):
        assert "Masks are coarse." in report
        assert "no commercial use" in report


@pytest.mark.parametrize("name", ["=cmd", "+1", "-1", "@x", "\tx", "a\nb", "x\udcffy", "100% & #1 {_}^~$"])
def test_names_of_any_kind(name):
    """Formulas ran in spreadsheets; line breaks and bytes that are not UTF-8 broke the files."""
    result = result_of(name)
    result["categories"] = {name: result["categories"]["c0"]}
    text = csv_report([result])
    text.encode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2
    assert rows[0]["category"][0] not in "=+-@\t\r\n"
    for report in (markdown_report([result], name), latex_report([result], name), category_table(result)):
        report.encode("utf-8")
    assert len(category_table(result).splitlines()) == 3
