"""`vip2clip evaluate` of other methods than ViP²-CLIP, and detectors in the evaluation of several datasets."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from helpers.files import files_in
from helpers.rival_checkpoints import write_rivals
from vip2clip_hf import (
    DataSource,
    ReferenceChoice,
    ViP2ClipImageProcessor,
    evaluate_detector,
    evaluate_sets,
    load_folder,
)
from vip2clip_hf.baselines import AprilGanForAnomalyDetection, BaselineDetector
from vip2clip_hf.baselines.detector_loading import load_detector, method_of_checkpoint
from vip2clip_hf.baselines.evaluating import evaluate_method
from vip2clip_hf.baselines.saving import write_baseline
from vip2clip_hf.cli import app
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation import runner, subjects


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_rivals(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def folder(models):
    return Path(models["vip2clip"]).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "parts"
    return write_dataset(path, ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48, num_train=3)


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])


def test_a_method_on_a_backbone(folder, root, tmp_path):
    output = tmp_path / "out"
    arguments = [root, "--method", "clip", "--clip", folder / "clip", "--output", output, "--sheets", 1]
    done = run(*arguments, "--maps")
    assert done.exit_code == 0, done.output
    assert "CLIP (this run)" in done.stdout
    assert files_in(output) == {
        ".vip2clip.json", "settings.json", "results.json", "results.csv", "tables.md", "tables.tex",
        "parts/.contents.json", "parts/result.json", "parts/scores.csv", "parts/sheets/stripes.png",
        "parts/sheets/weave.png", "parts/maps/stripes.npy", "parts/maps/stripes.json", "parts/maps/weave.npy",
        "parts/maps/weave.json",
    }  # fmt: skip
    (result,) = json.loads((output / "results.json").read_text())["results"]
    expected = evaluate_detector(load_detector("clip", clip=folder / "clip"), load_folder(root))
    assert result["mean"]["image_auroc"] == pytest.approx(expected["mean"]["image_auroc"])
    assert result["mean"]["pixel_aupro"] == pytest.approx(expected["mean"]["pixel_aupro"])
    assert result["settings"]["dtype"] == "float32"
    assert result["zero_shot"].startswith("zero-shot: the method is not trained")
    settings = json.loads((output / "settings.json").read_text())
    assert (settings["method"], settings["model"]) == ("CLIP", "CLIP (this run)")
    assert "| CLIP (this run)" in (output / "tables.md").read_text(encoding="utf-8")
    # Finished: not evaluated again. Another class name is another method.
    before = (output / "parts" / "result.json").stat().st_mtime_ns
    assert run(*arguments, "--maps").exit_code == 0
    assert (output / "parts" / "result.json").stat().st_mtime_ns == before
    other = run(*arguments, "--maps", "--class-name", "nut")
    assert other.exit_code == 1
    assert "different settings: parts: detector.class_name" in str(other.exception)


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes(folder, root, tmp_path, monkeypatch):
    source, calls = [DataSource.parse(str(root))], []
    arguments = {"clip": folder / "clip", "device": "cpu", "batch_size": 2, "sheets": 0}
    whole = evaluate_method("clip", source, tmp_path / "whole", **arguments)
    original = BaselineDetector.score

    def interrupted(self, batch, *rest):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batch, *rest)

    monkeypatch.setattr(BaselineDetector, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_method("clip", source, tmp_path / "out", **arguments)
    done = sum(calls[:-1])
    calls.clear()
    calls += [0] * 3
    again = evaluate_method("clip", source, tmp_path / "out", **arguments)
    assert sum(calls) == 14 - done
    assert again[0]["mean"]["image_auroc"] == pytest.approx(whole[0]["mean"]["image_auroc"])
    assert (tmp_path / "out/parts/scores.csv").read_text() == (tmp_path / "whole/parts/scores.csv").read_text()


@pytest.mark.parametrize("key", ["april-gan", "anomalyclip", "adaclip", "vip2clip"])
def test_the_checkpoint_says_which_method(key, models, root, tmp_path):
    assert method_of_checkpoint(models[key]) == (None if key == "vip2clip" else key)
    arguments = [root, "--model", models[key], "--output", tmp_path / "out", "--sheets", 1]
    for more in ([], ["--method", key]):
        done = run(*arguments, *more)
        assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert ("model_checksum" in settings) is (key == "vip2clip")
    assert settings["model"] == {
        "april-gan": "APRIL-GAN (this run)", "anomalyclip": "AnomalyCLIP (this run)",
        "adaclip": "AdaCLIP (this run)", "vip2clip": "vip2clip",
    }[key]  # fmt: skip
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["zero_shot"].startswith("not verified")


def test_few_shot(folder, root, tmp_path):
    output = tmp_path / "out"
    done = run(root, "--method", "winclip", "--clip", folder / "clip", "--output", output, "--sheets", 0,
               "--num-references", 1, "--num-references", 2, "--reference-seed", 3)  # fmt: skip
    assert done.exit_code == 0, done.output
    names = ["parts", "parts-1-references-seed-3", "parts-2-references-seed-3"]
    results = json.loads((output / "results.json").read_text())["results"]
    assert [result["name"] for result in results] == names
    assert [result.get("references") for result in results] == [None, 1, 2]
    assert [len(each) for each in results[2]["reference_photos"].values()] == [2, 2]
    scores = {name: (output / name / "scores.csv").read_text() for name in names}
    assert len(set(scores.values())) == 3
    # The same photos as references of the detector.
    train = {row["image_id"]: row["image"].convert("RGB") for row in load_folder(root, split="train")}
    photos = {name: [train[one] for one in used] for name, used in results[2]["reference_photos"].items()}
    detector = load_detector("winclip", clip=folder / "clip").with_references(photos)
    expected = evaluate_detector(detector, load_folder(root))
    assert results[2]["mean"]["image_auroc"] == pytest.approx(expected["mean"]["image_auroc"])
    assert "With k references" in done.stdout
    assert "WinCLIP (this run)" in (output / "tables.tex").read_text(encoding="utf-8")


@pytest.mark.slow
def test_references_of_a_checkpoint(models, root, tmp_path):
    model = AprilGanForAnomalyDetection.from_pretrained(models["april-gan"])
    processor = ViP2ClipImageProcessor(size=32)
    good = [row["image"].convert("RGB") for row in load_folder(root, split="train")][:2]
    with torch.no_grad():
        model.references = model.encode_images(processor(good, return_tensors="pt")["pixel_values"])
    model.save_pretrained(tmp_path / "model")
    source = [DataSource.parse(str(root))]
    options = {"checkpoint": tmp_path / "model", "device": "cpu", "sheets": 1}
    (own,) = evaluate_method(None, source, tmp_path / "own", **options)
    assert (own["name"], own["references"], own["reference_photos"]) == ("parts-references", 2, [])
    none = ReferenceChoice(own=False)
    (zero_shot,) = evaluate_method(None, source, tmp_path / "none", references=none, **options)
    assert (zero_shot["name"], "references" in zero_shot) == ("parts", False)
    with open(tmp_path / "own/parts-references/scores.csv") as one, open(tmp_path / "none/parts/scores.csv") as two:
        rows = [[row["score"] for row in csv.DictReader(file)] for file in (one, two)]
    assert rows[0] != rows[1]
    # Drawn references replace those of the checkpoint.
    _, drawn = evaluate_method(None, source, tmp_path / "drawn", references=ReferenceChoice((1,)), **options)
    assert drawn["references"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--model'"),
        (["--method", "vip2clip"], "Missing option '--model'"),
        (["--method", "patchcore"], "--method is 'patchcore'; expected vip2clip, clip, winclip"),
        (["--method", "clip"], "Missing option '--clip' or '--model'"),
        (["--method", "april-gan", "--clip", "{}/clip"], "APRIL-GAN needs training; expected a checkpoint"),
        (["--method", "clip", "--clip", "{}/clip", "--model", "{}/clip"], "expected one of them"),
        (["--method", "winclip", "--model", "{}/april-gan"], "checkpoint of april-gan; expected one of winclip"),
        (
            ["--method", "vip2clip", "--model", "{}/april-gan"],
            "checkpoint of april-gan; expected one of vip2clip",
        ),
        (["--model", "{}/vip2clip", "--class-name", "nut"], "ViP²-CLIP does not use class names"),
        (["--method", "clip", "--clip", "{}/clip", "--class-name", "a="], "expected CATEGORY=NAME"),
    ],
)
def test_wrong_usage(arguments, message, folder, models, root, tmp_path):
    done = run(root, "--output", tmp_path / "out", *(text.format(folder) for text in arguments))
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "clip", "--clip", "{}/clip", "--num-references", "1"],
            "CLIP does not use references; remove --num-references",
        ),
        (["--model", "{}/anomalyclip", "--class-name", "nut"], "AnomalyCLIP does not use class names; remove"),
        (
            ["--method", "april-gan", "--model", "{}/vip2clip"],
            "belongs to another model; expected a checkpoint",
        ),
        (
            ["--method", "clip", "--clip", "{}/clip", "--backbone", "{}/clip"],
            "backbone (--backbone) is set without a checkpoint; expected clip (--clip)",
        ),
        (
            ["--method", "clip", "--clip", "{}/clip", "--class-name", "weeve=cloth"],
            "contains the category 'weeve'; expected 'stripes', 'weave'",
        ),
        (["--method", "april-gan", "--model", "absent"], "is not found; expected a folder or Hub id"),
    ],
)
def test_methods_that_do_not_fit(arguments, message, folder, models, root, tmp_path):
    done = run(root, "--output", tmp_path / "out", *(text.format(folder) for text in arguments))
    assert done.exit_code == 1, done.output
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_class_names_by_category(folder, root, tmp_path):
    source = [DataSource.parse(str(root))]
    found = []
    for name in (None, "nut", {"weave": "cloth"}):
        output = tmp_path / str(len(found))
        evaluate_method("clip", source, output, clip=folder / "clip", device="cpu", class_name=name, sheets=0)
        found.append((output / "parts" / "scores.csv").read_text().splitlines()[1:])
    assert len(set(map(tuple, found))) == 3
    same = [one == two for one, two in zip(found[0], found[2])]
    assert same == ["stripes" in row for row in found[0]]


def test_an_evaluation_resumes_after_the_checkpoint_moved(models, root, tmp_path):
    """The weights identify a method, not the path of its checkpoint."""
    source = [DataSource.parse(str(root))]
    options = {"device": "cpu", "sheets": 0}
    moved = shutil.copytree(models["april-gan"], tmp_path / "moved")
    (first,) = evaluate_method(None, source, tmp_path / "out", checkpoint=models["april-gan"], **options)
    (again,) = evaluate_method(None, source, tmp_path / "out", checkpoint=moved, **options)
    assert again["run"] == first["run"]
    assert str(moved) not in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.slow
def test_an_image_processor_with_an_order_of_channels(models, root, tmp_path):
    """It is for arrays; files have an order of their own."""
    model = AprilGanForAnomalyDetection.from_pretrained(models["april-gan"])
    write_baseline(model, ViP2ClipImageProcessor(size=32, channel_order="bgr"), tmp_path / "model")
    options = {"device": "cpu", "sheets": 1}
    source = [DataSource.parse(str(root))]
    (found,) = evaluate_method(None, source, tmp_path / "bgr", checkpoint=tmp_path / "model", **options)
    (plain,) = evaluate_method(None, source, tmp_path / "rgb", checkpoint=models["april-gan"], **options)
    assert found["mean"]["image_auroc"] == plain["mean"]["image_auroc"]


# Other detectors


class Brightness:
    name, image_size, settings = "brightness", 8, {"size": 8}

    def prepare(self, images):
        return torch.stack([torch.tensor(list(image.convert("L").resize((8, 8)).getdata())) for image in images])

    def score(self, batch):
        return batch.amax(dim=1) / 255, batch.view(-1, 8, 8) / 255


@pytest.mark.slow
def test_any_detector_with_settings(root, tmp_path):
    source = [DataSource.parse(str(root))]
    (result,) = evaluate_sets(Brightness(), None, source, tmp_path / "out", name="brightness", sheets=1)
    expected = evaluate_detector(Brightness(), load_folder(root))
    assert result["mean"]["image_auroc"] == expected["mean"]["image_auroc"]
    assert result["settings"]["dtype"] is None
    with pytest.raises(ValueError, match="'brightness' does not use references; remove --num-references"):
        evaluate_sets(Brightness(), None, source, tmp_path / "few", references=ReferenceChoice((1,)))


def test_a_detector_without_settings_is_refused(root, tmp_path):
    class Unknown(Brightness):
        settings = None

    with pytest.raises(ValueError, match="'brightness' has no attribute settings"):
        evaluate_sets(Unknown(), None, [DataSource.parse(str(root))], tmp_path / "out")


def test_sheets_have_the_scale_of_the_method(root, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(runner, "write_sheets", lambda *args, value_range, **options: drawn.append(value_range))

    class Summed(Brightness):
        map_maximum = 4

    source = [DataSource.parse(str(root))]
    evaluate_sets(Summed(), None, source, tmp_path / "out", sheet_range=(0.25, 0.5))
    assert drawn == [(1, 2)]
    assert subjects.map_maximum_of({"a": Brightness()}) == 1
