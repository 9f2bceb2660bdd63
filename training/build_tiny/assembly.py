"""Stage 1: assemble the tower from a vision transformer, and compare it with the original."""

import argparse
import copy
import os

import torch
from transformers import CLIPModel

from vip2clip_hf.models.backbone_building import build_backbone
from vip2clip_hf.models.small_text_tower import VOCABULARY, state_word_tokenizer
from vip2clip_hf.models.vip2clip.backbone_vip2clip import load_clip
from vip2clip_hf.models.vip2clip.state_words_vip2clip import CLIP_VOCAB_SIZE, STATE_WORD_TOKEN_IDS
from vip2clip_hf.models.vit_reading import read_vit
from vip2clip_hf.models.vit_to_clip import vit_to_clip
from vip2clip_hf.utils.files import apply_umask, new_folder


DEFAULT_VIT = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
# Largest difference of a weight, relative to the largest weight of its tensor. Rounding to float16 is below 5e-4.
TOLERANCE = 1e-3
# Largest relative difference of the features of a block, with weights rounded to float16.
FEATURE_TOLERANCE = 1e-2


def assemble_tower(options: argparse.Namespace) -> None:
    """Write the tower, in float16."""
    if options.clip is None:
        report = build_backbone(options.vit, options.output, float16=True, seed=options.seed)
        deviations = f"{report['deviation']:.1e}, in float16 {report['stored_deviation']:.1e}"
        print(f"Largest relative deviation of the features from the original: {deviations}")
    else:
        clip = keep_state_words(load_clip(options.clip)[0])
        with new_folder(options.output) as folder:
            clip.half().save_pretrained(folder)
            state_word_tokenizer().save_pretrained(folder)
            apply_umask(folder)
    size = os.stat(os.path.join(options.output, "model.safetensors")).st_size
    print(f"Wrote the tower to {options.output}: {size / 1e6:.1f} MB")


@torch.no_grad()
def keep_state_words(clip: CLIPModel) -> CLIPModel:
    """
    Keep the tokens of the state words only. Prompts of ViP²-CLIP are encoded as before.

    Args:
        clip (`CLIPModel`): model with the vocabulary of CLIP, or with the smaller one already.

    Returns:
        `CLIPModel`: a model with the vocabulary `VOCABULARY`.

    Raises:
        ValueError: if the model has another vocabulary.
    """
    table = clip.text_model.embeddings.token_embedding.weight
    if len(table) == len(VOCABULARY):
        return clip
    if len(table) != CLIP_VOCAB_SIZE:
        raise ValueError(f"The vocabulary has {len(table)} tokens; expected {CLIP_VOCAB_SIZE} or {len(VOCABULARY)}.")
    start, end = CLIP_VOCAB_SIZE - 2, CLIP_VOCAB_SIZE - 1
    old = {"<start>": start, "<end>": end, "<unknown>": end}
    old.update({word: ids[0] for word, ids in STATE_WORD_TOKEN_IDS.items()})
    config = copy.deepcopy(clip.config)
    text = config.text_config
    text.vocab_size, text.bos_token_id = len(VOCABULARY), VOCABULARY["<start>"]
    text.eos_token_id = text.pad_token_id = VOCABULARY["<end>"]
    smaller = CLIPModel(config).eval()
    state = clip.state_dict()
    rows = [old[word] for word in VOCABULARY]
    state["text_model.embeddings.token_embedding.weight"] = table[rows]
    smaller.load_state_dict(state)
    return smaller.to(table.dtype)


def differences(clip: CLIPModel, other: CLIPModel) -> dict[str, float]:
    """
    Compare the vision towers of two models that were rewritten from the same vision transformer.

    The constants of the additional channels may differ, because they cancel.

    Args:
        clip, other (`CLIPModel`): the models.

    Returns:
        `dict[str, float]`: difference by name of the tensor, relative to its largest value; infinite if the shapes
        differ or a tensor is missing.
    """

    def tensors(model: CLIPModel) -> dict[str, torch.Tensor]:
        found = {n: t.double() for n, t in model.vision_model.state_dict().items() if not n.endswith("position_ids")}
        weight = found["pre_layrnorm.weight"]
        found["pre_layrnorm.weight"] = weight / weight.abs().max()
        kept = weight != 0
        name = "embeddings.position_embedding.weight"
        found[name] = torch.where(kept, found[name], 0.0)
        return found

    one, two = tensors(clip), tensors(other)
    result = {}
    for name in sorted({*one, *two}):
        if name not in one or name not in two or one[name].shape != two[name].shape:
            result[name] = float("inf")
        else:
            largest = max(float(one[name].abs().max()), float(two[name].abs().max()), 1e-12)
            result[name] = float((one[name] - two[name]).abs().max()) / largest
    return result


@torch.no_grad()
def feature_difference(clip: CLIPModel, other: CLIPModel) -> float:
    """
    Compare the normalized features of all blocks of two vision towers on a random image.

    Args:
        clip, other (`CLIPModel`): the models.

    Returns:
        `float`: largest relative difference of a block.
    """
    side = clip.config.vision_config.image_size
    pixels = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (clip, other):
        tower = model.float().vision_model
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        found.append([tower.post_layernorm(state) for state in states])
    return max(float((one - two).norm() / two.norm()) for one, two in zip(*found, strict=True))


def compare_tower(options: argparse.Namespace) -> None:
    """Rebuild a tower from the original vision transformer, and stop with exit code 1 if the weights differ."""
    clip, rebuilt = load_clip(options.clip)[0].float(), vit_to_clip(read_vit(options.vit))
    found = differences(clip, rebuilt)
    name = max(found, key=lambda one: found[one])
    print(f"Largest difference of {len(found)} tensors: {found[name]:.1e} in {name} (allowed: {TOLERANCE:g})")
    if found[name] == float("inf"):
        raise SystemExit(f"{options.clip} has another architecture than {options.vit}.")
    of_features = feature_difference(clip, rebuilt)
    print(f"Largest relative difference of the features: {of_features:.1e} (allowed: {FEATURE_TOLERANCE:g})")
    if not (found[name] <= TOLERANCE and of_features <= FEATURE_TOLERANCE):
        raise SystemExit(f"{options.clip} was not rewritten from {options.vit}.")
    print(f"{options.clip} has the weights of {options.vit}.")
