"""Evaluation with references: draws, results, resuming, tables and the command."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.evaluations import assert_same_results, model_with_wide_maps
from helpers.processes import TORCHRUN, run_program
from helpers.tiny import EXAMPLES
from vip2clip_hf import AnomalyDetectionPipeline, AnomalyMetrics, ReferenceBank
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.cli import app
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.evaluation import runner as runner_module, subjects as subjects_module
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.evaluation.published_references import (
    PUBLISHED_REFERENCES,
    REFERENCE_METHODS,
    SOURCES,
    published_with_references,
)
from vip2clip_hf.evaluation.reference_rates import FALSE_ALARM_RATE, RATES, banks_of
from vip2clip_hf.evaluation.reference_sets import ReferenceChoice, evaluated_sets
from vip2clip_hf.evaluation.reference_tables import reference_rows, reference_table
from vip2clip_hf.evaluation.reports import markdown_report
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.evaluation.tables import comparison_rows
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold


CATEGORIES = ("stripes", "weave")


@pytest.fixture
def model(clip):
    return model_with_wide_maps(clip)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "parts"
    return write_dataset(folder, CATEGORIES, num_normal=3, num_anomalous=1, size=48, num_train=6)


@pytest.fixture
def root(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "data" / "parts"))


@pytest.fixture
def source(root):
    return DataSource.parse(str(root))


def bank_of(model, image_processor, paths) -> ReferenceBank:
    return ReferenceBank.from_images(model, image_processor, list(map(str, paths)))


def category_banks(model, image_processor, root, count=2):
    return {
        category: bank_of(model, image_processor, sorted((root / category / "train" / "good").iterdir())[:count])
        for category in CATEGORIES
    }


def names_of(one):
    return {category: [photo["name"] for photo in photos] for category, photos in one.photos.items()}


# evaluate_model


def test_same_metrics_as_the_pipeline(model, image_processor, root):
    banks = category_banks(model, image_processor, root)
    dataset = load_folder(root)
    result = evaluate_model(model, image_processor, dataset, batch_size=4, references=banks)
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor)
    metrics = AnomalyMetrics()
    for row in dataset:
        found = detector(row["image"], references=banks[row["category"]])
        mask = np.zeros((48, 48), bool) if row["mask"] is None else np.asarray(row["mask"].convert("L")) > 0
        metrics.update(
            np.array([found["score"]]), np.array([row["label"]]), np.asarray(found["anomaly_map"])[None], mask[None],
            categories=[row["category"]], has_mask=np.array([True]),
        )  # fmt: skip
    assert_same_results(result, metrics.compute(), 1e-5)
    zero_shot = evaluate_model(model, image_processor, dataset, references=None)
    assert result["mean"]["pixel_auroc"] != zero_shot["mean"]["pixel_auroc"]
    assert result["references"] == 2
    assert "references" not in zero_shot


def test_batches_have_one_category_and_positions_stay(model, image_processor, root, tmp_path, monkeypatch):
    banks = category_banks(model, image_processor, root)
    dataset = load_folder(root).shuffle(seed=1)
    used, forward = [], model.forward

    def recorded(*args, **kwargs):
        used.append((len(kwargs["pixel_values"]), kwargs["references"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", recorded)
    recorder = runner_module.EvaluationRecorder(len(dataset), tmp_path / "state")
    evaluate_model(model, image_processor, dataset, batch_size=5, references=banks, recorder=recorder)
    assert sorted(count for count, _ in used) == [2, 2, 5, 5]  # 7 images in each of two categories
    assert {id(bank) for _, bank in used} == {id(bank) for bank in banks.values()}
    scores = recorder.scores()
    with torch.no_grad():
        for position, row in enumerate(dataset):
            inputs = image_processor(row["image"], return_tensors="pt")
            expected = forward(**inputs, references=banks[row["category"]]).scores.item()
            assert scores[position] == pytest.approx(expected, abs=1e-5)
    used.clear()
    evaluate_model(model, image_processor, dataset, batch_size=5, references=banks["weave"])
    assert [count for count, _ in used] == [5, 5, 4]  # one bank for all


def test_auto_uses_the_references_of_the_model(model, image_processor, root):
    bank = bank_of(model, image_processor, sorted(root.glob("*/train/good/*"))[:4])
    dataset = load_folder(root)
    zero_shot = evaluate_model(model, image_processor, dataset)
    model.references = bank
    auto = evaluate_model(model, image_processor, dataset)
    assert_same_results(auto, evaluate_model(model, image_processor, dataset, references=bank))
    assert_same_results(zero_shot, evaluate_model(model, image_processor, dataset, references=None))


def test_banks_of_remote_code():
    """Remote code is a copy of the classes."""

    class Copy:
        check_model = None

    bank = Copy()
    assert banks_of(bank, None, ["a", "b", "a"]) == {"a": bank, "b": bank}
    assert banks_of({"a": bank, "b": bank}, None, ["a"]) == {"a": bank}


def test_invalid_references(model, image_processor, root):
    dataset = load_folder(root)
    banks = category_banks(model, image_processor, root)
    with pytest.raises(ValueError, match="references has no bank of the category 'stripes'"):
        evaluate_model(model, image_processor, dataset, references={"weave": banks["weave"]})
    with pytest.raises(ValueError, match="references is 'all'; expected"):
        evaluate_model(model, image_processor, dataset, references="all")
    with pytest.raises(ValueError, match="references is a list; expected"):
        evaluate_model(model, image_processor, dataset, references=[])
    other = torch.nn.Module()
    other.device, other.forward = torch.device("cpu"), lambda pixel_values: None
    with pytest.raises(TypeError, match="references"):  # not ignored
        evaluate_model(other, image_processor, dataset, references=banks)


def test_a_test_image_among_the_references_is_excluded(model, image_processor, root, tmp_path, caplog):
    copied = tmp_path / "copied.bmp"  # the same pixels in another file
    Image.open(root / "weave" / "test" / "good" / "001.png").save(copied)
    model.references = bank_of(model, image_processor, [copied, *sorted(root.glob("*/train/good/*"))[:3]])
    source = DataSource.parse(str(root))
    (result,) = evaluate_sets(model, image_processor, [source], tmp_path / "out", sheets=2, save_maps=True)
    assert result["excluded"] == {"weave/test/good/001.png": "copied.bmp"}
    assert "1 of 14 images are references themselves and are not evaluated" in caplog.text
    assert result["categories"]["weave"]["num_images"] == 6
    assert result["name"] == "parts-references"
    rows = list(csv.DictReader((tmp_path / "out" / "parts-references" / "scores.csv").read_text().splitlines()))
    assert len(rows) == 13
    assert "weave/test/good/001.png" not in {row["image_id"] for row in rows}
    others = load_folder(root).filter(lambda name: name != "weave/test/good/001.png", input_columns="image_id")
    assert_same_results(result, evaluate_model(model, image_processor, others), 1e-6)
    with pytest.raises(ValueError, match="All 1 images are references themselves"):
        evaluate_model(model, image_processor, load_folder(root).select([list(load_folder(root)["image_id"]).index(
            "weave/test/good/001.png")]))  # fmt: skip


# Rates


def test_rates_at_the_threshold_of_the_left_out_references(model, image_processor, tmp_path):
    root = write_dataset(tmp_path / "set", ("weave",), num_normal=4, num_anomalous=2, size=48, num_train=20)
    bank = bank_of(model, image_processor, sorted(root.glob("*/train/good/*")))
    dataset = load_folder(root)
    recorder = runner_module.EvaluationRecorder(len(dataset))
    result = evaluate_model(model, image_processor, dataset, references=bank, recorder=recorder)
    threshold = conformal_threshold(bank.left_out_scores(), FALSE_ALARM_RATE)
    scores, labels = recorder.scores(), np.array(dataset["label"])
    found = result["categories"]["weave"]
    assert found["reference_threshold"] == pytest.approx(threshold)
    for part in (found, result["mean"]):
        assert part["detection_rate"] == (scores[labels == 1] > threshold).mean()
        assert part["false_alarm_rate"] == (scores[labels == 0] > threshold).mean()
    few = evaluate_model(model, image_processor, dataset, references=bank.without([bank.photos[0].name, "001.png"]))
    assert all(math.isnan(few["categories"]["weave"][name]) for name in RATES)
    assert "rate of 0.05 needs at least 19 references, found 18" in few["mean"]["undefined"]["detection_rate"]
    normal = dataset.filter(lambda label: label == 0, input_columns="label")
    one = evaluate_model(model, image_processor, normal, references=bank)["categories"]["weave"]
    assert math.isnan(one["detection_rate"])
    assert one["undefined"]["detection_rate"] == "no anomalous images"
    assert not math.isnan(one["false_alarm_rate"])


# Draws


def test_draws_are_nested_and_from_the_train_split(model, image_processor, source):
    choice = ReferenceChoice((1, 4, 2), (0, 1))
    found = evaluated_sets([source], choice, model, image_processor)
    assert [one.name for one in found] == [
        "parts", *(f"parts-{count}-references-seed-{seed}" for seed in (0, 1) for count in (1, 2, 4))
    ]  # fmt: skip
    names = {(one.count, one.seed): names_of(one) for one in found}
    for category in CATEGORIES:
        for seed in (0, 1):
            one, two, four = (names[count, seed][category] for count in (1, 2, 4))
            assert four[:1] == one
            assert four[:2] == two
            assert len(set(four)) == 4
            assert all(name.startswith(f"{category}/train/good/") for name in four)
        assert names[4, 0][category] != names[4, 1][category]
    # Categories are drawn differently, and other categories do not change a draw.
    assert [Path(name).name for name in names[4, 0]["stripes"]] != [Path(name).name for name in names[4, 0]["weave"]]
    alone = DataSource.parse(source.root, categories=["weave"])
    again = evaluated_sets([alone], choice, model, image_processor)
    assert names_of(again[-1]) == {"weave": names[4, 1]["weave"]}
    keys = [json.dumps(one.settings()) for one in found]
    assert len(set(keys)) == len(keys)
    assert found[0].settings() == {}  # results of earlier versions stay valid


def test_test_images_are_never_drawn(model, image_processor, root, source, caplog):
    train, test = root / "weave" / "train" / "good", root / "weave" / "test" / "good"
    shutil.copy(test / "000.png", train / "000.png")
    photo = Image.open(EXAMPLES / "hazelnut_damaged_1.jpg")
    photo.save(test / "002.png")
    photo.save(train / "001.jpg", quality=85)  # the same picture in another format
    (train / "001.png").unlink()
    shutil.copy(train / "002.png", train / "003.png")  # drawn once
    for seed in range(4):
        found = evaluated_sets([source], ReferenceChoice((3,), (seed,)), model, image_processor)
        names = {Path(name).name for name in names_of(found[1])["weave"]}
        assert len(names) == 3
        assert names < {"002.png", "003.png", "004.png", "005.png"}
        assert not names >= {"002.png", "003.png"}
    with pytest.raises(ValueError, match="has 3 normal images of the category 'weave' that"):
        evaluated_sets([source], ReferenceChoice((4,)), model, image_processor)
    assert (
        "photos of the split 'train' are evaluated images and are not used as references: weave/train" in caplog.text
    )


def test_no_photos_to_draw_from(model, image_processor, source, root, tmp_path):
    with pytest.raises(ValueError, match=r"has 6 normal images of the category 'stripes' .* expected at least 7"):
        evaluated_sets([source], ReferenceChoice((7,)), model, image_processor)
    train = DataSource.parse(str(root), "train")  # the photos to draw are those to evaluate
    with pytest.raises(ValueError, match="has 0 normal images of the category 'stripes' that are not evaluated"):
        evaluated_sets([train], ReferenceChoice((1,)), model, image_processor)
    for category in CATEGORIES:
        shutil.rmtree(root / category / "train")
    with pytest.raises(ValueError, match=r"parts has no split 'train' to draw references from: .*--references"):
        evaluate_sets(model, image_processor, [source], tmp_path / "out", references=ReferenceChoice((1,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [{"counts": (0,)}, {"counts": (1, 1)}, {"counts": (1,), "seeds": (-1,)}])
def test_invalid_choices(arguments):
    with pytest.raises(ValueError, match="expected different integers of at least"):
        ReferenceChoice(**arguments)
    with pytest.raises(OSError, match="The folder of references 'absent' is not found"):
        ReferenceChoice(folder="absent")
    with pytest.raises(ValueError, match="seeds is empty"):
        ReferenceChoice((1,), ())


def test_folder_of_references(model, image_processor, source, root, tmp_path):
    folder = tmp_path / "good"
    for category in CATEGORIES:
        shutil.copytree(root / category / "train" / "good", folder / category)
    for one in evaluated_sets([source], ReferenceChoice((2,), folder=str(folder)), model, image_processor)[1:]:
        assert all(name.startswith(f"{category}/") for category in CATEGORIES for name in names_of(one)[category])
    (_, whole) = evaluated_sets([source], ReferenceChoice(folder=str(folder)), model, image_processor)
    assert {category: len(names) for category, names in names_of(whole).items()} == dict.fromkeys(CATEGORIES, 6)
    (_, flat) = evaluated_sets([source], ReferenceChoice(folder=str(folder / "weave")), model, image_processor)
    assert names_of(flat)["stripes"] == names_of(flat)["weave"]
    shutil.rmtree(folder / "stripes")
    with pytest.raises(ValueError, match="has no subfolder 'stripes'; expected one for each category of parts"):
        evaluated_sets([source], ReferenceChoice((2,), folder=str(folder)), model, image_processor)


# evaluate_sets


@pytest.mark.slow
def test_results_of_each_draw_and_resuming(model, image_processor, source, root, tmp_path, monkeypatch):
    output, choice = tmp_path / "out", ReferenceChoice((1, 2), (3,))
    zero_shot, *few = evaluate_sets(model, image_processor, [source], output, sheets=1, references=choice)
    assert [(one["references"], one["reference_seed"]) for one in few] == [(1, 3), (2, 3)]
    assert_same_results(zero_shot, evaluate_model(model, image_processor, source.load()))
    for one in few:
        banks = {
            category: bank_of(model, image_processor, [root / name for name in names])
            for category, names in one["reference_photos"].items()
        }
        expected = evaluate_model(model, image_processor, source.load(), references=banks)
        assert_same_results(one, expected, 1e-6)
        assert (one["name"], one["dataset"]) == (
            f"parts-{one['references']}-references-seed-{one['reference_seed']}", "parts"
        )  # fmt: skip
        assert (output / one["name"] / "scores.csv").is_file()
        assert (output / one["name"] / "sheets" / "weave.png").read_bytes() != (
            output / "parts" / "sheets" / "weave.png"
        ).read_bytes()
    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert {(row["dataset"], row["references"], row["reference_seed"]) for row in rows} == {
        ("parts", "", ""), *(("parts", str(count), "3") for count in (1, 2))
    }  # fmt: skip
    stored = json.loads((output / "results.json").read_text())["results"]
    assert stored[1]["reference_photos"] == few[0]["reference_photos"]
    assert stored[1]["categories"]["weave"]["detection_rate"] is None
    keys = [json.dumps(one["run"]["key"]["settings"]) for one in stored]
    assert len(set(keys)) == 3

    monkeypatch.setattr(subjects_module, "evaluate_model", None)
    monkeypatch.setattr(ReferenceBank, "from_images", None)  # nor are features computed again
    again = evaluate_sets(model, image_processor, [source], output, sheets=1, references=choice)
    for one, two in zip([zero_shot, *few], again, strict=True):
        assert_same_results(one, two)
    assert math.isnan(again[1]["mean"]["detection_rate"])
    # A changed reference is another setting.
    drawn = root / few[0]["reference_photos"]["weave"][0]
    generate_image("weave", None, 48, seed=99)[0].save(drawn)
    with pytest.raises(OSError, match=r"parts-1-references-seed-3: references.photos \(was "):
        evaluate_sets(model, image_processor, [source], output, sheets=1, references=choice)


@pytest.mark.slow
def test_resume_within_a_draw(model, image_processor, source, tmp_path, monkeypatch):
    choice = ReferenceChoice((2,))
    whole = evaluate_sets(model, image_processor, [source], tmp_path / "whole", batch_size=2, sheets=0,
                          references=choice)  # fmt: skip
    forward, calls = model.forward, []

    def interrupted(*args, **kwargs):
        if kwargs.get("pixel_values") is not None and kwargs.get("references") is not None:
            calls.append(len(kwargs["pixel_values"]))
            if len(calls) == 6:
                raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", interrupted)
    options = {"batch_size": 2, "sheets": 0, "references": choice}
    with pytest.raises(KeyboardInterrupt):
        evaluate_sets(model, image_processor, [source], tmp_path / "out", **options)
    before = sum(calls[:-1])
    assert 7 < before < 14  # in the second category
    again = evaluate_sets(model, image_processor, [source], tmp_path / "out", **options)
    assert sum(calls[6:]) == 14 - before
    for one, two in zip(whole, again, strict=True):
        assert_same_results(one, two, 1e-6)
    name = "parts-2-references-seed-0/scores.csv"
    assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_references_of_the_model_can_be_switched_off(model, image_processor, source, root, tmp_path):
    model.references = bank_of(model, image_processor, sorted(root.glob("*/train/good/*"))[:4])
    output = tmp_path / "out"
    (own,) = evaluate_sets(model, image_processor, [source], output, sheets=0)
    assert (own["references"], own["reference_seed"], len(own["reference_photos"])) == (4, None, 4)
    (off,) = evaluate_sets(model, image_processor, [source], output, sheets=0, references=None)
    assert off["name"] == "parts"
    assert "references" not in off
    drawn = evaluate_sets(model, image_processor, [source], output, sheets=0, references=ReferenceChoice((1,)))
    assert_same_results(off, drawn[0])  # without those of the model
    with pytest.raises(ValueError, match="references is 'all'; expected a ReferenceChoice"):
        evaluate_sets(model, image_processor, [source], output, references="all")


@pytest.mark.slow
def test_two_processes(model, image_processor, source, root, tmp_path):
    """Both processes draw the same references, and share the images."""
    model.save_pretrained(tmp_path / "model")
    image_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "run.py").write_text(
        f"""
import torch
from vip2clip_hf import DataSource, ReferenceChoice, evaluate_checkpoint

torch.set_num_threads(1)
source = DataSource.parse({str(root)!r})
evaluate_checkpoint({str(tmp_path / "model")!r}, [source], {str(tmp_path / "two")!r}, device="cpu", sheets=0,
    batch_size=1, references=ReferenceChoice((2,)))
"""
    )
    run_program(*TORCHRUN, tmp_path / "run.py")
    options = {"sheets": 0, "batch_size": 1, "references": ReferenceChoice((2,))}
    whole = evaluate_sets(model, image_processor, [source], tmp_path / "one", **options)
    for one, two in zip(whole, json.loads((tmp_path / "two" / "results.json").read_text())["results"], strict=True):
        assert one.get("reference_photos") == two.get("reference_photos")
        assert sum(found["num_images"] for found in two["categories"].values()) == 14
        assert two["mean"]["image_auroc"] == pytest.approx(one["mean"]["image_auroc"], abs=1e-6)
        assert two["mean"]["pixel_auroc"] == pytest.approx(one["mean"]["pixel_auroc"], abs=1e-6)


# Tables


def a_result(benchmark=None, count=None, seed=None, auroc=0.9):
    metrics = ("image_auroc", "image_ap", "image_f1", "pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1")
    mean = {**dict.fromkeys(metrics, auroc), "pixel_aupro_release": auroc, "undefined": {}}
    found = {
        "name": benchmark or "nuts", "dataset": benchmark or "nuts", "benchmark": benchmark, "trained_on": [],
        "settings": {}, "split": "test", "categories": {}, "mean": mean, "zero_shot": "zero-shot: known",
    }  # fmt: skip
    return {**found, "references": count, "reference_seed": seed} if count else found


def test_published_results_have_sources():
    assert set(PUBLISHED_REFERENCES) == set(REFERENCE_METHODS) == set(SOURCES)
    assert "2303.14814" in SOURCES["WinCLIP+"]
    assert "2305.17382" in SOURCES["APRIL-GAN"]
    for method in REFERENCE_METHODS:
        for level in ("image", "pixel"):
            for benchmark in ("mvtec", "visa"):
                rows = [published_with_references(benchmark, level, count, method) for count in (1, 2, 4)]
                assert all(len(row) == 3 and all(0 < mean < 100 and 0 <= std < 5 for mean, std in row) for row in rows)
                assert rows[0][0][0] < rows[2][0][0]  # AUROC
    assert published_with_references("mvtec", "image", 1, "WinCLIP+")[0] == (93.1, 2.0)
    assert published_with_references("visa", "pixel", 4, "APRIL-GAN")[1] == (90.2, 0.1)
    assert published_with_references("mvtec", "image", 8, "WinCLIP+") is None
    assert published_with_references(None, "image", 1, "WinCLIP+") is None
    with pytest.raises(ValueError, match="method is 'PatchCore'; expected 'WinCLIP\\+' or 'APRIL-GAN'"):
        published_with_references("mvtec", "image", 1, "PatchCore")


def test_rows_with_mean_and_deviation():
    results = [
        a_result(), a_result(count=4, seed=0, auroc=0.90), a_result(count=4, seed=1, auroc=0.94),
        a_result(count=1, seed=0, auroc=0.8),
    ]  # fmt: skip
    rows = [row for row in reference_rows(results) if row[0].startswith("Image") or not row[0]][:3]
    assert [row[1:4] for row in rows] == [["nuts", "0", "-"], ["nuts", "1", "1"], ["nuts", "4", "2"]]
    assert [row[-1] for row in rows] == [
        "(90.0, 90.0, 90.0)", "(80.0, 80.0, 80.0)", "(92.0 ± 2.8, 92.0 ± 2.8, 92.0 ± 2.8)"
    ]  # fmt: skip
    table = reference_table(results, "mine")
    assert "WinCLIP+" not in table  # no published results of other data
    assert reference_table(results[:1], "mine") is None
    # The tables of the paper contain zero-shot results only.
    assert comparison_rows(results) == comparison_rows(results[:1])
    page = markdown_report(results, "mine")
    assert "## With references" in page
    assert "arXiv:2303.14814" in page
    assert page.count("- nuts: zero-shot: known.") == 1
    assert "- nuts: with 4 references per category. Without them: zero-shot: known." in markdown_report(
        results[1:2], "mine"
    )
    assert "## With references" not in markdown_report(results[:1], "mine")


def test_published_results_stand_beside_comparable_results(monkeypatch):
    results = [a_result("mvtec"), a_result("mvtec", 1, 0), a_result("mvtec", 16, 0)]
    assert all(row[4:6] == ["-", "-"] for row in reference_rows(results))  # without the images of the benchmark
    monkeypatch.setattr("vip2clip_hf.evaluation.reference_tables.compared", lambda *_: [True, True, False])
    rows = reference_rows(results)
    assert rows[0][1:6] == ["MVTec AD", "0", "-", "(91.8, 96.5, -)", "(86.1, 93.5, -)"]
    assert rows[1][4:6] == ["(93.1 ± 2.0, 96.5 ± 0.9, -)", "(92.0 ± 0.3, 95.8 ± 0.2, -)"]
    assert rows[2][4:6] == ["-", "-"]


# Command


@pytest.mark.slow
def test_command(root, tmp_path):
    output = tmp_path / "out"
    command = ["evaluate", str(root), "--model", str(bundled_checkpoint()), "--output", str(output), "--sheets", "0",
               "--device", "cpu", "--category", "weave"]  # fmt: skip
    few = ["--num-references", "1", "--num-references", "2", "--reference-seed", "0", "--reference-seed", "1"]
    result = CliRunner().invoke(app, [*command, *few], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "With k references per category" in result.output
    assert {path.name for path in output.iterdir() if path.is_dir()} == {
        "parts", *(f"parts-{count}-references-seed-{seed}" for count in (1, 2) for seed in (0, 1))
    }  # fmt: skip
    assert "±" in (output / "tables.md").read_text(encoding="utf-8")
    assert "% With references" in (output / "tables.tex").read_text(encoding="utf-8")
    for wrong, message in (
        (["--no-references", "--num-references", "1"], "--no-references is given with other references"),
        (["--reference-seed", "1"], "--reference-seed is given without --num-references"),
        (["--num-references", "0"], "Invalid value for '--num-references'"),
    ):
        result = CliRunner().invoke(app, [*command, *wrong])
        assert result.exit_code == 2
        assert message in result.output
    folder = str(root / "weave" / "train" / "good")
    result = CliRunner().invoke(app, [*command, "--references", folder, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (output / "parts-references" / "result.json").is_file()
