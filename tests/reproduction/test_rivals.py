"""The other methods of a plan in the tables."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.reproduction import tiny_content, tiny_plan
from helpers.training import assert_same_tensors
from vip2clip_hf.baselines.training import BaselineTrainer
from vip2clip_hf.reproduction import rivals
from vip2clip_hf.reproduction.plan import make_plan, plan_path, read_plan
from vip2clip_hf.reproduction.rivals import Rival, TrainedRival, rival_arguments, rival_fields, rivals_of
from vip2clip_hf.reproduction.running import prepare, reproduce


# Its fixtures take many seconds: one process computes them once. The command is tested in tests/cli.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rivals")]


METHODS = {
    "clip": {},
    "april-gan": {"model": {"feature_layers": [6, 12]}, "training": {"max_steps": 2, "save_strategy": "no"}},
}
SHORT = {"protocol": [{"train": ["one"], "evaluate": ["two"]}], "ablations": ["two"], "methods": METHODS}


def plan(**changes):
    return tiny_plan(**{**SHORT, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "output"
    return folder, reproduce(plan(), ["tables", "1", "3", "figure4"], folder, device="cpu")


def results_of(folder, setting):
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    return [one for one in found if one["setting"] == setting]


def test_tables(finished):
    folder, report = finished
    assert report["problems"] == []
    table = (folder / "table1.md").read_text()
    header = table.splitlines()[2]
    assert [header.index(name) for name in ("CLIP,", "APRIL-GAN", "ViP²-CLIP")] == sorted(
        header.index(name) for name in ("CLIP,", "APRIL-GAN", "ViP²-CLIP")
    )
    assert "WinCLIP" not in header
    assert "has no meaning: CLIP, the image scores of APRIL-GAN." in table
    (clip,), (april,) = results_of(folder, "CLIP"), results_of(folder, "APRIL-GAN")
    assert (clip["train"], april["train"]) == ([], ["one"])
    measured = (folder / "table3.md").read_text()
    for name in ("CLIP", "APRIL-GAN", "ViP²-CLIP"):
        assert f"{name}, ours" in measured
    rows = [[cell.strip() for cell in line.split("|")] for line in measured.splitlines()]
    assert [row[2] for row in rows if row[1:2] == ["APRIL-GAN"] and row[2] in ("yes", "no")] == ["no", "yes"]


def test_nothing_is_computed_again(finished, monkeypatch):
    folder, _ = finished

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(TrainedRival, "train", fail)
    monkeypatch.setattr(Rival, "score", fail)
    again = reproduce(plan(), ["tables", "1", "3"], folder, device="cpu")
    assert again["problems"] == []


def test_weights_are_kept(finished):
    """A picture loads them instead of training again."""
    folder, _ = finished
    reproduction = prepare(plan(), ["table 1"], folder, device="cpu")
    rival = reproduction.model_of("APRIL-GAN", "two")
    assert isinstance(rival, TrainedRival)
    digest = reproduction.work.models["APRIL-GAN", "two"]
    assert reproduction.store.training(digest)["steps"] == 2
    assert (reproduction.store.training_folder(digest) / "backbone.json").is_file()
    assert rival.detector.model.provenance.training_sets


def weights_of(folder):
    (found,) = (folder / "trained").glob("*/model.safetensors")
    return load_file(found)


def test_out_of_memory_in_training(finished, tmp_path, monkeypatch):
    """Half the batch, and two of them: the same weights. A later run continues with half the batch."""
    settings = {**METHODS["april-gan"]["training"], "save_strategy": "steps", "save_steps": 1}
    methods = {"april-gan": {**METHODS["april-gan"], "training": settings}}
    step, sizes = BaselineTrainer.training_step, []

    def training_step(self, model, inputs, *args, **options):
        sizes.append(len(inputs["labels"]))
        if len(sizes) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if len(sizes) == 5:
            raise KeyboardInterrupt
        return step(self, model, inputs, *args, **options)

    monkeypatch.setattr(BaselineTrainer, "training_step", training_step)
    run = prepare(plan(methods=methods), ["table 1"], tmp_path, device="cpu")
    unit = next(one for one in run.work.units.values() if one.detector == "APRIL-GAN")
    with pytest.raises(KeyboardInterrupt):
        run._compute(unit)
    assert [path.name for path in run.store.training_folder(unit.key.digest).glob("checkpoint-*")] == ["checkpoint-1"]
    run._compute(unit)
    assert run.failures == {}
    assert sizes == [6, 6, 4, 2, 4, 4, 2]
    folder, _ = finished
    (expected,) = [path.parent for path in (folder / "trained").glob("*/config.json")
                   if json.loads(path.read_text())["model_type"] == "april_gan"]  # fmt: skip
    assert_same_tensors(weights_of(tmp_path), load_file(expected / "model.safetensors"), 1e-5)
    assert run.store.training(unit.key.digest)["halved"]


def test_a_batch_of_one_image_cannot_be_halved(tmp_path, monkeypatch):
    settings = {**METHODS["april-gan"], "training": {"max_steps": 1, "per_device_train_batch_size": 1}}

    def training_step(*args, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(BaselineTrainer, "training_step", training_step)
    run = prepare(plan(methods={"april-gan": settings}), ["table 1"], tmp_path, device="cpu")
    run._compute(next(one for one in run.work.units.values() if one.detector == "APRIL-GAN"))
    assert "failed: out of memory, and per_device_train_batch_size is 1" in " ".join(run.failures.values())


def test_changed_settings_are_other_rows(finished):
    folder, _ = finished
    changed = {**METHODS, "april-gan": {**METHODS["april-gan"], "training": {"max_steps": 3}}}
    reproduction = prepare(plan(methods=changed), ["table 1"], folder, device="cpu")
    assert [unit.key.setting for unit in reproduction.remaining()] == ["APRIL-GAN"]
    assert reproduction.num_steps(reproduction.remaining()[0]) == 3
    how = {**METHODS, "april-gan": {**METHODS["april-gan"]}}
    how["april-gan"]["training"] = {**how["april-gan"]["training"], "save_strategy": "epoch"}
    assert prepare(plan(methods=how), ["table 1"], folder, device="cpu").remaining() == []


def test_a_detector_of_the_user_replaces_a_method(tmp_path):
    class Mine:
        name, image_size = "mine", 64

        def prepare(self, images):
            return torch.rand(len(images))

        def score(self, batch):
            return batch, None

    reproduction = prepare(plan(), ["tables"], tmp_path / "x", detectors={"APRIL-GAN": Mine}, device="cpu")
    assert not reproduction.is_rival("APRIL-GAN")
    assert reproduction.is_rival("CLIP")
    assert {need.setting for need in reproduction.needs if need.target == "table 3"} == {"full", "CLIP"}


def test_settings(tmp_path):
    found = plan()
    assert rival_fields(found, "april-gan") == {"image_size": 64, "feature_layers": [6, 12]}
    arguments = rival_arguments(found, "april-gan")
    assert (arguments["adam_beta1"], arguments["max_steps"]) == (0.5, 2)
    assert not {"method", "clip", "seed", "output_dir"} & set(arguments)
    created = {name: create() for name, create in rivals_of(found, "checksum").items()}
    assert list(created) == ["CLIP", "APRIL-GAN"]
    assert created["CLIP"].settings == {"backbone": "checksum", "model": {"image_size": 64}}
    assert not hasattr(created["CLIP"], "train")
    cached = rivals_of(plan(methods={"april-gan": {}, "adaclip": {}}), "checksum", cache=tmp_path)
    assert {n: one().settings["feature_cache"] for n, one in cached.items()} == {"APRIL-GAN": True, "AdaCLIP": False}
    with pytest.raises(RuntimeError, match="APRIL-GAN has no weights"):
        created["APRIL-GAN"].score(None)
    assert rivals.NO_WEIGHTS


@pytest.mark.parametrize("name", ["paper", "small"])
def test_plans_of_the_package(name):
    """All six methods of the paper."""
    assert list(read_plan(plan_path(name)).methods) == ["clip", "winclip", "april-gan", "anomalyclip", "adaclip"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"april": {}}, "Methods contains the unknown key 'april'; did you mean 'april-gan'"),
        ({"clip": {"training": {}}}, "unknown key 'training'"),
        ({"april-gan": {"training": {"max_step": 3}}}, "did you mean 'max_steps'"),
        ({"april-gan": {"model": {"feature_layer": [3]}}}, "did you mean 'feature_layers'"),
        ({"april-gan": {"training": {"seed": 3}}}, "training contains 'seed', which the plan sets itself"),
        ({"april-gan": {"training": {"learning_rate": "1e-3"}}}, "learning_rate is '1e-3'; expected a number"),
        ({"april-gan": 3}, "methods.april-gan is 3; expected model and training"),
        (["april-gan"], "methods is .* expected settings by name of a method"),
    ],
)
def test_wrong_plans(methods, message):
    with pytest.raises(ValueError, match=message):
        make_plan(tiny_content(methods=methods))
