"""Configuration of ViP²-CLIP."""

import copy
import difflib
import math
from collections.abc import Iterable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HFValidationError, StrictDataclassClassValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import CLIPConfig, PreTrainedConfig

from .decision_vip2clip import check_calibration


# Size of CLIP's byte-pair vocabulary; the ids below are only meaningful with it.
CLIP_VOCAB_SIZE = 49408
# Token ids of the state words of the paper's Table 6 in CLIP's vocabulary, so that a model can be built without a
# tokenizer. Any other word needs its ids given (or a tokenizer, see `ViP2ClipForAnomalyDetection.from_clip`).
STATE_WORD_TOKEN_IDS: dict[str, tuple[int, ...]] = {
    "good": (886,),
    "damaged": (13568,),
    "damage": (6822,),
    "normal": (5967,),
    "abnormal": (40934,),
    "perfect": (1878,),
    "flawed": (35136,),
    "flawless": (15531,),
    "imperfect": (46034,),
}
# What `from_variant` changes with respect to the defaults, which are the paper's equations. Where and why they differ
# is in docs/paper-and-release.md.
_VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "normal_word": "damaged",
        "perception_num_heads": 8,
        "perception_scaled": False,
        "image_score": "mean_logits",
        "image_embeds_layernorm": False,
        "focal_smooth": 1e-5,
    },
}


class ViP2ClipConfigError(StrictDataclassClassValidationError, ValueError):
    """A value of the configuration that is not allowed: the library's error, and a ValueError as well."""


def _clip_vit_large_patch14_336() -> CLIPConfig:
    """CLIP ViT-L/14@336px, the backbone of the paper (section 5.1)."""
    return CLIPConfig(
        projection_dim=768,
        text_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        },
        vision_config={
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    )


@strict
class ViP2ClipConfig(PreTrainedConfig):
    r"""
    Configuration of [`ViP2ClipForAnomalyDetection`]. The defaults are the equations of the paper (arXiv:2505.17692)
    on CLIP ViT-L/14@336px; [`ViP2ClipConfig.from_variant`] gives those of the authors' released code.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            The frozen backbone. Without it: CLIP ViT-L/14@336px. A dict is read as `CLIPConfig(**clip_config)`.
        image_size (`int`, defaults to 518):
            Side of the square input in pixels, a multiple of the patch. The position table is resized for it.
            Anomaly maps come out at this size.
        feature_layers (`tuple[int, ...]`, defaults to `(6, 12, 18, 24)`):
            1-based numbers of the vision blocks that are aligned; kept in the order of depth.
        num_context_tokens (`int`, defaults to 7), num_image_tokens (`int`, defaults to 3):
            e and r of eqs. 2 to 5.
        normal_word, anomalous_word (`str`, *optional*, default to `"good"` and `"damaged"`):
            State words of the two prompts; `None` where only the token ids are given.
        normal_token_ids, anomalous_token_ids (`tuple[int, ...]`, *optional*):
            Their token ids, one or more per word. Looked up for the words of the paper's Table 6 when not given.
        bos_token_id (`int`, defaults to 49406), eos_token_id (`int`, defaults to 49407):
            Start and end token. Never taken from `clip_config`: published CLIP configs carry wrong ones.
        meta_net_hidden_size (`int`, defaults to 384):
            Hidden width of the Meta-Nets of the image-conditioned adapter.
        perception_num_heads (`int`, defaults to 1), perception_scaled (`bool`, defaults to `True`):
            Heads of the attention of eq. 6, and whether its logits are divided by the root of the head size.
        top_k (`int`, defaults to 50):
            Patches per layer that stand for the image (eq. 8).
        temperature (`float`, defaults to 0.07):
            tau of eq. 1.
        smoothing_sigma (`float`, defaults to 8.0):
            Standard deviation of the Gaussian of eq. 11, in pixels at `image_size`. 0 switches it off.
        image_score (`"pooled_features"` or `"mean_logits"`, defaults to `"pooled_features"`):
            `"pooled_features"`: eq. 8 and the mean over layers of the probabilities. `"mean_logits"`: the mean over
            layers and patches of the cosines, then one softmax, as the released code does.
        image_embeds_layernorm (`bool`, defaults to `True`):
            Whether the class token passes CLIP's post layer norm before it is projected. The release leaves it out.
        position_interpolation (`"bilinear"` or `"bicubic"`, defaults to `"bilinear"`):
            How the position table is resized; `"bicubic"` is what CLIPModel does.
        local_loss_weight (`float`, defaults to 1.0):
            lambda of eq. 9.
        focal_gamma (`float`, defaults to 2.0), focal_smooth (`float`, defaults to 0.0):
            Focal loss of eq. 10. With a smoothing of 0 the probability of the true class is clamped at 1e-6.
        image_threshold (`float`, defaults to 0.5), pixel_threshold (`float`, defaults to 0.5):
            An image or pixel is anomalous when its value is greater than (not equal to) this.
        use_image_conditioning (`bool`, defaults to `True`):
            Without it (ablation of Table 4) the image tokens are the learned ones, z_i = o_i.
        use_fine_grained_perception (`bool`, defaults to `True`):
            Without it (ablation of Table 4) the prompt embeddings are used as they are at every layer.
        alignment (`"unified"` or `"dual"`, defaults to `"unified"`):
            `"dual"` (ablation of Table 5) scores and trains the image level as P(un-refined prompts, image
            embedding), eq. 1.
        adapters_only (`bool`, defaults to `False`):
            Set in checkpoints that hold no CLIP weights; loading then fetches the backbone named below.
        backbone_id, backbone_revision (`str`, *optional*):
            Hub id and commit of the CLIP checkpoint the model was built from. Never a local path.
        backbone_checksum, backbone_dtype (`str`, *optional*):
            Checksum of the backbone's weights in that dtype, written by adapter-only saving.
        training_sets (`list[dict]`, *optional*):
            What the adapters were trained on, as [`vip2clip_hf.data.describe_training_set`] puts it: name, benchmark,
            split, categories, counts, and hashes of some of the images. Evaluation warns when it meets them again.
        calibration (`dict`, *optional*):
            Where the thresholds come from, as [`vip2clip_hf.calibration.calibrate`] writes it: method, rate, number of
            images, date, and the scores of the calibration images, from which p-values are computed.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial prompt vectors.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: a field of the wrong type.
        `ViP2ClipConfigError` (a `ValueError`): a value that is not allowed; the message names the field, the value
            found and what is allowed.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipConfig

    >>> config = ViP2ClipConfig.from_variant("release", top_k=100)
    >>> config.image_score, config.top_k
    ('mean_logits', 100)
    ```
    """

    model_type = "vip2clip"
    # The plain mapping, filled by hand in __post_init__, works from transformers 5.18 on; `sub_configs_defaults` of
    # later versions does not.
    sub_configs = {"clip_config": CLIPConfig}
    # Large tensors that evaluation loops need not gather.
    keys_to_ignore_at_inference = ["loss_components", "layer_maps", "text_embeds", "image_embeds", "attentions"]

    clip_config: dict | CLIPConfig | None = None
    image_size: int = 518
    feature_layers: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    num_context_tokens: int = 7
    num_image_tokens: int = 3
    normal_word: str | None = None
    anomalous_word: str | None = None
    normal_token_ids: list[int] | tuple[int, ...] | None = None
    anomalous_token_ids: list[int] | tuple[int, ...] | None = None
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    meta_net_hidden_size: int = 384
    perception_num_heads: int = 1
    perception_scaled: bool = True
    top_k: int = 50
    temperature: int | float = 0.07
    smoothing_sigma: int | float = 8.0
    image_score: Literal["pooled_features", "mean_logits"] = "pooled_features"
    image_embeds_layernorm: bool = True
    position_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    local_loss_weight: int | float = 1.0
    focal_gamma: int | float = 2.0
    focal_smooth: int | float = 0.0
    image_threshold: int | float = 0.5
    pixel_threshold: int | float = 0.5
    use_image_conditioning: bool = True
    use_fine_grained_perception: bool = True
    alignment: Literal["unified", "dual"] = "unified"
    adapters_only: bool = False
    backbone_id: str | None = None
    backbone_revision: str | None = None
    backbone_checksum: str | None = None
    backbone_dtype: str | None = None
    training_sets: list[dict[str, Any]] | None = None
    calibration: dict[str, Any] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.clip_config is None:
            self.clip_config = _clip_vit_large_patch14_336()
        elif isinstance(self.clip_config, dict):
            self.clip_config = CLIPConfig(**self.clip_config)
        else:
            self.clip_config = copy.deepcopy(self.clip_config)
        # Nested configs are written out whole; the folder a backbone was read from stays on the machine it was on.
        for nested in (self.clip_config, self.clip_config.text_config, self.clip_config.vision_config):
            nested.name_or_path = ""
        # JSON knows no tuples.
        self.feature_layers = tuple(sorted(self.feature_layers))
        known = STATE_WORD_TOKEN_IDS if self.clip_config.text_config.vocab_size == CLIP_VOCAB_SIZE else {}
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
            # Where this package is imported its own classes are used and the code of a checkpoint is not: entries
            # that point to it would only make `pipeline()` ask for trust, and dangle in what is saved next.
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.check_values()

    @classmethod
    def from_variant(cls, variant: Literal["paper", "release"] = "paper", **overrides) -> "ViP2ClipConfig":
        """
        A named set of choices: `"paper"` is the equations of the paper (the defaults), `"release"` what the authors'
        released code computes: eight unscaled heads, mean logits, no layer norm on the class token, a smoothed focal
        loss, and "damaged" in both prompts. docs/paper-and-release.md lists the differences.

        Raises:
            ValueError: for another name, or for an override that is no field.
        """
        if variant not in _VARIANTS:
            raise ValueError(f"variant is {variant!r}; known variants are {', '.join(map(repr, _VARIANTS))}.")
        cls.check_names(overrides)
        return cls(**{**_VARIANTS[variant], **overrides})

    @classmethod
    def check_names(cls, names: Iterable[str]):
        """
        Raises:
            ValueError: a name that is no field; says which one may have been meant.
        """
        for name in names:
            if name not in cls.__dataclass_fields__:
                nearest = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
                raise ValueError(f"{name!r} is no field of the configuration{hint}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        found = config_dict.get("model_type")
        if found != cls.model_type:
            hint = (
                " To put new adapters on a CLIP checkpoint use ViP2ClipForAnomalyDetection.from_clip."
                if found == "clip"
                else ""
            )
            raise ValueError(f"Expected a checkpoint with model_type 'vip2clip', found model_type {found!r}.{hint}")
        # The library sets overrides after construction, where they would neither be checked nor completed.
        fields = [name for name in kwargs if name in cls.__dataclass_fields__ and name not in ("clip_config", "dtype")]
        overrides = {name: kwargs.pop(name) for name in fields}
        for kind in ("normal", "anomalous"):
            # Word and ids belong together: an override of one replaces both.
            if {f"{kind}_word", f"{kind}_token_ids"} & set(overrides):
                overrides = {f"{kind}_word": None, f"{kind}_token_ids": None, **overrides}
        output = super().from_dict({**config_dict, **overrides}, **kwargs)
        (output[0] if isinstance(output, tuple) else output).check_values()
        return output

    @property
    def patch_grid(self) -> int:
        """Patches along one side of an image of `image_size`."""
        return self.image_size // self.clip_config.vision_config.patch_size

    @property
    def prompt_lengths(self) -> tuple[int, int]:
        """Tokens of the normal and the anomalous prompt, start and end token included."""
        shared = 2 + self.num_context_tokens + self.num_image_tokens
        return shared + len(self.normal_token_ids), shared + len(self.anomalous_token_ids)

    def check_values(self):
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ViP2ClipConfigError: names the field, the value found and what is allowed.
        """
        try:
            self.validate_values()
        except ValueError as error:
            raise ViP2ClipConfigError(validator="validate_values", cause=error) from error

    def validate_values(self):
        """What the library's `validate`, called by `save_pretrained`, runs."""
        text, vision = self.clip_config.text_config, self.clip_config.vision_config

        def check(name: str, allowed: bool, expected: str):
            if not allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

        patch = vision.patch_size
        if not isinstance(patch, int):
            raise ValueError(f"clip_config.vision_config.patch_size is {patch!r}; expected one integer.")
        size = self.image_size
        nearest = sorted({max(patch, size // patch * patch), max(patch, -(-size // patch) * patch)})
        check(
            "image_size",
            size > 0 and size % patch == 0,
            f"a positive multiple of the backbone's patch size {patch} (nearest: {', '.join(map(str, nearest))})",
        )

        depth = vision.num_hidden_layers
        layers = self.feature_layers
        check(
            "feature_layers",
            len(layers) > 0 and all(1 <= layer <= depth for layer in layers) and len(set(layers)) == len(layers),
            f"different 1-based block numbers between 1 and {depth}, the depth of the backbone",
        )

        for name in ("num_context_tokens", "num_image_tokens", "meta_net_hidden_size"):
            check(name, getattr(self, name) >= 1, "an integer of at least 1")
        self._validate_token_ids(text.vocab_size)
        longest = max(self.prompt_lengths)
        if longest > text.max_position_embeddings:
            raise ValueError(
                f"num_context_tokens ({self.num_context_tokens}), num_image_tokens ({self.num_image_tokens}) and the "
                f"state words give a prompt of {longest} tokens; the text tower takes at most "
                f"{text.max_position_embeddings}."
            )

        width = self.clip_config.projection_dim
        heads = self.perception_num_heads
        check("perception_num_heads", heads >= 1 and width % heads == 0, f"a divisor of the projection size {width}")
        patches = (size // patch) ** 2
        check("top_k", 1 <= self.top_k <= patches, f"between 1 and {patches}, the number of patches of an image")

        check("temperature", 1e-4 <= self.temperature < math.inf, "a number of at least 0.0001")
        check("smoothing_sigma", 0 <= self.smoothing_sigma <= size, f"a number between 0 and {size}, the image size")
        for name in ("local_loss_weight", "focal_gamma", "initializer_range"):
            check(name, 0 <= getattr(self, name) < math.inf, "a number that is not negative")
        check("focal_smooth", 0 <= self.focal_smooth < 0.5, "a number in [0, 0.5)")
        for name in ("image_threshold", "pixel_threshold"):
            check(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        if self.calibration is not None:
            check_calibration(self.calibration)

        known = ("float32", "float64", "float16", "bfloat16")
        check("backbone_dtype", self.backbone_dtype in (None, *known), f"one of {', '.join(known)}")
        if self.backbone_id is not None:
            try:
                validate_repo_id(self.backbone_id)
            except HFValidationError as error:
                raise ValueError(
                    f"backbone_id is {self.backbone_id!r}; expected a Hub id such as 'openai/clip-vit-base-patch16', "
                    "never a path."
                ) from error

    def _validate_token_ids(self, vocab_size: int):
        for name in ("bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected a token id between 0 and {vocab_size - 1}, the "
                    "vocabulary of the backbone."
                )
        for kind in ("normal", "anomalous"):
            word, ids = getattr(self, f"{kind}_word"), getattr(self, f"{kind}_token_ids")
            if not ids:
                raise ValueError(
                    f"{kind}_token_ids is {ids!r} and {kind}_word is {word!r}; expected at least one token id. With "
                    f"CLIP's vocabulary they are known for {', '.join(STATE_WORD_TOKEN_IDS)}; otherwise give "
                    f"{kind}_token_ids, or pass a tokenizer to ViP2ClipForAnomalyDetection.from_clip."
                )
            if not all(0 <= i < vocab_size for i in ids):
                raise ValueError(
                    f"{kind}_token_ids is {ids!r}; expected token ids between 0 and {vocab_size - 1}, the vocabulary "
                    "of the backbone."
                )
            known = STATE_WORD_TOKEN_IDS.get(word)
            if vocab_size == CLIP_VOCAB_SIZE and known is not None and tuple(ids) != known:
                raise ValueError(
                    f"{kind}_word is {word!r}, whose token ids in CLIP's vocabulary are {known}, but "
                    f"{kind}_token_ids is {tuple(ids)!r}; change both together, or set the word to None."
                )


__all__ = ["STATE_WORD_TOKEN_IDS", "ViP2ClipConfig", "ViP2ClipConfigError"]
