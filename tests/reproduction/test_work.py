import math
import shutil

import pytest

from helpers.reproduction import tiny_plan
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.reproduction.datasets import PlanDatasets
from vip2clip_hf.reproduction.measured import CellKey
from vip2clip_hf.reproduction.plan import Plan, read_plan
from vip2clip_hf.reproduction.work import (
    TARGETS,
    Work,
    efficiency_dataset,
    measured_cells,
    needs_of,
    parse_targets,
    plan_work,
)


def work_of(plan: Plan, folder, targets=TARGETS, backbone="backbone", known=None, detectors=None) -> Work:
    data = PlanDatasets(plan, folder)
    needs = needs_of(plan, targets, data, list(detectors or {}))
    return plan_work(plan, needs, data, backbone, known or {}, detectors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the generated datasets, which are written once."""
    return tmp_path_factory.mktemp("data")


# Targets


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tables", "4", "5", "figures", "6"], ["table 4", "table 5", "figure 6"]),
        (["table4"], ["table 4"]),
        (["Table", "4"], ["table 4"]),
        (["table 4", "figure 6"], ["table 4", "figure 6"]),
        (["tables", "1,2,", "3"], ["table 1", "table 2", "table 3"]),
        (["4"], ["table 4"]),
        (["figure3", "7"], ["figure 3", "figure 7"]),
        (["figures", "7", "tables", "6", "6"], ["table 6", "figure 7"]),
        (["tables"], [f"table {number}" for number in range(1, 7)]),
        (["figures"], [f"figure {number}" for number in range(3, 8)]),
        (["tables", "1", "figures"], ["table 1", *(f"figure {number}" for number in range(3, 8))]),
        (["tables", "figures"], list(TARGETS)),
        (["tables", "figures", "6"], [*(f"table {number}" for number in range(1, 7)), "figure 6"]),
        (["all"], list(TARGETS)),
        (["table", "1", "all"], list(TARGETS)),
    ],
)
def test_targets(words, expected):
    assert parse_targets(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No table or figure is given; expected table 1, "),
        ([" ", ","], "No table or figure is given"),
        (["tables", "7"], "table 7 is not reproduced; expected table 1, .*figure 7 or all"),
        (["figures", "1"], "figure 1 is not reproduced"),
        (["table", "12"], "table 12 is not reproduced"),
        (["chart", "4"], "'chart' is not a table or figure; expected table 1, "),
        (["tables", "4a"], "'4a' is not a table or figure"),
        (["all4"], "'all4' is not a table or figure"),
    ],
)
def test_wrong_targets(words, message):
    with pytest.raises(ValueError, match=message):
        parse_targets(words)


# Needs


def test_needs(folder):
    plan = tiny_plan(ablations=["two"], rows={"4": ["none", "full"]})
    data = PlanDatasets(plan, folder)

    def needs(*targets, **options):
        return [(one.setting, one.dataset, one.evaluated) for one in needs_of(plan, targets, data, **options)]

    both = [("full", "one", True), ("full", "two", True)]
    assert needs("table 1") == both
    assert needs("table 1", detectors=["mine"]) == [*both, ("mine", "one", True), ("mine", "two", True)]
    assert needs("table 2") == []  # no medical dataset
    assert needs("table 3") == [("full", "one", False)]
    assert needs("table 4") == [("none", "two", True), ("full", "two", True)]
    assert needs("table 5") == [("dual", "two", True), ("utpa", "two", True)]
    assert needs("table 6") == [("full", "two", True), ("normal/abnormal", "two", True)]
    assert needs("figure 3") == needs("figure 7") == [("full", "two", False)]
    assert needs("figure 4", detectors=["mine"])[2:] == [("mine", "one", False), ("mine", "two", False)]
    assert needs("figure 5") == [*both, ("utpa", "one", True), ("utpa", "two", True)]
    assert needs("figure 6") == [("top_k=1", "two", True), ("full", "two", True)]
    assert needs("table 4", "figure 3") == [*needs("table 4"), *needs("figure 3")]
    assert efficiency_dataset(tiny_plan(efficiency={"dataset": "two"})) == "two"


def test_needs_of_the_paper(tmp_path):
    """Industrial benchmarks in Table 1, medical ones in Table 2; without any data on disk."""
    plan = read_plan("paper")
    data = PlanDatasets(plan, tmp_path)
    assert [one.dataset for one in needs_of(plan, ["table 1"], data)] == list(plan.datasets)[:7]
    assert [one.dataset for one in needs_of(plan, ["table 2"], data)] == list(plan.datasets)[7:]
    assert {one.dataset for one in needs_of(plan, ["figure 4"], data)} == set(plan.datasets)
    work = plan_work(plan, needs_of(plan, TARGETS, data), data, "", {})
    assert work.units == {}
    assert work.problems["full", "visa"] == "data not found: data/VisA; data not found: data/MVTec"
    assert work.problems["none", "visa"] == "data not found: data/VisA"  # it is not trained


# Trainings


def test_a_shared_setting_is_trained_once(tmp_path_factory):
    """
    All of the plan small, counted by hand: 7 settings of Table 4 (of them, none is not trained), 2 of Table 5, the 3
    other words of Table 6, and 5 other K of Figure 6 are 16 trainings for each of 2 directions and 2 seeds.
    """
    plan = tiny_plan(
        **{name: getattr(read_plan("small"), name) for name in ("seeds", "top_k", "state_words")},
    )
    work = work_of(plan, tmp_path_factory.mktemp("data"))
    trained = ["ica", "fgp", "ica+fgp", "utpa+ica", "utpa+fgp", "full", "dual", "utpa", "normal/abnormal",
               "perfect/flawed", "flawless/imperfect", "top_k=1", "top_k=3", "top_k=10", "top_k=20",
               "top_k=50"]  # fmt: skip
    assert len(trained) == 16
    keys = [(unit.key.setting, unit.key.train, unit.key.seed) for unit in work.units.values()]
    assert sorted(keys) == sorted(
        [(one, (name,), seed) for one in trained for name in ("one", "two") for seed in (111, 112)]
        + [("none", (), seed) for seed in (111, 112)]
    )
    for unit in work.units.values():
        # The frozen CLIP is the same for both datasets. A trained model belongs to one.
        assert len(unit.evaluations) == (2 if unit.key.setting == "none" else 1)
        assert unit.keep == (unit.key.setting == "full" and unit.key.seed == 111)
    (full,) = (unit for unit in work.units.values() if unit.keep and unit.key.train == ("two",))
    assert full.targets == ["table 1", "table 3", "table 4", "table 6", "figure 3", "figure 4", "figure 5",
                            "figure 6", "figure 7"]  # fmt: skip
    assert full.title == "full, trained on two, seed 111"
    assert work.models["full", "one"] == full.key.digest
    assert [seed for seed, _ in work.cells["full", "one"]] == [111, 112]


def test_the_order_of_targets_does_not_matter(folder):
    plan = tiny_plan()
    whole = work_of(plan, folder)
    for target in TARGETS:
        part = work_of(plan, folder, [target])
        assert set(part.units) <= set(whole.units)
        for cell, digests in part.cells.items():
            assert whole.cells[cell] == digests


def full_digests(plan, folder, **options) -> tuple[str, str]:
    """Hash of the training and of the evaluation of the full model on dataset two."""
    work = work_of(plan, folder, ["table 4"], **options)
    ((_, evaluation),) = work.cells["full", "two"]
    return work.models["full", "two"], evaluation


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [2]}, {"training": {"learning_rate": 0.5}}, {"training": {"max_steps": 3}},
        {"training": {"per_device_train_batch_size": 2}}, {"training": {"bf16": True}},
        {"model": {"image_size": 80}}, {"model": {"top_k": 4}}, {"model": {"temperature": 0.1}},
        {"recipe": "mvtec"}, {"feature_cache": False},
    ],
)  # fmt: skip
def test_a_changed_setting_changes_the_hash(changes, folder):
    before, after = (full_digests(plan, folder) for plan in (tiny_plan(), tiny_plan(**changes)))
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"dataloader_num_workers": 2}}, {"training": {"save_strategy": "steps"}},
        {"training": {"logging_steps": 7}}, {"training": {"disable_tqdm": True}}, {"pictures": 2},
        {"evaluation": {"batch_size": 3, "num_workers": 1, "feature_memory": 0}}, {"efficiency": {"repeats": 3}},
        {"rows": {"4": ["full"]}}, {"state_words": [["good", "damaged"]]}, {"top_k": [5]},
        {"datasets": {"two": "generated: dots", "one": "generated: stripes"}},
        {"protocol": [{"train": ["one"], "evaluate": ["two"]}], "ablations": ["two"]},
        {"model": {"top_k": 5}},
    ],
)  # fmt: skip
def test_how_a_plan_runs_does_not_change_the_hash(changes, folder):
    assert full_digests(tiny_plan(), folder) == full_digests(tiny_plan(**changes), folder)


@pytest.mark.parametrize("changes", [{"fpr_limit": 0.1}, {"aupro_convention": "release"}])
def test_the_metrics_change_the_evaluation_only(changes, folder):
    before, after = (full_digests(plan, folder) for plan in (tiny_plan(), tiny_plan(evaluation=changes)))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_backbone_changes_the_hash(folder):
    before, after = (full_digests(tiny_plan(), folder, backbone=name) for name in ("a", "b"))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_the_contents_of_the_data_change_the_hash(tmp_path):
    """Names and places of folders do not."""
    roots = {"one": tmp_path / "stripes", "two": tmp_path / "dots"}
    for name, root in roots.items():
        write_dataset(root, (root.name,), 2, 1, 32, seed=len(name))

    def digests(roots, **names):
        datasets = {names.get(name, name): str(root) for name, root in roots.items()}
        return full_digests(tiny_plan(datasets=datasets), tmp_path / "unused")

    before = digests(roots)
    assert digests(roots) == before
    moved = {name: shutil.copytree(root, tmp_path / "moved" / name) for name, root in roots.items()}
    assert digests(moved) == before
    assert digests(moved, one="other") == before
    # One more image to train on: another training. One more to evaluate on: the same training.
    picture = moved["one"] / "stripes" / "test" / "good" / "000.png"
    shutil.copy(picture, picture.with_name("extra.png"))
    after = digests(moved)
    assert after[0] != before[0]
    assert after[1] != before[1]
    picture.with_name("extra.png").unlink()
    assert digests(moved) == before
    picture = moved["two"] / "dots" / "test" / "good" / "000.png"
    picture.write_bytes(picture.read_bytes() + b" ")
    after = digests(moved)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_detectors_of_the_user(folder):
    plan = tiny_plan(seeds=[1, 2])
    detectors = {"plain": {"trained": False, "settings": 1}, "trained": {"trained": True, "settings": None}}
    work = work_of(plan, folder, ["table 1", "figure 4"], detectors=detectors)
    (plain,) = (unit for unit in work.units.values() if unit.detector == "plain")
    assert (plain.key.train, len(plain.evaluations), plain.keep) == ((), 2, True)
    assert [seed for seed, _ in work.cells["plain", "one"]] == [1]  # without training, seeds do not differ
    trained = [unit for unit in work.units.values() if unit.detector == "trained"]
    assert sorted((unit.key.train, unit.key.seed) for unit in trained) == [
        (("one",), 1), (("one",), 2), (("two",), 1), (("two",), 2),
    ]  # fmt: skip
    changed = {**detectors, "plain": {"trained": False, "settings": 2}}
    assert plain.key.digest not in work_of(plan, folder, ["table 1"], detectors=changed).units
    assert plain.key.digest in work_of(plan, folder, ["table 1"], detectors=detectors).units


def test_a_dataset_outside_of_the_protocol(folder):
    plan = tiny_plan(protocol=[{"train": ["one"], "evaluate": ["two"]}])
    work = work_of(plan, folder, ["table 4"])
    assert work.problems["full", "one"] == "the protocol does not evaluate on one"
    assert ("full", "two") in work.cells


def test_a_dataset_that_is_not_there_any_more(folder, tmp_path):
    """Its finished results are still found, by the fingerprints of earlier runs."""
    plan = tiny_plan()
    data = PlanDatasets(plan, folder)
    known = {name: data.fingerprint(name) for name in plan.datasets}
    root = str(tmp_path / "absent")
    gone = tiny_plan(datasets={"one": "generated: stripes", "two": root})
    work = work_of(gone, folder, ["table 4"], known=known)
    assert work.cells == work_of(plan, folder, ["table 4"]).cells
    assert work.problems["full", "one"] == f"data not found: {root}"  # cannot be trained
    assert ("none", "one") not in work.problems
    assert work_of(gone, folder, ["table 4"]).cells.keys() == {("none", "one")}


# Cells


def result(**mean) -> dict:
    values = {"image_auroc": 0.5, "image_ap": 0.6, "image_f1": 0.7, "pixel_auroc": 0.8, "pixel_aupro": 0.9,
              "pixel_aupro_release": 0.4, "pixel_f1": 0.3, "undefined": {}}  # fmt: skip
    return {"benchmark": None, "categories": {}, "mean": {**values, **mean}}


def test_cells():
    work = Work(cells={("full", "one"): [(1, "a"), (2, "b")]})
    found = measured_cells(work, {"a": result(), "b": result(pixel_aupro=math.nan)}, {})
    image, pixel = (found[CellKey("full", "one", level)] for level in ("image", "pixel"))
    assert image.triples == (pytest.approx((50, 60, 70)),) * 2
    assert (image.seeds, image.note, image.not_compared) == ((1, 2), None, None)
    assert pixel.triples[0] == pytest.approx((80, 90, 30))
    assert math.isnan(pixel.triples[1][1])


def test_cells_without_results():
    cells = {("full", name): [(1, f"{name} 1"), (2, f"{name} 2")] for name in ("open", "half", "failed", "gone")}
    work = Work(cells=cells, problems={("full", "gone"): "data not found: G", ("full", "other"): "data not found: O"})
    failures = {"failed 1": "failed: A", "failed 2": "failed: A", "half 2": "failed: B"}
    found = measured_cells(work, {"half 1": result(), "open 1": None}, failures)
    notes = {key.dataset: (one.note, one.seeds) for key, one in found.items() if key.level == "image"}
    assert notes == {
        "open": ("not computed yet", ()), "half": ("failed: B", (1,)), "failed": ("failed: A", ()),
        "gone": ("data not found: G", ()), "other": ("data not found: O", ()),
    }  # fmt: skip


def test_aupro_of_a_benchmark_is_in_the_convention_of_the_paper():
    category = {"num_images": 3, "num_anomalous_images": 1, "num_maps": 3}
    benchmark = {**result(), "benchmark": "ksdd", "split": "test", "categories": {"ksdd": category},
                 "settings": {"fpr_limit": 0.3}}  # fmt: skip
    work = Work(cells={("full", "ksdd"): [(1, "a")], ("full", "own"): [(1, "b")]})
    found = measured_cells(work, {"a": benchmark, "b": result()}, {})
    assert found[CellKey("full", "ksdd", "pixel")].triples[0][1] == pytest.approx(40)
    assert found[CellKey("full", "own", "pixel")].triples[0][1] == pytest.approx(90)
    # These are other images than the published ones.
    assert found[CellKey("full", "ksdd", "image")].not_compared is not None
    assert found[CellKey("full", "own", "image")].not_compared is None
