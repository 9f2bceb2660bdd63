"""Conversion of AnomalyCLIP's `.pth` files."""

import logging

import pytest
import torch
from transformers import AutoModel

from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf.baselines import AnomalyClipForAnomalyDetection, convert_anomalyclip_checkpoint
from vip2clip_hf.baselines.convert_anomalyclip import read_anomalyclip_checkpoint


CONTEXT, LENGTH, WIDTH, TOTAL = 3, 2, 16, 77
SETTINGS = {"image_size": 32, "dpam_layers": 1}
X = 343


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return tiny_text_clip()


def released(clip, words=("object.", "damaged object."), depth: int = 2) -> dict:
    """Write what the published code writes, for a backbone with the vocabulary of CLIP."""
    generator = torch.Generator().manual_seed(3)
    content: dict[str, torch.Tensor] = {}
    for suffix, text in zip(("pos", "neg"), words):
        ids = clip_tokenizer()(f"{'X ' * CONTEXT}{text}")["input_ids"]
        assert ids[1 : 1 + CONTEXT] == [X] * CONTEXT
        padded = torch.tensor(ids + [0] * (TOTAL - len(ids)), dtype=torch.int32)
        rows = clip.text_model.embeddings.token_embedding.weight.detach()[padded.long()]
        content[f"ctx_{suffix}"] = torch.randn(1, 1, CONTEXT, WIDTH, generator=generator)
        content[f"token_prefix_{suffix}"] = rows[None, None, :1].clone()
        content[f"token_suffix_{suffix}"] = rows[None, None, 1 + CONTEXT :].clone()
        content[f"tokenized_prompts_{suffix}"] = padded[None, None]
    for index in range(depth - 1):
        content[f"compound_prompts_text.{index}"] = torch.randn(LENGTH, WIDTH, generator=generator)
        content[f"compound_prompt_projections.{index}.weight"] = torch.randn(896, WIDTH, generator=generator)
        content[f"compound_prompt_projections.{index}.bias"] = torch.randn(896, generator=generator)
    return {"prompt_learner": content}


def convert(content, clip, **overrides) -> AnomalyClipForAnomalyDetection:
    return convert_anomalyclip_checkpoint(content, clip, clip_tokenizer(), **{**SETTINGS, **overrides})


@torch.no_grad()
def test_conversion(clip, tmp_path, caplog):
    content = released(clip)
    torch.save(content, tmp_path / "epoch_15.pth")
    clip.save_pretrained(tmp_path / "clip")
    clip_tokenizer().save_pretrained(tmp_path / "clip")
    name = "vip2clip_hf.baselines.convert_anomalyclip"
    with caplog.at_level(logging.INFO, logger=name):
        logger = logging.getLogger(name)
        logger.addHandler(caplog.handler)
        model = convert_anomalyclip_checkpoint(tmp_path / "epoch_15.pth", str(tmp_path / "clip"), **SETTINGS)
        logger.removeHandler(caplog.handler)
    assert "Dropped 2 entries of the checkpoint" in caplog.text
    config, stored = model.config, content["prompt_learner"]
    assert (config.num_context_tokens, config.prompt_depth, config.deep_prompt_length) == (CONTEXT, 2, LENGTH)
    assert not model.training
    assert not model.provenance.training_recorded
    learner = model.prompt_learner
    assert torch.equal(learner.normal_context, stored["ctx_pos"][0, 0])
    assert torch.equal(learner.anomalous_context, stored["ctx_neg"][0, 0])
    assert torch.equal(learner.deep_prompts[0], stored["compound_prompts_text.0"])
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModel.from_pretrained(tmp_path / "converted")
    assert not loaded.provenance.training_recorded
    torch.testing.assert_close(loaded.get_text_embeds(), model.get_text_embeds(), atol=1e-5, rtol=0)
    prefixed = {"prompt_learner": {f"module.{key}": tensor for key, tensor in stored.items()}}
    again = convert(prefixed, clip, feature_layers=(1, 2))
    assert torch.equal(again.prompt_learner.normal_context, learner.normal_context)
    assert again.config.feature_layers == (1, 2)


def test_half_precision(clip):
    content = released(clip)
    half = {key: one.half() if one.is_floating_point() else one for key, one in content["prompt_learner"].items()}
    model = convert({"prompt_learner": half}, clip, dtype="bfloat16")
    assert model.clip.dtype == torch.bfloat16
    assert model.prompt_learner.normal_context.dtype == torch.float32
    assert torch.equal(model.prompt_learner.normal_context, half["ctx_pos"][0, 0].float())


def test_other_words(clip):
    content = released(clip, words=("good", "damaged"))
    with pytest.raises(ValueError, match=r"of the ids \(49406, 886, 49407\); expected \(49406, 14115, 269, 49407\)"):
        convert(content, clip)
    model = convert(content, clip, normal_text="good", anomalous_text="damaged")
    assert model.config.ids_of("anomalous") == (49406, 13568, 49407)


def test_without_deep_prompts(clip):
    model = convert(released(clip, depth=1), clip)
    assert model.config.prompt_depth == 1
    assert len(model.prompt_learner.deep_prompts) == 0


def test_another_backbone(clip):
    torch.manual_seed(9)
    with pytest.raises(ValueError, match=r"is not in the token embeddings of the backbone .*trained on another"):
        convert(released(clip), tiny_text_clip())
    wide = released(clip)
    wide["prompt_learner"]["ctx_pos"] = torch.randn(1, 1, CONTEXT, 24)
    with pytest.raises(ValueError, match="has prompts of width 24; expected 16, as the text tower of the backbone"):
        convert(wide, clip)
    with pytest.raises(ValueError, match="prompt_depth is 4; expected an integer from 1 to 2"):
        convert(released(clip, depth=4), clip)


def test_backbone_without_tokenizer(clip):
    with pytest.raises(ValueError, match="no text tokenizer"):
        convert_anomalyclip_checkpoint(released(clip), clip, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_depth": 2}, "prompt_depth cannot be overridden, because the checkpoint determines it"),
        ({"normal_token_ids": (1,)}, "normal_token_ids cannot be overridden"),
        (
            {"featur_layers": (1,)},
            "'featur_layers' is not a field of AnomalyClipConfig; did you mean 'feature_layers'",
        ),
    ],
)
def test_settings_that_are_refused(clip, settings, message):
    with pytest.raises(ValueError, match=message):
        convert(released(clip), clip, **settings)


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("ctx_neg", None, "lacks ctx_neg; expected the entries of AnomalyCLIP's code"),
        ("tokenized_prompts_pos", None, "lacks tokenized_prompts_pos"),
        ("compound_prompts_text.2", torch.ones(LENGTH, WIDTH), "lacks compound_prompts_text.1"),
        ("net.weight", torch.ones(2), "also contains net.weight"),
        ("ctx_pos", [1.0], "ctx_pos is of type list; expected a tensor"),
        ("ctx_pos", torch.ones(CONTEXT, WIDTH), r"shape \(3, 16\) .*expected a dense floating-point .* 4 dimensions"),
        ("ctx_pos", torch.ones(1, 1, CONTEXT, WIDTH).long(), "ctx_pos is a torch.int64 tensor"),
        ("tokenized_prompts_pos", torch.ones(1, 1, TOTAL), "expected a dense integer tensor with 3 dimensions"),
        ("ctx_pos", torch.ones(1, 1, CONTEXT, WIDTH).to_sparse(), "layout torch.sparse_coo; expected a dense"),
        ("ctx_neg", torch.ones(1, 1, CONTEXT, WIDTH) / 0, "NaN or infinite values in ctx_neg"),
        ("ctx_neg", torch.ones(1, 1, 4, WIDTH), r"ctx_neg has shape \(1, 1, 4, 16\); expected \(1, 1, 3, 16\)"),
        ("ctx_pos", torch.ones(2, 1, CONTEXT, WIDTH), r"ctx_pos has shape \(2, 1, 3, 16\); expected \(1, 1, 3, 16\)"),
        ("token_suffix_pos", torch.ones(1, 1, 70, WIDTH), r"token_suffix_pos has shape .*; expected \(1, 1, 73, 16\)"),
        ("token_prefix_neg", torch.ones(1, 1, 1, 8), r"token_prefix_neg has shape .*; expected \(1, 1, 1, 16\)"),
        ("token_prefix_neg", torch.ones(1, 1, 1, WIDTH), "The anomalous prompt of the checkpoint is not in the token"),
        ("tokenized_prompts_pos", torch.ones(1, 1, TOTAL).int(), "has 0 tokens before the end token; expected more"),
        ("tokenized_prompts_pos", torch.tensor([[[49406, X, X, X, 14115, 343, 49407] + [0] * 70]]), "The ids of the"),
        ("compound_prompts_text.0", torch.ones(2, 8), r"text.0 has shape \(2, 8\); expected \(2, 16\)"),
    ],
)  # fmt: skip
def test_entries_that_are_refused(clip, key, entry, message):
    content = released(clip)
    content["prompt_learner"].pop(key, None)
    if entry is not None:
        content["prompt_learner"][key] = entry
    with pytest.raises(ValueError, match=message):
        convert(content, clip)


def test_other_files(clip, tmp_path):
    with pytest.raises(ValueError, match=r"has the entries \['state_dict'\]; expected prompt_learner"):
        read_anomalyclip_checkpoint({"state_dict": {}})
    with pytest.raises(OSError, match="not found"):
        read_anomalyclip_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(OSError, match=r"could not be read as tensors .* of AnomalyCLIP's code"):
        convert(tmp_path / "damaged.pth", clip)
