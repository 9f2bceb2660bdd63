import csv
import io
import math

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
from vip2clip_hf.evaluation.tables import (
    category_table,
    comparison_rows,
    comparison_tables,
    csv_report,
    latex_report,
    markdown_report,
    notes,
)


def result_of(name, benchmark=None, trained_on=(), categories=1, **values):
    """A result with the given metrics; all others are 0.5."""
    metrics = {metric: values.get(metric, 0.5) for metric in METRICS}
    undefined = {metric: "no anomalous images (c0)" for metric, value in metrics.items() if math.isnan(value)}
    counts = {"num_images": 3, "num_anomalous_images": 1, "num_maps": 3, "num_pixels": 12, "num_regions": 1}
    found = {**metrics, **counts, "image_f1_threshold": 0.25, "pixel_f1_threshold": math.nan, "undefined": undefined}
    return {
        "name": name,
        "benchmark": benchmark,
        "trained_on": list(trained_on),
        "mean": {**metrics, "undefined": undefined},
        "categories": {f"c{number}": found for number in range(categories)},
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
    results = [result_of("visa", "visa", categories=12), result_of("mvtec", "mvtec", categories=2, image_auroc=0.9)]
    tables = comparison_rows(results)
    assert list(tables) == ["industrial"]
    rows = tables["industrial"]
    assert [row[0] for row in rows] == [
        "Image-level (AUROC, AP, F1)", "", "", "Pixel-level (AUROC, PRO, F1)", "", "",
    ]  # fmt: skip
    assert [row[1] for row in rows] == ["MVTec AD", "VisA", "AVERAGE"] * 2  # the order of the paper
    assert [row[2] for row in rows[:3]] == ["2 of 15", "12", "-"]
    assert rows[0][3:] == [
        "(66.5, 82.6, 86.7)", "(91.8, 96.5, 92.7)*", "(86.1, 93.5, 90.4)", "(91.6, 96.4, 92.7)", "(90.1, 95.6, 92.3)",
        "(91.2, 96.0, 92.0)", "(90.0, 50.0, 50.0)",
    ]  # fmt: skip
    # The mean over both datasets, not over all seven.
    assert rows[2][-2:] == ["(89.8, 93.2, 88.4)", "(70.0, 50.0, 50.0)"]


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
    assert notes(partly) == ["a: image AUROC is undefined: no anomalous images (c0)."]
    some = {**partly[0], "mean": {**partly[0]["mean"], "image_auroc": 0.5}}
    assert notes([some]) == ["a: the mean image AUROC excludes some categories: no anomalous images (c0)."]
    assert "-" in category_table(partly[0]).splitlines()[2].split()
    (row,) = [row for row in csv.DictReader(io.StringIO(csv_report(partly[:1]))) if row["category"] == "MEAN"]
    assert row["image_auroc"] == ""


def test_reports():
    results = [result_of("mvtec", "mvtec", categories=15), result_of("my parts", categories=2, pixel_aupro=0.123456)]
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
    assert (rows[0]["num_images"], rows[0]["pixel_f1_threshold"], rows[0]["image_f1_threshold"]) == ("3", "", "0.25")
    terminal = comparison_tables(results, "mine", "simple", methods=("ViP²-CLIP",))
    assert len(terminal["industrial"].splitlines()[0].split("  ")) > 4
    assert "WinCLIP" not in terminal["industrial"]
    assert "MEAN" not in category_table(result_of("one"))
