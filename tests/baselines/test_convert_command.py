"""`vip2clip convert --method`: files of the published codes become checkpoints."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel
from typer.testing import CliRunner

from helpers.rivals import ORACLES, clip_tokenizer
from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.cli import app


# Folder, file and backbone of the recorded checkpoint, its list of words, and settings that the file does not contain.
INPUTS = "inputs.safetensors:vocab_ids"
FILES = {
    "april-gan": ("aprilgan", "adapter.pth", "clip", "fixture.safetensors:vocab_real_ids", ["image_size=80"]),
    "anomalyclip": ("anomalyclip", "prompt_learner.pth", "clip_hf", INPUTS, ["image_size=70", "dpam_layers=7"]),
    "adaclip": ("adaclip", "adaclip.pth", "clip_hf", INPUTS, ["image_size=70", "k_clusters=3"]),
}


@pytest.mark.parametrize("key", FILES)
def test_convert(key, tmp_path):
    folder, file, clip, words, settings = FILES[key]
    if key == "april-gan":
        settings = [*settings, "feature_layers=[3, 6, 9, 12]"]
    name, _, tensor = words.partition(":")
    backbone, output = tmp_path / "clip", tmp_path / "out"
    CLIPModel.from_pretrained(ORACLES / folder / clip).save_pretrained(backbone)
    clip_tokenizer(load_file(ORACLES / folder / name)[tensor]).save_pretrained(backbone)
    chosen = [word for setting in settings for word in ("--set", setting)]
    command = ["convert", "--method", key, str(ORACLES / folder / file), "--clip", str(backbone)]
    done = CliRunner().invoke(app, [*command, "--output", str(output), *chosen])
    assert done.exit_code == 0, f"{done.stderr} {done.exception}"
    model = AutoModel.from_pretrained(output)
    assert not model.provenance.training_recorded
    assert ViP2ClipImageProcessor.from_pretrained(output).size["height"] == model.config.side
    pixels = torch.zeros(1, 3, model.config.side, model.config.side)
    with torch.no_grad():
        assert torch.isfinite(model(pixels, class_name="candle").scores).all()  # a word of the fixture
    assert "Not recorded" in (output / "README.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, [*command, "--output", str(output), *chosen])
    assert again.exit_code != 0
    assert "contains a checkpoint" in str(again.exception)
    assert CliRunner().invoke(app, [*command, "--output", str(output), *chosen, "--overwrite"]).exit_code == 0
