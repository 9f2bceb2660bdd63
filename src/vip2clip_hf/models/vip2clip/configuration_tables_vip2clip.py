"""Variants of the configuration, and fields of earlier versions."""

from collections.abc import Iterable
from typing import Any

from transformers import CLIPConfig


# Differences of each variant from the defaults, which follow the paper. docs/paper-and-release.md explains them.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "normal_word": "damaged",
        "fgp_num_heads": 8,
        "fgp_scaled": False,
        "image_score": "mean_logits",
        "image_embeds_layernorm": False,
        "focal_smooth": 1e-5,
    },
}


# Fields of configurations saved by version 0.1, and their current names.
RENAMED_FIELDS = {
    "num_image_tokens": "num_object_tokens",
    "perception_num_heads": "fgp_num_heads",
    "perception_scaled": "fgp_scaled",
}
# Fields of version 0.1 that are stored in other files now, and where they are found.
MOVED_FIELDS = {
    **{name: f"model.decision.{name}" for name in ("image_threshold", "pixel_threshold", "calibration")},
    **{name: f"model.provenance.{name}" for name in ("backbone_id", "backbone_revision", "training_sets")},
    **dict.fromkeys(
        ("adapters_only", "backbone_checksum", "backbone_dtype"),
        "save_checkpoint(..., adapters_only=True), which writes backbone.json",
    ),
}


class MovedField:
    """A field of version 0.1 that is stored in another file now."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        raise AttributeError(f"ViP2ClipConfig has no field {self.name!r}; use {MOVED_FIELDS[self.name]}.")

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(f"ViP2ClipConfig has no field {self.name!r}; use {MOVED_FIELDS[self.name]}.")


def check_moved(names: Iterable[str]) -> None:
    """
    Check that names are not those of fields that were renamed, or moved to another file, since version 0.1.

    Args:
        names (`Iterable[str]`): names to check.

    Raises:
        ValueError: if a name is one of these fields. The message contains the new name or place.
    """
    for old, new in RENAMED_FIELDS.items():
        if old in names:  # unknown names are kept as attributes, without effect
            raise ValueError(f"{old!r} is not a field; expected its new name {new!r}.")
    for name, place in MOVED_FIELDS.items():
        if name in names:
            raise ValueError(f"{name!r} is not a field of ViP2ClipConfig; use {place}.")


def clip_vit_large_patch14_336() -> CLIPConfig:
    """
    Return the configuration of CLIP ViT-L/14@336px, the backbone of the paper (section 5.1).

    Returns:
        `CLIPConfig`: the configuration.
    """
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    vision.update(image_size=336, patch_size=14)
    for tower in (text, vision):
        tower["projection_dim"] = 768
    return CLIPConfig(projection_dim=768, text_config=text, vision_config=vision)


__all__ = [
    "MOVED_FIELDS",
    "RENAMED_FIELDS",
    "VARIANTS",
    "MovedField",
    "check_moved",
    "clip_vit_large_patch14_336",
]
