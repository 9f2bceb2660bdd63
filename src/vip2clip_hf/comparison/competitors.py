"""The methods of a comparison: which ones, their weights, and why one cannot run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..baselines.detector_loading import load_detector
from ..baselines.methods import METHODS, find_method
from ..baselines.tokenizing import find_tokenizer
from ..checkpoints.bundled import BUNDLED, bundled_backbone, bundled_checkpoint
from ..evaluation.subjects import DetectorSubject, ModelSubject, Subject
from ..models.loading import load_checkpoint
from ..models.vip2clip.backbone_vip2clip import load_clip
from ..utils.files import name_of


OWN, OWN_NAME = "vip2clip", "ViP²-CLIP"
OWN_PAPER = "https://arxiv.org/abs/2505.17692"
# What can be wrong with weights, a backbone or a tokenizer.
PROBLEMS = (ImportError, OSError, RuntimeError, ValueError)


@dataclass
class Competitor:
    """
    A method of a comparison.

    Args:
        key (`str`): name in commands.
        name (`str`): name in tables.
        paper (`str`): address of its paper.
        weights (`str`): where its weights come from.
        subject ([`Subject`], *optional*): the method, ready to run. `None` if it cannot run.
        reason (`str`, *optional*): why it cannot run.
        uses_references (`bool`): whether it can compare with photos of good parts.
        uses_class_names (`bool`): whether its prompts contain the name of the class.
        compares_texts (`bool`): whether its scores compare images with prompts of a text tower, without training.
    """

    key: str
    name: str
    paper: str
    weights: str = ""
    subject: Subject | None = None
    reason: str | None = None
    uses_references: bool = False
    uses_class_names: bool = False
    compares_texts: bool = False


def choose_methods(methods: str | Sequence[str]) -> tuple[list[str], bool]:
    """
    Choose the methods of a comparison.

    Args:
        methods (`str` or `Sequence[str]`): `"all"`, or names of methods.

    Returns:
        `tuple[list[str], bool]`: the names, and whether they were named one by one.

    Raises:
        ValueError: if a name is unknown, named twice, or there are none.
    """
    known = [*METHODS, OWN]
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    if names == ["all"]:
        return known, False
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"methods contains {unknown[0]!r}; expected 'all', or some of {', '.join(known)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods is {names}; expected at least one method, each once.")
    return names, True


def load_competitors(
    methods: str | Sequence[str],
    *,
    clip: str | os.PathLike = BUNDLED,
    models: Mapping[str, str | os.PathLike] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "float32",
    class_name: str | Mapping[str, str] | None = None,
) -> list[Competitor]:
    """
    Load the methods of a comparison.

    Args:
        methods (`str` or `Sequence[str]`): `"all"`, or names of methods. A named method that cannot run is an error.
        clip (`str` or `os.PathLike`, defaults to `"bundled"`): backbone of methods without a checkpoint.
        models (`Mapping[str, str | os.PathLike]`, *optional*): checkpoint by method.
        device (`torch.device` or `str`, defaults to `"cpu"`): device.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`): dtype of the backbones.
        class_name (`str` or `Mapping[str, str]`, *optional*): see [`BaselineDetector`].

    Returns:
        `list[Competitor]`: the methods, also those that cannot run.

    Raises:
        ImportError, OSError, RuntimeError: if weights of a named method cannot be loaded.
        ValueError: if a method is unknown, a checkpoint is for a method that is not compared, a named method has no
            weights, none uses `clip`, or none can run.
    """
    names, explicit = choose_methods(methods)
    models = dict(models or {})
    if surplus := [name for name in models if name not in names]:
        raise ValueError(f"models contains {surplus[0]!r}; expected methods of the comparison, {', '.join(names)}.")
    backbone = _Backbone(clip)
    if not backbone.is_bundled and all(name == OWN or name in models for name in names):
        raise ValueError(
            f"clip (--clip) is {os.fspath(clip)!r}, but all methods have weights of their own ({', '.join(names)}); "
            "remove it."
        )
    found = []
    for name in names:
        known = METHODS.get(name)
        one = Competitor(OWN, OWN_NAME, OWN_PAPER, uses_references=True)
        if known is not None:
            one = Competitor(name, known.name, known.paper, uses_references=known.uses_references)
            one.compares_texts, one.uses_class_names = not known.trains_scores, known.uses_class_names
        # A checkpoint that is named must work.
        required = explicit or name in models
        try:
            _load(one, backbone, models.get(name), device, dtype, class_name)
        except PROBLEMS as error:
            if required:
                raise
            one.reason = str(error)
        found.append(one)
    if all(one.subject is None for one in found):
        raise ValueError(f"No method can run: {'; '.join(f'{one.name}: {one.reason}' for one in found)}")
    _name_weights(found, {name: models.get(name, clip) for name in names})
    return found


def _name_weights(competitors: Sequence[Competitor], sources: Mapping[str, str | os.PathLike]) -> None:
    """Name weights by their path if other weights have the same name."""
    paths: dict[str, set[str]] = {}
    for one in competitors:
        paths.setdefault(one.weights, set()).add(os.path.abspath(sources[one.key]))
    for one in competitors:
        if one.subject is not None and not one.weights.startswith("bundled ") and len(paths[one.weights]) > 1:
            one.weights = os.fspath(sources[one.key])


class _Backbone:
    """The backbone that methods without a checkpoint share, loaded once."""

    def __init__(self, clip: str | os.PathLike) -> None:
        self.source = clip
        self._loaded: tuple[Any, Any] | None = None

    @property
    def is_bundled(self) -> bool:
        return isinstance(self.source, str) and self.source == BUNDLED

    @property
    def title(self) -> str:
        return "bundled backbone" if self.is_bundled else name_of(self.source)

    def load(self) -> tuple[Any, Any]:
        """Return the backbone and its tokenizer."""
        if self._loaded is None:
            self._loaded = load_clip(self.source)[0], find_tokenizer(self.source)
        return self._loaded


def _load(
    one: Competitor,
    backbone: _Backbone,
    checkpoint: str | os.PathLike | None,
    device: torch.device | str,
    dtype: torch.dtype | str,
    class_name: str | Mapping[str, str] | None,
) -> None:
    """Load the weights of a method."""
    if one.key == OWN:
        one.weights = "bundled checkpoint" if checkpoint is None else name_of(checkpoint)
        source = bundled_checkpoint() if checkpoint is None else checkpoint
        one.subject = ModelSubject(*load_checkpoint(source, device=str(device), dtype=dtype))
        return
    method = find_method(one.key)
    names = class_name if method.uses_class_names else None
    options: dict[str, Any] = {"device": device, "dtype": dtype, "class_name": names}
    if checkpoint is not None:
        one.weights, options["checkpoint"] = name_of(checkpoint), checkpoint
    elif not method.trained:
        one.weights = backbone.title
        options["clip"], options["tokenizer"] = (BUNDLED, None) if backbone.is_bundled else backbone.load()
    else:
        adapters = method.bundled_checkpoint() if backbone.is_bundled else None
        if adapters is None:
            raise ValueError(f"{method.name} needs trained weights: --model {one.key}=CHECKPOINT.")
        one.weights = "bundled adapters"
        options["checkpoint"], options["backbone"] = adapters, bundled_backbone()
    detector = load_detector(one.key, **options)
    one.subject = DetectorSubject(detector.with_references(None))  # those of the comparison are the same for all


__all__ = ["OWN", "OWN_NAME", "Competitor", "choose_methods", "load_competitors"]
