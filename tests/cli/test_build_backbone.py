import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel
from typer.testing import CliRunner

from helpers.training import train_arguments, write_train_and_eval_sets
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.cli import app
from vip2clip_hf.models import backbone_building
from vip2clip_hf.models.backbone_building import build_backbone, feature_layers
from vip2clip_hf.models.small_text_tower import state_word_tokenizer
from vip2clip_hf.models.vip2clip.state_words_vip2clip import STATE_WORD_TOKEN_IDS


def vip2clip(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def vit(tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
                       image_size=48, patch_size=8)  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("float16", [False, True])
def test_the_backbone_can_be_used(vit, tmp_path, float16):
    output = tmp_path / "backbone"
    done = vip2clip("build-backbone", vit, "--output", output, *(["--float16"] if float16 else []))
    assert done.exit_code == 0, done.output
    assert "largest relative deviation" in done.output
    assert f"vip2clip train --clip {output} --image_size 48 --feature_layers 1 2 3 4" in done.output
    assert ("with weights in float16" in done.output) is float16
    weights = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16 if float16 else torch.float32}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "| weights | `vit` |" in card
    assert str(tmp_path) not in card
    model = ViP2ClipForAnomalyDetection.from_clip(output, image_size=48, feature_layers=(1, 2), top_k=3)
    assert model.config.normal_token_ids == (3,)
    assert torch.isfinite(model(torch.randn(1, 3, 48, 48)).scores).all()


def test_training_on_the_backbone(vit, tmp_path):
    build_backbone(vit, tmp_path / "backbone")
    roots = write_train_and_eval_sets(tmp_path)
    done = vip2clip("train", *train_arguments(tmp_path, tmp_path / "backbone", roots, "--average_weights_from", "0.5"))
    assert done.exit_code == 0, done.output
    assert "averaged weights" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_report(tmp_path):
    config = Dinov2Config(hidden_size=48, num_hidden_layers=5, num_attention_heads=3, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "vit")
    report = json.loads(vip2clip("build-backbone", tmp_path / "vit", "--output", tmp_path / "out", "--json").stdout)
    assert report["deviation"] < 1e-4
    assert report["stored_deviation"] == report["deviation"]
    assert report["feature_layers"] == [1, 2, 4, 5]
    assert report["image_size"] == 28
    again = build_backbone(tmp_path / "vit", tmp_path / "again")
    assert again["checksum"] == report["checksum"]
    other = build_backbone(tmp_path / "vit", tmp_path / "other", seed=1)
    assert other["checksum"] != report["checksum"]
    one, two = (CLIPModel.from_pretrained(tmp_path / name).vision_model.state_dict() for name in ("again", "other"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_refused(vit, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for output, message in ((tmp_path / "used", "is not empty"), (vit / "inside", "is inside")):
        done = vip2clip("build-backbone", vit, "--output", output)
        assert done.exit_code != 0
        assert message in str(done.exception)
    weights = {"cls_token": torch.zeros(1, 1, 192), "norm_pre.weight": torch.zeros(192)}
    (tmp_path / "clip").mkdir()
    save_file(weights, tmp_path / "clip" / "model.safetensors")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_clip_224"}))
    with pytest.raises(ValueError, match="normalizes the embeddings before the blocks"):
        build_backbone(tmp_path / "clip", tmp_path / "out")
    monkeypatch.setattr(backbone_building, "TOLERANCE", 1e-12)
    with pytest.raises(RuntimeError, match="deviates from the original"):
        build_backbone(vit, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".vip2clip-*"))


def test_tokenizer():
    tokenizer = state_word_tokenizer()
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in STATE_WORD_TOKEN_IDS]
    assert [len(one) for one in ids] == [1] * len(ids)
    assert len({one[0] for one in ids}) == len(ids)
    assert tokenizer("scratched", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert feature_layers(12) == [3, 6, 9, 12]
    assert feature_layers(1) == [1]
