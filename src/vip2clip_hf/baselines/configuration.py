"""Base class of the configurations of baselines: the CLIP backbone, the image size and the prompts."""

import copy
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..models.vip2clip.configuration_tables_vip2clip import clip_vit_large_patch14_336
from .prompts import ENSEMBLES, Ensemble


@strict
class BaselineConfig(PreTrainedConfig):
    r"""
    Base class of the configurations of baselines.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            Configuration of the CLIP backbone.
        image_size (`int`, *optional*):
            Side of the square input images in pixels, a multiple of the patch size. By default, that of the backbone.
            Anomaly maps have the same size.
        position_interpolation (`"bicubic_antialias"`, `"bicubic"` or `"bilinear"`, *optional*):
            How the position embeddings are resized for another image size. The default is that of open_clip, which
            the published codes use.
        prompt_ensemble (`str`, *optional*):
            Name of the states and templates in `vip2clip_hf.baselines.prompts.ENSEMBLES`.
        normal_states, anomalous_states, templates (`tuple[str, ...]`, *optional*):
            States and templates to use instead of those of `prompt_ensemble`, each with one `{}`.
        class_name (`str`, defaults to `"object"`):
            Name of the class in the prompts, if no other is passed.

    Raises:
        `huggingface_hub.errors.StrictDataclassFieldValidationError`: if a field has the wrong type.
        ValueError: if a value is not allowed.
    """

    sub_configs = {"clip_config": CLIPConfig}

    clip_config: dict | CLIPConfig | None = None
    image_size: int | None = None
    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bicubic_antialias"
    prompt_ensemble: str = "single"
    normal_states: list[str] | tuple[str, ...] | None = None
    anomalous_states: list[str] | tuple[str, ...] | None = None
    templates: list[str] | tuple[str, ...] | None = None
    class_name: str = "object"

    def __post_init__(self, **kwargs: Any) -> None:
        clip_config: Any
        if self.clip_config is None:
            clip_config = self.default_clip_config()
        elif isinstance(self.clip_config, dict):
            clip_config = CLIPConfig(**self.clip_config)
        else:
            clip_config = copy.deepcopy(self.clip_config)
        self.clip_config = clip_config
        # Nested configurations are saved completely. Do not publish the local folder a backbone was loaded from.
        for nested in (clip_config, clip_config.text_config, clip_config.vision_config):
            nested.name_or_path = ""
        if self.image_size is None:
            self.image_size = self.default_image_size()
        for name in ("normal_states", "anomalous_states", "templates"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else tuple(value))
        if self.id2label is None:
            self.id2label = {0: "normal", 1: "anomalous"}
            self.label2id = {"normal": 0, "anomalous": 1}
        super().__post_init__(**kwargs)
        self.check_values()

    @staticmethod
    def default_clip_config() -> CLIPConfig:
        """Return the configuration of the backbone if none is passed: CLIP ViT-L/14@336px."""
        return clip_vit_large_patch14_336()

    def default_image_size(self) -> int:
        """Return the image size if none is passed: that of the backbone."""
        return self.clip.vision_config.image_size

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """
        Check that names are fields of the configuration.

        Args:
            names (`Iterable[str]`): names to check.

        Raises:
            ValueError: if a name is not a field. The message suggests the most similar field.
        """
        for name in names:
            if name not in cls.__dataclass_fields__:
                nearest = difflib.get_close_matches(name, cls.__dataclass_fields__, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
                raise ValueError(f"{name!r} is not a field of {cls.__name__}{hint}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        Create a configuration from a dict, as `from_pretrained` does.

        Args:
            config_dict (`dict[str, Any]`): content of a `config.json`.
            kwargs: options of `PreTrainedConfig.from_dict`, and fields to override.

        Raises:
            ValueError: if the dict belongs to another model type, or if a value is not allowed.
        """
        found = config_dict.get("model_type")
        if found != cls.model_type:
            hint = " To use a CLIP checkpoint as backbone, call from_clip of the model." if found == "clip" else ""
            raise ValueError(
                f"Expected a checkpoint with model_type {cls.model_type!r}, found model_type {found!r}.{hint}"
            )
        # The library sets overrides after construction, which would skip both validation and derived values.
        fields = [name for name in kwargs if name in cls.__dataclass_fields__ and name not in ("clip_config", "dtype")]
        return super().from_dict({**config_dict, **{name: kwargs.pop(name) for name in fields}}, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """Return the configuration of the text tower, as the library expects."""
        return self.clip.text_config

    @property
    def clip(self) -> Any:
        """Configuration of the backbone, a `CLIPConfig`."""
        return self.clip_config

    @property
    def side(self) -> int:
        """Side of the input images and of the maps, in pixels."""
        return int(self.image_size or 0)

    @property
    def patch_grid(self) -> int:
        """Number of patches along one side of an image of `image_size`."""
        return self.side // self.clip.vision_config.patch_size

    @property
    def prompts(self) -> Ensemble:
        """States and templates: those that are set, and the others of `prompt_ensemble`."""
        named = ENSEMBLES[self.prompt_ensemble]
        parts = [getattr(self, name) or getattr(named, name) for name in Ensemble._fields]
        return Ensemble(*map(tuple, parts))

    def name_of_category(self, category: str) -> str:
        """
        Return the name of a category of a dataset as the prompts use it.

        Args:
            category (`str`): name of the category, such as `"metal_nut"`.

        Returns:
            `str`: the class name.
        """
        return category

    def check_values(self) -> None:
        """
        Check every value. Runs at construction and when a model is built.

        Raises:
            ValueError: if a value is not allowed.
        """
        patch, size = self.clip.vision_config.patch_size, self.side
        self._check(
            "image_size", size > 0 and size % patch == 0, f"a positive multiple of the backbone's patch size {patch}"
        )
        self._check("prompt_ensemble", self.prompt_ensemble in ENSEMBLES, ", ".join(map(repr, ENSEMBLES)))
        for name in ("normal_states", "anomalous_states", "templates"):
            texts: Sequence[str] | None = getattr(self, name)
            counts = (1,) if name == "templates" else (0, 1)  # a state can do without the class
            allowed = texts is None or (len(texts) > 0 and all(text.count("{}") in counts for text in texts))
            self._check(name, allowed, f"at least one text, each with {{}} {'' if counts == (1,) else 'at most '}once")
        self._check("class_name", bool(self.class_name.strip()), "a text that is not empty")

    def _check(self, name: str, allowed: bool, expected: str) -> None:
        if not allowed:
            raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")


__all__ = ["BaselineConfig"]
