"""Configuration of AnomalyCLIP."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from ..models.vip2clip.state_words_vip2clip import CLIP_VOCAB_SIZE, STATE_WORD_TOKEN_IDS
from .configuration import BaselineConfig


# Token ids in CLIP's vocabulary. With them, a model can be built without a tokenizer.
TEXT_TOKEN_IDS = {"object.": (14115, 269), "damaged object.": (13568, 14115, 269), **STATE_WORD_TOKEN_IDS}
CLIP_BOS_TOKEN_ID, CLIP_EOS_TOKEN_ID = 49406, 49407
KINDS = ("normal", "anomalous")
# Fields of the base class that have no effect, because the prompts are learned.
UNUSED_FIELDS = ("prompt_ensemble", "normal_states", "anomalous_states", "templates")


@strict
class AnomalyClipConfig(BaselineConfig):
    r"""
    Configuration of an [`AnomalyClipForAnomalyDetection`] model. The defaults are those of the published scripts.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone, by default CLIP ViT-L/14@336px.
        image_size (`int`, *optional*, defaults to 518):
            Side of the square input images in pixels, a multiple of the patch size. `None` is the size of the
            backbone. Anomaly maps have the same size.
        position_interpolation (`"bilinear"`, `"bicubic"` or `"bicubic_antialias"`, *optional*):
            How the position embeddings are resized for another image size. The default is `"bilinear"`.
        feature_layers (`tuple[int, ...]`, *optional*):
            Vision blocks whose patch tokens give maps, counted from 1. By default, the last one, as in the published
            scripts. Without the scripts, the default of the published programs is `(6, 12, 18, 24)`. A block can be
            repeated: the published code before April 2025, which trained the released weights, computes
            `(24, 24, 24, 24)`.
        dpam_layers (`int`, defaults to 19):
            Number of last vision blocks with value-value attention for the patch tokens, from 0 to the number of
            blocks. The published code calls it `DPAM_layer` and counts one more.
        num_context_tokens (`int`, defaults to 12):
            Number of learned vectors at the beginning of each prompt.
        prompt_depth (`int`, defaults to 9):
            Number of first text blocks with learned vectors in their input, from 1 to the number of text blocks. The
            input of the first block is the prompt itself, so there are `prompt_depth - 1` sets of deep prompts.
        deep_prompt_length (`int`, defaults to 4):
            Number of states after the start token that deep prompts replace, at most `num_context_tokens`.
        normal_text, anomalous_text (`str`, defaults to `"object."` and `"damaged object."`):
            Words after the learned vectors, the same for every class.
        normal_token_ids, anomalous_token_ids (`tuple[int, ...]`, *optional*):
            Token ids of these words. By default, those in CLIP's vocabulary, known for the default words and for the
            state words of [`ViP2ClipConfig`]. [`AnomalyClipForAnomalyDetection.from_clip`] gets them from the
            tokenizer.
        bos_token_id, eos_token_id (`int`, *optional*):
            Start and end token of prompts, by default those of the backbone.
        half_prompts (`bool`, defaults to `False`):
            Whether deep prompts, and their gradients, are rounded to float16 in each call, as in the published code.
        temperature (`float`, defaults to 0.07):
            Divisor of cosines, for the score and the map.
        smoothing_sigma (`float`, defaults to 4.0):
            Standard deviation of the Gaussian that smooths maps, in pixels. 0 disables smoothing.
        local_loss_weight (`float`, defaults to 4.0):
            Weight of the pixel losses.

    The prompts contain no class name. `prompt_ensemble`, `normal_states`, `anomalous_states` and `templates` of other
    methods cannot be set, and `class_name` has no effect.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    model_type = "anomalyclip"
    keys_to_ignore_at_inference = ["loss_components", "logits", "layer_maps", "text_embeds", "image_embeds"]

    image_size: int | None = 518
    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bilinear"
    feature_layers: list[int] | tuple[int, ...] | None = None
    dpam_layers: int = 19
    num_context_tokens: int = 12
    prompt_depth: int = 9
    deep_prompt_length: int = 4
    normal_text: str = "object."
    anomalous_text: str = "damaged object."
    normal_token_ids: list[int] | tuple[int, ...] | None = None
    anomalous_token_ids: list[int] | tuple[int, ...] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    half_prompts: bool = False
    temperature: int | float = 0.07
    smoothing_sigma: int | float = 4.0
    local_loss_weight: int | float = 4.0

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.clip_config, CLIPConfig):
            parts = self.clip_config
            self.clip_config = self.default_clip_config() if parts is None else CLIPConfig(**parts)
        vision, text = self.clip.vision_config, self.clip.text_config
        layers = (vision.num_hidden_layers,) if self.feature_layers is None else self.feature_layers
        self.feature_layers = tuple(sorted(layers))  # loaded from JSON, this is a list
        is_clip = text.vocab_size == CLIP_VOCAB_SIZE
        for kind in KINDS:
            words, ids = getattr(self, f"{kind}_text"), getattr(self, f"{kind}_token_ids")
            if ids is None and is_clip:
                ids = TEXT_TOKEN_IDS.get(words)
            setattr(self, f"{kind}_token_ids", None if ids is None else tuple(ids))
        # The configurations of OpenAI's checkpoints contain other ids, which the text tower does not use.
        if self.bos_token_id is None:
            self.bos_token_id = CLIP_BOS_TOKEN_ID if is_clip else text.bos_token_id
        if self.eos_token_id is None:
            self.eos_token_id = CLIP_EOS_TOKEN_ID if is_clip else text.eos_token_id
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        Create a configuration from a dict, as `from_pretrained` does.

        Args:
            config_dict (`dict[str, Any]`): content of a `config.json`.
            kwargs: options of `PreTrainedConfig.from_dict`, and fields to override. A text that is overridden replaces
                its token ids, too.

        Raises:
            ValueError: if the dict belongs to another model type, or if a value is not allowed.
        """
        for kind in KINDS:
            if f"{kind}_text" in kwargs:
                kwargs.setdefault(f"{kind}_token_ids", None)
        return super().from_dict(config_dict, **kwargs)

    def ids_of(self, kind: str) -> tuple[int, ...]:
        """
        Return the token ids of a prompt.

        Args:
            kind (`str`): `"normal"` or `"anomalous"`.

        Returns:
            `tuple[int, ...]`: the ids of start token, words and end token, without the learned vectors.
        """
        start, end = int(self.bos_token_id or 0), int(self.eos_token_id or 0)
        return (start, *(getattr(self, f"{kind}_token_ids") or ()), end)

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        super().check_values()
        vision, text, last = self.clip.vision_config, self.clip.text_config, self.clip.text_config.vocab_size - 1
        for name in UNUSED_FIELDS:
            default = type(self).__dataclass_fields__[name].default
            self._check(name, getattr(self, name) == default, f"{default!r}, because AnomalyCLIP learns its prompts")
        blocks, layers = vision.num_hidden_layers, self.feature_layers or ()
        self._check(
            "feature_layers", len(layers) > 0 and all(1 <= layer <= blocks for layer in layers),
            f"block numbers from 1 to {blocks}, the number of vision blocks in the backbone",
        )  # fmt: skip
        self._check(
            "dpam_layers", 0 <= self.dpam_layers <= blocks,
            f"an integer from 0 to {blocks}, the number of vision blocks in the backbone",
        )  # fmt: skip
        self._check(
            "prompt_depth", 1 <= self.prompt_depth <= text.num_hidden_layers,
            f"an integer from 1 to {text.num_hidden_layers}, the number of text blocks in the backbone",
        )  # fmt: skip
        self._check("num_context_tokens", self.num_context_tokens >= 1, "an integer of at least 1")
        self._check(
            "deep_prompt_length", 1 <= self.deep_prompt_length <= self.num_context_tokens,
            f"an integer from 1 to {self.num_context_tokens}, the number of context tokens",
        )  # fmt: skip
        for name in ("bos_token_id", "eos_token_id"):
            self._check(name, 0 <= getattr(self, name) <= last, f"a token id from 0 to {last}")
        for kind in KINDS:
            self._check_text(kind, last)
        self._check("temperature", 1e-4 <= self.temperature < math.inf, "a number of at least 0.0001")
        sigma, side = self.smoothing_sigma, self.side
        self._check("smoothing_sigma", 0 <= sigma <= side, f"a number from 0 to {side}, the image size")
        self._check("local_loss_weight", 0 <= self.local_loss_weight < math.inf, "a finite number of at least 0")

    def _check_text(self, kind: str, last: int) -> None:
        """Check the words of a prompt, their token ids, and the length of the prompt."""
        words, ids = getattr(self, f"{kind}_text"), getattr(self, f"{kind}_token_ids")
        self._check(f"{kind}_text", bool(words.strip()), "a text that is not empty")
        if not ids or not all(0 <= i <= last for i in ids):
            raise ValueError(
                f"{kind}_token_ids is {ids!r} for {kind}_text {words!r}; expected at least one token id from 0 to "
                f"{last}. Use from_clip with a text tokenizer, or set {kind}_token_ids."
            )
        known = TEXT_TOKEN_IDS.get(words) if last + 1 == CLIP_VOCAB_SIZE else None
        if known is not None and tuple(ids) != known:
            raise ValueError(
                f"{kind}_text is {words!r} and {kind}_token_ids is {tuple(ids)!r}; expected {known}, the ids of these "
                "words in CLIP's vocabulary. Change both together."
            )
        length, longest = len(ids) + 2 + self.num_context_tokens, self.clip.text_config.max_position_embeddings
        if length > longest:
            raise ValueError(
                f"num_context_tokens ({self.num_context_tokens}) and {kind}_text give a prompt of {length} tokens; "
                f"expected at most {longest}."
            )


__all__ = ["AnomalyClipConfig"]
