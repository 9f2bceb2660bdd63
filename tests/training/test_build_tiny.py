import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from training.build_tiny import adapters, recipe, study, tables
from training.build_tiny.__main__ import main, make_parser
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipConfig, ViP2ClipForAnomalyDetection
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.data.synthetic.defects import DEFECTS
from vip2clip_hf.data.synthetic.scenes import SCENES
from vip2clip_hf.training.named_recipes import recipe_path


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


def test_thresholds_are_those_of_the_datasets_left_out():
    def result(normal, anomalous, pixel_threshold):
        labels = [0] * len(normal) + [1] * len(anomalous)
        return {"0": {"scores": normal + anomalous, "labels": labels, "pixel_threshold": pixel_threshold}}

    results = {"a": result([0.1, 0.2], [0.4, 0.9], 0.3), "b": result([0.3, 0.45], [0.6, 0.7], 0.5)}
    image_threshold, pixel_threshold, rates = adapters.choose_thresholds(results)
    assert 0.3 <= image_threshold < 0.6  # any value there is best, or as good as the best
    assert pixel_threshold == pytest.approx(0.4)
    for name, (detected, alarms) in rates.items():
        found = np.array(results[name]["0"]["scores"]) > image_threshold
        assert (detected, alarms) == (found[2:].mean(), found[:2].mean())
    best = sum(detected - alarms for detected, alarms in rates.values())
    assert best == pytest.approx(1.5)


def test_spread_of_undefined_metrics():
    assert tables.spread([50.0, 52.0]) == "51.0 ± 1.4"
    assert tables.spread([50.0]) == "50.0"
    assert tables.spread([50.0, float("nan")]) == "nan ± nan"  # undefined, not an error


def test_only_the_backbone_is_stored_in_half(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"clip.one": torch.tensor([0.1, 2.0]), "prompts": torch.tensor([0.1])}, path, {"format": "pt"})
    adapters.store_backbone_in_half(path)
    stored = load_file(path)
    assert (stored["clip.one"].dtype, stored["prompts"].dtype) == (torch.float16, torch.float32)
    save_file({"clip.one": torch.tensor([1e6])}, path, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"clip\.one has values that are too large"):
        adapters.store_backbone_in_half(path)
    assert load_file(path)["clip.one"].dtype == torch.float32  # unchanged


def test_the_recipe_is_that_of_the_package(tmp_path):
    """`vip2clip train --recipe tiny` and the build train in the same way."""
    built, packaged = recipe.Recipe(), json.loads(recipe_path("tiny").read_text(encoding="utf-8"))
    assert packaged == {
        "clip": "random-tiny", "output_dir": "outputs/tiny", "variant": built.variant, **built.config,
        "image_size": built.image_size, "feature_layers": list(built.layers), "top_k": recipe.TOP_K,
        "num_train_epochs": built.epochs, "average_weights_from": built.average_from,
        "per_device_train_batch_size": recipe.BATCH_SIZE, "learning_rate": built.rates[0],
        "perception_learning_rate": built.rates[1],
    }  # fmt: skip
    assert ViP2ClipConfig().smoothing_sigma == recipe.SMOOTHING
    assert built.image_size == recipe.REFERENCE_SIZE  # neither is scaled


@pytest.mark.slow
def test_all_stages(tmp_path, monkeypatch, capsys):
    """Assemble a tower, run the study in two parts and again, and build a working checkpoint, on small data."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96,
                       image_size=48, patch_size=8)  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path / "vit")
    main(["tower", "--vit", str(tmp_path / "vit"), "--output", str(tmp_path / "tower")])
    small = recipe.Recipe(image_size=48, layers=(2, 4), epochs=2)
    monkeypatch.setattr(study, "RECIPE", small)
    monkeypatch.setattr(adapters, "RECIPE", small)
    monkeypatch.setattr(study, "ENTRIES", {study.SHIPPED: small})
    monkeypatch.setattr(study, "REFERENCES", (1, 2))
    monkeypatch.setattr(adapters, "REFERENCES", (1, 2))
    monkeypatch.setattr(recipe, "EXAMPLES", ("good/000.png",))
    monkeypatch.setattr(recipe, "ALL", ("weave",))
    roots = [
        str(write_dataset(tmp_path / name, (category,), num_normal=3, num_anomalous=1, size=64, num_train=3))
        for name, category in (("one", "waves"), ("two", "grains"), ("three", "stripes"))
    ]
    common = ["--tower", str(tmp_path / "tower"), "--data", *roots, "--output", str(tmp_path / "study")]
    for part in ("1/2", "2/2"):
        main(["study", *common, "--seeds", "1", "2", "--part", part])
    written = {path.name for path in (tmp_path / "study" / "results").iterdir()}
    assert {
        f"recipe,_{name}_left_out,_seed_{seed}.json" for name in ("one", "two", "three") for seed in (1, 2)
    } <= written
    capsys.readouterr()
    main(["study", *common, "--seeds", "1", "2"])
    assert "Wrote" not in capsys.readouterr().out  # nothing is computed again

    with pytest.raises(ValueError, match=r"--part is '3/2'; expected K/N"):
        main(["study", *common, "--part", "3/2"])
    main(["tower", "--vit", str(tmp_path / "vit"), "--output", str(tmp_path / "other"), "--seed", "5"])
    with pytest.raises(ValueError, match="contains results of another tower"):
        main(["study", "--tower", str(tmp_path / "other"), *common[2:]])
    options = make_parser().parse_args(["study", *common])
    assert "| **recipe** |" in tables.table_of_means(study.Study(options), [study.SHIPPED])
    main(["adapters", *common, "--checkpoint", str(tmp_path / "tiny"), "--seed", "1"])
    card = (tmp_path / "tiny" / "README.md").read_text(encoding="utf-8")
    assert "| one | zero-shot |" in card
    assert "| three | 2 references |" in card
    assert "{" not in card
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "tiny", device="cpu")
    assert 0 <= detector(generate_image("dots", "blob", 64)[0])["score"] <= 1
    names = [entry["name"] for entry in detector.model.provenance.training_sets]
    assert names == ["one", "two", "three", "generated"]
    assert detector.model.dtype == torch.float32
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["fgp_scaled"] is False
    first = load_file(tmp_path / "tiny" / "model.safetensors")
    shutil.rmtree(tmp_path / "tiny")
    main(["adapters", *common, "--checkpoint", str(tmp_path / "tiny"), "--seed", "1"])
    again = load_file(tmp_path / "tiny" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert isinstance(detector.model, ViP2ClipForAnomalyDetection)
