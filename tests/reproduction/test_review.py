"""Faults that a review of reproductions has found."""

import numpy as np
import pytest
import torch

from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.reproduction.datasets import PlanDatasets
from vip2clip_hf.reproduction.less_memory import sentence_of
from vip2clip_hf.reproduction.measured import CellKey
from vip2clip_hf.reproduction.method import create_model
from vip2clip_hf.reproduction.plan import make_plan
from vip2clip_hf.reproduction.running import prepare
from vip2clip_hf.reproduction.settings import evaluation_digest
from vip2clip_hf.reproduction.store import Store
from vip2clip_hf.reproduction.work import measured_cells


CONTENT = {
    "backbone": "bundled",
    "recipe": "tiny",
    "training": {"max_steps": 2, "save_strategy": "no", "average_weights_from": 0},
    "model": {"image_size": 64, "top_k": 3, "smoothing_sigma": 2.0},
    "seeds": [1],
    "datasets": {"surfaces": "generated: stripes", "things": "generated: dots"},
    "generated": {"num_normal": 2, "num_anomalous": 1, "size": 64},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rows", {"4": None}, r"rows\.4 is None; expected a list of settings"),
        ("rows", {"4": "full"}, r"rows\.4 is 'full'; expected a list of settings"),
        ("efficiency", {"variants": None}, r"efficiency\.variants is None; expected a list"),
        ("efficiency", {"images": 0}, r"efficiency\.images is 0; expected an integer of at least 1"),
        ("evaluation", {"batch_size": 0}, r"evaluation\.batch_size is 0; expected an integer of at least 1"),
        ("evaluation", {"batch_size": 1.5}, r"evaluation\.batch_size is 1\.5; expected an integer"),
        ("evaluation", {"fpr_limit": 5}, r"evaluation\.fpr_limit is 5; expected a number greater than 0, at most 1"),
        ("evaluation", {"fpr_limit": float("nan")}, r"evaluation\.fpr_limit is nan"),
        ("training", {"max_steps": "2"}, r"training\.max_steps is '2'; expected a number"),
        ("training", {"learning_rate": "1e-3"}, r"training\.learning_rate is '1e-3'; expected a number, such as 1\.0"),
        ("training", {"bf16": "no"}, r"training\.bf16 is 'no'; expected true or false"),
        ("model", {"top_k": "3"}, r"model\.top_k is '3'; expected a number"),
        ("seeds", [2**32], r"seeds is .* at most 4294967295"),
        ("state_words", 5, r"state_words contains 5; expected pairs"),
        ("state_words", [["good", "damaged"]] * 2, r"expected different pairs"),
        ("state_words", [["a/b", "c"]], r"state_words contains \['a/b', 'c'\]; .* without / and ="),
        ("state_words", [["", "c"]], r"state_words contains \['', 'c'\]"),
        ("datasets", {"a": "x"}, r"There is one dataset; expected at least two"),
        ("datasets", {"a": None, "b": "y"}, r"datasets\.a is None; expected a folder"),
        ("datasets", {"../../a": "generated: dots", "b": "y"}, r"A dataset is named '\.\./\.\./a'"),
        ("datasets", {"a=b": "x", "c": "y"}, r"A dataset is named 'a=b'"),
        ("datasets", {"A": "x", "a": "y"}, r"Datasets are named 'A' and 'a'"),
        ("protocol", [], r"protocol is \[\]; expected"),
        ("ablations", ["things", "things"], r"ablations is .*; expected different datasets"),
    ],
)
def test_wrong_values_of_a_plan_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        make_plan({**CONTENT, key: value})


def test_home_folders_and_odd_names_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = make_plan({**CONTENT, "datasets": {"Gehäuse 2": "~/my photos", "b": "y"}})
    assert plan.datasets == {"Gehäuse 2": str(tmp_path / "my photos"), "b": "y"}


def test_changed_generated_datasets_are_written_again(tmp_path):
    first = PlanDatasets(make_plan(CONTENT), tmp_path)
    changed = PlanDatasets(make_plan({**CONTENT, "generated": {**CONTENT["generated"], "num_normal": 3}}), tmp_path)
    assert len(first["things"]) + 1 == len(changed["things"])
    assert first.fingerprint("things") != changed.fingerprint("things")


class Brightness:
    """A detector of a user that counts its trainings."""

    name, image_size = "brightness", 64
    trainings: list[int] = []

    def prepare(self, images):
        return torch.stack(
            [torch.tensor(np.array(one.convert("L").resize((64, 64))), dtype=torch.float32) for one in images]
        )

    def score(self, batch):
        return batch.flatten(1).mean(1), batch

    def train(self, dataset, *, seed, folder):
        self.trainings.append(seed)


class Raises(Brightness):
    def score(self, batch):
        raise KeyError("missing layer")


def test_finished_detectors_are_not_trained_again(tmp_path):
    plan = make_plan(CONTENT)
    Brightness.trainings.clear()
    for _ in range(2):
        work = prepare(plan, ["table 1", "figure 4"], tmp_path / "a", detectors={"mine": Brightness}, device="cpu")
        for unit in [unit for unit in work.remaining() if unit.detector is not None]:
            work._compute(unit)
    assert Brightness.trainings == [1, 1]  # one for each direction


def test_a_detector_that_raises_anything_fails_alone(tmp_path):
    work = prepare(make_plan(CONTENT), ["table 1"], tmp_path / "a", detectors={"mine": Raises}, device="cpu")
    units = [unit for unit in work.remaining() if unit.detector is not None]
    for unit in units:
        work._compute(unit)
    assert len(units) == len(work.failures) == 2
    assert set(work.failures.values()) == {"failed: KeyError: 'missing layer'"}


@pytest.mark.parametrize("name", ["full", "none", "good/damaged", "top_k=10"])
def test_detectors_named_like_a_setting_are_refused_before_anything_is_trained(name, tmp_path):
    with pytest.raises(ValueError, match="as a setting of the tables"):
        prepare(make_plan(CONTENT), ["table 1"], tmp_path / "a", detectors={name: Brightness}, device="cpu")


def test_messages_of_invalid_models_are_one_plain_sentence():
    with pytest.raises(ValueError, match="top_k is 1000") as caught:
        create_model(make_plan(CONTENT), "top_k=1000", 1)
    assert sentence_of(caught.value).startswith("top_k is 1000; expected an integer from 1 to 16")


def test_the_same_images_under_two_names_are_not_called_zero_shot(tmp_path, caplog):
    root = write_dataset(tmp_path / "images", ("dots",), num_normal=2, num_anomalous=1, size=64)
    plan = make_plan({**CONTENT, "datasets": {"one": str(root), "two": str(root)}})
    work = prepare(plan, ["table 1"], tmp_path / "a", detectors={"mine": Brightness}, device="cpu")
    for unit in [unit for unit in work.remaining() if unit.detector is not None]:
        work._compute(unit)
    cells = measured_cells(work.work, work.results(), work.failures)
    assert "not zero-shot, trained on two" in cells[CellKey("mine", "one", "image")].not_compared


def test_the_hash_of_an_evaluation_contains_how_masks_are_read(tmp_path):
    root = write_dataset(tmp_path / "images", ("dots",), num_normal=2, num_anomalous=1, size=64)
    data = PlanDatasets(make_plan({**CONTENT, "datasets": {"mvtec": str(root), "own": str(root)}}), tmp_path / "data")
    assert data.reading("mvtec") != data.reading("own")
    fingerprints = dict.fromkeys(("mvtec", "own"), "same")
    settings = data.plan.evaluation
    digests = {
        evaluation_digest("model", name, fingerprints, {**settings, "masks": data.reading(name)}, 1)
        for name in fingerprints
    }
    assert len(digests) == 2


def test_results_of_table_3_are_not_counted_as_other_settings(tmp_path):
    found = Store(tmp_path)
    found.begin()
    for digest in ("evaluation", "efficiency", "old"):
        found.finish_result(digest, {})
    assert found.others(set(), {"evaluation", "efficiency"}) == 1


def test_damaged_adapters_are_trained_again(tmp_path):
    found = Store(tmp_path)
    found.begin()
    weights = found.training_folder("hash") / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(100))
    found.finish_training("hash", {"seconds": 1.0})
    assert found.training("hash")["seconds"] == 1.0
    weights.write_bytes(bytes(50))
    assert found.training("hash") is None
