"""Conversion of the published files of APRIL-GAN."""

from collections import OrderedDict

import pytest
import torch

from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf.baselines import AprilGanForAnomalyDetection, convert_april_gan_checkpoint


LAYERS = (1, 2, 4)
PART = "trainable_linearlayer"


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    clip = tiny_text_clip(num_hidden_layers=4)
    assert clip.config.vision_config.hidden_act == clip.config.text_config.hidden_act == "quick_gelu"
    return clip


def content(count=3, **changes):
    generator = torch.Generator().manual_seed(0)
    entries = OrderedDict()
    for index in range(count):
        entries[f"fc.{index}.weight"] = torch.randn(16, 32, generator=generator)
        entries[f"fc.{index}.bias"] = torch.randn(16, generator=generator)
    for name, entry in changes.items():
        name = name.replace("_", ".")
        if entry is None:
            del entries[name]
        else:
            entries[name] = entry
    return {PART: entries}


def convert(checkpoint, clip, **settings):
    settings = {"tokenizer": clip_tokenizer(), "image_size": 48, "feature_layers": LAYERS, **settings}
    return convert_april_gan_checkpoint(checkpoint, clip, **settings)


@pytest.mark.parametrize("form", ["file", "mapping", "prefix"])
def test_forms_of_checkpoints(clip, tmp_path, form):
    checkpoint = content()
    expected = dict(checkpoint[PART])
    if form == "file":
        torch.save(checkpoint, tmp_path / "model.pth")
        checkpoint = tmp_path / "model.pth"
    elif form == "prefix":
        checkpoint = {PART: {f"module.{name}": entry for name, entry in checkpoint[PART].items()}}
    model = convert(checkpoint, clip)
    assert type(model) is AprilGanForAnomalyDetection
    assert not model.training
    found = model.adapter_state_dict()
    assert len(found) == len(expected)
    for name, entry in expected.items():
        assert torch.equal(found[name.replace("fc", "linear_layers")], entry)
    assert model.config.feature_layers == LAYERS
    assert not model.provenance.training_recorded


def test_layers_in_the_order_of_blocks(clip):
    """As in the published code, which collects the outputs of the blocks one after the other."""
    model = convert(content(), clip, feature_layers=(4, 1, 2))
    assert model.config.feature_layers == (1, 2, 4)
    assert torch.equal(model.linear_layers[0].weight, content()[PART]["fc.0.weight"])


@torch.no_grad()
def test_activation(clip):
    """The exact GELU of the published code. The model that is passed does not change."""
    images = torch.randn(2, 3, 48, 48)
    kept, published = convert(content(), clip, hidden_act=None), convert(content(), clip)
    towers = {"gelu": published, "quick_gelu": kept}
    for name, model in towers.items():
        assert model.config.clip.text_config.hidden_act == model.config.clip.vision_config.hidden_act == name
        block = model.clip.vision_model.encoder.layers[0].mlp
        hidden = torch.randn(1, 32)
        first = block.fc1(hidden)
        activated = torch.nn.functional.gelu(first) if name == "gelu" else first * (1.702 * first).sigmoid()
        torch.testing.assert_close(block(hidden), block.fc2(activated))
    assert clip.config.vision_config.hidden_act == clip.config.text_config.hidden_act == "quick_gelu"
    assert type(clip.vision_model.encoder.layers[0].mlp.activation_fn) is type(
        kept.clip.vision_model.encoder.layers[0].mlp.activation_fn
    )
    same = AprilGanForAnomalyDetection.from_clip(clip, clip_tokenizer(), image_size=48, feature_layers=LAYERS)
    torch.testing.assert_close(
        kept.get_image_features(images).image_embeds, same.get_image_features(images).image_embeds
    )
    difference = published.get_image_features(images).image_embeds - same.get_image_features(images).image_embeds
    assert difference.abs().max() > 1e-4
    assert (published.get_text_embeds("nut") - same.get_text_embeds("nut")).abs().max() > 1e-6


def test_weights_of_the_backbone_are_shared(clip):
    before = {name: (one.data_ptr(), one.requires_grad) for name, one in clip.named_parameters()}
    for act in ("gelu", None):
        model = convert(content(), clip, hidden_act=act)
        for name, one in model.clip.named_parameters():
            assert one.data_ptr() == before[name][0], name
            assert not one.requires_grad
            assert not one.is_meta
    assert {name: (one.data_ptr(), one.requires_grad) for name, one in clip.named_parameters()} == before


@torch.no_grad()
def test_save_and_load(clip, tmp_path):
    images = torch.randn(2, 3, 48, 48)
    model = convert(content(), clip, class_name="nut", few_shot_layers=(2,))
    model.save_pretrained(tmp_path / "model")
    loaded = AprilGanForAnomalyDetection.from_pretrained(tmp_path / "model")
    assert loaded.config.clip.text_config.hidden_act == "gelu"
    assert not loaded.provenance.training_recorded
    torch.testing.assert_close(loaded(images).anomaly_maps, model(images).anomaly_maps, atol=1e-4, rtol=0)


def test_backbone_from_a_folder(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no text tokenizer"):
        convert(content(), tmp_path, tokenizer=None)
    clip_tokenizer().save_pretrained(tmp_path)
    model = convert(content(), str(tmp_path), tokenizer=None, revision="main")
    assert model.get_text_embeds("nut").shape == (2, 16)
    assert model.provenance.backbone_id is None
    assert convert(content(), clip, tokenizer=tmp_path).get_text_embeds("nut").shape == (2, 16)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, r"has the entries \[\]; expected trainable_linearlayer"),
        ({"prompt_learner": {}}, r"has the entries \['prompt_learner'\]; expected trainable_linearlayer"),
        ({PART: torch.zeros(1)}, "expected trainable_linearlayer"),
        ({PART: {}}, r"has the entries none; expected weight and bias of fc\.0, fc\.1"),
        (content(fc_1_bias=None), r"expected weight and bias of fc\.0, fc\.1"),
        (content(fc_1_weight=None), r"expected weight and bias of fc\.0, fc\.1"),
        (content(fc_4_weight=torch.zeros(16, 32), fc_4_bias=torch.zeros(16)), "expected weight and bias of fc"),
        (content(other=torch.zeros(1)), "expected weight and bias of fc"),
        (content(fc_0_weight="text"), r"fc\.0\.weight is of type str; expected a tensor"),
        (content(fc_0_weight=torch.zeros(16, 32).long()), r"fc\.0\.weight is a torch\.int64 tensor"),
        (content(fc_0_weight=torch.zeros(16)), r"of shape \(16,\) .* expected a dense floating-point tensor with 2"),
        (content(fc_0_weight=torch.zeros(16, 32).to_sparse()), "layout torch.sparse_coo; expected a dense"),
        (content(fc_0_bias=torch.zeros(0)), r"fc\.0\.bias is a torch\.float32 tensor of shape \(0,\)"),
        (content(fc_0_bias=torch.zeros(16, 1)), "expected a dense floating-point tensor with 1 dimension"),
        (content(fc_0_bias=torch.zeros(15)), r"fc\.0\.bias has 15 values; expected 16"),
        (content(fc_2_bias=torch.full((16,), torch.nan)), r"fc\.2\.bias contains NaN or infinite values"),
        (content(fc_1_weight=torch.full((16, 32), torch.inf)), r"fc\.1\.weight contains NaN or infinite values"),
        (
            content(fc_0_weight=torch.zeros(16, 8)),
            r"have the shapes .* expected \(16, 32\), .* trained on another backb",
        ),
        (content(2), r"feature_layers is \(1, 2, 4\); expected 2 layers"),
    ],
)
def test_checkpoints_that_are_refused(clip, checkpoint, message):
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, clip)


def test_other_backbones(clip):
    other = tiny_text_clip(num_hidden_layers=4, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"expected \(16, 16\), .* The checkpoint was trained on another backbone"):
        convert(content(), other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_config": {}}, "clip_config cannot be overridden, because the backbone determines it"),
        ({"hidden_act": "gelo"}, "hidden_act is 'gelo'; expected None, 'gelu'"),
        ({"feature_layer": (1,)}, "'feature_layer' is not a field of AprilGanConfig; did you mean 'feature_layers'"),
        ({"feature_layers": (1, 2, 9)}, r"feature_layers is \(1, 2, 9\); expected distinct block numbers from 1 to 4"),
        ({"tokenizer": None}, "no text tokenizer"),
    ],
)
def test_settings_that_are_refused(clip, settings, message):
    with pytest.raises(ValueError, match=message):
        convert(content(), clip, **settings)


def test_files_that_are_damaged(clip, tmp_path):
    with pytest.raises(OSError, match=r"not found; expected a \.pth file"):
        convert(tmp_path / "none.pth", clip)
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(OSError, match="could not be read as tensors"):
        convert(tmp_path / "text.pth", clip)
    torch.save({PART: print}, tmp_path / "code.pth")
    with pytest.raises(OSError, match="could not be read as tensors"):
        convert(tmp_path / "code.pth", clip)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="contains a list; expected a dict"):
        convert(tmp_path / "list.pth", clip)
