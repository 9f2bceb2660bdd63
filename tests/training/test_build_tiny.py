import argparse
import json

import numpy as np
import pytest
import torch

from training.build_tiny import adapters, common, crops, study, tower
from vip2clip_hf import AnomalyDetectionPipeline
from vip2clip_hf.data.synthetic.dataset import ALL, generate_image, write_dataset
from vip2clip_hf.data.synthetic.defects import DEFECTS
from vip2clip_hf.data.synthetic.scenes import SCENES


@pytest.mark.parametrize("kind", SCENES)
def test_scenes(kind):
    images = [np.asarray(generate_image(kind, None, 64, seed=seed)[0]) for seed in range(6)]
    assert len({image.tobytes() for image in images}) == 6
    assert np.std([image.mean() for image in images]) > 5  # varied light and colours
    again = np.asarray(generate_image(kind, None, 64, seed=0)[0])
    assert np.array_equal(images[0], again)
    for defect in DEFECTS:
        changed, mask = (np.asarray(image) for image in generate_image(kind, defect, 64, seed=1))
        marked = mask > 0
        assert marked.any()
        assert not (changed != images[1]).any(axis=-1)[~marked].any()  # the mask is exact


def test_crops_are_reproducible(tmp_path):
    root = write_dataset(tmp_path / "photos", ("weave",), num_normal=2, num_anomalous=1, size=64)
    one = crops.make_crops(6, 3, [root])
    assert one.shape == (6, common.CROP, common.CROP, 3)
    np.testing.assert_array_equal(one, crops.make_crops(6, 3, [root]))
    assert not np.array_equal(one, crops.make_crops(6, 3, []))
    assert set(study.SYNTHETIC_TRAIN) | set(study.SYNTHETIC_HELD_OUT) <= set(ALL)
    assert not set(study.SYNTHETIC_TRAIN) & set(study.SYNTHETIC_HELD_OUT)


def test_choice_does_not_use_the_dataset_left_out():
    def results(first, second):
        metrics = dict.fromkeys(study.METRICS, 0.5)
        found = {}
        for pair, value in (("a -> b", first), ("b -> a", first), ("a -> c", second), ("c -> a", second)):
            for epoch in study.EPOCHS:
                found[f"{pair}, {epoch}"] = {**metrics, "image_auroc": value}
        return found

    # The first candidate is better on a and b, the second on a and c.
    found = {0: results(0.9, 0.1), 1: results(0.2, 0.95)}
    assert study.choose(found, "c")[0] is study.CANDIDATES[0]
    assert study.choose(found, "b")[0] is study.CANDIDATES[1]


@pytest.mark.slow
def test_all_stages(clip_folder, tmp_path, monkeypatch, capsys):
    """Run all stages on small data: train a tower and resume it, run the study, and build a working checkpoint."""
    tower_options = argparse.Namespace(
        teacher=str(clip_folder), output=str(tmp_path / "tower"), data=None, steps=3, batch_size=4, crops=40,
        learning_rate=1e-3, bf16=False, seed=0,
    )  # fmt: skip
    tower.build_tower(tower_options)
    tower_options.steps = 5
    tower.build_tower(tower_options)
    assert "Resuming at step 3." in capsys.readouterr().out
    assert [entry["step"] for entry in json.loads((tmp_path / "tower" / "log.json").read_text())] == [3, 5]

    monkeypatch.setattr(study, "CANDIDATES", study.CANDIDATES[-1:])
    monkeypatch.setattr(study, "EPOCHS", (1,))
    monkeypatch.setattr(study, "SEEDS", (1,))
    monkeypatch.setattr(study, "PER_SET", 8)
    monkeypatch.setattr(study, "SYNTHETIC_TRAIN", ("weave",))
    monkeypatch.setattr(study, "SYNTHETIC_HELD_OUT", ("dots",))
    roots = [
        str(write_dataset(tmp_path / name, (category,), num_normal=3, num_anomalous=1, size=64))
        for name, category in (("one", "waves"), ("two", "grains"), ("three", "stripes"))
    ]
    options = argparse.Namespace(
        tower=str(tmp_path / "tower"), teacher=None, data=roots, output=str(tmp_path / "study"), hold_out=["000.png"],
        checkpoint=str(tmp_path / "tiny"), variant="paper", image_size=224, rates=[1e-3, 1e-3], epochs=1, seed=1,
        layers=(2, 3, 5, 6), crops=40,
    )  # fmt: skip
    study.evaluate_study(options)
    assert "local contrast, three" in capsys.readouterr().out
    adapters.build_adapters(options)
    card = (tmp_path / "tiny" / "README.md").read_text(encoding="utf-8")
    assert "| one | **this tower, trained adapters** |" in card
    assert "{" not in card
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "tiny", device="cpu")
    assert 0 <= detector(generate_image("dots", "blob", 64)[0])["score"] <= 1
    names = [entry["name"] for entry in detector.model.provenance.training_sets]
    assert names == ["generated pictures", "one", "two", "three"]
    assert torch.isfinite(detector.model.clip.vision_model.embeddings.patch_embedding.weight).all()
