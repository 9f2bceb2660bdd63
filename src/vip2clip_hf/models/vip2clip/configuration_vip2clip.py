"""Configuration of ViP²-CLIP."""

import copy
import difflib
import math
import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from .configuration_tables_vip2clip import (
    MOVED_FIELDS,
    RENAMED_FIELDS,
    VARIANTS,
    MovedField,
    check_moved,
    clip_vit_large_patch14_336,
)
from .logging_vip2clip import get_logger
from .state_words_vip2clip import STATE_WORD_TOKEN_IDS, check_token_ids, known_token_ids


logger = get_logger(__name__)
_Value = TypeVar("_Value")


class ViP2ClipConfigError(StrictDataclassClassValidationError, ValueError):
    """Invalid value in a [`ViP2ClipConfig`]. Both a validation error of `huggingface_hub` and a `ValueError`."""


def _narrow(value: object, expected: type[_Value]) -> _Value:
    """Return a value of a nested configuration that is typed as optional, after checking its type."""
    if not isinstance(value, expected):
        raise TypeError(f"Expected a {expected.__name__}, found {type(value).__name__}.")
    return value


@strict
class ViP2ClipConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ViP2ClipForAnomalyDetection`] model.

    The defaults define the model of the paper (arXiv:2505.17692) on CLIP ViT-L/14@336px. Use
    [`ViP2ClipConfig.from_variant`] for the settings of the authors' released code.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the frozen CLIP backbone, by default CLIP ViT-L/14@336px.
        image_size (`int`, defaults to 518):
            Side of the square input images in pixels, a multiple of the patch size. The position embeddings are
            resized to fit. Anomaly maps have the same size.
        feature_layers (`tuple[int, ...]`, defaults to `(6, 12, 18, 24)`):
            Numbers of the vision blocks used as feature layers, counted from 1. Stored in ascending order.
        num_context_tokens (`int`, defaults to 7), num_object_tokens (`int`, defaults to 3):
            Number of learned context tokens (e) and of object tokens (r) in each prompt, eqs. 2 to 5.
        normal_word, anomalous_word (`str`, *optional*, default to `"good"` and `"damaged"`):
            State words of the normal and the anomalous prompt. `None` if only the token ids are set.
        normal_token_ids, anomalous_token_ids (`tuple[int, ...]`, *optional*):
            Token ids of the state words, one or more per word. Known by default for the words of the paper's Table 6.
        bos_token_id (`int`, defaults to 49406), eos_token_id (`int`, defaults to 49407):
            Ids of the start and end tokens. Never read from `clip_config`: published CLIP configs contain wrong ids.
        meta_net_hidden_size (`int`, defaults to 384):
            Hidden size of the Meta-Nets in the image-conditioned adapter.
        fgp_num_heads (`int`, defaults to 1), fgp_scaled (`bool`, defaults to `True`):
            Number of attention heads in eq. 6, and whether to divide the logits by the square root of the head size.
        top_k (`int`, defaults to 50):
            Number of top patches per layer used for the image score (eq. 8).
        temperature (`float`, defaults to 0.07):
            Temperature tau of eq. 1.
        smoothing_sigma (`float`, defaults to 8.0):
            Standard deviation of the Gaussian smoothing in eq. 11, in pixels at `image_size`. 0 disables it.
        image_score (`"pooled_features"` or `"mean_logits"`, defaults to `"pooled_features"`):
            Computation of the image score. `"pooled_features"` averages the features of the top patches in each layer
            (eq. 8), then the probabilities of the layers. `"mean_logits"`, as in the released code, averages the
            cosine similarities over the layers and top patches, then applies one softmax.
        image_embeds_layernorm (`bool`, defaults to `True`):
            Whether to apply CLIP's post layer norm to the class token before projection. The released code does not.
        position_interpolation (`"bilinear"` or `"bicubic"`, defaults to `"bilinear"`):
            Interpolation used to resize the position embeddings. `CLIPModel` uses `"bicubic"`.
        local_loss_weight (`float`, defaults to 1.0):
            Weight lambda of the local loss in eq. 9.
        focal_gamma (`float`, defaults to 2.0), focal_smooth (`float`, defaults to 0.0):
            Exponent and smoothing of the focal loss in eq. 10. Without smoothing, the probability of the true class
            is clamped at 1e-6.
        use_image_conditioning (`bool`, defaults to `True`):
            Whether the object tokens depend on the image. If `False` (ablation in Table 4), z_i = o_i.
        use_fine_grained_perception (`bool`, defaults to `True`):
            Whether to refine the prompts with the patches of each layer. `False` is an ablation in Table 4.
        alignment (`"unified"` or `"dual"`, defaults to `"unified"`):
            `"unified"` computes the image score from the patches. `"dual"` (ablation in Table 5) computes image score
            and image loss from the unrefined prompts and the image embedding, as in eq. 1.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the learned vectors at initialization.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        `ViP2ClipConfigError` (a `ValueError`): if a value is not allowed.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipConfig

    >>> config = ViP2ClipConfig.from_variant("release", top_k=100)
    >>> config.image_score, config.top_k
    ('mean_logits', 100)
    ```
    """

    model_type = "vip2clip"
    # __post_init__ sets the default. `sub_configs_defaults` would, but does not exist in transformers 5.18.
    sub_configs = {"clip_config": CLIPConfig}
    # Large tensors that the Trainer does not need to gather in evaluation.
    keys_to_ignore_at_inference = [
        "loss_components", "layer_maps", "text_embeds", "image_embeds", "cross_attentions", "hidden_states",
        "attentions", "vision_model_output", "text_model_output",
    ]  # fmt: skip

    clip_config: dict | CLIPConfig | None = None
    image_size: int = 518
    feature_layers: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    num_context_tokens: int = 7
    num_object_tokens: int = 3
    normal_word: str | None = None
    anomalous_word: str | None = None
    normal_token_ids: list[int] | tuple[int, ...] | None = None
    anomalous_token_ids: list[int] | tuple[int, ...] | None = None
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    meta_net_hidden_size: int = 384
    fgp_num_heads: int = 1
    fgp_scaled: bool = True
    top_k: int = 50
    temperature: int | float = 0.07
    smoothing_sigma: int | float = 8.0
    image_score: Literal["pooled_features", "mean_logits"] = "pooled_features"
    image_embeds_layernorm: bool = True
    position_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    local_loss_weight: int | float = 1.0
    focal_gamma: int | float = 2.0
    focal_smooth: int | float = 0.0
    use_image_conditioning: bool = True
    use_fine_grained_perception: bool = True
    alignment: Literal["unified", "dual"] = "unified"
    initializer_range: float = 0.02

    # Read and written in version 0.1.
    image_threshold, pixel_threshold, calibration = MovedField(), MovedField(), MovedField()
    backbone_id, backbone_revision, training_sets = MovedField(), MovedField(), MovedField()
    adapters_only, backbone_checksum, backbone_dtype = MovedField(), MovedField(), MovedField()

    def __post_init__(self, **kwargs: Any) -> None:
        check_moved(kwargs)
        if self.clip_config is None:
            clip_config = clip_vit_large_patch14_336()
        elif isinstance(self.clip_config, dict):
            clip_config = CLIPConfig(**self.clip_config)
        else:
            clip_config = copy.deepcopy(self.clip_config)
        self.clip_config = clip_config
        # Nested configurations are saved completely. Do not publish the local folder a backbone was loaded from.
        for nested in (clip_config, self.clip_text_config, self.clip_vision_config):
            nested.name_or_path = ""
        # Loaded from JSON, this is a list.
        self.feature_layers = tuple(sorted(self.feature_layers))
        known = known_token_ids(self.clip_text_config.vocab_size)
        for kind, default in (("normal", "good"), ("anomalous", "damaged")):
            word, ids = getattr(self, f"{kind}_word"), getattr(self, f"{kind}_token_ids")
            if word is None and ids is None:
                word = default
            ids = known.get(word) if ids is None else ids
            setattr(self, f"{kind}_word", word)
            setattr(self, f"{kind}_token_ids", None if ids is None else tuple(ids))
        if self.id2label is None:
            self.id2label = {0: "normal", 1: "anomalous"}
            self.label2id = {"normal": 0, "anomalous": 1}
        if not type(self).__module__.startswith("transformers_modules."):
            # The installed package replaces the code files of a checkpoint. Entries that point to them would make
            # `pipeline()` ask for `trust_remote_code`, and would be saved again without the files.
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.check_values()

    @classmethod
    def from_variant(cls, variant: str = "paper", **overrides: Any) -> "ViP2ClipConfig":
        """
        Create the configuration of a variant of the model.

        `"paper"` follows the equations of the paper and equals the defaults. `"release"` follows the authors' released
        code: eight unscaled attention heads, mean logits, no layer norm on the class token, a smoothed focal loss, and
        the word "damaged" in both prompts. docs/paper-and-release.md describes the differences.

        Args:
            variant (`"paper"` or `"release"`, defaults to `"paper"`):
                Name of the variant.
            overrides:
                Fields of the configuration that replace the values of the variant.

        Returns:
            [`ViP2ClipConfig`]: the configuration.

        Raises:
            ValueError: if the variant is unknown, or an override is not a field or not allowed.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected {' or '.join(map(repr, VARIANTS))}.")
        cls.check_names(overrides)
        return cls(**{**VARIANTS[variant], **overrides})

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """
        Check that names are fields of the configuration.

        Args:
            names (`Iterable[str]`): names to check.

        Raises:
            ValueError: if a name is not a field. The message suggests the most similar field.
        """
        names = list(names)
        check_moved(names)
        for name in names:
            if name not in cls.__dataclass_fields__:
                nearest = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
                raise ValueError(f"{name!r} is not a field of ViP2ClipConfig{hint}")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> "ViP2ClipConfig":
        """Load the configuration of a checkpoint, as `PreTrainedConfig.from_pretrained` does. Errors name it."""
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "ViP2ClipConfig":
        """
        Create a configuration from a dict, as `from_pretrained` does.

        Args:
            config_dict (`dict[str, Any]`): content of a `config.json`.
            kwargs: options of `PreTrainedConfig.from_dict`, and fields to override. Overriding a state word or its
                token ids replaces both.

        Raises:
            ValueError: if the dict belongs to another model type, or if a value is not allowed.
        """
        found = config_dict.get("model_type")
        if found != cls.model_type:
            hint = ""
            if found == "clip":
                hint = " To add new adapters to a CLIP checkpoint, use ViP2ClipForAnomalyDetection.from_clip."
            raise ValueError(f"Expected a checkpoint with model_type 'vip2clip', found model_type {found!r}.{hint}")
        check_moved(kwargs)
        # DecisionConfig, Provenance and BackboneReference read the fields of version 0.1 that are dropped here.
        config_dict = {
            RENAMED_FIELDS.get(name, name): value for name, value in config_dict.items() if name not in MOVED_FIELDS
        }
        # The library sets overrides after construction, which would skip both validation and derived values.
        fields = [name for name in kwargs if name in cls.__dataclass_fields__ and name not in ("clip_config", "dtype")]
        overrides = {name: kwargs.pop(name) for name in fields}
        for kind in ("normal", "anomalous"):
            # A word and its ids belong together. Overriding one replaces both.
            if {f"{kind}_word", f"{kind}_token_ids"} & set(overrides):
                overrides = {f"{kind}_word": None, f"{kind}_token_ids": None, **overrides}
        place = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or ""
        cls._warn_of_misspelled(config_dict, place)
        try:
            output: Any = super().from_dict({**config_dict, **overrides}, **kwargs)
            (output[0] if isinstance(output, tuple) else output).check_values()
        except StrictDataclassError as error:
            if place and not overrides:  # otherwise an argument can be wrong
                error.args = (f"config.json of {os.fspath(place)!r}: {error.__cause__ or error}",)
            raise
        return output

    @classmethod
    def _warn_of_misspelled(cls, names: Iterable[str], place: str | os.PathLike) -> None:
        """The library keeps entries of `config.json` that are not fields. One with nearly the name of a field is not
        read by any other program either."""
        fields = [name for name in cls.__dataclass_fields__ if name not in PreTrainedConfig.__dataclass_fields__]
        for name in names:
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
            if nearest and name not in cls.__dataclass_fields__:
                logger.warning_once(
                    "config.json%s: %s is not a field and has no effect; did you mean %s?",
                    f" of {os.fspath(place)!r}" if place else "", name, nearest[0],
                )  # fmt: skip

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> CLIPTextConfig:
        """Return the configuration of the text tower, as the library expects, for example to resize embeddings."""
        return self.clip_text_config

    @property
    def clip_text_config(self) -> CLIPTextConfig:
        """Configuration of the backbone's text tower."""
        return _narrow(_narrow(self.clip_config, CLIPConfig).text_config, CLIPTextConfig)

    @property
    def clip_vision_config(self) -> CLIPVisionConfig:
        """Configuration of the backbone's vision tower."""
        return _narrow(_narrow(self.clip_config, CLIPConfig).vision_config, CLIPVisionConfig)

    @property
    def clip_projection_dim(self) -> int:
        """Size of the embeddings in CLIP's joint space."""
        return _narrow(_narrow(self.clip_config, CLIPConfig).projection_dim, int)

    @property
    def clip_patch_size(self) -> int:
        """Side of a patch in pixels."""
        return _narrow(self.clip_vision_config.patch_size, int)

    @property
    def patch_grid(self) -> int:
        """Number of patches along one side of an image of `image_size`."""
        return self.image_size // self.clip_patch_size

    @property
    def prompt_lengths(self) -> tuple[int, int]:
        """Number of tokens in the normal and the anomalous prompt, including start and end token."""
        shared = 2 + self.num_context_tokens + self.num_object_tokens
        return shared + len(self.normal_token_ids or ()), shared + len(self.anomalous_token_ids or ())

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ViP2ClipConfigError: if a value is not allowed.
        """
        try:
            self.validate_values()
        except ValueError as error:
            raise ViP2ClipConfigError(validator="validate_values", cause=error) from error

    def validate_values(self) -> None:
        """Check every value, as [`check_values`] does. The library calls this method, by its name, when saving."""
        text, vision = self.clip_text_config, self.clip_vision_config

        def check(name: str, allowed: bool, expected: str) -> None:
            if not allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

        patch = vision.patch_size
        if not isinstance(patch, int):
            raise ValueError(f"clip_config.vision_config.patch_size is {patch!r}; expected a single integer.")
        size = self.image_size
        nearest = sorted({max(patch, size // patch * patch), max(patch, -(-size // patch) * patch)})
        check(
            "image_size",
            size > 0 and size % patch == 0,
            f"a positive multiple of the backbone's patch size {patch} (nearest: {', '.join(map(str, nearest))})",
        )

        layers, depth = self.feature_layers, vision.num_hidden_layers
        check(
            "feature_layers",
            len(layers) > 0 and all(1 <= layer <= depth for layer in layers) and len(set(layers)) == len(layers),
            f"distinct block numbers from 1 to {depth}, the number of vision blocks in the backbone",
        )

        for name in ("num_context_tokens", "num_object_tokens", "meta_net_hidden_size"):
            check(name, getattr(self, name) >= 1, "an integer of at least 1")
        last = text.vocab_size - 1
        for name in ("bos_token_id", "eos_token_id"):
            check(name, 0 <= getattr(self, name) <= last, f"a token id between 0 and {last}")
        for kind in ("normal", "anomalous"):
            word, ids = getattr(self, f"{kind}_word"), getattr(self, f"{kind}_token_ids")
            check_token_ids(kind, word, ids, text.vocab_size)
        longest = max(self.prompt_lengths)
        if longest > text.max_position_embeddings:
            raise ValueError(
                f"num_context_tokens ({self.num_context_tokens}), num_object_tokens ({self.num_object_tokens}) and "
                f"state words give a prompt of {longest} tokens; expected at most {text.max_position_embeddings}."
            )

        width, heads = self.clip_projection_dim, self.fgp_num_heads
        check("fgp_num_heads", heads >= 1 and width % heads == 0, f"a divisor of the projection size {width}")
        patches = (size // patch) ** 2
        check("top_k", 1 <= self.top_k <= patches, f"an integer from 1 to {patches}, the number of patches")
        check("temperature", 1e-4 <= self.temperature < math.inf, "a number of at least 0.0001")
        check("smoothing_sigma", 0 <= self.smoothing_sigma <= size, f"a number between 0 and {size}, the image size")
        for name in ("local_loss_weight", "focal_gamma", "initializer_range"):
            check(name, 0 <= getattr(self, name) < math.inf, "a finite number of at least 0")
        check("focal_smooth", 0 <= self.focal_smooth < 0.5, "a number in [0, 0.5)")


__all__ = ["STATE_WORD_TOKEN_IDS", "ViP2ClipConfig", "ViP2ClipConfigError"]
