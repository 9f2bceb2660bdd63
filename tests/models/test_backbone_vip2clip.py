"""The frozen backbone: weights shared with a model that is passed, and checks of adapters."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPVisionModel

from helpers.tiny import FIXTURES, TINY, assert_same_weights, change_weights, tiny_clip_config
from vip2clip_hf import Provenance, ViP2ClipForAnomalyDetection
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.models.vip2clip.adapter_weights_vip2clip import check_adapters
from vip2clip_hf.models.vip2clip.backbone_vip2clip import load_clip


@pytest.fixture
def trained(clip):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    for part in (model.prompt_learner, model.image_conditioned_adapter, model.fine_grained_perception):
        change_weights(part)
    return model


@pytest.fixture
def adapters(trained, image_processor, tmp_path) -> Path:
    return save_checkpoint(trained, image_processor, tmp_path / "adapters", adapters_only=True)


def addresses(model: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def load(kind: str, adapters: Path, clip, **kwargs) -> ViP2ClipForAnomalyDetection:
    if kind == "from_clip":
        return ViP2ClipForAnomalyDetection.from_clip(clip, **TINY, **kwargs)
    return ViP2ClipForAnomalyDetection.from_pretrained(adapters, backbone=clip, **kwargs)


# Shared weights


@pytest.mark.parametrize("kind", ["from_clip", "from_pretrained"])
def test_weights_of_a_model_are_shared(kind, adapters, clip):
    before = addresses(clip)
    model = load(kind, adapters, clip)
    assert addresses(model.clip) == addresses(clip) == before
    # Other parameters on the same memory: freezing and devices are separate.
    assert not {id(p) for p in model.clip.parameters()} & {id(p) for p in clip.parameters()}
    assert all(p.requires_grad for p in clip.parameters())
    assert not any(p.requires_grad for p in model.clip.parameters())
    change_weights(clip)
    assert torch.equal(model.clip.visual_projection.weight, clip.visual_projection.weight)
    model.to(torch.bfloat16)
    assert addresses(clip) == before
    assert clip.dtype == torch.float32


@pytest.mark.parametrize("kind", ["from_clip", "from_pretrained"])
def test_weights_of_another_dtype_are_converted(kind, adapters, clip):
    model = load(kind, adapters, clip, dtype=torch.bfloat16)
    assert not set(addresses(model.clip).values()) & set(addresses(clip).values())
    assert (model.clip.dtype, clip.dtype) == (torch.bfloat16, torch.float32)


def test_several_models_on_one_backbone(adapters, clip, pixel_values):
    first, second = load("from_pretrained", adapters, clip), load("from_pretrained", adapters, clip)
    assert addresses(first.clip) == addresses(second.clip)
    assert not set(addresses(first.prompt_learner).values()) & set(addresses(second.prompt_learner).values())
    with torch.no_grad():
        assert torch.equal(first(pixel_values).scores, second(pixel_values).scores)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["from_clip", pytest.param("from_pretrained", marks=pytest.mark.slow)])
def test_no_memory_for_a_second_backbone(kind, adapters, image_processor, tmp_path):
    """A backbone of 150 MB. A copy of its weights would need as much again."""
    tower = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 4}
    config = tiny_clip_config().to_dict()
    config["text_config"].update(tower)
    config["vision_config"].update(tower)
    clip = CLIPModel(CLIPConfig.from_dict(config)).eval()
    size = sum(p.numel() * p.element_size() for p in clip.parameters())
    assert size > 120e6
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    save_checkpoint(model, image_processor, adapters, adapters_only=True)
    del model
    gc.collect()
    before = resident_bytes()
    model = load(kind, adapters, clip)
    assert resident_bytes() - before < 0.2 * size
    assert addresses(model.clip) == addresses(clip)


# The kinds of backbones


@pytest.mark.parametrize("kind", ["from_clip", "from_pretrained"])
def test_a_model_as_backbone(kind, adapters, trained, clip, pixel_values):
    model = load(kind, adapters, trained)
    assert addresses(model.clip) == addresses(clip)
    if kind == "from_pretrained":
        assert_same_weights(model, trained)
    assert not any(p.requires_grad for p in model.clip.parameters())
    with torch.no_grad():
        assert model(pixel_values).scores.shape == (3,)


def test_origin_of_a_model_as_backbone(clip):
    origin = {"backbone_id": "org/clip", "backbone_revision": "a" * 40}
    first = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    first.provenance = Provenance(**origin)
    second = ViP2ClipForAnomalyDetection.from_clip(first, **TINY)
    assert (second.provenance.backbone_id, second.provenance.backbone_revision) == tuple(origin.values())
    found, found_origin = load_clip(first)
    assert (found, found_origin) == (first.clip, origin)


@pytest.mark.parametrize("kind", ["from_clip", "from_pretrained"])
def test_other_objects_as_backbone(kind, adapters, clip):
    vision = CLIPVisionModel(clip.config.vision_config)
    for other, name in ((vision, "CLIPVisionModel"), (7, "int"), (clip.state_dict(), "OrderedDict")):
        with pytest.raises(TypeError, match=rf"{name}"):
            load(kind, adapters, other)
    with pytest.raises(TypeError, match=r"The CLIP backbone is a CLIPVisionModel; expected a CLIPModel, a ViP2Clip"):
        load(kind, adapters, vision)


# Weights of adapters


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("adapters_only", [True, False])
def test_weights_that_are_not_finite(value, adapters_only, trained, image_processor, clip, tmp_path):
    folder = save_checkpoint(trained, image_processor, tmp_path / "checkpoint", adapters_only=adapters_only)
    weights = load_file(folder / "model.safetensors")
    weights["fine_grained_perception.q_proj.weight"][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = {"backbone": clip} if adapters_only else {}
    with pytest.raises(
        ValueError,
        match=r"fine_grained_perception\.q_proj\.weight in '.*checkpoint' contain.* NaN or infinite.* expected finite",
    ):
        AutoModel.from_pretrained(folder, **backbone)


def test_check_adapters(trained):
    weights = trained.adapter_state_dict()
    check_adapters(weights, "here")
    check_adapters({name: tensor.to("meta") for name, tensor in weights.items()}, "here")
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r"and 21 more weights in 'here' contain NaN or infinite values"):
        check_adapters(broken, "here")


def changed(adapters: Path, change) -> None:
    weights = load_file(adapters / "model.safetensors")
    change(weights)
    save_file(weights, adapters / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("prompt_learner.normal_context"),
         r"adapters' lacks 1 of the model's weights \(prompt_learner\.normal_context\); expected exactly"),
        (lambda w: w.update(other=torch.zeros(2)),
         r"adapters' contains 1 weights that the model does not have \(other\); expected exactly the adapters"),
        (lambda w: w.update({"prompt_learner.normal_context": torch.zeros(6, 16)}),
         r"prompt_learner\.normal_context in '.*adapters' has shape \(6, 16\); expected \(7, 16\)"),
        (lambda w: w.update({name: tensor[..., :-1].clone() for name, tensor in w.items()}),
         r"expected .*, according to the configuration\. 23 more weights have another shape"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"output_loading_info": True}, {"ignore_mismatched_sizes": True}])
def test_adapters_of_another_architecture(change, message, options, adapters, clip):
    changed(adapters, change)
    with pytest.raises(RuntimeError, match=message):
        AutoModel.from_pretrained(adapters, backbone=clip, **options)


def test_adapters_that_are_disabled(adapters, trained, clip):
    """The ablations of the paper, on adapters that were trained with all parts."""
    overrides = {"use_image_conditioning": False, "use_fine_grained_perception": False}
    model = ViP2ClipForAnomalyDetection.from_pretrained(adapters, backbone=clip, **overrides)
    assert set(model.adapter_state_dict()) == {
        f"prompt_learner.{name}" for name in ("normal_context", "anomalous_context", "object_tokens")
    }
    assert torch.equal(model.prompt_learner.object_tokens, trained.prompt_learner.object_tokens)


@pytest.mark.parametrize("name", ["paper", "release"])
def test_adapters_of_version_0_1(name):
    folder = FIXTURES / "checkpoints_0_1"
    assert "prompt_learner.image_tokens" in load_file(folder / f"{name}_adapters" / "model.safetensors")
    complete = AutoModel.from_pretrained(folder / name)
    assert json.loads((folder / f"{name}_adapters" / "config.json").read_text())["adapters_only"]
    assert_same_weights(AutoModel.from_pretrained(folder / f"{name}_adapters", backbone=complete), complete)
