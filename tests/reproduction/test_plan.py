import json

import pytest
import yaml

from helpers.reproduction import tiny_content, tiny_plan
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.reproduction.plan import PLANS, Direction, make_plan, plan_path, read_plan
from vip2clip_hf.reproduction.settings import (
    FULL,
    TABLE_4,
    TABLE_5,
    model_fields,
    overrides_of,
    rows_of,
    top_k_setting,
    training_fields,
    words_setting,
)
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.named_recipes import recipe_path


def refused(**changes) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the tests check the message
        tiny_plan(**changes)
    return str(error.value)


# The plans of the package


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_the_package(name):
    plan = read_plan(name)
    assert plan.name == name
    assert yaml.safe_load(plan_path(name).read_text(encoding="utf-8")).keys() <= plan.to_dict().keys()
    assert make_plan(plan.to_dict(), name) == make_plan(json.loads(json.dumps(plan.to_dict())), name)
    # Every training argument is one: creating them checks the values.
    ViP2ClipTrainingArguments(output_dir="unused", use_cpu=True, **training_fields(plan))


def test_paper_plan_follows_section_5_1():
    """Train on VisA for MVTec AD, and on MVTec AD for all 14 others."""
    plan = read_plan("paper")
    assert set(plan.datasets) == set(BENCHMARKS)
    assert len(plan.datasets) == 15
    assert set(plan.datasets) == set(BENCHMARKS)
    assert plan.direction("mvtec") == Direction(("visa",), ("mvtec",))
    others = [name for name in plan.datasets if name != "mvtec"]
    assert len(others) == 14
    for name in others:
        assert plan.direction(name).train == ("mvtec",)
    evaluated = [name for one in plan.protocol for name in one.evaluate]
    assert sorted(evaluated) == sorted(plan.datasets)
    assert plan.ablations == ("mvtec", "visa")
    assert plan.top_k == (1, 10, 20, 50, 100, 200)
    assert plan.state_words == (
        ("good", "damaged"), ("normal", "abnormal"), ("perfect", "flawed"), ("flawless", "imperfect"),
    )  # fmt: skip
    assert plan.backbone == "openai/clip-vit-large-patch14-336"
    assert len(plan.seeds) == 3
    fields = model_fields(plan, {})
    assert (fields["variant"], fields["image_size"], fields["top_k"]) == ("paper", 518, 50)
    assert (plan.evaluation["aupro_convention"], plan.evaluation["fpr_limit"]) == ("exact", 0.3)
    for name in plan.datasets:
        assert plan.source(name).benchmark == name


def test_recipe_arguments():
    """Recipe, then plan, then the setting of a row. Datasets, backbone, seed and output of the recipe are not used."""
    plan = tiny_plan(training={"learning_rate": 0.5})
    recipe = json.loads(recipe_path("tiny").read_text())
    fields = training_fields(plan)
    assert (fields["max_steps"], fields["learning_rate"]) == (2, 0.5)
    assert fields["num_train_epochs"] == recipe["num_train_epochs"]
    assert {"clip", "train_data", "eval_data", "output_dir", "seed", "image_size", "top_k"}.isdisjoint(fields)
    found = model_fields(plan, {"top_k": 2})
    assert found == {
        "variant": "paper", "fgp_scaled": False, "image_size": 64, "feature_layers": recipe["feature_layers"],
        "top_k": 2, "smoothing_sigma": 1.0,
    }  # fmt: skip
    assert {"image_size", "feature_layers", "top_k", "variant", "fgp_scaled"}.isdisjoint(fields)


def test_settings_of_the_rows():
    """Which modules each row has. Static prompts (w/o ICA) and no FGP are ViP²-CLIP_re of Figure 5."""
    expected = {  # UTPA, ICA, FGP
        "none": (0, 0, 0), "ica": (0, 1, 0), "fgp": (0, 0, 1), "ica+fgp": (0, 1, 1), "utpa+ica": (1, 1, 0),
        "utpa+fgp": (1, 0, 1), "full": (1, 1, 1), "dual": (0, 0, 0), "utpa": (1, 0, 0),
    }  # fmt: skip
    assert set(expected) == {*TABLE_4, *TABLE_5}
    for setting, (utpa, ica, fgp) in expected.items():
        found = overrides_of(setting)
        assert found.get("alignment", "unified") == ("unified" if utpa else "dual"), setting
        assert found.get("use_image_conditioning", True) == bool(ica), setting
        assert found.get("use_fine_grained_perception", True) == bool(fgp), setting
    assert overrides_of("perfect/flawed") == {"normal_word": "perfect", "anomalous_word": "flawed"}
    assert overrides_of("top_k=20") == {"top_k": 20}
    plan = tiny_plan()
    assert rows_of("4", plan) == list(TABLE_4)
    assert rows_of("5", plan) == ["dual", "utpa"]
    assert rows_of("6", plan) == [FULL, "normal/abnormal"]
    assert words_setting(("good", "damaged")) == FULL
    assert [top_k_setting(count, plan) for count in (1, 5)] == ["top_k=1", FULL]


# Reading


def test_leave_one_out():
    plan = tiny_plan(datasets={"a": "A", "b": "B", "c": "C"})
    assert plan.protocol == (
        Direction(("b", "c"), ("a",)), Direction(("a", "c"), ("b",)), Direction(("a", "b"), ("c",)),
    )  # fmt: skip
    assert plan.ablations == ("a", "b", "c")
    assert plan.direction("absent") is None
    assert tiny_plan(protocol="leave-one-out") == tiny_plan()


def test_leave_one_out_needs_two_datasets():
    assert "expected at least two" in refused(datasets={"a": "A"})


def test_data_replaces_the_datasets_of_leave_one_out():
    content = tiny_content(ablations=["one"], efficiency={"dataset": "two"})
    plan = make_plan(content, "tiny", data=["parts=P", "folder/screws"])
    assert plan.datasets == {"parts": "P", "screws": "folder/screws"}
    assert plan.ablations == ("parts", "screws")
    assert plan.efficiency["dataset"] is None
    assert plan.direction("parts") == Direction(("screws",), ("parts",))
    with pytest.raises(ValueError, match="There is one dataset; expected at least two"):
        make_plan(content, data=["parts=P"])
    with pytest.raises(ValueError, match="Several datasets have the same name: parts, parts; expected NAME=ROOT"):
        make_plan(content, data=["parts=P", "folder/parts"])


def test_data_sets_folders_of_the_paper_plan():
    plan = read_plan("paper", data=["visa=other/VisA"])
    assert plan.datasets["visa"] == "other/VisA"
    assert {**plan.datasets, "visa": "data/VisA"} == read_plan("paper").datasets
    with pytest.raises(ValueError, match=r"--data contains the unknown key 'vista'; did you mean 'visa'\?"):
        read_plan("paper", data=["vista=V"])


def test_seeds():
    assert tiny_plan(seeds=None).seeds == (111,)
    assert read_plan("small").seeds == (111, 112)
    assert read_plan("small", seeds=[7, 8, 9]).seeds == (7, 8, 9)
    for wrong in ([], [-1], [1, 1], [1.5], [True], 3, "1"):
        assert refused(seeds=wrong).startswith(f"seeds is {wrong!r}; expected different integers")
    assert tiny_plan(seeds=[0]).seeds == (0,)


def test_rows():
    plan = tiny_plan(rows={"4": ["none", "full"], "6": ["normal/abnormal"]})
    assert plan.rows == {"4": ("none", "full"), "6": ("normal/abnormal",)}
    assert tiny_plan(rows={4: ["full"]}).rows == {"4": ("full",)}  # a number in YAML
    assert refused(rows={"3": ["full"]}).startswith("Rows contains the unknown key '3'")
    assert refused(rows={"4": ["utpa+icq"]}) == (
        "Rows of table 4 contains the unknown key 'utpa+icq'; did you mean 'utpa+ica'?"
    )
    assert "'dual'; expected none, ica" in refused(rows={"4": ["dual"]})
    for wrong in ("full", 5, {"full": 1}):
        assert refused(rows={"4": wrong}) == f"rows.4 is {wrong!r}; expected a list of settings."


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_files(name, tmp_path):
    content = tiny_content()
    text = json.dumps(content) if name.endswith("json") else yaml.safe_dump(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    plan = read_plan(tmp_path / name)
    assert plan.name == "plan"
    assert plan.to_dict() == tiny_plan().to_dict()
    assert read_plan(str(tmp_path / name), data=["a=A", "b=B"]).datasets == {"a": "A", "b": "B"}


def test_files_that_are_not_plans(tmp_path):
    with pytest.raises(OSError, match=r"Plan 'smal' not found; expected paper, small or a YAML or JSON file\."):
        read_plan("smal")
    path = tmp_path / "plan.yaml"
    for text, message in (
        ("a: [", "is not a valid YAML or JSON file"),
        ("- 1", "contains a list; expected an object with the keys of a plan"),
        ("", "contains a NoneType; expected an object"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_plan(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match="is not a valid YAML or JSON file"):
        read_plan(path)


# Wrong plans


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "The plan contains the unknown key 'sedes'; did you mean 'seeds'?"),
        ({"zzz": 1}, "The plan contains the unknown key 'zzz'; expected backbone, datasets, recipe, "),
        ({"training": {"learning_rat": 1}}, "Training contains the unknown key 'learning_rat'; did you mean "
                                            "'learning_rate'?"),
        ({"model": {"topk": 1}}, "Model contains the unknown key 'topk'; did you mean 'top_k'?"),
        ({"generated": {"num_norma": 1}}, "Generated contains the unknown key 'num_norma'; did you mean "
                                          "'num_normal'?"),
        ({"efficiency": {"repeat": 1}}, "Efficiency contains the unknown key 'repeat'; did you mean 'repeats'?"),
        ({"evaluation": {"batchsize": 1}}, "Evaluation contains the unknown key 'batchsize'; did you mean "
                                           "'batch_size'?"),
        ({"recipe": "tinny"}, "Recipe contains the unknown key 'tinny'; did you mean 'tiny'?"),
        ({"ablations": ["onee"]}, "Ablations contains the unknown key 'onee'; did you mean 'one'?"),
        ({"efficiency": {"dataset": "onee"}}, "Efficiency.dataset contains the unknown key 'onee'; did you mean "
                                              "'one'?"),
        ({"efficiency": {"variants": ["float23"]}}, "Efficiency.variants contains the unknown key 'float23'; did you "
                                                    "mean 'float32'?"),
        ({"protocol": [{"train": ["one"], "evaluated": ["two"]}]}, "Protocol contains the unknown key 'evaluated'; "
                                                                  "did you mean 'evaluate'?"),
    ],
)  # fmt: skip
def test_unknown_keys(changes, message):
    assert refused(**changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": None}, "backbone is missing from the plan; expected the folder or Hub id of a CLIP checkpoint"),
        ({"datasets": None}, "datasets is missing from the plan; expected the folder of each dataset by name."),
        ({"recipe": None}, "recipe is missing from the plan; expected one of mvtec, visa, tiny."),
        ({"backbone": 5}, "backbone is 5; expected the folder or Hub id of a CLIP checkpoint, or 'bundled'."),
        ({"datasets": ["one"]}, "datasets is ['one']; expected the folder of each dataset by name."),
        ({"training": [1]}, "training is [1]; expected training arguments by name."),
        ({"model": "x"}, "model is 'x'; expected fields of ViP2ClipConfig by name."),
        ({"rows": ["full"]}, "rows is ['full']; expected lists of settings by number of a table."),
        ({"evaluation": 1}, "evaluation is 1; expected settings by name."),
        ({"evaluation": {"batch_size": "8"}}, "evaluation.batch_size is '8'; expected "),
        ({"evaluation": {"batch_size": -8}}, "evaluation.batch_size is -8; expected "),
        ({"evaluation": {"batch_size": 0}}, "evaluation.batch_size is 0; expected "),
        ({"evaluation": {"batch_size": 1.5}}, "evaluation.batch_size is 1.5; expected "),
        ({"evaluation": {"num_workers": True}}, "evaluation.num_workers is True; expected "),
        ({"evaluation": {"aupro_convention": "paper"}}, "evaluation.aupro_convention is 'paper'; expected 'exact' or "
                                                        "'release'."),
        ({"generated": {"num_normal": 2.5}}, "generated.num_normal is 2.5; expected "),
        ({"generated": {"size": "64"}}, "generated.size is '64'; expected "),
        ({"efficiency": {"batch_sizes": 8}}, "efficiency.batch_sizes is 8; expected different integers of at least 1"),
        ({"efficiency": {"batch_sizes": [0]}}, "efficiency.batch_sizes is [0]; expected different integers"),
        ({"efficiency": {"variants": "float32"}}, "efficiency.variants is 'float32'; expected a list of "),
        ({"top_k": [0]}, "top_k is [0]; expected different integers of at least 1."),
        ({"top_k": 5}, "top_k is 5; expected different integers of at least 1."),
        ({"pictures": 0}, "pictures is [0]; expected"),
        ({"state_words": ["good"]}, "state_words contains 'good'; expected pairs of a normal and an anomalous word"),
        ({"state_words": [["good"]]}, "state_words contains ['good']; expected pairs"),
        ({"state_words": [["good", 1]]}, "state_words contains ['good', 1]; expected pairs"),
        ({"state_words": []}, "state_words is []; expected different pairs, at least one."),
        ({"state_words": 5}, "state_words contains 5; expected pairs"),
        ({"feature_cache": "yes"}, "feature_cache is 'yes'; expected true or false."),
        ({"ablations": "one"}, "ablations is 'one'; expected a list of datasets."),
        ({"training": {"seed": 5}}, "training contains 'seed', which the plan sets itself; remove it."),
        ({"training": {"output_dir": "x"}}, "training contains 'output_dir', which the plan sets itself; remove it."),
    ],
)  # fmt: skip
def test_wrong_values(changes, message):
    assert refused(**changes).startswith(message)


TWO = {"train": ["one"], "evaluate": ["two"]}


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ([{"train": ["one"], "evaluate": ["two", "one"]}], "protocol trains and evaluates on one; expected other "
                                                           "datasets."),
        ([TWO, TWO], "protocol evaluates on two more than once; expected one training for each."),
        ([{"train": ["one"], "evaluate": ["two", "two"]}], "protocol.evaluate is ['two', 'two']; expected different "
                                                           "datasets, at least one."),
        ([{"train": ["won"], "evaluate": ["two"]}], "Protocol.train contains the unknown key 'won'"),
        ([{"train": ["one"], "evaluate": ["tow"]}], "Protocol.evaluate contains the unknown key 'tow'; did you mean "
                                                    "'two'?"),
        ([{"train": ["one"]}], "protocol.evaluate is None; expected a list of datasets."),
        ([{"train": [], "evaluate": ["two"]}], "protocol.train is []; expected different datasets, at least one."),
        ([{"train": "one", "evaluate": ["two"]}], "protocol.train is 'one'; expected a list of datasets."),
        ("leave-two-out", "protocol is 'leave-two-out'; expected 'leave-one-out' or a list of train and evaluate."),
        (["one"], "protocol is ['one']; expected "),
        ([], "protocol is []; expected "),
    ],
)  # fmt: skip
def test_wrong_protocols(protocol, message):
    assert refused(protocol=protocol).startswith(message)
