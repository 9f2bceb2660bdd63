import csv
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from helpers.files import files_in
from helpers.reproduction import generated, tiny_plan
from helpers.training import assert_same_tensors
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.checkpoints.bundled import bundled_backbone
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.models.small_text_tower import state_word_tokenizer
from vip2clip_hf.reproduction import computing, less_memory, outputs
from vip2clip_hf.reproduction.less_memory import is_out_of_memory, with_less_memory
from vip2clip_hf.reproduction.method import ViP2ClipMethod
from vip2clip_hf.reproduction.running import prepare, reproduce
from vip2clip_hf.reproduction.store import Store
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer


# Its fixtures take many seconds: one process computes them once. The command is tested in tests/cli.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reproduction")]


# All tables but 3, with fewer rows: 6 settings.
ROWS = {"4": ["none", "full"]}
TARGETS = ["tables", "1", "2", "4", "5", "6", "figures"]
# One training on dataset one, and one evaluation on dataset two: ViP²-CLIP with static prompts.
SHORT = {"protocol": [{"train": ["one"], "evaluate": ["two"]}], "ablations": ["two"], "rows": {"5": ["utpa"]}}


def plan_of_run(**changes):
    return tiny_plan(rows=ROWS, **changes)


def short_plan(**changes):
    return tiny_plan(**{**SHORT, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run. Tests copy its folder to change it."""
    folder = tmp_path_factory.mktemp("run") / "output"
    return folder, reproduce(plan_of_run(), TARGETS, folder, device="cpu")


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    for module in (computing, less_memory):
        monkeypatch.setattr(module.logger, "warning", found.append)
    return found


@pytest.fixture
def nothing_is_computed(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(ViP2ClipMethod, "train", fail)
    monkeypatch.setattr(computing, "evaluate_detector", fail)


def text_files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.iterdir() if path.suffix in (".md", ".csv", ".tex")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def results_in(folder: Path) -> dict[tuple, dict]:
    """Results by setting, dataset and seed."""
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    return {(one["setting"], one["dataset"], one["seed"]): one for one in found}


def means(folder: Path) -> dict[tuple, dict]:
    results = results_in(folder).items()
    return {key: {n: v for n, v in one["mean"].items() if isinstance(v, float)} for key, one in results}


# A whole run


def test_all_files_are_written(finished):
    folder, report = finished
    expected = {f"table{number}.{kind}" for number in (1, 2, 4, 5, 6) for kind in ("md", "tex", "csv")}
    expected |= {f"figure{number}.{kind}" for number in (5, 6) for kind in ("png", "pdf", "csv", "md")}
    expected |= {f"figure{number}-{name}.{kind}" for number in (3, 7) for name in ("one", "two")
                 for kind in ("png", "pdf")}  # fmt: skip
    expected |= {"figure4.png", "figure4.pdf", "provenance.json"}
    assert set(report["files"]) == expected
    assert expected <= files_in(folder)
    assert set(report["tables"]) == {name for name in expected if name.endswith(".md")}
    assert (report["problems"], report["downloads"], report["num_others"]) == ([], [], 0)
    assert not any((folder / "progress").iterdir())
    assert len(list((folder / "trained").iterdir())) == 10  # 5 settings, 2 directions
    assert not list(folder.glob("trained/*/checkpoint-*"))
    assert set(results_in(folder)) == {
        (setting, name, 1)
        for setting in ("none", "full", "dual", "utpa", "normal/abnormal", "top_k=1")
        for name in ("one", "two")
    }


def test_tables_show_the_results(finished):
    folder, _ = finished
    found = means(folder)
    with open(folder / "table5.csv", newline="", encoding="utf-8") as file:
        ours = [row for row in csv.DictReader(file) if row["source"] == "ours"]
    for row, setting in zip(ours, ("dual", "utpa")):
        for name in ("one", "two"):
            mean = found[setting, name, 1]
            for title in ("pixel AUROC", "image AP", "pixel AUPRO"):
                assert float(row[f"{name} {title}"]) == pytest.approx(100 * mean[title.lower().replace(" ", "_")])
            assert row[f"{name} image n"] == "1"
    # A row of two tables has the same numbers in both.
    cells = set()
    for number, title in ((4, "✓"), (6, None)):
        with open(folder / f"table{number}.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == "ours"]
        row = next(row for row in rows if title is None or set(list(row.values())[:3]) == {title})
        cells.add((row["one image AUROC"], row["two pixel F1"]))
    assert len(cells) == 1


def test_provenance(finished):
    folder, _ = finished
    found = json.loads((folder / "provenance.json").read_text())
    assert found["plan"] == plan_of_run().to_dict()
    assert {"versions", "commit", "hardware", "time"} <= set(found)
    assert len(found["rows"]) == 11
    for row in found["rows"]:
        assert row["failure"] is None
        assert json.loads(row["settings"])["seed"] == row["seed"] == 1
        assert row["training"]
        assert row["targets"]
        if row["setting"] == "none":
            assert row["trained"] is None
        else:
            trained = row["trained"]
            assert trained["steps"] == 2
            assert trained["seconds"] > 0
            assert trained["trained_weights"] > 0
            assert not trained["halved"]
            assert trained["versions"] == found["versions"]
            assert trained["hardware"]["cpu"]
            assert trained["time"] <= found["time"]
        for one in row["evaluations"]:
            assert (folder / "results" / f"{one['result']}.json").is_file()
            assert 0 <= one["mean"]["pixel_auroc"] <= 1
            assert one["versions"] == found["versions"]
            assert {"vip2clip_hf", "torch", "transformers"} <= set(one["versions"])
            assert one["commit"] == found["commit"]
            assert one["hardware"]["threads"] > 0
            assert one["time"] <= found["time"]
            assert one["settings"]["image_size"] == 64
    assert sum(len(row["evaluations"]) for row in found["rows"]) == 12


def test_a_second_run_computes_nothing(finished, copy, nothing_is_computed):
    before = text_files(copy)
    targets = ["tables", "1", "2", "4", "5", "6", "figures", "5", "6"]  # drawing pictures takes long
    report = reproduce(plan_of_run(), targets, copy, device="cpu")
    assert report["tables"] == finished[1]["tables"]
    assert (report["problems"], report["num_others"]) == ([], 0)
    assert text_files(copy) == before
    # One of its tables. The other rows are not needed for it, and kept.
    report = reproduce(plan_of_run(), ["table 5"], copy, device="cpu")
    assert set(report["files"]) == {"table5.md", "table5.tex", "table5.csv", "provenance.json"}
    assert text_files(copy) == before


def test_results_are_those_of_the_library(finished, tmp_path):
    """The same training and evaluation with the classes of the library."""
    folder, _ = finished
    sets = {name: load_folder(generated(folder, name)) for name in ("one", "two")}
    clip = bundled_backbone()
    set_seed(1)
    model = ViP2ClipForAnomalyDetection.from_clip(
        clip, tokenizer=state_word_tokenizer(), variant="paper", fgp_scaled=False, image_size=64,
        feature_layers=(3, 6, 9, 12), top_k=5, smoothing_sigma=1.0,
    )  # fmt: skip
    arguments = ViP2ClipTrainingArguments(
        output_dir=str(tmp_path / "out"), seed=1, max_steps=2, per_device_train_batch_size=4, learning_rate=0.05,
        perception_learning_rate=0.05, save_strategy="no", cache_features=str(tmp_path / "cache"), use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    processor = ViP2ClipImageProcessor(size=64)
    ViP2ClipTrainer(model, arguments, processor, train_dataset=sets["one"]).train()
    expected = evaluate_model(model.eval(), processor, sets["two"])
    found = results_in(folder)["full", "two", 1]
    assert found["train"] == ["one"]
    expected = {name: value for name, value in expected["mean"].items() if isinstance(value, float)}
    assert len(expected) >= 6
    assert means(folder)["full", "two", 1] == pytest.approx(expected, abs=1e-6)
    assert means(folder)["utpa", "two", 1] != pytest.approx(expected, abs=1e-3)


def test_a_changed_plan_keeps_old_results_aside(finished, copy):
    before = {path: path.read_bytes() for path in (copy / "results").iterdir()}
    old = text_files(copy)
    plan = short_plan(training={"learning_rate": 0.01})
    report = reproduce(plan, ["table 5"], copy, device="cpu")
    assert report["num_others"] == 22  # 10 trainings and 12 evaluations
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list((copy / "results").iterdir())) == 13
    assert text_files(copy)["table5.md"] != old["table5.md"]
    report = reproduce(plan_of_run(), ["table 5"], copy, device="cpu")
    assert text_files(copy) == old


@pytest.mark.slow
def test_table_3(copy, monkeypatch):
    """It is measured once for each hardware, and is not a result of other settings."""
    plan = plan_of_run()
    report = reproduce(plan, ["table 3"], copy, device="cpu")
    assert report["problems"] == []
    before = text_files(copy)
    assert "float32" in before["table3.md"]
    monkeypatch.setattr("vip2clip_hf.reproduction.table_3.measure_variants", None)
    report = reproduce(plan, ["tables", "figure 6"], copy, device="cpu")
    assert report["problems"] == []
    assert report["num_others"] == 0
    assert text_files(copy) == before


def test_other_output_folders(finished, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="is not empty and does not contain a reproduction; expected a new folder"):
        reproduce(short_plan(), ["table 5"], tmp_path / "notes")
    assert files_in(tmp_path / "notes") == {"mine.txt"}
    with pytest.raises(OSError, match="is a file; expected a folder"):
        Store(tmp_path / "notes" / "mine.txt")
    inside = short_plan(datasets={"one": str(generated(finished[0], "one")), "two": "generated: dots"})
    with pytest.raises(OSError, match=r"is inside .*, which is read; expected a path outside of it"):
        reproduce(inside, ["table 5"], generated(finished[0], "one") / "new")


def test_incomplete_files_are_computed_again(copy):
    """Half a result, and a training whose weights were deleted."""
    digests = {row["setting"]: row for row in json.loads((copy / "provenance.json").read_text())["rows"]
               if row["train"] == ["one"]}  # fmt: skip
    before = text_files(copy)
    path = copy / "results" / f"{digests['utpa']['evaluations'][0]['result']}.json"
    path.write_text(path.read_text()[:100])
    weights = copy / "trained" / digests["utpa"]["training"] / "model.safetensors"
    expected = load_file(weights)
    weights.unlink()
    assert reproduce(plan_of_run(), ["table 5"], copy, device="cpu")["problems"] == []
    assert_same_tensors(load_file(weights), expected, 0)
    assert text_files(copy)["table5.csv"] == before["table5.csv"]


# Problems


def test_a_missing_dataset(tmp_path):
    """Its row is marked, and the others continue. Once it is there, its row is computed."""
    root = tmp_path / "three"
    protocol = [{"train": ["one"], "evaluate": ["two", "three"]}]
    plan = short_plan(
        datasets={"one": "generated: stripes", "two": "generated: dots", "three": str(root)}, protocol=protocol,
        ablations=["two", "three"],
    )  # fmt: skip
    folder = tmp_path / "out"
    report = reproduce(plan, ["table 5"], folder, device="cpu")
    assert report["problems"] == [f"three: data not found: {root}"]
    assert report["downloads"] == []
    assert set(results_in(folder)) == {("utpa", "two", 1)}
    assert f"data not found: {root}" in (folder / "table5.md").read_text()
    write_dataset(root, ("dots",), 2, 1, 64, seed=5)
    report = reproduce(plan, ["table 5"], folder, device="cpu")
    assert report["problems"] == []
    assert set(results_in(folder)) == {("utpa", "two", 1), ("utpa", "three", 1)}
    # Its finished result is still shown without the data.
    before = text_files(folder)
    shutil.rmtree(root)
    report = reproduce(plan, ["table 5"], folder, device="cpu")
    assert text_files(folder)["table5.csv"] == before["table5.csv"]
    assert report["problems"] == [f"three: data not found: {root}"]


def test_downloads_of_missing_benchmarks(tmp_path):
    roots = {"mvtec": str(tmp_path / "MVTec"), "visa": str(tmp_path / "VisA")}
    plan = tiny_plan(datasets=roots)
    report = reproduce(plan, ["tables", "1", "4", "figures", "3", "4", "5"], tmp_path / "out", device="cpu")
    assert [line.split(" from ")[0] for line in report["downloads"]] == [
        f"Download MVTec AD to {roots['mvtec']}", f"Download VisA to {roots['visa']}",
    ]  # fmt: skip
    assert all("http" in line for line in report["downloads"])
    assert f"mvtec: data not found: {roots['mvtec']}" in report["problems"]
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "data not found" in text
    assert "MVTec AD" in text
    assert any(line.startswith("figure 4 failed: no images") for line in report["problems"])


def test_a_failing_training_and_a_failing_evaluation(tmp_path, monkeypatch, warnings):
    train, evaluate = ViP2ClipMethod.train, computing.evaluate_detector

    def fail(self, dataset, **options):
        if self.setting == "dual" and options["seed"] == 1 and "stripes" in dataset["category"]:
            raise RuntimeError("the disk\n  is broken")
        return train(self, dataset, **options)

    def fail_evaluation(detector, dataset, **options):
        if detector.setting == "utpa" and "dots" in dataset["category"]:
            raise ValueError("no maps")
        return evaluate(detector, dataset, **options)

    monkeypatch.setattr(ViP2ClipMethod, "train", fail)
    monkeypatch.setattr(computing, "evaluate_detector", fail_evaluation)
    report = reproduce(tiny_plan(rows={"5": ["dual", "utpa"]}), ["table 5"], tmp_path, device="cpu")
    assert report["problems"] == [
        "dual, trained on one, seed 1 failed: the disk is broken",
        "utpa, trained on one, seed 1, on two failed: no maps",
    ]
    assert warnings == report["problems"]
    assert set(results_in(tmp_path)) == {("dual", "one", 1), ("utpa", "one", 1)}
    text = (tmp_path / "table5.md").read_text()
    assert "failed: the disk is broken" in text
    assert "failed: no maps" in text
    rows = json.loads((tmp_path / "provenance.json").read_text())["rows"]
    assert [row["failure"] for row in rows if row["failure"]] == ["failed: the disk is broken"]
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(ViP2ClipMethod, "train", lambda *args, **options: calls.append(1) or train(*args, **options))
    assert reproduce(tiny_plan(rows={"5": ["dual", "utpa"]}), ["table 5"], tmp_path, device="cpu")["problems"] == []
    assert calls == [1]  # the model of the failed evaluation is there
    assert len(results_in(tmp_path)) == 4


# Out of memory


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (found,) = folder.glob("trained/*/model.safetensors")
    return load_file(found)


def test_out_of_memory_once_in_training(finished, tmp_path, monkeypatch, warnings):
    """Half the batch and twice the accumulation give the same weights. Checkpoints of the first try are not used."""
    plan = short_plan(training={"save_strategy": "steps", "save_steps": 1})
    step, sizes = ViP2ClipTrainer.training_step, []

    def training_step(self, model, inputs, *args, **options):
        sizes.append(len(inputs["labels"]))
        if len(sizes) == 2:
            assert list(Path(self.args.output_dir).glob("checkpoint-1"))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if len(sizes) > 2:
            assert self.args.gradient_accumulation_steps == 2
        return step(self, model, inputs, *args, **options)

    monkeypatch.setattr(ViP2ClipTrainer, "training_step", training_step)
    report = reproduce(plan, ["table 5"], tmp_path, device="cpu")
    assert report["problems"] == []
    assert warnings == ["utpa, trained on one, seed 1: out of memory. Trying again with half the batch."]
    assert sizes == [4, 2, 2, 2, 2]
    rows = json.loads((finished[0] / "provenance.json").read_text())["rows"]
    (digest,) = (row["training"] for row in rows if row["setting"] == "utpa" and row["train"] == ["one"])
    expected = load_file(finished[0] / "trained" / digest / "model.safetensors")
    assert_same_tensors(weights_of(tmp_path), expected, 1e-5)
    (row,) = json.loads((tmp_path / "provenance.json").read_text())["rows"]
    assert row["training"] == digest
    assert row["trained"]["halved"]


def test_out_of_memory_twice(tmp_path, monkeypatch, warnings):
    train = ViP2ClipMethod.train

    def fail(self, *args, **options):
        if self.setting == "dual":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return train(self, *args, **options)

    monkeypatch.setattr(ViP2ClipMethod, "train", fail)
    report = reproduce(short_plan(rows=None), ["table 5"], tmp_path, device="cpu")
    assert report["problems"] == [
        "dual, trained on one, seed 1 failed: out of memory, also with half the batch; set a smaller "
        "per_device_train_batch_size or batch_size in the plan"
    ]
    assert len(warnings) == 2
    assert set(results_in(tmp_path)) == {("utpa", "two", 1)}


def test_out_of_memory_in_an_evaluation(finished, copy, monkeypatch, warnings):
    """It continues behind the batches that are finished."""
    for path in (copy / "results").iterdir():
        path.unlink()
    plan = short_plan(evaluation={"batch_size": 4, "feature_memory": 0})
    score, sizes = ViP2ClipMethod.score, []

    def scored(self, batch):
        sizes.append(len(batch))
        if len(sizes) == 2:
            raise MemoryError
        return score(self, batch)

    monkeypatch.setattr(ViP2ClipMethod, "score", scored)
    assert reproduce(plan, ["table 5"], copy, device="cpu")["problems"] == []
    assert warnings == ["utpa, trained on one, seed 1, on two: out of memory. Trying again with half the batch."]
    assert sizes == [4, 2, 2]
    found, expected = (means(folder)["utpa", "two", 1] for folder in (copy, finished[0]))
    assert found["pixel_auroc"] == pytest.approx(expected["pixel_auroc"], abs=1e-6)


def out_of_memory(*arguments, **options):
    raise MemoryError


def test_an_odd_batch_is_not_halved(tmp_path, monkeypatch):
    plan = short_plan(training={"per_device_train_batch_size": 3})
    monkeypatch.setattr(ViP2ClipTrainer, "training_step", out_of_memory)
    (problem,) = reproduce(plan, ["table 5"], tmp_path, device="cpu")["problems"]
    assert problem == (
        "utpa, trained on one, seed 1 failed: out of memory, and per_device_train_batch_size is 3; expected an even "
        "number to halve it."
    )


def test_memory_errors():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert with_less_memory("title", lambda halved: halved) is False
    with pytest.raises(RuntimeError, match="shapes differ"):
        with_less_memory("title", lambda halved: (_ for _ in ()).throw(RuntimeError("shapes differ")))


# Interruptions


def test_a_training_is_resumed(tmp_path, monkeypatch):
    plan = short_plan(training={"max_steps": 3, "save_strategy": "steps", "save_steps": 1})
    reproduce(plan, ["table 5"], tmp_path / "whole", device="cpu")
    step, steps = ViP2ClipTrainer.training_step, []

    def training_step(self, *args, **options):
        steps.append(self.state.global_step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    monkeypatch.setattr(ViP2ClipTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, ["table 5"], tmp_path / "out", device="cpu")
    assert results_in(tmp_path / "out") == {}
    reproduce(plan, ["table 5"], tmp_path / "out", device="cpu")
    assert steps == [0, 1, 2, 2]
    assert_same_tensors(weights_of(tmp_path / "out"), weights_of(tmp_path / "whole"), 0)
    assert means(tmp_path / "out") == means(tmp_path / "whole")
    assert text_files(tmp_path / "out") == text_files(tmp_path / "whole")


def test_an_evaluation_is_resumed(copy, monkeypatch):
    expected = means(copy)["utpa", "two", 1]
    for path in (copy / "results").iterdir():
        path.unlink()
    plan = short_plan(evaluation={"batch_size": 1})
    score, calls = ViP2ClipMethod.score, []

    def scored(self, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return score(self, batch)

    monkeypatch.setattr(ViP2ClipMethod, "score", scored)
    monkeypatch.setattr(ViP2ClipMethod, "train", None)  # it is finished
    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, ["table 5"], copy, device="cpu")
    assert len(list((copy / "progress").glob("*/part-*"))) == 1
    reproduce(plan, ["table 5"], copy, device="cpu")
    assert len(calls) == 5 + 2  # 6 images, 4 of them before the interruption
    assert means(copy)["utpa", "two", 1] == pytest.approx(expected, abs=1e-6)
    assert not list((copy / "progress").iterdir())


# Other detectors


class Brightness:
    """Bright pixels are anomalous."""

    name, image_size = "brightness", 32

    def __init__(self, log=None):
        self.log, self.level = log, 0.0

    def prepare(self, images):
        small = [np.asarray(image.convert("L").resize((32, 32)), dtype=np.float32) / 255 for image in images]
        return torch.from_numpy(np.stack(small))

    def score(self, batch):
        maps = (batch - self.level).abs()
        return maps.flatten(1).amax(dim=1), maps


class Trained(Brightness):
    """Pixels that differ from the mean of the training images are anomalous."""

    name = "trained brightness"

    def train(self, dataset, *, seed, folder):
        assert folder.is_dir()
        self.log.append((dataset["category"][0], seed))
        time.sleep(0.05)
        self.level = float(np.mean([self.prepare([image.convert("RGB")]).mean() for image in dataset["image"]]))


@pytest.mark.slow
def test_detectors_of_the_user(copy, monkeypatch):
    monkeypatch.setattr(ViP2ClipMethod, "train", None)
    log: list = []
    detectors = {"Brightness": Brightness, "Trained": lambda: Trained(log)}
    plan = plan_of_run()
    report = reproduce(plan, ["table 1", "figure 4"], copy, detectors=detectors, device="cpu")
    assert report["problems"] == []
    found = results_in(copy)
    assert ("Brightness", "one", 1) in found
    assert found["Trained", "two", 1]["train"] == ["one"]
    assert found["Trained", "two", 1]["mean"] != found["Brightness", "two", 1]["mean"]
    assert found["Trained", "two", 1]["settings"]["image_size"] == 32
    text = (copy / "table1.csv").read_text()
    assert "Brightness" in text
    assert "Trained" in text
    value = 100 * found["Trained", "two", 1]["mean"]["pixel_auroc"]
    assert f"{value}"[:10] in text
    # Once to evaluate, and once for the figure, because weights of other detectors are not kept.
    assert sorted(log) == [("dots", 1)] * 2 + [("stripes", 1)] * 2
    del log[:]
    reproduce(plan, ["table 1"], copy, detectors=detectors, device="cpu")
    assert log == []
    reproduce(plan, ["table 1", "figure 4"], copy, detectors=detectors, device="cpu")
    assert sorted(log) == [("dots", 1), ("stripes", 1)]


def test_a_detector_that_fails(copy, monkeypatch, warnings):
    class Broken(Brightness):
        def score(self, batch):
            return batch, None

    report = reproduce(plan_of_run(), ["table 1"], copy, detectors={"Broken": Broken}, device="cpu")
    assert len(report["problems"]) == 2
    assert (
        "Broken, seed 1, on one failed: score of the detector 'brightness' returns scores of shape"
        in (report["problems"][0])
    )


# Several programs in one folder


def test_two_programs_share_the_work(copy):
    """Each training is done once, and both write the same complete table."""
    log: list = []
    names = [f"Trained {number}" for number in range(4)]
    detectors = {name: lambda: Trained(log) for name in names}
    both = [prepare(plan_of_run(), ["table 1"], copy, detectors=detectors, device="cpu") for _ in range(2)]
    threads = [threading.Thread(target=one.run) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(log) == 8  # 4 detectors, 2 directions
    reports = [outputs.write_outputs(one) for one in both]
    assert reports[0] == reports[1]
    assert reports[0]["problems"] == []
    assert {key[0] for key in results_in(copy)} >= set(names)


def test_waiting_for_another_program(copy, warnings, monkeypatch):
    """The last row belongs to another program. When it has stopped without a result, the row is computed here."""
    for path in (copy / "results").iterdir():
        path.unlink()
    reproduction = prepare(short_plan(), ["table 5"], copy, device="cpu")
    (digest,) = reproduction.work.units
    lock = Store(copy).lock(digest)
    thread = threading.Thread(target=reproduction.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not warnings and time.monotonic() < deadline:
        time.sleep(0.01)
    assert warnings == [
        "Another program is computing utpa, trained on one, seed 1. Waiting for it to finish.",
    ]
    assert results_in(copy) == {}
    lock.release()
    thread.join(timeout=60)
    assert set(results_in(copy)) == {("utpa", "two", 1)}
