"""Write a vision transformer as the folder of a CLIP backbone, and verify it."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from ..utils.files import apply_umask, check_new_folder, new_folder
from .backbone_features import deviation, original_features, tower_features
from .small_text_tower import state_word_tokenizer
from .vip2clip.backbone_vip2clip import backbone_checksum, load_clip
from .vit_reading import read_vit
from .vit_to_clip import extra_channels, vit_to_clip


# Largest relative deviation of the features of a block, in float32.
TOLERANCE = 1e-4
CARD = """---
library_name: transformers
tags:
- clip
- vision
---

# CLIP backbone from {source}

A plain vision transformer, rewritten by `vip2clip build-backbone` as the vision tower of a `CLIPModel`. It computes
the same features as the original, with images normalized like those of CLIP. The text tower is small and has random
weights: this is a backbone for ViP²-CLIP adapters, not a model that matches images and texts.

| | |
|---|---|
| weights | `{source}`{revision} |
| blocks, heads, width | {layers}, {heads}, {width} and {extra} additional channels that are constant |
| images | {image_size} pixels, patches of {patch_size} pixels |
| original normalization | mean {mean}, standard deviation {std}; included in the patch embedding |
| storage | {dtype} |
| relative deviation from the original | {exact:.1e} in float32{stored} |
| checksum | `{checksum}` |
| random seed of the text tower | {seed} |

The licence of the original weights applies.

```bash
vip2clip train --clip FOLDER --image_size {image_size} --feature_layers {blocks} --train_data ROOT
```
"""


def build_backbone(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_heads: int | None = None,
    revision: str | None = None,
    float16: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Write a CLIP backbone whose vision tower computes the same as a plain vision transformer.

    Args:
        source (`str` or `os.PathLike`): folder or Hub id of a vision transformer, see [`read_vit`].
        output (`str` or `os.PathLike`): new folder.
        num_heads (`int`, *optional*): number of attention heads, for timm models of an unusual width.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        float16 (`bool`, defaults to `False`): whether to store the weights in float16, with half the size.
        seed (`int`, defaults to 0): random seed of the text tower.

    Returns:
        `dict[str, Any]`: `output`, the `width`, `num_heads`, `num_layers`, `patch_size` and `image_size`, `mean` and
        `std` of the original, suggested `feature_layers`, `checksum`, and the largest relative deviation of the
        features of a block from the original: `deviation` of the computed and `stored_deviation` of the stored tower.

    Raises:
        OSError: if the checkpoint is not found, or `output` is not a new folder.
        RuntimeError: if the tower deviates from the original by more than 1e-4. Nothing is written.
        ValueError: if the architecture is not a plain vision transformer.
    """
    check_new_folder(output)
    vit = read_vit(source, num_heads=num_heads, revision=revision)
    clip = vit_to_clip(vit, seed=seed)
    image = torch.rand((1, 3, vit.image_size, vit.image_size), generator=torch.Generator().manual_seed(0))
    expected = original_features(source, revision, vit, image)
    found = deviation(tower_features(clip, image), expected)
    if not found <= TOLERANCE:
        raise RuntimeError(
            f"The rewritten tower deviates from the original by {found:.1e}; expected at most {TOLERANCE:g}. "
            "Nothing was written."
        )
    if float16:
        clip = clip.half()
    stored = deviation(tower_features(clip.float(), image), expected)
    clip = clip.half() if float16 else clip
    layers = feature_layers(vit.num_layers)
    report: dict[str, Any] = {
        "output": os.fspath(output), "width": vit.width, "num_heads": vit.num_heads, "num_layers": vit.num_layers,
        "patch_size": vit.patch_size, "image_size": vit.image_size, "mean": list(vit.mean), "std": list(vit.std),
        "feature_layers": layers, "deviation": found, "stored_deviation": stored,
        "checksum": backbone_checksum(clip.state_dict(), clip.dtype),
    }  # fmt: skip
    name = Path(source).resolve().name if os.path.exists(source) else os.fspath(source)
    card = CARD.format(
        source=name, revision=_revision(source, revision), layers=vit.num_layers, heads=vit.num_heads,
        width=vit.width, extra=extra_channels(vit.num_heads), image_size=vit.image_size,
        patch_size=vit.patch_size, mean=_numbers(vit.mean), std=_numbers(vit.std), exact=found, seed=seed,
        stored=f", {stored:.1e} with weights in float16" if float16 else "",
        dtype="float16" if float16 else "float32", checksum=report["checksum"], blocks=" ".join(map(str, layers)),
    )  # fmt: skip
    with new_folder(output) as folder:
        clip.save_pretrained(folder)
        state_word_tokenizer().save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        apply_umask(folder)
        written, _ = load_clip(folder)
        if backbone_checksum(written.state_dict(), written.dtype) != report["checksum"]:
            raise RuntimeError(f"The weights in {os.fspath(output)!r} are not those that were written; try again.")
    return report


def feature_layers(num_layers: int) -> list[int]:
    """
    Return the blocks after each quarter of a tower.

    Args:
        num_layers (`int`): number of blocks.

    Returns:
        `list[int]`: numbers of blocks, counted from 1, without duplicates.
    """
    return sorted({max(1, round(num_layers * quarter / 4)) for quarter in range(1, 5)})


def _revision(source: str | os.PathLike, revision: str | None) -> str:
    """Name the commit of a checkpoint from the Hub."""
    if os.path.isdir(source):
        return ""
    path = cached_file(source, "config.json", revision=revision)
    commit = Path(path).parent.name if path is not None else ""
    return f", commit {commit}" if len(commit) == 40 else ""


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


__all__ = ["TOLERANCE", "build_backbone", "feature_layers"]
