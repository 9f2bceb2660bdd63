"""The model card: metadata for the Hub, and a text that stays the same."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from helpers.tiny import tiny_config
from vip2clip_hf import ReferenceBank, save_checkpoint
from vip2clip_hf.checkpoints.card import GENERATED, describe_references, model_card, write_card
from vip2clip_hf.models.vip2clip.provenance_vip2clip import Provenance


def training_set(name: str, benchmark: str | None = None) -> dict:
    return {"name": name, "benchmark": benchmark, "split": "test", "num_images": 9, "num_anomalous_images": 3}


def result(name: str, trained_on: tuple[str, ...] = (), **values: float) -> dict:
    metrics = {"image_auroc": 0.912345, "image_ap": 0.9, "image_f1": 0.8, "pixel_auroc": 0.95, "pixel_ap": 0.4,
               "pixel_f1": 0.45, "pixel_aupro": 0.7, **values}  # fmt: skip
    mean = {"num_images": 9, "num_anomalous_images": 3, **metrics, "undefined": {}}
    return {"name": name, "benchmark": None, "trained_on": list(trained_on), "mean": mean, "categories": {"x": mean}}


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1))


def test_metadata_of_a_run():
    provenance = Provenance(
        backbone_id="org/clip", training_sets=[training_set("mvtec", "mvtec"), training_set("my own photos")]
    )
    seen = ["trained on mvtec (about 90% of its images are in this dataset)"]
    run = {"results": [result("visa"), result("mvtec", seen, pixel_ap=float("nan"))]}
    found = metadata(model_card(tiny_config(), run, provenance=provenance))
    expected = {
        "license": "unknown", "pipeline_tag": "anomaly-detection", "library_name": "transformers",
        "base_model": "org/clip", "datasets": ["mvtec"], "metrics": ["roc_auc", "average_precision", "f1", "aupro"],
        "tags": ["anomaly-detection", "zero-shot", "vip2clip"],
    }  # fmt: skip
    assert {name: value for name, value in found.items() if name != "model-index"} == expected
    (entry,) = found["model-index"]
    first, second = entry["results"]
    assert entry["name"] == "ViP2-CLIP"
    assert first["task"] == {"type": "anomaly-detection", "name": "Zero-shot anomaly detection"}
    assert first["dataset"] == {"type": "visa", "name": "visa"}
    assert first["metrics"][0] == {"type": "roc_auc", "value": 0.9123, "name": "image AUROC"}
    assert [metric["name"] for metric in first["metrics"]] == [
        "image AUROC", "image AP", "image F1", "pixel AUROC", "pixel AP", "pixel F1", "AUPRO",
    ]  # fmt: skip
    assert second["task"]["name"] == "Anomaly detection"  # not zero-shot
    assert second["dataset"] == {"type": "mvtec", "name": "mvtec (contains training data)"}
    assert "pixel AP" not in [metric["name"] for metric in second["metrics"]]  # undefined


def test_metadata_without_run():
    assert metadata(model_card(tiny_config())) == {
        "license": "unknown", "pipeline_tag": "anomaly-detection", "library_name": "transformers",
        "tags": ["anomaly-detection", "zero-shot", "vip2clip"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("benchmarks", "licence"),
    [
        (["mvtec"], "cc-by-nc-sa-4.0"), (["visa"], "cc-by-4.0"), (["mvtec", "mpdd"], "cc-by-nc-sa-4.0"),
        (["mvtec", "visa"], "unknown"), (["dtd"], "unknown"), ([None], "unknown"), (["visa", None], "unknown"),
    ],
)  # fmt: skip
def test_licence(benchmarks, licence):
    provenance = Provenance(training_sets=[training_set(name or "photos", name) for name in benchmarks])
    for run, expected in (({}, licence), ({"license": "apache-2.0"}, "apache-2.0")):
        assert metadata(model_card(tiny_config(), run, provenance=provenance))["license"] == expected


def test_names_that_the_hub_refuses():
    names = ["photos", "org/photos", "my photos", "/data/photos", "a/b/c", "-x"]
    provenance = Provenance(training_sets=[training_set(name) for name in names])
    assert metadata(model_card(tiny_config(), provenance=provenance))["datasets"] == ["photos", "org/photos"]


def test_the_library_reads_the_card():
    run = {"results": [result("a: 'b'"), result("c")]}
    card = ModelCard(model_card(tiny_config(), run, provenance=Provenance(backbone_id="org/clip")))
    assert card.data.base_model == "org/clip"
    assert {found.dataset_name for found in card.data.eval_results} == {"a: 'b'", "c"}
    assert len(card.data.eval_results) == 14


def test_text_of_the_card():
    """The metadata does not change the text, and the line that marks the card as generated is its first."""
    run = {"recipe": {"seed": 1}, "versions": {"torch": "2"}, "results": [result("visa")]}
    provenance = Provenance(training_sets=[training_set("mvtec", "mvtec")])
    text = model_card(tiny_config(), run, provenance=provenance).split("\n---\n", 1)[1]
    assert text.startswith(f"\n{GENERATED}\n\n# ViP²-CLIP\n\nThis model finds defects")
    sections = ["How to use", "Training data", "Training", "Evaluation", "Intended use and limits", "Citation"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == sections
    assert "- seed: 1\n- versions: torch 2" in text
    assert "| x " in text
    assert text.endswith("}\n```\n")
    assert "\r" not in text


def test_a_card_of_the_user_is_kept(tmp_path: Path):
    tiny_config().save_pretrained(tmp_path)
    write_card(tmp_path, {"results": [result("visa")]})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert metadata(card)["model-index"]
    write_card(tmp_path, {"results": [result("other")]})
    assert "### other" in (tmp_path / "README.md").read_text(encoding="utf-8")
    mine = card.replace(GENERATED, "")
    (tmp_path / "README.md").write_text(mine, encoding="utf-8")
    write_card(tmp_path, {"results": [result("other")]})
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == mine


def test_references_in_the_card(model, image_processor, photo, tmp_path):
    save_checkpoint(model, image_processor, tmp_path / "part")
    assert "## References" not in (tmp_path / "part" / "README.md").read_text()
    images = [photo, photo.rotate(90)]
    bank = ReferenceBank.from_images(model, image_processor, images, tile_size=20, rotations=True)
    text = describe_references(bank)
    assert "2 photos of good parts" in text
    assert f"Patches: {bank.features.shape[1]:,} of {bank.features.shape[0]} layers" in text
    assert "Options: tiles of 20 pixels that overlap by 0.25, turned and mirrored copies." in text
    one = ReferenceBank.from_images(model, image_processor, [photo])
    assert "1 photo of good parts" in describe_references(one)
    assert "Options: none." in describe_references(one)
    # Also if the card is written again, from the files of the checkpoint.
    one.save_pretrained(tmp_path / "part")
    write_card(tmp_path / "part", {})
    assert describe_references(one) in (tmp_path / "part" / "README.md").read_text()
