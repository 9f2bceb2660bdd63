"""Faults that a review of reproductions has found."""

import pytest

from vip2clip_hf.reproduction.datasets import PlanDatasets
from vip2clip_hf.reproduction.plan import make_plan


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
