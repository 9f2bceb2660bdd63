"""Configuration of WinCLIP."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from .configuration import BaselineConfig


@strict
class WinClipConfig(BaselineConfig):
    r"""
    Configuration of a [`WinClipForAnomalyDetection`] model.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone, by default open_clip's ViT-B-16-plus-240.
        image_size (`int`, *optional*):
            Side of the square input images in pixels, a multiple of the patch size. By default, that of the backbone.
            Anomaly maps have the same size.
        position_interpolation (`"bicubic_antialias"`, `"bicubic"` or `"bilinear"`, *optional*):
            How the position embeddings are resized for another image size. The default is that of open_clip.
        prompt_ensemble (`str`, defaults to `"winclip"`):
            `"winclip"` has the 21 templates of anomalib, one of them twice. `"winclip_complete"` has "a" and "the" of
            all 11 templates once, as caoyunkang/WinClip.
        normal_states, anomalous_states, templates (`tuple[str, ...]`, *optional*):
            States and templates to use instead of those of `prompt_ensemble`, each with one `{}`.
        class_name (`str`, defaults to `"object"`):
            Name of the class in the prompts, if no other is passed.
        scales (`tuple[int, ...]`, defaults to `(2, 3)`):
            Sides of the windows in patches.
        temperature (`float`, defaults to 0.07):
            Temperature of the scores. 0.01 is the factor 100 of caoyunkang/WinClip.
        normalize_prompts (`bool`, defaults to `False`):
            Whether to normalize the embeddings of the prompts before their mean, as version 2 of
            caoyunkang/WinClip does.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    model_type = "winclip"
    keys_to_ignore_at_inference = ["grid_maps", "reference_grid_maps", "text_embeds", "image_embeds"]

    prompt_ensemble: str = "winclip"
    scales: list[int] | tuple[int, ...] = (2, 3)
    temperature: int | float = 0.07
    normalize_prompts: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.scales = tuple(self.scales)
        super().__post_init__(**kwargs)

    @staticmethod
    def default_clip_config() -> CLIPConfig:
        """Return the configuration of the backbone if none is passed: ViT-B-16-plus-240."""
        both: dict[str, Any] = {"num_hidden_layers": 12, "projection_dim": 640, "hidden_act": "gelu"}
        text = {**both, "hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10}
        vision = {**both, "hidden_size": 896, "intermediate_size": 3584, "num_attention_heads": 14}
        vision.update(image_size=240, patch_size=16)
        return CLIPConfig(projection_dim=640, text_config=text, vision_config=vision)

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        super().check_values()
        allowed = len(self.scales) > 0 and all(1 <= scale <= self.patch_grid for scale in self.scales)
        self._check(
            "scales", allowed and len(set(self.scales)) == len(self.scales),
            f"distinct integers from 1 to {self.patch_grid}, the number of patches along one side",
        )  # fmt: skip
        self._check("temperature", 1e-4 <= self.temperature < math.inf, "a number of at least 0.0001")


__all__ = ["WinClipConfig"]
