import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.benchmark_trees import BUILDERS
from helpers.evaluations import assert_same_results, model_with_wide_maps, read_results, write_sources
from helpers.files import files_in
from helpers.tiny import change_weights
from vip2clip_hf.cli import app
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation import (
    map_writer as map_writer_module,
    recorder as recorder_module,
    runner as runner_module,
    subjects as subjects_module,
)
from vip2clip_hf.evaluation.map_writer import MapWriter
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.evaluation.reports import markdown_report, not_compared
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.utils.files import file_names


@pytest.fixture
def model(clip):
    return model_with_wide_maps(clip)


@pytest.fixture
def sets(tmp_path):
    return write_sources(tmp_path)


@pytest.fixture
def root(sets):
    return Path(sets[0].root)


def test_parse_data_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a=b").mkdir()
    assert DataSource.parse("photos") == DataSource("photos", "photos")
    assert DataSource.parse(".").name == tmp_path.name
    assert DataSource.parse("a=b") == DataSource("a=b", "a=b")  # a folder of that name
    assert DataSource.parse("MVTec=x/y", "train", ["bottle"]) == DataSource(
        "mvtec", "x/y", "mvtec", "train", ("bottle",)
    )
    assert DataSource.parse("kvasir=x").mask_threshold == 127
    assert DataSource.parse("screws=x=y") == DataSource("screws", "x=y")
    assert DataSource.parse("screws=x").mask_threshold is None  # that of the image processor
    for text in ("mvtec=", "=x"):
        with pytest.raises(ValueError, match="expected NAME=ROOT"):
            DataSource.parse(text)


def test_all_files_are_written(model, image_processor, sets, tmp_path):
    output = tmp_path / "out"
    results = evaluate_sets(model, image_processor, sets, output, name="tiny", sheets=2, save_maps=True)
    assert files_in(output) == {
        ".vip2clip.json", "settings.json", "results.json", "results.csv", "tables.md", "tables.tex",
        "parts/.contents.json", "named/.contents.json",
        "parts/result.json", "parts/scores.csv", "parts/sheets/stripes.png", "parts/sheets/weave.png",
        "parts/maps/stripes.npy", "parts/maps/stripes.json", "parts/maps/weave.npy", "parts/maps/weave.json",
        "named/result.json", "named/scores.csv", "named/sheets/waves.png", "named/maps/waves.npy",
        "named/maps/waves.json",
    }  # fmt: skip
    for one, result in zip(sets, results):
        assert_same_results(result, evaluate_model(model, image_processor, one.load()))
        assert (result["name"], result["benchmark"], result["trained_on"]) == (one.name, None, [])
    written = json.loads((output / "results.json").read_text())
    assert [result["mean"] for result in written["results"]] == [result["mean"] for result in results]
    assert written["versions"]["torch"] == torch.__version__
    assert written["settings"]["fpr_limit"] == 0.3
    page = (output / "tables.md").read_text(encoding="utf-8")
    assert "# Evaluation of tiny\n" in page
    assert "AUPRO is integrated up to a false positive rate of 0.3, with every value as a threshold." in page
    assert "AVERAGE" in (output / "tables.tex").read_text(encoding="utf-8")

    # Scores and maps belong to the right images.
    dataset = load_folder(sets[0].root)
    with open(output / "parts" / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == dataset["image_id"]
    maps = np.load(output / "parts" / "maps" / "weave.npy", mmap_mode="r")
    ids = json.loads((output / "parts" / "maps" / "weave.json").read_text())["image_ids"]
    assert (maps.dtype, maps.shape) == (np.float16, (7, 48, 48))
    by_id = dict(zip(ids, maps))
    for position in (7, 13):
        row = dataset[position]
        with torch.no_grad():
            outputs = model(**image_processor(row["image"], return_tensors="pt"))
        assert rows[position]["category"] == row["category"] == "weave"
        assert rows[position]["label"] == ("anomalous" if row["label"] else "normal")
        assert float(rows[position]["score"]) == pytest.approx(outputs.scores.item(), abs=1e-5)
        np.testing.assert_allclose(by_id[row["image_id"]], outputs.anomaly_maps[0].numpy(), atol=1e-3)


def test_finished_datasets_are_not_evaluated_again(model, image_processor, sets, tmp_path, monkeypatch):
    output = tmp_path / "out"
    first = evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    # A dataset that is added does not change the results of the others.
    both = evaluate_sets(model, image_processor, sets, output, sheets=0)
    monkeypatch.setattr(subjects_module, "evaluate_model", None)
    again = evaluate_sets(model, image_processor, sets, output, sheets=0, name="renamed")
    for one, two in zip(both, again, strict=True):
        assert_same_results(one, two)
    assert_same_results(first[0], again[0])
    assert "Evaluation of renamed" in (output / "tables.md").read_text(encoding="utf-8")
    assert not (output / ".progress").exists()


@pytest.mark.parametrize("where", ["image", "interrupt"])
def test_resume_within_a_dataset(where, model, image_processor, sets, tmp_path, monkeypatch):
    whole = evaluate_sets(model, image_processor, sets, tmp_path / "whole", batch_size=2, sheets=0, save_maps=True)
    output, calls = tmp_path / "out", []
    broken = Path(sets[0].root, load_folder(sets[0].root)["image_id"][9])
    content = broken.read_bytes()
    forward = model.forward

    def interrupted(*args, **kwargs):
        calls.append(kwargs["pixel_values"].shape[0])
        if where == "interrupt" and len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", interrupted)
    if where == "image":
        broken.write_bytes(content[:100])
    with pytest.raises(OSError if where == "image" else KeyboardInterrupt):
        evaluate_sets(model, image_processor, sets, output, batch_size=2, sheets=0, save_maps=True)
    before = sum(calls) if where == "image" else sum(calls[:-1])
    assert 0 < before < 14
    assert not (output / "results.json").exists()
    broken.write_bytes(content)
    calls.clear()
    calls += [0] * 4
    results = evaluate_sets(model, image_processor, sets, output, batch_size=2, sheets=0, save_maps=True)
    assert sum(calls) == 14 + 7 - before  # every image once
    for one, two in zip(results, whole):
        assert_same_results(one, two, 1e-6)
    for name in ("parts/scores.csv", "named/scores.csv"):
        assert (output / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("stripes", "weave"):
        maps = [np.load(folder / "parts" / "maps" / f"{name}.npy") for folder in (output, tmp_path / "whole")]
        np.testing.assert_array_equal(*maps)


def test_inconsistent_state_is_not_saved(model, image_processor, root, tmp_path, monkeypatch):
    """After an interrupt between the updates of metrics and positions, the last saved state remains."""
    dataset = DataSource.parse(str(root)).load()
    recorder = recorder_module.EvaluationRecorder(len(dataset), tmp_path / "state", save_every=0)
    add = recorder.add

    def interrupted(positions, *args):
        if 4 in positions:
            raise KeyboardInterrupt
        add(positions, *args)

    monkeypatch.setattr(recorder, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, image_processor, dataset, batch_size=2, recorder=recorder)
    again = recorder_module.EvaluationRecorder(len(dataset), tmp_path / "state")
    assert again.remaining() == list(range(4, 14))
    result = evaluate_model(model, image_processor, dataset, batch_size=2, recorder=again)
    assert sum(category["num_images"] for category in result["categories"].values()) == 14
    assert not np.isnan(again.scores()).any()
    assert_same_results(result, evaluate_model(model, image_processor, dataset, batch_size=2), 1e-6)


def test_other_evaluations_are_not_overwritten(model, image_processor, sets, tmp_path):
    output = tmp_path / "out"
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    (output / "mine.txt").write_text("mine")
    before = (output / "results.json").read_text()
    with pytest.raises(
        OSError, match=r"contains an evaluation with different settings: parts: fpr_limit \(was 0\.3, now 0\.1\);"
    ):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0, fpr_limit=0.1)
    change_weights(model, 2)
    with pytest.raises(OSError, match=r"different settings: parts: model_checksum \(was "):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    assert (output / "results.json").read_text() == before
    evaluate_sets(model, image_processor, sets[1:], output, sheets=0, overwrite=True)
    assert (output / "mine.txt").read_text() == "mine"
    assert not (output / "parts").exists()
    assert [r["name"] for r in json.loads((output / "results.json").read_text())["results"]] == ["named"]
    with pytest.raises(OSError, match="not empty and does not contain an evaluation"):
        evaluate_sets(model, image_processor, sets[:1], tmp_path / "more", sheets=0)
    with pytest.raises(OSError, match="is a file"):
        evaluate_sets(model, image_processor, sets[:1], output / "mine.txt", sheets=0)


def test_invalid_arguments(model, image_processor, sets, root, tmp_path):
    with pytest.raises(ValueError, match="There are no datasets to evaluate"):
        evaluate_sets(model, image_processor, [], tmp_path / "out")
    with pytest.raises(ValueError, match="Several datasets have the same name: parts;"):
        evaluate_sets(model, image_processor, [sets[0], sets[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="sheet_range"):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheet_range=(0.5, 0.5))
    with pytest.raises(OSError, match="not found"):
        evaluate_sets(model, image_processor, [*sets, DataSource.parse("absent")], tmp_path / "out")
    flat = DataSource.parse(f"flat={root / 'weave' / 'test' / 'good'}")
    with pytest.raises(ValueError, match="3 of 3 images have no label"):
        evaluate_sets(model, image_processor, [flat], tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing was written


def test_overwriting_keeps_files_of_the_user(model, image_processor, sets, tmp_path, caplog):
    """Whole folders were deleted, with files of the user in them."""
    output = tmp_path / "out"
    evaluate_sets(model, image_processor, sets, output, sheets=2, save_maps=True)
    written = files_in(output)
    folder = next(path for path in output.iterdir() if path.is_dir())
    mine = [folder / "notes.txt", folder / "sheets" / "notes.txt", folder / "images" / "photo.png"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0, overwrite=True)
    assert all(file.read_text() == "mine" for file in mine)
    assert "3 files in" in caplog.text
    assert files_in(output) - {str(file.relative_to(output)) for file in mine} < written
    assert not list(output.rglob("*.npy"))


def test_a_dataset_in_the_output_folder_is_refused(model, image_processor, sets, root, tmp_path):
    """The dataset was deleted."""
    output = tmp_path / "out"
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    shutil.copytree(root, output / "parts" / "data")
    before = files_in(output)
    inside = DataSource.parse(f"parts={output / 'parts' / 'data'}")
    for overwrite in (True, False):
        with pytest.raises(OSError, match=r"The dataset .* is in the output folder"):
            evaluate_sets(model, image_processor, [inside], output, sheets=0, overwrite=overwrite)
    assert files_in(output) == before


@pytest.mark.parametrize("option", [{"fpr_limit": 3}, {"aupro_convention": "relese"}, {"sheet_range": (1, 0)}])
def test_invalid_options_change_nothing(model, image_processor, sets, tmp_path, option):
    """With `overwrite`, the results were deleted first. A new folder was blocked by the settings of the failed run."""
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=next(iter(option))):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0, **option)
    assert not output.exists()
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    before = {name: (output / name).read_bytes() for name in files_in(output)}
    with pytest.raises(ValueError, match=next(iter(option))):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0, overwrite=True, **option)
    assert {name: (output / name).read_bytes() for name in files_in(output)} == before


def test_errors_name_the_images(model, image_processor, sets, tmp_path):
    with torch.no_grad():
        model.prompt_learner.normal_context.fill_(math.nan)
    with pytest.raises(
        ValueError, match=r"contains NaN or infinite values.*The images of the batch are \['stripes/test"
    ):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0)


def test_training_datasets_are_marked(model, image_processor, sets, tmp_path, caplog):
    model.provenance.training_sets = [describe_training_set(load_folder(sets[0].root), "mine")]
    results = evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0)
    reason = "trained on mine (14 of 14 evaluated images)"
    assert [result["trained_on"] for result in results] == [[reason], []]
    page = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "parts†" in page
    assert f"† parts: {reason}." in page
    assert f"parts: the results are not zero-shot, because the model was {reason}." in caplog.text
    claims = [
        f"not zero-shot: {reason}",
        "zero-shot: none of the evaluated images was found among the 14 recorded training images",
    ]
    assert [result["zero_shot"] for result in results] == claims
    assert [result["zero_shot"] for result in read_results(tmp_path / "out")] == claims
    for name, claim in zip(("parts", "named"), claims):
        assert f"- {name}: {claim}." in page
    model.provenance.training_sets = []
    (result,) = evaluate_sets(model, image_processor, sets[:1], tmp_path / "again", sheets=0)
    assert result["zero_shot"] == "not verified: the checkpoint does not record its training datasets"


def test_too_little_disk_space(model, image_processor, sets, tmp_path, monkeypatch):
    class Usage:
        free = 20_000

    monkeypatch.setattr(map_writer_module.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match=r"The anomaly maps need 0\.0 GB"):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0, save_maps=True)


def test_file_names_are_safe():
    names = file_names(["../../etc/passwd", "a/b", "a_b", "A_B", "", "..", "ünïcode", "x" * 300])
    assert len({name.lower() for name in names.values()}) == 8
    for name in names.values():
        assert Path(name).name == name
        assert name not in ("", ".", "..")
        assert len(name) < 110
    assert names["ünïcode"] == "ünïcode"


def test_map_writer_with_unsafe_category_names(tmp_path):
    writer = MapWriter(tmp_path / "maps", ["../x", "y", "../x"], ["0", "1", "2"], 4)
    writer.write([2, 1], torch.stack([torch.full((4, 4), 0.5), torch.full((4, 4), 0.25)]))
    writer.flush()
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"_x.npy", "_x.json", "y.npy", "y.json"}
    np.testing.assert_array_equal(np.load(tmp_path / "maps" / "_x.npy")[:, 0, 0], [0, 0.5])
    assert json.loads((tmp_path / "maps" / "_x.json").read_text()) == {"category": "../x", "image_ids": ["0", "2"]}


# Command line


@pytest.fixture
def checkpoint(model, image_processor, tmp_path):
    return save_checkpoint(model, image_processor, tmp_path / "checkpoint")


def test_command(checkpoint, model, image_processor, sets, tmp_path):
    texts = [sets[0].root, f"named={sets[1].root}"]
    options = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--sheets", "0", "--device", "cpu"]
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--maps"])
    assert done.exit_code == 0, done.output
    for word in ("stripes", "weave", "waves", "MEAN", "AVERAGE", "checkpoint", "image AUROC"):
        assert word in done.output, word
    assert (tmp_path / "out" / "parts" / "maps" / "weave.npy").exists()
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--maps", "--json"])
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert_same_results(results[0], evaluate_model(model, image_processor, sets[0].load()), 1e-6)
    assert results[1]["root"] == str(sets[1].root)
    done = CliRunner().invoke(app, ["evaluate", *texts, *options])
    assert done.exit_code == 0, done.output  # maps that are not asked for are kept
    assert (tmp_path / "out" / "parts" / "maps" / "weave.npy").exists()
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--fpr-limit", "0.2"])
    assert "different settings: parts: fpr_limit (was 0.3, now 0.2); named: " in str(done.exception)
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--dtype", "int8"])
    assert done.exit_code == 2
    assert "--dtype is 'int8'; expected float32, bfloat16, float16." in " ".join(done.stderr.split())


def test_both_tables_of_the_paper(model, image_processor, tmp_path, monkeypatch):
    """Evaluate all 15 benchmarks, as downloaded, in one run."""
    trees = {builder.__name__: builder for builder in BUILDERS}
    trees = {
        name: trees["ksdd_thirds" if name == "ksdd" else f"{name}_official"](tmp_path / name) for name in BENCHMARKS
    }
    sets = [DataSource.parse(f"{name}={tree.root}") for name, tree in trees.items()]
    results = evaluate_sets(model, image_processor, sets, tmp_path / "out", name="tiny", sheets=0)
    assert [sum(c["num_images"] for c in result["categories"].values()) for result in results] == [
        sum(map(sum, tree.counts.values())) for tree in trees.values()
    ]
    page = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    for title in ("Table 1", "Table 2", "MVTec AD", "Kvasir"):
        assert title in page
    assert "Other datasets" not in page
    # The trees have few images, so published results do not stand beside theirs.
    assert "| AVERAGE " not in page
    assert "(91.2, 96.0, 92.0)" not in page
    assert (
        "‡ kvasir, pixel level: not compared with published results and not in AVERAGE: there are 0 normal and" in page
    )
    assert "Masks are JPEG files with noise near 0 and 255" in page  # a known peculiarity of this copy
    assert "Licence: research and education; commercial use needs permission" in page
    written = {result["name"]: result for result in read_results(tmp_path / "out")}
    assert written["mvtec"]["licence"].startswith("CC BY-NC-SA 4.0")
    assert all(one["not_compared"]["image"] for one in written.values())
    # As if the published benchmarks were of this size.
    for name, tree in trees.items():
        normal, anomalous = (sum(counts) for counts in zip(*tree.counts.values()))
        changed = {"normal": normal, "anomalous": anomalous, "counts": tree.counts, "categories": tuple(tree.counts)}
        monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], **changed))
    page = markdown_report(results, "tiny")
    assert all(
        not_compared(result)["image"] == [] for result in results if result["benchmark"] in ("headct", "brainmri")
    )
    assert page.count("| AVERAGE ") == 4
    assert "(95.1, 95.5, 90.2)" in page


def test_scores_reproduce_the_metrics(model, image_processor, sets, tmp_path):
    """Scores had six decimals: their AUROC and F1 were others than those of the table."""
    with torch.no_grad():  # scores that differ in the eighth decimal
        model.prompt_learner.normal_context.mul_(1e-3)
    output = tmp_path / "out"
    results = evaluate_sets(model, image_processor, sets, output, sheets=0)
    with open(output / "results.csv", encoding="utf-8") as file:
        table = {(row["dataset"], row["category"]): row for row in csv.DictReader(file)}
    for result in results:
        with open(output / result["name"] / "scores.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for category, found in result["categories"].items():
            scores = np.array([float(row["score"]) for row in rows if row["category"] == category])
            labels = np.array([row["label"] == "anomalous" for row in rows if row["category"] == category])
            metrics = AnomalyMetrics()
            metrics.update(scores, labels)
            again = metrics.compute()["mean"]
            for metric in ("image_auroc", "image_ap", "image_f1"):
                assert again[metric] == found[metric] == float(table[result["name"], category][metric])
            above = scores > float(table[result["name"], category]["image_f1_threshold"])
            assert 2 * (above & labels).sum() / (above.sum() + labels.sum()) == found["image_f1"]


def test_every_file_contains_the_settings(model, image_processor, sets, tmp_path):
    output = tmp_path / "out"
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0, fpr_limit=0.5, aupro_convention="release")
    expected = {
        "fpr_limit": 0.5,
        "aupro_convention": "release",
        "dtype": "float32",
        "image_size": 48,
        "mask_threshold": 0,
    }
    (result,) = read_results(output)
    assert result["settings"] == expected
    assert result["split"] == "test"
    with open(output / "results.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert {name: row[name] for name in expected} == {name: str(value) for name, value in expected.items()}
            assert row["split"] == "test"
    for name in ("tables.md", "tables.tex"):
        assert (
            "split test, image size 48 x 48, float32, mask values above 0 are anomalous. AUPRO is integrated up to a "
            "false positive rate of 0.5, with the 200 thresholds of the authors' released code."
        ) in (output / name).read_text(encoding="utf-8")
    # Both conventions are in one run.
    exact = evaluate_model(model, image_processor, sets[0].load(), fpr_limit=0.5)
    assert exact["mean"]["pixel_aupro"] == result["mean"]["pixel_aupro_exact"] != result["mean"]["pixel_aupro"]


def test_half_precision(checkpoint, sets, tmp_path):
    results = runner_module.evaluate_checkpoint(
        checkpoint, sets[:1], tmp_path / "out", device="cpu", dtype="bfloat16", sheets=0
    )
    assert 0 <= results[0]["mean"]["image_auroc"] <= 1
