"""Configuration of AdaCLIP."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from ..models.vip2clip.configuration_tables_vip2clip import clip_vit_large_patch14_336
from .configuration import BaselineConfig


# Of the published code, on CLIP ViT-L/14@336px.
IMAGE_SIZE = 518
CLUSTERS = 20


@strict
class AdaClipConfig(BaselineConfig):
    r"""
    Configuration of an [`AdaClipForAnomalyDetection`] model. The defaults are the published settings.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone, by default CLIP ViT-L/14@336px with the exact GELU, with which the
            published code runs OpenAI's weights.
        image_size (`int`, *optional*):
            Side of the square input images in pixels, a multiple of the patch size. By default 518, or the size of the
            backbone if 518 is not a multiple of its patch size. Anomaly maps have the same size.
        position_interpolation (`"bicubic"`, `"bicubic_antialias"` or `"bilinear"`, *optional*):
            How the position embeddings are resized for another image size.
        feature_layers (`tuple[int, ...]`, *optional*):
            Numbers of the vision blocks whose patch tokens are used, from 1. By default, the blocks at one, two, three
            and four quarters of the depth.
        prompt_ensemble (`str`, defaults to `"adaclip"`):
            7 normal and 5 anomalous states in 4 templates.
        normal_states, anomalous_states, templates (`tuple[str, ...]`, *optional*):
            States and templates to use instead of those of `prompt_ensemble`. With prompts in the text tower, each
            text needs at least `prompting_length` tokens, because the prompts replace them.
        class_name (`str`, defaults to `"object"`):
            Name of the class in the prompts, if no other is passed.
        prompting_depth (`int`, defaults to 4):
            Number of blocks of each tower that have prompts. The first block of the text tower has none, so the text
            tower needs a depth of at least 2.
        prompting_length (`int`, defaults to 5):
            Number of tokens of the prompts.
        prompting_branch (`"VL"`, `"V"` or `"L"`, *optional*):
            Towers with prompts: vision (`V`) and language (`L`).
        prompting_type (`"SD"`, `"S"` or `"D"`, *optional*):
            Static prompts (`S`), dynamic prompts (`D`), which are computed from the image, or their sum.
        use_hsf (`bool`, defaults to `True`):
            Whether the image embedding contains the clusters of anomalous patches (hybrid semantic fusion).
        hsf_selection (`"top_patches"` or `"best_cluster"`, *optional*, defaults to `"top_patches"`):
            `"top_patches"`, the published code: the most anomalous patches are clustered, and the centers of all
            clusters are averaged. `"best_cluster"`, what the published code describes as the version of the paper: all
            patches are clustered, and the most anomalous cluster is used.
        k_clusters (`int`, *optional*):
            Number of clusters. By default 20, or the number of patches if there are less. With `"top_patches"`, at
            most five times as many patches are clustered.
        kmeans_seed (`int`, defaults to 0):
            Random seed of the clustering of each image. The published code has none.
        hsf_weight (`float`, defaults to 0.2):
            Weight of the clusters in the image embedding, in [0, 1].
        logit_scale (`float`, defaults to 100.0):
            Factor of the cosines.
        smoothing_sigma (`float`, defaults to 4.0):
            Standard deviation of the Gaussian that smooths maps, in pixels. 0 disables smoothing.
        dice_over_rows (`bool`, defaults to `True`):
            Whether the dice loss compares each row of pixels, as the published code does with its batches of one
            image. `False` compares whole images.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of new static prompts.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    model_type = "adaclip"
    keys_to_ignore_at_inference = [
        "loss_components", "logits", "patch_logits", "text_embeds", "image_embeds", "cluster_embeds"
    ]  # fmt: skip

    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bicubic"
    feature_layers: list[int] | tuple[int, ...] | None = None
    prompt_ensemble: str = "adaclip"
    prompting_depth: int = 4
    prompting_length: int = 5
    prompting_branch: Literal["VL", "V", "L"] = "VL"
    prompting_type: Literal["SD", "S", "D"] = "SD"
    use_hsf: bool = True
    hsf_selection: Literal["top_patches", "best_cluster"] = "top_patches"
    k_clusters: int | None = None
    kmeans_seed: int = 0
    hsf_weight: int | float = 0.2
    logit_scale: int | float = 100.0
    smoothing_sigma: int | float = 4.0
    dice_over_rows: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        layers = self.feature_layers
        self.feature_layers = None if layers is None else tuple(layers)
        super().__post_init__(**kwargs)
        if layers is None:
            depth = self.clip.vision_config.num_hidden_layers
            self.feature_layers = tuple(dict.fromkeys(max(1, depth * quarter // 4) for quarter in range(1, 5)))

    @staticmethod
    def default_clip_config() -> CLIPConfig:
        """Return the configuration of the backbone if none is passed: CLIP ViT-L/14@336px with the exact GELU."""
        config: Any = clip_vit_large_patch14_336()
        config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"
        return config

    def default_image_size(self) -> int:
        """Return the image size if none is passed: 518, or that of the backbone if its patches do not fit."""
        vision = self.clip.vision_config
        return IMAGE_SIZE if IMAGE_SIZE % vision.patch_size == 0 else vision.image_size

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the feature layers, from 1."""
        return tuple(self.feature_layers or ())

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return min(CLUSTERS, self.patch_grid**2) if self.k_clusters is None else self.k_clusters

    @property
    def prompts_vision(self) -> bool:
        """Whether the vision tower has prompts."""
        return "V" in self.prompting_branch

    @property
    def prompts_text(self) -> bool:
        """Whether the text tower has prompts."""
        return "L" in self.prompting_branch

    @property
    def is_static(self) -> bool:
        """Whether there are static prompts."""
        return "S" in self.prompting_type

    @property
    def is_dynamic(self) -> bool:
        """Whether there are dynamic prompts."""
        return "D" in self.prompting_type

    def name_of_category(self, category: str) -> str:
        """
        Return the name of a category of a dataset as the prompts use it: with a blank instead of each hyphen.

        Args:
            category (`str`): name of the category, such as `"pipe-fryum"`.

        Returns:
            `str`: the class name, such as `"pipe fryum"`. Underscores stay.
        """
        return category.replace("-", " ")

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        super().check_values()
        clip, patches = self.clip, self.patch_grid**2
        depth, sigma = clip.vision_config.num_hidden_layers, self.smoothing_sigma
        if self.feature_layers is not None:
            layers = list(self.feature_layers)
            allowed = bool(layers) and layers == sorted(set(layers)) and layers[0] >= 1 and layers[-1] <= depth
            self._check("feature_layers", allowed, f"ascending numbers of vision blocks, from 1 to {depth}")
        blocks = [depth] if self.prompts_vision else []
        blocks += [clip.text_config.num_hidden_layers] if self.prompts_text else []
        least = 2 if self.prompts_text else 1
        self._check(
            "prompting_depth", least <= self.prompting_depth <= min(blocks),
            f"an integer from {least} to {min(blocks)}, the number of blocks of the towers with prompts"
            + (" (the first block of the text tower has none)" if self.prompts_text else ""),
        )  # fmt: skip
        longest = clip.text_config.max_position_embeddings - 2
        self._check("prompting_length", 1 <= self.prompting_length <= longest, f"an integer from 1 to {longest}")
        self._check(
            "k_clusters", 1 <= self.clusters <= patches, f"an integer from 1 to {patches}, the number of patches"
        )
        self._check("kmeans_seed", 0 <= self.kmeans_seed < 2**63, "an integer of at least 0")
        self._check("hsf_weight", 0 <= self.hsf_weight <= 1, "a number from 0 to 1")
        self._check("logit_scale", 0 < self.logit_scale < math.inf, "a number greater than 0")
        self._check("smoothing_sigma", 0 <= sigma <= self.side, f"a number from 0 to {self.side}, the image size")
        self._check("initializer_range", 0 < self.initializer_range < math.inf, "a number greater than 0")


__all__ = ["AdaClipConfig"]
