"""The other methods by name, for commands and tables."""

import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPModel, set_seed
from transformers.utils import logging

from ..checkpoints.bundled import BUNDLED, bundled_backbone
from ..models.small_text_tower import state_word_tokenizer


logger = logging.get_logger(__name__)
# As the bundled checkpoint, so that all methods can share the vision tower.
_IMAGES: dict[str, Any] = {"image_size": 320, "position_interpolation": "bilinear"}
_STATE_WORDS: dict[str, Any] = {"prompt_ensemble": "state_words", **_IMAGES}
# Adapters for the bundled backbone.
_TRAINED = Path(__file__).with_name("trained")


@dataclass(frozen=True)
class Method:
    """
    A baseline, and where it comes from.

    Args:
        key (`str`): name in commands, such as `"april-gan"`.
        name (`str`): name in tables.
        location (`str`): module and class of the model, `"module:Class"`.
        trained (`bool`): whether it needs training.
        uses_references (`bool`): whether it can compare with photos of good parts.
        uses_class_names (`bool`): whether its prompts contain the name of the class.
        paper, code (`str`): address of the paper, and of the code that the tests compare it with.
        licence (`str`): licence of that code.
        trains_scores (`bool`): whether its image scores are trained. Otherwise, they compare the class token with
            prompts, as in CLIP.
        converter (`str`, *optional*): module and function that converts checkpoints of the published code.
        for_state_words (`dict`): fields of the configuration for backbones that know the state words only.
    """

    key: str
    name: str
    location: str
    paper: str
    code: str
    licence: str
    trained: bool = True
    uses_references: bool = False
    uses_class_names: bool = True
    trains_scores: bool = True
    converter: str | None = None
    for_state_words: Mapping[str, Any] = field(default_factory=lambda: dict(_STATE_WORDS))

    @property
    def model_class(self) -> Any:
        """The class of the model, a [`BaselineModel`]."""
        return _load(self.location)

    def convert(self, checkpoint: str | os.PathLike | Mapping, clip: Any, **config_overrides: Any) -> Any:
        """
        Convert a checkpoint of the published code.

        Args:
            checkpoint (`str`, `os.PathLike` or `Mapping`): `.pth` file, or its content.
            clip (`CLIPModel`, `str` or `os.PathLike`): backbone, its folder or Hub id.
            config_overrides: fields of the configuration that the file does not determine.

        Returns:
            [`BaselineModel`]: the model, in eval mode.

        Raises:
            OSError: if a file is missing or damaged.
            ValueError: if the method has no trained weights, or the file does not fit.
        """
        if self.converter is None:
            raise ValueError(f"method is {self.key!r}, which has no trained weights; there is nothing to convert.")
        return _load(self.converter)(checkpoint, clip, **config_overrides)

    def bundled_checkpoint(self) -> Path | None:
        """Folder of adapters for the bundled backbone, or `None` if there are none."""
        folder = _TRAINED / self.key
        return folder if (folder / "config.json").is_file() else None


def _load(location: str) -> Any:
    """Import what a location names, `"module:name"`."""
    module, _, name = location.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


METHODS = {
    method.key: method
    for method in (
        Method(
            "clip", "CLIP", "clip:ClipForAnomalyDetection", "https://arxiv.org/abs/2103.00020",
            "https://github.com/mlfoundations/open_clip", "MIT", trained=False, trains_scores=False,
        ),
        Method(
            "winclip", "WinCLIP", "winclip:WinClipForAnomalyDetection", "https://arxiv.org/abs/2303.14814",
            "https://github.com/open-edge-platform/anomalib", "Apache-2.0", trained=False, trains_scores=False,
            uses_references=True,
        ),
        Method(
            "april-gan", "APRIL-GAN", "april_gan:AprilGanForAnomalyDetection", "https://arxiv.org/abs/2305.17382",
            "https://github.com/ByChelsea/VAND-APRIL-GAN", "MIT", uses_references=True, trains_scores=False,
            converter="convert_april_gan:convert_april_gan_checkpoint",
            for_state_words={**_STATE_WORDS, "feature_layers": (3, 6, 9, 12)},
        ),
        Method(
            "anomalyclip", "AnomalyCLIP", "anomalyclip:AnomalyClipForAnomalyDetection",
            "https://arxiv.org/abs/2310.18961", "https://github.com/zqhang/AnomalyCLIP", "MIT",
            uses_class_names=False, converter="convert_anomalyclip:convert_anomalyclip_checkpoint",
            for_state_words={
                **_IMAGES, "normal_text": "good", "anomalous_text": "damaged", "dpam_layers": 10, "prompt_depth": 3,
            },
        ),
        Method(
            "adaclip", "AdaCLIP", "adaclip:AdaClipForAnomalyDetection", "https://arxiv.org/abs/2407.15795",
            "https://github.com/caoyunkang/AdaCLIP", "MIT", converter="convert_adaclip:convert_adaclip_checkpoint",
            # The prompts replace the first tokens, so the word is repeated.
            for_state_words={
                **_STATE_WORDS, "normal_states": (" ".join(["good"] * 6),),
                "anomalous_states": (" ".join(["damaged"] * 6),), "prompting_depth": 3,
            },
        ),
    )
}  # fmt: skip


def untrained_texts(names: Sequence[str]) -> str:
    """
    Say what does not work with the text tower of the bundled backbone.

    Args:
        names (`Sequence[str]`): names of methods in tables. Others than those of `METHODS` are left out.

    Returns:
        `str`: a sentence for those, or an empty text.
    """
    affected = [one for one in METHODS.values() if one.name in names and not one.trains_scores]
    texts = [f"the image scores of {one.name}" if one.trained else one.name for one in affected]
    if not texts:
        return ""
    return (
        "The text tower of the bundled backbone was not trained with images, so comparing images with prompts has no "
        f"meaning: {', '.join(texts)}."
    )


def find_method(key: str) -> Method:
    """
    Find a method.

    Args:
        key (`str`): name of the method, one of `METHODS`.

    Returns:
        [`Method`]: the method.

    Raises:
        ValueError: if the name is unknown.
    """
    if key not in METHODS:
        nearest = difflib.get_close_matches(key, METHODS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"method is {key!r}; expected {', '.join(METHODS)}{hint}")
    return METHODS[key]


def method_of(model: Any) -> Method:
    """
    Find the method of a model.

    Args:
        model ([`BaselineModel`]): the model.

    Returns:
        [`Method`]: its method.

    Raises:
        ValueError: if the model belongs to none of `METHODS`.
    """
    for method in METHODS.values():
        if method.name == getattr(model, "method_name", None):
            return method
    names = ", ".join(method.name for method in METHODS.values())
    raise ValueError(f"The model is a {type(model).__name__}; expected the model of one of {names}.")


def create_model(
    key: str, clip: CLIPModel | str | os.PathLike, tokenizer: Any = None, *, seed: int = 111, **config_overrides: Any
) -> Any:
    """
    Create the model of a method on a CLIP backbone. A method that is trained has new weights.

    Args:
        key (`str`): name of the method, one of `METHODS`.
        clip (`CLIPModel`, `str` or `os.PathLike`): backbone, its folder or Hub id. `"bundled"` is the backbone of the
            bundled checkpoint, whose text tower knows a few words and was never trained with images.
        tokenizer (tokenizer, `str` or `os.PathLike`, *optional*): see [`BaselineModel.from_clip`].
        seed (`int`, defaults to 111): random seed of new weights.
        config_overrides: fields of the configuration of the method.

    Returns:
        [`BaselineModel`]: the model, in eval mode.

    Raises:
        OSError, RuntimeError, ValueError: if the method is unknown, and see [`BaselineModel.from_clip`].
    """
    method = find_method(key)
    if isinstance(clip, str) and clip == BUNDLED:
        clip, tokenizer = bundled_backbone(), state_word_tokenizer()
        config_overrides = {**method.for_state_words, **config_overrides}
        if not method.trains_scores:
            logger.warning_once(untrained_texts([method.name]))
    set_seed(seed)
    return method.model_class.from_clip(clip, tokenizer, **config_overrides)


__all__ = ["METHODS", "Method", "create_model", "find_method", "method_of", "untrained_texts"]
