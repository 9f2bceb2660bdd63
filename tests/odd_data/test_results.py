"""Odd results: undefined metrics, results that cannot be compared, names, and training images in disguise."""

import csv
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from helpers.odd_data import Case, parametrize, run
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set, find_training_overlap
from vip2clip_hf.evaluation.comparison import comparison_notes, differences
from vip2clip_hf.evaluation.metrics import METRICS, AnomalyMetrics
from vip2clip_hf.evaluation.reports import csv_report, latex_report, markdown_report
from vip2clip_hf.evaluation.tables import comparison_rows


IMAGE = METRICS[:3]
MVTEC = BENCHMARKS["mvtec"].categories
MAPS = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4)
MASKS = np.stack([np.zeros((4, 4), int), np.eye(4, dtype=int)])


def computed(scores, labels, maps=None, masks=None, **options):
    metrics = AnomalyMetrics()
    metrics.update(scores, labels, maps, masks, **options)
    return metrics.compute()["categories"]


# Scores and labels


def undefined(reason, *names):
    def check(categories):
        (found,) = categories.values()
        for name in names:
            assert math.isnan(found[name])
            assert found["undefined"][name] == reason

    return check


def reproduces(scores):
    """The threshold of the best F1, applied with "greater than", gives this F1."""

    def act(folder):
        labels = np.arange(len(scores)) % 3 == 0
        values = np.asarray(scores)
        # Decisions are made in float32 for a model in half precision.
        return computed(scores, labels)["all"], values.astype(np.promote_types(values.dtype, np.float32)), labels

    def check(found):
        result, values, labels = found
        for above in (
            values > result["image_f1_threshold"],
            [value > result["image_f1_threshold"] for value in values],
        ):
            above = np.asarray(above)
            assert 2 * (above & labels).sum() / (above.sum() + labels.sum()) == pytest.approx(
                result["image_f1"], abs=1e-12
            )

    return act, check


REFUSED = {
    "nan score": (([0.1, math.nan], [0, 1]), "scores contains NaN or infinite values at positions .1."),
    "infinite score": (([math.inf, 0.2], [0, 1]), "scores contains NaN or infinite values at positions .0."),
    "text scores": ((["a", "b"], [0, 1]), "scores has dtype <U1; expected a tensor or an array of numbers"),
    "scores with none": (([0.1, None], [0, 1]), "scores has dtype object"),
    "ragged scores": (([[0.1], [0.1, 0.2]], [0, 1]), "scores has rows of different lengths"),
    "column of scores": ((np.zeros((2, 1)), [0, 1]), r"scores have shape \(2, 1\)"),
    "fewer labels": (([0.1, 0.2], [0]), r"labels \(1,\); expected \(batch_size,\)"),
    "label 2": (([0.1, 0.2], [0, 2]), r"labels contains the values \[2\]"),
    "label -1": (([0.1, 0.2], [-1, 1]), r"labels contains the values \[-1\]"),
    "label nan": (([0.1, 0.2], [0, math.nan]), r"labels contains the values \[nan\]"),
    "text labels": (([0.1, 0.2], ["good", "bad"]), "labels has dtype <U4"),
    "nan in a map": (([0, 1], [0, 1], np.full((2, 4, 4), math.nan), MASKS), "position 0 contains NaN"),
    "map of a float64 beyond float32": (
        ([0, 1], [0, 1], np.full((2, 4, 4), 1e300), MASKS),
        "position 0 contains NaN or inf",
    ),
    "mask of 255": (([0, 1], [0, 1], MAPS, 255 * MASKS), r"position 1 contains the values \[255\]"),
    "mask of -1": (([0, 1], [0, 1], MAPS, -MASKS), r"position 1 contains the values \[-1\]"),
    "mask of another size": (([0, 1], [0, 1], MAPS, MASKS[:, :3]), r"its mask has shape \(3, 4\)"),
    "mask of a normal image": (([0, 1], [1, 0], MAPS, MASKS), "labelled normal, but its mask marks 4 pixels"),
    "masks without maps": (([0, 1], [0, 1], None, MASKS), "masks and has_mask need anomaly_maps"),
}
OPTIONS = {
    "limit 0": {"fpr_limit": 0}, "limit above 1": {"fpr_limit": 1.01}, "limit nan": {"fpr_limit": math.nan},
    "limit as text": {"fpr_limit": "0.3"}, "limit as a bool": {"fpr_limit": True}, "limit none": {"fpr_limit": None},
    "misspelt convention": {"aupro_convention": "relese"}, "convention in a list": {"aupro_convention": ["exact"]},
}  # fmt: skip
SCORES = {
    "ties": [0.5] * 9,
    "float64 neighbours": 0.5 + 1e-16 * np.arange(9),
    "scores in the twelfth decimal": 0.6 + 1e-12 * np.arange(9),
    "float32 neighbours": np.float32(0.5) + np.arange(9, dtype=np.float32) * np.float32(6e-8),
    "zeros and ones": np.arange(9) % 2 * 1.0,
    "ascending": np.arange(9) / 8,
    "descending": np.arange(9)[::-1] / 8,
    "negative": -np.arange(9) / 8,
    "large": 1e300 * np.arange(1, 10),
    "tiny": 1e-300 * np.arange(9),
    "whole numbers": list(range(9)),
    "half precision": (np.arange(9) / 8).astype(np.float16),
}
METRIC_CASES = [
    *(
        Case(f"metrics: {name}", lambda folder, a=arguments: computed(*a), message)
        for name, (arguments, message) in REFUSED.items()
    ),
    *(
        Case(f"metrics: {name}", lambda folder, o=options: AnomalyMetrics(**o), rf"{next(iter(options))} is .*; exp")
        for name, options in OPTIONS.items()
    ),
    *(Case(f"threshold of {name}", *reproduces(scores)) for name, scores in SCORES.items()),
    *(
        Case(f"only {name} images, {count} of them", lambda folder, v=value, c=count: computed([0.4] * c, [v] * c),
             undefined(f"no {other} images", *IMAGE))
        for name, value, other in (("anomalous", 1, "normal"), ("normal", 0, "anomalous"))
        for count in (1, 3)
    ),
    Case("only marked pixels", lambda folder: computed([0, 1], [1, 1], MAPS, np.ones((2, 4, 4), int)),
         undefined("no normal pixels", *METRICS[3:], "pixel_aupro_exact", "pixel_aupro_release")),
    Case("empty masks", lambda folder: computed([0, 1], [1, 1], MAPS, 0 * MASKS),
         undefined("no anomalous pixels", *METRICS[3:])),
    Case("no masks", lambda folder: computed([0, 1], [0, 1]), undefined("no image has a mask", *METRICS[3:])),
    Case("torch float64", lambda folder: computed(torch.from_numpy(0.5 + 1e-12 * np.arange(2)), [0, 1])["all"],
         lambda found: found["image_auroc"] == 1 or pytest.fail("rounded to float32")),
    Case("torch bfloat16", lambda folder: computed(torch.tensor([0.5, 0.75]).bfloat16(), torch.tensor([0, 1]))["all"],
         lambda found: found["image_auroc"] == 1 or pytest.fail("not read")),
    Case("no images", lambda folder: AnomalyMetrics().compute(), "no images have been added"),
]  # fmt: skip


# Results beside published ones


def result_of(name="mvtec", benchmark="mvtec", split="test", scale=1.0, categories=None, limit=0.3, **mean):
    metrics = {metric: mean.get(metric, 0.5) for metric in (*METRICS, "pixel_aupro_exact", "pixel_aupro_release")}
    entry = BENCHMARKS.get(benchmark or "")
    counts = {"c": (2, 1)} if entry is None else {one: entry.expected(one) for one in entry.categories}
    found = {}
    for category in categories or counts:
        normal, anomalous = (round(scale * count) for count in counts.get(category, (2, 1)))
        numbers = {"num_images": normal + anomalous, "num_anomalous_images": anomalous, "num_maps": normal + anomalous}
        found[category] = {**metrics, **numbers, "undefined": {}}
    settings = {
        "fpr_limit": limit,
        "aupro_convention": "exact",
        "dtype": "float32",
        "image_size": 8,
        "mask_threshold": 0,
    }
    return {
        "name": name, "benchmark": benchmark, "split": split, "trained_on": [], "settings": settings,
        "mean": {**metrics, "undefined": {}}, "categories": found,
    }  # fmt: skip


def blank(reason):
    """No published number beside the result, no AVERAGE, and the reason in the report."""

    def check(result):
        rows = [row for found in comparison_rows([result]).values() for row in found]
        assert all(set(row[3:-1]) == {"-"} for row in rows)
        assert "AVERAGE" not in [row[1] for row in rows]
        assert reason in differences(result, "image")[0]
        for report in (markdown_report([result], "m"), latex_report([result], "m")):
            assert "not compared with published results" in report

    return check


def aupro_is_blank(result):
    rows = comparison_rows([result])["industrial"]
    assert rows[-2][-2] == "(90.5, -, 43.1)"
    assert "PRO is not compared" in "".join(comparison_notes(result))


def stays_in_one_row(result):
    for text in (csv_report([result]), markdown_report([result], result["name"]), latex_report([result], "m")):
        text.encode("utf-8")
    rows = list(csv.reader(io.StringIO(csv_report([result]))))
    assert len(rows) == 3
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n")]


NAMES = ("=1+1", "+cmd", "-cmd", "@sum", "\t=1", "\r\n=1", "＝1", "a\nb", "a|b", "\udcff", "", " ", "x" * 300, "ünï")
TABLE_CASES = [
    *(Case(f"split {split!r}", lambda folder, s=split: result_of(split=s), blank("the split is")) for split in
      ("train", "val", "TEST", "", None)),
    *(Case(f"{share:g} of the images", lambda folder, s=share: result_of(scale=s), blank("published: 467"))
      for share in (0.1, 0.5, 2)),
    *(Case(f"{count} of 15 categories", lambda folder, c=count: result_of(categories=MVTEC[:c]),
           blank(f"{count} of 15 categories")) for count in (1, 2, 14)),
    *(Case(f"limit {limit:g} of AUPRO", lambda folder, v=limit: result_of(limit=v), aupro_is_blank)
      for limit in (0.05, 0.29, 1)),
    Case("settings not recorded", lambda folder: {**result_of(), "settings": None}, aupro_is_blank),
    *(Case(f"dataset called {name[:9]!r}", lambda folder, n=name: result_of(n, None, categories=[n]), stays_in_one_row)
      for name in NAMES),
]  # fmt: skip


# Training images in disguise


def photos(count, seed=0, size=(60, 48)):
    rng = np.random.default_rng(seed)
    noise = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]
    parts = [sum(np.asarray(one.filter(ImageFilter.BoxBlur(r)), dtype=float) for r in (1, 4, 12)) for one in noise]
    return [Image.fromarray(np.clip(3 * (part / 3 - 127) + 127, 0, 255).astype(np.uint8)) for part in parts]


def write(folder, pictures, suffix="png", **options):
    for number, picture in enumerate(pictures):
        target = folder / ("anomalous" if number % 2 else "normal") / f"{number}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, **options)
    return load_folder(folder)


def overlap(change, suffix="png", count=4, **options):
    def act(folder):
        entry = describe_training_set(write(folder / "train", photos(40)), "t")
        return find_training_overlap(
            [entry], write(folder / "test", change(photos(40)[7 : 7 + count]), suffix, **options)
        )

    return act


def same(pictures):
    return pictures


def found_all(reasons):
    assert reasons == ["trained on t (4 of 4 evaluated images)"]


def found_none(reasons):
    assert reasons == []


DISGUISES = {
    "bmp": ("bmp", {}), "tiff": ("tiff", {}), "webp without loss": ("webp", {"lossless": True}), "ppm": ("ppm", {}),
    "jpeg 95": ("jpg", {"quality": 95}), "jpeg 75": ("jpg", {"quality": 75}), "gif": ("gif", {}),
    "webp 90": ("webp", {"quality": 90}),
}  # fmt: skip
CHANGES = {
    "in grey": lambda pictures: [one.convert("L") for one in pictures],
    "brighter": lambda pictures: [Image.eval(one, lambda value: min(255, value + 9)) for one in pictures],
    "with alpha": lambda pictures: [one.convert("RGBA") for one in pictures],
}
OVERLAP_CASES = [
    *(Case(f"training images as {name}", overlap(same, suffix, **options), found_all)
      for name, (suffix, options) in DISGUISES.items() if suffix not in ("ppm", "gif")),
    *(Case(f"training images {name}", overlap(change), found_all) for name, change in CHANGES.items()),
    Case("other photos", overlap(lambda pictures: photos(4, seed=5)), found_none),
    Case("half other photos", overlap(lambda pictures: [*pictures[:2], *photos(2, seed=5)]),
         lambda reasons: reasons == ["trained on t (2 of 4 evaluated images)"] or pytest.fail(str(reasons))),
    Case("mirrored", overlap(lambda pictures: [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in pictures]),
         found_none),
    Case("uniform pictures", overlap(lambda pictures: [Image.new("RGB", (60, 48), (v, v, v)) for v in range(4)]),
         found_none, says="4 of 4 images are uniform and are not compared"),
]  # fmt: skip
CASES = [*METRIC_CASES, *TABLE_CASES, *OVERLAP_CASES]


@parametrize(CASES)
def test_results(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


def test_number_of_cases():
    assert len(CASES) >= 80
