"""
Rewrite a plain vision transformer as the vision tower of a CLIP model, without changing what it computes.

CLIP normalizes the embeddings before the first block (`pre_layrnorm`), a plain ViT does not. The rewritten tower has a
few more channels than the ViT. They contain large constants, so that this normalization divides by nearly the same
number for every patch, which its weight undoes. In the blocks, these channels are 0.
"""

import math

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .plain_vit import PlainViT
from .small_text_tower import TEXT


# Share of the variance that the patches contribute to the first normalization, at most. It is the relative error.
LARGEST_SHARE = 1e-6
# The constants must fit into float16.
LARGEST_CONSTANT = 2.0**15


def extra_channels(num_heads: int) -> int:
    """
    Return the number of channels that the rewritten tower has in addition to those of the ViT.

    Args:
        num_heads (`int`): number of attention heads.

    Returns:
        `int`: smallest even number that is divisible by the number of heads.
    """
    return math.lcm(2, num_heads)


@torch.no_grad()
def vit_to_clip(
    vit: PlainViT,
    *,
    projection: torch.Tensor | None = None,
    seed: int = 0,
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN),
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD),
) -> CLIPModel:
    """
    Build a CLIP model whose vision tower computes the same as a plain ViT.

    The text tower is small and has random weights. It has tokens for the state words of the package only.

    Args:
        vit ([`PlainViT`]): the vision transformer.
        projection (`torch.Tensor` of shape `(projection_dim, D)`, *optional*): projection to the joint space. By
            default, the features are kept as they are.
        seed (`int`, defaults to 0): random seed of the text tower.
        mean, std (`tuple[float, ...]`): mean and standard deviation that images for the CLIP model are normalized
            with. Defaults to those of CLIP.

    Returns:
        `CLIPModel`: the model in float32, in eval mode.
    """
    n, m = vit.width, extra_channels(vit.num_heads)
    width = n + m
    projection = torch.eye(n) if projection is None else projection
    vision = {
        "hidden_size": width, "intermediate_size": len(vit.weights["0.fc1.weight"]),
        "num_attention_heads": vit.num_heads, "num_hidden_layers": vit.num_layers, "image_size": vit.image_size,
        "patch_size": vit.patch_size, "hidden_act": vit.hidden_act, "layer_norm_eps": vit.eps * n / width,
    }  # fmt: skip
    config = CLIPConfig(projection_dim=len(projection), text_config=TEXT, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIPModel(config).eval()
    text = {k: v for k, v in clip.state_dict().items() if not k.startswith(("vision_model.", "visual_projection."))}
    tower = {f"vision_model.{name}": tensor for name, tensor in _tower(vit, mean, std).items()}
    tower["visual_projection.weight"] = F.pad(projection.double(), (0, m))
    buffers = {k: v for k, v in clip.state_dict().items() if k.endswith("position_ids")}
    clip.load_state_dict({**text, **buffers, **{name: tensor.float() for name, tensor in tower.items()}})
    return clip


def _tower(vit: PlainViT, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Compute the weights of the vision tower, in float64."""
    w = {name: tensor.double() for name, tensor in vit.weights.items()}
    n, heads, m = vit.width, vit.num_heads, extra_channels(vit.num_heads)
    width, before = n + m, n // heads
    after = width // heads

    def centred(tensor: torch.Tensor) -> torch.Tensor:
        # The next normalization subtracts the mean over the channels anyway.
        return tensor - tensor.mean(dim=0, keepdim=True)

    def norm(name: str) -> dict[str, torch.Tensor]:
        # The variance over all channels is that of the ViT's channels times n / width.
        return {"weight": F.pad(w[f"{name}.weight"] * math.sqrt(n / width), (0, m)),
                "bias": F.pad(w[f"{name}.bias"], (0, m))}  # fmt: skip

    def heads_out(tensor: torch.Tensor) -> torch.Tensor:
        """Pad the rows of each head."""
        rows = tensor.reshape(heads, before, -1)
        return F.pad(rows, (0, 0, 0, after - before)).reshape(heads * after, *tensor.shape[1:])

    # The pixels are normalized with other numbers: what the ViT gets is x * scale + shift.
    scale = torch.tensor(std).double() / torch.tensor(vit.std).double()
    shift = (torch.tensor(mean).double() - torch.tensor(vit.mean).double()) / torch.tensor(vit.std).double()
    patch = centred(w["patch.weight"])
    bias = centred(w["patch.bias"]) + (patch * shift.view(3, 1, 1)).sum(dim=(1, 2, 3))
    patch = patch * scale.view(3, 1, 1)
    positions = centred(w["pos_embed"].T).T.clone()
    positions[1:] += bias
    token = centred(w["cls_token"])
    constant, deviation = _constants(_energy(patch, positions, token), n, m, vit.eps * n / width)
    signs = constant * (1 - 2 * (torch.arange(m) % 2)).double()
    found = {
        "embeddings.class_embedding": F.pad(token, (0, m)),
        "embeddings.patch_embedding.weight": F.pad(patch, (0, 0, 0, 0, 0, 0, 0, m)),
        "embeddings.position_embedding.weight": torch.cat([positions, signs.expand(len(positions), m)], dim=1),
        "pre_layrnorm.weight": F.pad(torch.full((n,), deviation, dtype=torch.float64), (0, m)),
        "pre_layrnorm.bias": torch.zeros(width),
    }
    for b in range(vit.num_layers):
        parts = {"layer_norm1": norm(f"{b}.norm1"), "layer_norm2": norm(f"{b}.norm2")}
        for name in "qkv":
            factor = math.sqrt(after / before) if name == "q" else 1.0  # CLIP divides by the root of the larger head
            parts[f"self_attn.{name}_proj"] = {
                "weight": F.pad(heads_out(w[f"{b}.{name}.weight"]), (0, m)) * factor,
                "bias": heads_out(w[f"{b}.{name}.bias"]) * factor,
            }
        out = heads_out(centred(w[f"{b}.out.weight"]).T).T
        parts["self_attn.out_proj"] = {"weight": F.pad(out, (0, 0, 0, m)),
                                       "bias": F.pad(centred(w[f"{b}.out.bias"]), (0, m))}  # fmt: skip
        parts["mlp.fc1"] = {"weight": F.pad(w[f"{b}.fc1.weight"], (0, m)), "bias": w[f"{b}.fc1.bias"]}
        parts["mlp.fc2"] = {"weight": F.pad(centred(w[f"{b}.fc2.weight"]), (0, 0, 0, m)),
                            "bias": F.pad(centred(w[f"{b}.fc2.bias"]), (0, m))}  # fmt: skip
        found.update({f"encoder.layers.{b}.{p}.{k}": t for p, one in parts.items() for k, t in one.items()})
    found.update({f"post_layernorm.{name}": tensor for name, tensor in norm("norm").items()})
    return found


def _energy(patch: torch.Tensor, positions: torch.Tensor, token: torch.Tensor) -> float:
    """Estimate the largest squared length of an embedding, from black, white and random images."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((64, *patch.shape[1:]), generator=generator, dtype=torch.float64) * 4 - 2
    corners = torch.tensor([[2.0 * (1 - 2 * (i >> c & 1)) for c in range(3)] for i in range(8)]).double()
    flat = corners.view(8, 3, 1, 1).expand(8, *patch.shape[1:])
    embedded = torch.cat([noise, flat]).flatten(1) @ patch.flatten(1).T
    largest = embedded.norm(dim=1).max() + positions[1:].norm(dim=1).max()
    return max(float(largest), float((token + positions[0]).norm())) ** 2


def _constants(energy: float, n: int, m: int, eps: float) -> tuple[float, float]:
    """Choose the constant of the additional channels, and return it with the deviation that it causes. Both are as
    close as possible to numbers of float16, so that the tower can be stored in float16."""
    least = math.sqrt(energy / (2 * m * LARGEST_SHARE))
    least = min(max(2.0 ** math.ceil(math.log2(max(least, 64.0))), 64.0), LARGEST_CONSTANT)

    def deviation(constant: float) -> float:
        return math.sqrt(m * constant**2 / (n + m) + eps)

    def rounding(constant: float) -> float:
        value = deviation(constant)
        return abs(float(torch.tensor(value).half()) / value - 1)

    candidates = [least * (1 + number / 1024) for number in range(512)]  # exact in float16
    best = min(candidates, key=rounding)
    return best, deviation(best)


__all__ = ["extra_channels", "vit_to_clip"]
