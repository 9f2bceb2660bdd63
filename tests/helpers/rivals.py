"""Fixtures of other methods: what published codes compute on tiny random models, and a tokenizer for their prompts."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from helpers.tiny import FIXTURES


# Another folder of the same form, such as fixtures with other seeds.
ORACLES = Path(os.environ.get("VIP2CLIP_ORACLES", FIXTURES / "rivals"))
# Of CLIP, reduced to the words of our prompts. The ids are those of CLIP.
TOKENIZER = FIXTURES / "rivals" / "tokenizer.json"


def load_oracle(method: str) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """Return the tensors, `config.json` and `prompts.json` of a method."""
    folder = ORACLES / method
    config, prompts = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "prompts"))
    return load_file(folder / "fixture.safetensors"), config, prompts


def load_tower(method: str) -> CLIPModel:
    return CLIPModel.from_pretrained(ORACLES / method / "clip").eval()


def clip_tokenizer(real_ids: torch.Tensor | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer. With `real_ids`, token i has the id of the position of i in them, as in the fixtures."""
    content = json.loads(TOKENIZER.read_text())
    if real_ids is not None:
        number = {real: compact for compact, real in enumerate(real_ids.tolist())}
        vocab = content["model"]["vocab"]
        unused = iter(range(len(number), len(number) + len(vocab)))
        content["model"]["vocab"] = {token: number.get(i) for token, i in vocab.items()}
        for token, i in content["model"]["vocab"].items():
            content["model"]["vocab"][token] = next(unused) if i is None else i
        for token in content["added_tokens"]:
            token["id"] = number[token["id"]]
        for end in ("sep", "cls"):
            content["post_processor"][end][1] = number[content["post_processor"][end][1]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip


def tiny_text_clip(**vision) -> CLIPModel:
    """A tiny CLIP with the vocabulary of CLIP, for `clip_tokenizer()`."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    shape.update({"image_size": 32, "patch_size": 8, **vision})
    return CLIPModel(CLIPConfig(text_config=text, vision_config=shape, projection_dim=16)).eval()


def outputs_of(tensors: dict[str, torch.Tensor], inputs: set[str] = frozenset()) -> list[str]:
    """Return the names of all tensors of a fixture that are not inputs."""
    inputs = {"images", "vocab_real_ids", *inputs}
    return [name for name in tensors if name not in inputs and not name.startswith("tokens.")]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float):
    assert found.shape == expected.shape
    worst = (found.double() - expected.double()).abs().max().item()
    print(f"worst difference {worst:.1e}")
    assert worst < tolerance
