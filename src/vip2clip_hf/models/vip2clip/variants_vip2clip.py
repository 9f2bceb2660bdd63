"""Settings of the variants of the model, and the default backbone."""

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


def clip_vit_large_patch14_336() -> CLIPConfig:
    """Return the configuration of CLIP ViT-L/14@336px, the backbone of the paper (section 5.1)."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    vision.update(image_size=336, patch_size=14)
    for tower in (text, vision):
        tower["projection_dim"] = 768
    return CLIPConfig(projection_dim=768, text_config=text, vision_config=vision)


__all__ = ["VARIANTS", "clip_vit_large_patch14_336"]
