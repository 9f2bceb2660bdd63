import shutil

import pytest

from helpers.tiny import TINY, tiny_config
from vip2clip_hf import Provenance, ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set, find_training_overlap
from vip2clip_hf.data.synthetic.dataset import write_dataset


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=6, num_anomalous=2, size=48)


def test_describe(root):
    entry = describe_training_set(load_folder(root), "mine")
    assert entry["categories"] == ["stripes", "weave"]
    assert (entry["name"], entry["benchmark"], entry["split"]) == ("mine", None, "test")
    assert (entry["num_images"], entry["num_anomalous_images"]) == (28, 16)
    hashes = entry["image_hashes"].split()
    assert hashes == sorted(hashes)
    assert all(len(one) == 8 for one in hashes)
    assert 25 <= len(hashes) <= 28
    assert str(root) not in str(entry)
    many = write_dataset(root.parent / "many", ("grains",), num_normal=20, num_anomalous=5, size=32)
    assert len(describe_training_set(load_folder(many), "many")["image_hashes"].split()) == 32


def test_a_checkpoint_stores_training_sets(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    model = ViP2ClipForAnomalyDetection(tiny_config())
    assert model.provenance == Provenance()
    model.provenance.training_sets.append(entry)
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "checkpoint")
    assert loaded.provenance == Provenance(training_sets=[entry])
    assert Provenance.from_pretrained(tmp_path / "checkpoint") == loaded.provenance
    # The adapters of another model were not trained on these images.
    assert ViP2ClipForAnomalyDetection.from_clip(loaded, **TINY).provenance == Provenance()


def test_overlap_of_renamed_images(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    assert find_training_overlap([entry], load_folder(root)) == [
        "trained on mine (about 100% of its images are in this dataset)"
    ]
    # A third of the images with other names.
    images = sorted(root.rglob("test/*/*.png"))
    for label in ("normal", "anomalous"):
        (tmp_path / "other" / label).mkdir(parents=True)
    chosen = [path for path in images if path.parent.name == "good"][:4]
    chosen += [path for path in images if path.parent.name != "good"][:5]
    for number, path in enumerate(chosen):
        label = "normal" if path.parent.name == "good" else "anomalous"
        shutil.copyfile(path, tmp_path / "other" / label / f"photo{number}.png")
    (found,) = find_training_overlap([entry], load_folder(tmp_path / "other"))
    share = int(found.split("about ")[1].split("%")[0])
    assert 15 <= share <= 50


def test_no_overlap_with_other_images(root, tmp_path):
    entry = describe_training_set(load_folder(root), "mine")
    other = write_dataset(tmp_path / "other", ("stripes", "weave"), num_normal=6, num_anomalous=2, size=48, seed=1)
    assert find_training_overlap([entry], load_folder(other)) == []
    assert find_training_overlap(None, load_folder(root)) == []
    assert find_training_overlap([{"name": "x"}], load_folder(root)) == []
    # The same benchmark without known images: another split or another download.
    entry["benchmark"] = "mvtec"
    assert find_training_overlap([entry], load_folder(other), "visa") == []
    assert find_training_overlap([entry], load_folder(other), "mvtec") == [
        "trained on the same benchmark, mvtec (test split)"
    ]
