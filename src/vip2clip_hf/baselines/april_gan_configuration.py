"""Configuration of APRIL-GAN."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration import BaselineConfig


@strict
class AprilGanConfig(BaselineConfig):
    r"""
    Configuration of an [`AprilGanForAnomalyDetection`] model.

    The defaults are those of the published code (MIT). It computes OpenAI's weights with the exact GELU, because it
    builds the model again for another image size; here the backbone decides. [`convert_april_gan_checkpoint`] sets the
    exact GELU.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone, by default CLIP ViT-L/14@336px.
        image_size (`int`, *optional*, defaults to 518):
            Side of the square input images in pixels, a multiple of the patch size. `None` is that of the backbone.
            Anomaly maps have the same size.
        position_interpolation (`"bicubic_antialias"`, `"bicubic"` or `"bilinear"`, *optional*):
            How the position embeddings are resized for another image size. The default is that of the published code.
        prompt_ensemble (`str`, defaults to `"april_gan"`):
            States and templates, see `vip2clip_hf.baselines.prompts`.
        normal_states, anomalous_states, templates (`tuple[str, ...]`, *optional*):
            States and templates to use instead of those of `prompt_ensemble`, each with one `{}`.
        class_name (`str`, defaults to `"object"`):
            Name of the class in the prompts, if no other is passed.
        feature_layers (`tuple[int, ...]`, defaults to `(6, 12, 18, 24)`):
            Numbers of the vision blocks whose patch tokens are compared with the prompts, from 1. Each has a linear
            layer.
        few_shot_layers (`tuple[int, ...]`, *optional*):
            Numbers of the vision blocks whose patch tokens are compared with references. By default, `feature_layers`.
        logit_scale (`float`, defaults to 100.0):
            Factor of the cosines. The published code does not use the factor that the backbone has learned.
        map_reduction (`"sum"` or `"mean"`, defaults to `"sum"`):
            How the maps of the layers are combined. `"sum"` is published: maps in [0, number of layers], with
            references up to 2 more for each layer of `few_shot_layers`. `"mean"` divides by the number of maps: all of
            them are in [0, 1] as long as no cosine with the nearest reference is negative. Image scores are the same.
        dice_rows_for_one_image (`bool`, defaults to `False`):
            How the dice loss treats a batch of one image. `True` is what the published code does: its rows of pixels
            take the place of images. This happens in the last batch of an epoch only, if one image remains.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    model_type = "april_gan"
    keys_to_ignore_at_inference = [
        "loss_components",
        "zero_shot_scores",
        "map_maxima",
        "logits",
        "patch_logits",
        "reference_grid_maps",
        "text_embeds",
        "image_embeds",
    ]

    image_size: int | None = 518
    prompt_ensemble: str = "april_gan"
    feature_layers: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    few_shot_layers: list[int] | tuple[int, ...] | None = None
    logit_scale: int | float = 100.0
    map_reduction: Literal["sum", "mean"] = "sum"
    dice_rows_for_one_image: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # The linear layers are in the order of the blocks.
        self.feature_layers = tuple(sorted(self.feature_layers))
        if self.few_shot_layers is not None:
            self.few_shot_layers = tuple(sorted(self.few_shot_layers))
        super().__post_init__(**kwargs)

    @property
    def reference_layers(self) -> tuple[int, ...]:
        """Numbers of the vision blocks whose patch tokens are compared with references."""
        return tuple(self.feature_layers if self.few_shot_layers is None else self.few_shot_layers)

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        super().check_values()
        depth = self.clip.vision_config.num_hidden_layers
        for name in ("feature_layers", "few_shot_layers"):
            layers = self.feature_layers if getattr(self, name) is None else getattr(self, name)
            allowed = len(layers) > 0 and all(1 <= layer <= depth for layer in layers)
            expected = f"distinct block numbers from 1 to {depth}, the number of vision blocks in the backbone"
            self._check(name, allowed and len(set(layers)) == len(layers), expected)
        self._check("logit_scale", 0 < self.logit_scale < math.inf, "a number greater than 0")


__all__ = ["AprilGanConfig"]
