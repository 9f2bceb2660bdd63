import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.benchmark_trees import BUILDERS
from helpers.tiny import ROOT, TINY, change_weights
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.cli import app
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation import recorder as recorder_module, runner as runner_module
from vip2clip_hf.evaluation.evaluator import evaluate_model
from vip2clip_hf.evaluation.map_writer import MapWriter
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.utils.files import file_names


TRAINING = ROOT / "training"


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "parts", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)


@pytest.fixture
def model(clip):
    """One whose maps go from 0 to 1. The small model's span 0.01, where rounding, which differs from one process to
    the next, would decide about the order of pixels."""
    with torch.no_grad():
        clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    change_weights(model)
    with torch.no_grad():
        for parameter in (*model.prompt_learner.parameters(), *model.fine_grained_perception.parameters()):
            parameter.mul_(20)
    return model


@pytest.fixture
def sets(root, tmp_path):
    other = write_dataset(tmp_path / "more" / "other", ("waves",), num_normal=3, num_anomalous=1, size=48, seed=3)
    # The generated tree is laid out as MVTec AD, but has other categories: read as own data.
    return [DataSource.parse(str(root)), DataSource.parse(f"named={other}")]


def same(first: dict, second: dict, tolerance: float = 0.0):
    assert list(first["categories"]) == list(second["categories"])
    pairs = [(first["mean"], second["mean"]), *zip(first["categories"].values(), second["categories"].values())]
    for one, two in pairs:
        for metric in METRICS:
            assert one[metric] == pytest.approx(two[metric], abs=tolerance, nan_ok=True), metric


def read_results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


def same_files(first: Path, second: Path):
    """Scores and maps of the same images; in another process they round differently."""
    rows = [list(csv.reader((folder / "scores.csv").read_text().splitlines())) for folder in (first, second)]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]
    scores = [np.array([float(row[-1]) for row in part[1:]]) for part in rows]
    np.testing.assert_allclose(*scores, atol=5e-6)
    for path in (first / "maps").iterdir():
        if path.suffix == ".npy":
            np.testing.assert_allclose(np.load(path), np.load(second / "maps" / path.name), atol=1e-3)
        else:
            assert path.read_text() == (second / "maps" / path.name).read_text()


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_parse(tmp_path, monkeypatch):
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
    assert DataSource.parse("screws=x").mask_threshold == 0
    for text in ("mvtec=", "=x"):
        with pytest.raises(ValueError, match="expected NAME=ROOT"):
            DataSource.parse(text)


def test_everything_is_written(model, image_processor, sets, tmp_path):
    output = tmp_path / "out"
    results = evaluate_sets(model, image_processor, sets, output, name="tiny", sheets=2, save_maps=True)
    assert files_in(output) == {
        "settings.json", "results.json", "results.csv", "tables.md", "tables.tex",
        "parts/result.json", "parts/scores.csv", "parts/sheets/stripes.png", "parts/sheets/weave.png",
        "parts/maps/stripes.npy", "parts/maps/stripes.json", "parts/maps/weave.npy", "parts/maps/weave.json",
        "named/result.json", "named/scores.csv", "named/sheets/waves.png", "named/maps/waves.npy",
        "named/maps/waves.json",
    }  # fmt: skip
    for one, result in zip(sets, results):
        same(result, evaluate_model(model, image_processor, one.load()))
        assert (result["name"], result["benchmark"], result["trained_on"]) == (one.name, None, [])
    written = json.loads((output / "results.json").read_text())
    assert [result["mean"] for result in written["results"]] == [result["mean"] for result in results]
    assert written["versions"]["torch"] == torch.__version__
    assert written["settings"]["fpr_limit"] == 0.3
    assert "tiny" in (output / "tables.md").read_text(encoding="utf-8")
    assert "AVERAGE" in (output / "tables.tex").read_text(encoding="utf-8")

    # Scores and maps are those of the images they are said to be of.
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


def test_what_is_done_is_not_done_again(model, image_processor, sets, tmp_path, monkeypatch):
    output = tmp_path / "out"
    first = evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    with pytest.raises(OSError, match="holds an evaluation with another data"):
        evaluate_sets(model, image_processor, sets, output, sheets=0)
    monkeypatch.setattr(runner_module, "evaluate_model", None)
    again = evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    same(first[0], again[0])
    assert not (output / "parts" / ".progress").exists()


@pytest.mark.parametrize("where", ["image", "interrupt"])
def test_goes_on_in_the_middle(where, model, image_processor, sets, tmp_path, monkeypatch):
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
        same(one, two, 1e-6)
    for name in ("parts/scores.csv", "named/scores.csv"):
        assert (output / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("stripes", "weave"):
        maps = [np.load(folder / "parts" / "maps" / f"{name}.npy") for folder in (output, tmp_path / "whole")]
        np.testing.assert_array_equal(*maps)


def test_state_that_is_not_whole_is_not_written(model, image_processor, root, tmp_path, monkeypatch):
    """Interrupted between metrics and positions, the state before stays."""
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
    same(result, evaluate_model(model, image_processor, dataset, batch_size=2), 1e-6)


def test_another_evaluation_is_not_mixed_in(model, image_processor, sets, tmp_path):
    output = tmp_path / "out"
    evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    (output / "mine.txt").write_text("mine")
    before = (output / "results.json").read_text()
    with pytest.raises(OSError, match="holds an evaluation with another fpr_limit"):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0, fpr_limit=0.1)
    change_weights(model, 2)
    with pytest.raises(OSError, match="another model_checksum"):
        evaluate_sets(model, image_processor, sets[:1], output, sheets=0)
    assert (output / "results.json").read_text() == before
    evaluate_sets(model, image_processor, sets[1:], output, sheets=0, overwrite=True)
    assert (output / "mine.txt").read_text() == "mine"
    assert not (output / "parts").exists()
    assert [r["name"] for r in json.loads((output / "results.json").read_text())["results"]] == ["named"]
    with pytest.raises(OSError, match="not empty and holds no evaluation"):
        evaluate_sets(model, image_processor, sets[:1], tmp_path / "more", sheets=0)
    with pytest.raises(OSError, match="is a file"):
        evaluate_sets(model, image_processor, sets[:1], output / "mine.txt", sheets=0)


def test_bad_requests(model, image_processor, sets, root, tmp_path):
    with pytest.raises(ValueError, match="No data set is named"):
        evaluate_sets(model, image_processor, [], tmp_path / "out")
    with pytest.raises(ValueError, match="Several data sets are called parts"):
        evaluate_sets(model, image_processor, [sets[0], sets[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="sheet_range"):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheet_range=(0.5, 0.5))
    with pytest.raises(OSError, match="not found"):
        evaluate_sets(model, image_processor, [*sets, DataSource.parse("absent")], tmp_path / "out")
    flat = DataSource.parse(f"flat={root / 'weave' / 'test' / 'good'}")
    with pytest.raises(ValueError, match="3 of 3 images have no label"):
        evaluate_sets(model, image_processor, [flat], tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_broken_weights_name_the_images(model, image_processor, sets, tmp_path):
    with torch.no_grad():
        model.prompt_learner.normal_context.fill_(math.nan)
    with pytest.raises(ValueError, match=r"NaN or infinite values.*The images of the batch are \['stripes/test"):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0)


def test_warns_when_trained_on_the_set(model, image_processor, sets, tmp_path, caplog):
    model.config.training_sets = [describe_training_set(load_folder(sets[0].root), "mine")]
    results = evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0)
    reason = "trained on mine, about 100% of whose images are among those evaluated"
    assert [result["trained_on"] for result in results] == [[reason], []]
    page = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "parts†" in page
    assert f"† parts: {reason}." in page


def test_maps_need_room(model, image_processor, sets, tmp_path, monkeypatch):
    class Usage:
        free = 20_000

    monkeypatch.setattr(recorder_module.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match=r"The maps need 0\.0 GB"):
        evaluate_sets(model, image_processor, sets, tmp_path / "out", sheets=0, save_maps=True)


def test_file_names_stay_inside():
    names = file_names(["../../etc/passwd", "a/b", "a_b", "A_B", "", "..", "ünïcode", "x" * 300])
    assert len({name.lower() for name in names.values()}) == 8
    for name in names.values():
        assert Path(name).name == name
        assert name not in ("", ".", "..")
        assert len(name) < 110
    assert names["ünïcode"] == "ünïcode"


def test_map_writer_of_categories_from_anywhere(tmp_path):
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
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--save_maps"])
    assert done.exit_code == 0, done.output
    for word in ("stripes", "weave", "waves", "MEAN", "AVERAGE", "checkpoint", "image AUROC"):
        assert word in done.output, word
    assert (tmp_path / "out" / "parts" / "maps" / "weave.npy").exists()
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--save-maps", "--json"])
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    same(results[0], evaluate_model(model, image_processor, sets[0].load()), 1e-6)
    assert results[1]["root"] == str(sets[1].root)
    done = CliRunner().invoke(app, ["evaluate", *texts, *options])
    assert "another save_maps" in str(done.exception)
    done = CliRunner().invoke(app, ["evaluate", *texts, *options, "--dtype", "int8"])
    assert "expected float32, bfloat16, float16" in str(done.exception)


def test_both_tables_of_the_paper(model, image_processor, tmp_path):
    """All 15 benchmarks, as downloaded, in one evaluation."""
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
    assert page.count("| AVERAGE ") == 4
    for title in ("Table 1", "Table 2", "MVTec AD", "Kvasir", "(92.4, 93.9, 90.6)", "(85.1, 68.1, 50.3)"):
        assert title in page
    assert "Own data" not in page


def test_half_precision(checkpoint, sets, tmp_path):
    results = runner_module.evaluate_checkpoint(
        checkpoint, sets[:1], tmp_path / "out", device="cpu", dtype="bfloat16", sheets=0
    )
    assert 0 <= results[0]["mean"]["image_auroc"] <= 1


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_two_processes_equal_one(launcher, checkpoint, sets, tmp_path):
    """A real launcher and two gloo processes; 14 and 7 images in batches of 2, the last ones not full."""
    command = [str(TRAINING / "evaluate.py"), sets[0].root, f"named={sets[1].root}", "--model", str(checkpoint)]
    command += ["--batch_size", "2", "--sheets", "2", "--save_maps", "--device", "cpu", "--output"]
    for arguments, output in (([], "one"), (LAUNCHERS[launcher], "two")):
        done = run([*arguments, *command, str(tmp_path / output)])
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("AVERAGE") == 2  # said once, not by every process
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    for first, second in zip(read_results(tmp_path / "one"), read_results(tmp_path / "two")):
        same(first, second, 1e-6)
        counts = [sum(c["num_images"] for c in result["categories"].values()) for result in (first, second)]
        assert counts[0] == counts[1]
    for name in ("parts", "named"):
        same_files(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.slow
def test_killed_and_resumed(checkpoint, tmp_path):
    """SIGKILL in the middle of two processes, then one process takes up what is left."""
    root = write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=30, num_anomalous=8, size=48)
    (tmp_path / "slow.py").write_text(
        f"""
import sys, time
from vip2clip_hf.evaluation import runner
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation.runner import evaluate_checkpoint

class Slow(runner.EvaluationRecorder):
    def __init__(self, *arguments):
        super().__init__(*arguments[:3], 0.2)
    def add(self, *arguments):
        time.sleep(0.25)
        super().add(*arguments)

if sys.argv[1] == "slow":
    runner.EvaluationRecorder = Slow
evaluate_checkpoint({str(checkpoint)!r}, [DataSource.parse({str(root)!r})], {str(tmp_path)!r} + "/" + sys.argv[2],
    device="cpu", batch_size=1, sheets=0, save_maps=True)
"""
    )
    script = str(tmp_path / "slow.py")
    assert run([script, "fast", "whole"]).returncode == 0
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS["torchrun"], script, "slow", "killed"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    progress, deadline = tmp_path / "killed" / "set" / ".progress", time.monotonic() + 120
    while len(list(progress.glob("part-0-*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Workers of torchrun are in sessions of their own.
    subprocess.run(["pkill", "-9", "-f", script], check=False)
    done = sum(len(np.load(part)["recorder.positions"]) for part in progress.glob("part-*.npz"))
    assert 2 <= done < 124
    assert not (tmp_path / "killed" / "set" / "result.json").exists()
    assert run([script, "fast", "killed"]).returncode == 0
    whole, killed = (read_results(tmp_path / name)[0] for name in ("whole", "killed"))
    same(whole, killed, 1e-6)
    assert sum(category["num_images"] for category in killed["categories"].values()) == 124
    same_files(tmp_path / "whole" / "set", tmp_path / "killed" / "set")
    assert not progress.exists()
