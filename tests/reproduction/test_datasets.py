import threading
from pathlib import Path

import pytest
from PIL import Image

from helpers.reproduction import tiny_plan
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.reproduction.datasets import PlanDatasets
from vip2clip_hf.reproduction.plan import read_plan


@pytest.fixture
def data(tmp_path) -> PlanDatasets:
    return PlanDatasets(tiny_plan(), tmp_path / "data")


def test_generated(data, tmp_path):
    assert data.problem("one") is None
    assert sorted(set(data["one"]["category"])) == ["stripes"]
    assert len(data["one"]) == 6
    assert Path(data.source("one").root).parent == tmp_path / "data"
    assert Path(data.source("one").root).name.startswith("one-")
    # A second run reads what is there, and another folder gets the same images.
    again, other = PlanDatasets(data.plan, data.folder), PlanDatasets(data.plan, tmp_path / "other")
    assert data.fingerprint("one") == again.fingerprint("one") == other.fingerprint("one")
    assert data.fingerprint("one") != data.fingerprint("two")
    several = PlanDatasets(tiny_plan(datasets={"a": "generated: dots, weave", "b": "generated: dots"}), tmp_path / "c")
    assert sorted(set(several["a"]["category"])) == ["dots", "weave"]
    # Datasets of one category with different names have different images.
    assert several["b"][0]["image_id"] == data["two"][0]["image_id"]
    assert several.fingerprint("b") != data.fingerprint("two")


def test_several_programs_generate_data(tmp_path):
    """They start at the same time. One writes the images, and the others wait for them."""
    plan = tiny_plan()
    found: list[str | None] = []
    together = threading.Barrier(4)

    def load():
        data = PlanDatasets(plan, tmp_path / "data")
        together.wait(timeout=30)
        found.append(data.problem("one"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert found == [None] * 4


@pytest.mark.parametrize(("words", "found"), [("dots, dogs", "dogs"), ("", "nothing"), (" , ", "nothing")])
def test_wrong_categories(words, found, tmp_path):
    plan = tiny_plan(datasets={"one": f"generated: {words}", "two": "generated: dots"})
    data = PlanDatasets(plan, tmp_path)
    assert data.problem("one").startswith(f"data not readable: datasets.one generates {found}; expected some of str")
    with pytest.raises(OSError, match=f"Dataset 'one': data not readable: datasets.one generates {found}"):
        data["one"]


def test_folders_with_problems(tmp_path):
    (tmp_path / "empty").mkdir()
    plan = tiny_plan(datasets={"one": str(tmp_path / "empty"), "two": str(tmp_path / "absent")})
    data = PlanDatasets(plan, tmp_path / "data")
    assert data.problem("one").startswith("data not readable: ")
    assert not data.problem("one").endswith(".")
    assert data.problem("two") == f"data not found: {tmp_path / 'absent'}"
    with pytest.raises(OSError, match="Dataset 'two': data not found"):
        data["two"]
    assert not (tmp_path / "data").exists()
    assert data.downloads(["one", "two"]) == []  # not benchmarks


def test_fingerprints(tmp_path):
    """Ids, labels and file sizes of images and masks count."""
    root = write_dataset(tmp_path / "set", ("dots",), 2, 1, 32)
    plan = tiny_plan(datasets={"one": str(root), "two": "generated: dots"})

    def fingerprint() -> str:
        return PlanDatasets(plan, tmp_path / "data").fingerprint("one")

    seen = {fingerprint()}
    assert {fingerprint()} == seen
    picture = root / "dots" / "test" / "good" / "000.png"
    picture.rename(picture.with_name("renamed.png"))
    seen.add(fingerprint())
    mask = next((root / "dots" / "ground_truth").rglob("*.png"))
    Image.effect_noise((32, 32), 90).convert("L").save(mask)
    seen.add(fingerprint())
    picture.with_name("renamed.png").unlink()
    seen.add(fingerprint())
    assert len(seen) == 4


def test_training_set(data):
    joined, described = data.training_set(("one", "two"))
    assert len(joined) == 12
    assert set(joined["category"]) == {"one/stripes", "two/dots"}
    assert [one["name"] for one in described] == ["one", "two"]
    alone, (one,) = data.training_set(("one",))
    assert set(alone["category"]) == {"stripes"}
    assert one == described[0]
    assert one["num_images"] == 6


def test_table_sets(data, tmp_path):
    found = data.table_set("one")
    assert (found.name, found.benchmark, found.domain, found.num_categories) == ("one", None, "own", 1)
    assert found.has_masks
    paper = PlanDatasets(read_plan("paper"), tmp_path)
    sets = {name: paper.table_set(name) for name in paper.plan.datasets}
    assert [name for name, one in sets.items() if one.domain == "medical"] == list(sets)[7:]
    assert (sets["visa"].title, sets["visa"].benchmark, sets["visa"].num_categories) == ("VisA", "visa", 12)
    assert [name for name, one in sets.items() if not one.has_masks] == ["headct", "brainmri", "br35h"]
    lines = paper.downloads(list(sets))
    assert len(lines) == 15
    assert lines[1].startswith("Download VisA to data/VisA from http")
