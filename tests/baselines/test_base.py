"""What all baselines share: the backbone, its text tokenizer, saving and loading, and the configuration."""

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.baselines import (
    ClipAnomalyDetectionConfig,
    ClipForAnomalyDetection,
    WinClipConfig,
    WinClipForAnomalyDetection,
)
from vip2clip_hf.baselines.prompts import ENSEMBLES, build_prompts
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint


METHODS = (ClipForAnomalyDetection, WinClipForAnomalyDetection)


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request):
    return request.param


@pytest.fixture
def model(method):
    return method.from_clip(tiny_text_clip(), clip_tokenizer())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32)


@torch.no_grad()
def test_save_and_load(model, method, images, tmp_path):
    model.config.class_name = "carpet"
    expected = model(images)
    model.save_pretrained(tmp_path)
    ViP2ClipImageProcessor(size=32).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert type(AutoConfig.from_pretrained(tmp_path)) is method.config_class
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ViP2ClipImageProcessor
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is method
    assert not loaded.training
    # Rounding depends on the alignment of weights in memory.
    for text in (None, "carpet"):
        found = loaded(images, class_name=text)
        for name in ("scores", "anomaly_maps", "text_embeds"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
    assert (loaded(images, class_name="screw").text_embeds - expected.text_embeds).abs().max() > 1e-3
    loaded.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("a photo")["input_ids"] == [49406, 320, 1125, 49407]


def test_overrides_when_loading(model, method, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = method.from_pretrained(tmp_path, image_size=48, class_name="nut", prompt_ensemble="april_gan")
    assert (loaded.config.image_size, loaded.config.patch_grid) == (48, 6)
    assert loaded(torch.randn(1, 3, 48, 48)).anomaly_maps.shape == (1, 48, 48)
    assert loaded.get_prompts() == tuple(
        build_prompts(states, ENSEMBLES["april_gan"].templates, "nut") for states in ENSEMBLES["april_gan"][:2]
    )
    with pytest.raises(ValueError, match="image_size is 50; expected a positive multiple of the backbone's patch"):
        method.from_pretrained(tmp_path, image_size=50)


def test_weights_that_are_missing(model, method, tmp_path):
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(RuntimeError, match="lacks 4 of the model's weights"):
        method.from_pretrained(tmp_path)
    assert len(method.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"]) == 4


def test_weights_of_the_backbone_are_shared(method):
    clip = tiny_text_clip()
    model = method.from_clip(clip, clip_tokenizer())
    assert model.clip is not clip
    for name, tensor in clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], tensor), name
    weight = model.clip.visual_projection.weight
    assert weight.data_ptr() == clip.visual_projection.weight.data_ptr()


# The text tokenizer


def test_backbone_from_a_folder_with_its_tokenizer(method, tmp_path):
    tiny_text_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no text tokenizer; expected a CLIP with a text tokenizer"):
        method.from_clip(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    assert method.from_clip(str(tmp_path)).get_text_embeds("nut").shape == (2, 16)
    with pytest.raises(ValueError, match=r"Expected a checkpoint with model_type .*call from_clip"):
        method.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'temprature' is not a field of"):
        method.from_clip(tmp_path, temprature=1)


def test_the_bundled_backbone_is_refused(method, tmp_path):
    bundled = ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint())
    with pytest.raises(ValueError, match="no text tokenizer; expected a CLIP with a text tokenizer"):
        method.from_clip(bundled)
    bundled.clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no text tokenizer; expected a CLIP with a text tokenizer"):
        method.from_clip(tmp_path)
    with pytest.raises(ValueError, match=r"has 12 tokens .* expected a CLIP with a text tokenizer"):
        method.from_clip(bundled, clip_tokenizer())


def test_tokenizers_that_do_not_fit(method):
    special = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    empty = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(special, [], unk_token="<|endoftext|>")),
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no words; expected a CLIP with a text tokenizer"):
        method.from_clip(tiny_text_clip(), empty)
    other = tiny_text_clip()
    other.config.text_config.eos_token_id = 7  # the text tower would pool at another token
    with pytest.raises(ValueError, match="the end token 7, the tokenizer has the end token 49407"):
        method.from_clip(other, clip_tokenizer())


@torch.no_grad()
def test_end_token_of_old_configurations(method):
    """The configurations of OpenAI's checkpoints say 2, and the text tower pools at the largest id."""
    clip = tiny_text_clip()
    expected = method.from_clip(clip, clip_tokenizer()).get_text_embeds("nut")
    config = CLIPConfig.from_dict(clip.config.to_dict())
    config.text_config.eos_token_id = 2
    old = CLIPModel(config)
    old.load_state_dict(clip.state_dict())
    assert torch.equal(method.from_clip(old, clip_tokenizer()).get_text_embeds("nut"), expected)


def test_model_without_tokenizer(method, images):
    model = method(method.config_class(clip_config=tiny_text_clip().config)).eval()
    with pytest.raises(ValueError, match="no text tokenizer"):
        model(images)
    assert model(images, text_embeds=torch.randn(2, 16)).scores.shape == (2,)


# Class names


def test_class_names(model):
    normal, anomalous = model.get_prompts("{weird} nut")
    assert all("{weird} nut" in text for text in normal + anomalous)
    assert model.get_prompts() == model.get_prompts("object")
    for name in ("", "  "):
        with pytest.raises(ValueError, match=r"class_name is .*; expected a text that is not empty"):
            model.get_text_embeds(name)
    with pytest.raises(ValueError, match=r"tokens; expected at most 77\. Use a shorter class name"):
        model.get_text_embeds("nut " * 90)


def test_calls_that_are_refused(model, images):
    with pytest.raises(
        ValueError, match=r"pixel_values has shape \(2, 3, 40, 40\); expected \(batch_size, 3, 32, 32\)"
    ):
        model(torch.zeros(2, 3, 40, 40))
    with pytest.raises(ValueError, match="text_embeds and class_name are both set"):
        model(images, text_embeds=torch.randn(2, 16), class_name="nut")
    with pytest.raises(ValueError, match=r"text_embeds has shape \(2, 8\); expected \(2, 16\)"):
        model(images, text_embeds=torch.randn(2, 8))


# Configuration


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (ClipAnomalyDetectionConfig, {"prompt_ensemble": "best"}, "prompt_ensemble is 'best'; expected 'single'"),
        (ClipAnomalyDetectionConfig, {"templates": ["a photo"]}, r"templates is .*; expected at least one text, each"),
        (ClipAnomalyDetectionConfig, {"normal_states": []}, "normal_states is .*; expected at least one text"),
        (ClipAnomalyDetectionConfig, {"class_name": " "}, "class_name is ' '; expected a text"),
        (ClipAnomalyDetectionConfig, {"logit_scale": 0}, "logit_scale is 0; expected a number greater than 0"),
        (ClipAnomalyDetectionConfig, {"smoothing_sigma": 999}, "smoothing_sigma is 999; expected a number from 0 to"),
        (WinClipConfig, {"scales": (2, 2)}, r"scales is \(2, 2\); expected distinct integers from 1 to 15"),
        (WinClipConfig, {"scales": (16,)}, r"scales is \(16,\); expected distinct integers from 1 to 15"),
        (WinClipConfig, {"temperature": 0}, "temperature is 0; expected a number of at least 0.0001"),
    ],
)
def test_values_that_are_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_defaults():
    clip, winclip = ClipAnomalyDetectionConfig(), WinClipConfig()
    assert (clip.image_size, clip.patch_grid, clip.prompts.templates) == (336, 24, ("{}",))
    assert (winclip.image_size, winclip.patch_grid, winclip.scales) == (240, 15, (2, 3))
    assert winclip.clip.vision_config.hidden_act == "gelu"
    own = WinClipConfig(templates=["a {}"], anomalous_states=["broken {}"]).prompts
    assert (own.templates, own.anomalous_states) == (("a {}",), ("broken {}",))
    assert own.normal_states == ENSEMBLES["winclip"].normal_states


@pytest.mark.parametrize("mode", ["bicubic_antialias", "bicubic", "bilinear"])
@pytest.mark.parametrize("side", [16, 48])
@torch.no_grad()
def test_position_interpolation(mode, side):
    model = ClipForAnomalyDetection.from_clip(
        tiny_text_clip(), clip_tokenizer(), image_size=side, position_interpolation=mode
    )
    embeddings, images = model.clip.vision_model.embeddings, torch.randn(1, 3, side, side)
    table = embeddings.position_embedding.weight
    resized = F.interpolate(
        table[1:].T.reshape(1, 32, 4, 4), size=side // 8, mode=mode.split("_")[0], antialias="antialias" in mode
    )
    patches = embeddings.patch_embedding(images) + resized
    found = model.embed_patches(images)
    torch.testing.assert_close(found[:, 1:], patches.flatten(2).mT)
    torch.testing.assert_close(found[0, 0], embeddings.class_embedding + table[0])


@torch.no_grad()
def test_half_precision(method, images):
    clip = tiny_text_clip()
    full = method.from_clip(clip, clip_tokenizer())(images)
    half = method.from_clip(clip, clip_tokenizer(), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    found = half(images.bfloat16())
    assert found.scores.dtype == found.anomaly_maps.dtype == torch.float32
    torch.testing.assert_close(found.scores, full.scores, atol=0.2, rtol=0)
