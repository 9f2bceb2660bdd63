import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from helpers.tiny import TINY, change_weights
from training.build_tiny.__main__ import main
from training.build_tiny.assembly import differences, keep_state_words
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.models.small_text_tower import state_word_tokenizer


@pytest.fixture
def vit(tmp_path):
    config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96,
                       image_size=48, patch_size=8)  # fmt: skip
    model = ViTModel(config)
    change_weights(model)
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_tower_and_comparison(vit, tmp_path, capsys):
    tower = tmp_path / "tower"
    main(["tower", "--vit", str(vit), "--output", str(tower)])
    assert "Wrote the tower" in capsys.readouterr().out
    main(["compare", "--vit", str(vit), "--clip", str(tower)])
    assert f"{tower} has the weights of {vit}." in capsys.readouterr().out
    model = ViP2ClipForAnomalyDetection.from_clip(tower, variant="release", **TINY)
    assert torch.isfinite(model(torch.randn(1, 3, 48, 48)).scores).all()
    assert (model.config.normal_token_ids, model.config.anomalous_token_ids) == ((4,), (4,))
    assert (model.config.normal_word, model.config.anomalous_word) == ("damaged", "damaged")  # of the release

    # Another constant of the additional channels changes nothing, another weight does.
    weights = load_file(tower / "model.safetensors")
    position, norm = "vision_model.embeddings.position_embedding.weight", "vision_model.pre_layrnorm.weight"
    other = {name: tensor.clone() for name, tensor in weights.items()}
    other[position][:, 48:] *= 2
    other[norm] *= 2
    save_file(other, tower / "model.safetensors", {"format": "pt"})
    main(["compare", "--vit", str(vit), "--clip", str(tower)])
    other["vision_model.encoder.layers.2.mlp.fc1.weight"][5, 7] += 0.01
    save_file(other, tower / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match="was not rewritten from"):
        main(["compare", "--vit", str(vit), "--clip", str(tower)])
    assert "layers.2.mlp.fc1.weight" in capsys.readouterr().out


def test_a_tower_of_another_shape(vit, clip_folder):
    with pytest.raises(SystemExit, match="another architecture"):
        main(["compare", "--vit", str(vit), "--clip", str(clip_folder)])


def test_only_the_state_words_are_kept(clip, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    main(["tower", "--clip", str(tmp_path / "clip"), "--output", str(tmp_path / "tower")])
    weights = load_file(tmp_path / "tower" / "model.safetensors")
    assert weights["text_model.embeddings.token_embedding.weight"].shape == (12, 16)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["text_config"]["vocab_size"] == 12

    smaller = keep_state_words(clip)
    assert set(differences(clip, smaller).values()) == {0.0}
    found = []
    for backbone, tokenizer in ((clip, None), (smaller, state_word_tokenizer())):
        torch.manual_seed(3)
        model = ViP2ClipForAnomalyDetection.from_clip(backbone, tokenizer, variant="release", **TINY).eval()
        assert (model.config.normal_word, model.config.anomalous_word) == ("damaged", "damaged")  # of the release
        with torch.no_grad():
            found.append(model(torch.ones(1, 3, 48, 48)))
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(found[0].anomaly_maps, found[1].anomaly_maps)
    assert keep_state_words(smaller) is smaller
    clip.text_model.embeddings.token_embedding.weight.data = torch.zeros(9, 16)
    with pytest.raises(ValueError, match="9 tokens"):
        keep_state_words(clip)
