"""The other methods of a plan in the tables."""

import json

import pytest
import torch

from helpers.reproduction import tiny_content, tiny_plan
from vip2clip_hf.reproduction import rivals
from vip2clip_hf.reproduction.plan import make_plan, plan_path, read_plan
from vip2clip_hf.reproduction.rivals import Rival, TrainedRival, rival_arguments, rival_fields, rivals_of
from vip2clip_hf.reproduction.running import prepare, reproduce


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


def test_settings():
    found = plan()
    assert rival_fields(found, "april-gan") == {"image_size": 64, "feature_layers": [6, 12]}
    arguments = rival_arguments(found, "april-gan")
    assert (arguments["adam_beta1"], arguments["max_steps"]) == (0.5, 2)
    assert not {"method", "clip", "seed", "output_dir"} & set(arguments)
    created = {name: create() for name, create in rivals_of(found, "checksum").items()}
    assert list(created) == ["CLIP", "APRIL-GAN"]
    assert created["CLIP"].settings == {"backbone": "checksum", "model": {"image_size": 64}}
    assert not hasattr(created["CLIP"], "train")
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
