"""Configuration of CLIP as a detector of anomalies."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration import BaselineConfig


@strict
class ClipAnomalyDetectionConfig(BaselineConfig):
    r"""
    Configuration of a [`ClipForAnomalyDetection`] model.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone, by default CLIP ViT-L/14@336px.
        image_size (`int`, *optional*):
            Side of the square input images in pixels, a multiple of the patch size. By default, that of the backbone.
            Anomaly maps have the same size.
        position_interpolation (`"bicubic_antialias"`, `"bicubic"` or `"bilinear"`, *optional*):
            How the position embeddings are resized for another image size. The default is that of open_clip.
        prompt_ensemble (`str`, defaults to `"single"`):
            `"single"`, one prompt of each kind, or `"imagenet"` or `"april_gan"`, see
            `vip2clip_hf.baselines.prompts`.
        normal_states, anomalous_states, templates (`tuple[str, ...]`, *optional*):
            States and templates to use instead of those of `prompt_ensemble`, each with one `{}`.
        class_name (`str`, defaults to `"object"`):
            Name of the class in the prompts, if no other is passed.
        logit_scale (`float`, *optional*, defaults to 100.0):
            Factor of the cosines, that of OpenAI's weights. `None` is the factor that the backbone has learned.
        map_order (`"probabilities"` or `"logits"`, *optional*, defaults to `"probabilities"`):
            What is resized to the size of the image: the probability of each patch, or the logits of each patch, with
            aligned corners and before the softmax, as in APRIL-GAN.
        smoothing_sigma (`float`, defaults to 4.0):
            Standard deviation of the Gaussian that smooths maps, in pixels. 0 disables smoothing.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    model_type = "clip_anomaly_detection"
    keys_to_ignore_at_inference = ["patch_logits", "text_embeds", "image_embeds"]

    logit_scale: int | float | None = 100.0
    map_order: Literal["probabilities", "logits"] = "probabilities"
    smoothing_sigma: int | float = 4.0

    def name_of_category(self, category: str) -> str:
        """
        Return the name of a category of a dataset as the prompts use it: with blanks.

        Args:
            category (`str`): name of the category, such as `"metal_nut"`.

        Returns:
            `str`: the class name, such as `"metal nut"`.
        """
        return category.replace("_", " ")

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        super().check_values()
        scale, sigma = self.logit_scale, self.smoothing_sigma
        self._check("logit_scale", scale is None or 0 < scale < math.inf, "a number greater than 0, or None")
        self._check("smoothing_sigma", 0 <= sigma <= self.side, f"a number from 0 to {self.side}, the image size")


__all__ = ["ClipAnomalyDetectionConfig"]
