import json

import pytest

from vip2clip_hf.reproduction.store import DONE, Store, provenance


@pytest.fixture
def store(tmp_path) -> Store:
    found = Store(tmp_path / "output")
    found.begin()
    return found


def train(store: Store, digest: str) -> None:
    folder = store.training_folder(digest)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint-2").mkdir()
    store.finish_training(digest, {"steps": 2})


def test_trainings(store):
    assert store.training("a") is None
    train(store, "a")
    done = store.training("a")
    assert done["steps"] == 2
    assert set(done["files"]) == {"config.json", "model.safetensors"}
    assert {"versions", "commit", "hardware", "time"} <= set(done)
    assert not (store.training_folder("a") / "checkpoint-2").exists()
    (store.training_folder("a") / DONE).write_text('{"steps": 2, ')  # not written completely
    assert store.training("a") is None
    train(store, "a")
    (store.training_folder("a") / "model.safetensors").unlink()
    assert store.training("a") is None


def test_an_interrupted_training_begins_again(store):
    """Only checkpoints are kept, with the record of their run. With half the batch, they are not used either."""
    folder = store.training_folder("a")
    assert store.begin_training("a", False) is False
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "training_run.json", ".training.lock"):
        (folder / name).write_text("x")
    (folder / ".vip2clip-1").mkdir()
    (folder / "checkpoint-2").mkdir()
    assert store.begin_training("a", False) is False
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "training_run.json"}
    (folder / "checkpoint-2").rmdir()
    store.begin_training("a", False)
    assert list(folder.iterdir()) == []
    (folder / "checkpoint-2").mkdir()
    assert store.begin_training("a", True) is True
    assert [path.name for path in folder.iterdir()] == [".halved"]
    (folder / "checkpoint-4").mkdir()
    # A later run continues with half the batch.
    assert store.begin_training("a", False) is True
    assert store.begin_training("a", True) is True
    assert (folder / "checkpoint-4").exists()


def test_results(store):
    store.progress_folder("a").mkdir(parents=True)
    store.finish_result("a", {"mean": {"image_auroc": float("nan")}})
    assert store.result("a")["mean"] == {"image_auroc": None}
    assert not store.progress_folder("a").exists()
    assert store.result("b") is None
    (store.folder / "results" / "b.json").write_text("[1]")
    assert store.result("b") is None
    store.finish_result("c", {"results": 1}, "efficiency")
    assert store.result("c") is None
    assert store.result("c", "efficiency")["results"] == 1
    train(store, "t")
    assert store.others(set(), set()) == 3
    assert store.others({"t"}, {"a", "b"}) == 0


def test_what_is_known(store):
    assert store.remembered() == {}
    store.remember({"backbone": {"bundled": "a"}})
    assert Store(store.folder).remembered() == {"backbone": {"bundled": "a"}}
    (store.folder / "known.json").write_text("{")
    assert store.remembered() == {}


def test_locks(store):
    lock = store.lock("a")
    assert lock is not None
    assert Store(store.folder).lock("a") is None
    other = store.lock("b")
    assert other is not None
    lock.release()
    again = Store(store.folder).lock("a", wait=True)
    assert again is not None
    for one in (again, other):
        one.release()


def test_provenance():
    found = provenance()
    assert found["versions"].keys() >= {"vip2clip_hf", "torch", "transformers"}
    assert found["hardware"].keys() == {"gpu", "cpu", "threads"}
    assert found["time"].endswith("+00:00")
    assert json.loads(json.dumps(found)) == found
