"""Settings of decisions: thresholds, tiles and calibration, stored in `decision.json` next to `config.json`."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from transformers.utils.hub import cached_file

from .arguments_vip2clip import as_integer, check_tiling, is_finite


DECISION_NAME, SCORES_NAME = "decision.json", "decision.safetensors"
# If there are more calibration scores, this number of quantiles is stored instead, rounded up.
MAX_STORED_SCORES = 10_000
MAX_PIXEL_SCORES = 1_000
# If there are more scores, they are stored in `decision.safetensors`.
MAX_SCORES_IN_JSON = 1_000


def stored_scores(scores: Sequence[float] | np.ndarray, limit: int = MAX_STORED_SCORES) -> list[float]:
    """
    Sort calibration scores and limit their number for storage in a checkpoint.

    Args:
        scores (`Sequence[float]`): scores of the calibration images.
        limit (`int`, defaults to 10,000): maximum number of scores.

    Returns:
        `list[float]`: the scores in ascending order. If there are more than `limit` scores, that many quantiles
        instead, each the largest score in its group, so p-values computed from them are never too small.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if len(ordered) > limit:
        ends = -(-np.arange(1, limit + 1) * len(ordered) // limit)
        ordered = ordered[ends - 1]
    return ordered.tolist()


def p_value(score: float, stored: Sequence[float] | np.ndarray, num_images: int) -> float:
    """
    Compute the p-value of a score: the probability that a normal image has a score at least as large.

    The p-value is (1 + number of normal scores at least as large) / (1 + number of normal scores).

    Args:
        score (`float`): score of the image.
        stored (`Sequence[float]`): calibration scores from [`stored_scores`].
        num_images (`int`): number of calibration images.

    Returns:
        `float`: the p-value, in (0, 1]. If all scores are stored, the p-value is at most the false-alarm rate exactly
        if the score is greater than the threshold for that rate.
    """
    below = int(np.searchsorted(np.asarray(stored), score, side="left"))
    if len(stored) < num_images:
        below = -(-below * num_images // len(stored))
    return (1 + num_images - below) / (1 + num_images)


@dataclass(eq=False)
class DecisionConfig:
    """
    Settings of the decisions of a checkpoint. They are stored in `decision.json`, next to `config.json`.

    Args:
        image_threshold (`float`, defaults to 0.5), pixel_threshold (`float`, defaults to 0.5):
            An image or pixel is anomalous if its score is greater than the threshold. In [0, 1]; compared in float32,
            the precision of scores and maps.
        min_region_area (`float`, defaults to 0.0):
            Minimum area of a region of the mask, as a fraction of the anomaly map at the size of the model, in [0, 1).
            Smaller regions are removed from the mask.
        tile_size (`int`, defaults to 0), tile_overlap (`float`, defaults to 0.25):
            Side in pixels and overlap of the tiles that larger images are split into, see
            [`AnomalyDetectionPipeline`]. 0 disables tiling.
        top_k (`int`, *optional*):
            Number of top patches per layer used for the image score. By default, `top_k` of the model's configuration.
        calibration (`dict[str, Any]`, *optional*):
            Origin of the thresholds, as written by [`vip2clip_hf.calibration.calibrate`]: `method` (`"conformal"`,
            `"f1"` or `"recall"`), `false_alarm_rate` or `recall`, `date`, `num_images`, and what determined the
            scores: `settings` (tiles and top-k) and `fingerprint` (weights and configuration of the model).
        image_scores, pixel_scores (`np.ndarray` of shape `(num_scores,)`, *optional*):
            Scores of the normal images of the calibration, float32 in ascending order: of the images, which p-values
            are computed from, and the largest value at which a map has a region.

    Raises:
        ValueError: if a value is not allowed.

    Example:

    ```python
    >>> from vip2clip_hf import DecisionConfig, ViP2ClipForAnomalyDetection

    >>> model = ViP2ClipForAnomalyDetection.from_pretrained("path/to/checkpoint")
    >>> model.decision.image_threshold = 0.7
    >>> DecisionConfig.from_pretrained("path/to/checkpoint").image_threshold
    0.5
    ```
    """

    image_threshold: float = 0.5
    pixel_threshold: float = 0.5
    min_region_area: float = 0.0
    tile_size: int = 0
    tile_overlap: float = 0.25
    top_k: int | None = None
    calibration: dict[str, Any] | None = None
    image_scores: np.ndarray | None = None
    pixel_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("image_scores", "pixel_scores"):
            scores = getattr(self, name)
            setattr(self, name, None if scores is None else np.asarray(scores, dtype=np.float32).ravel())
        self.check_values()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecisionConfig) and self.to_dict() == other.to_dict()

    def check_values(self) -> None:
        """
        Check every value.

        Raises:
            ValueError: if a value is not allowed.
        """
        for name in ("image_threshold", "pixel_threshold", "min_region_area"):
            value, below_one = getattr(self, name), name == "min_region_area"
            if not (is_finite(value) and 0 <= value <= 1) or (below_one and value == 1):
                raise ValueError(f"{name} is {value!r}; expected a number in [0, 1{')' if below_one else ']'}.")
        check_tiling(16 if self.tile_size == 0 else self.tile_size, self.tile_overlap)
        if self.top_k is not None:
            as_integer("top_k", self.top_k, least=1)
        found = self.calibration
        if found is not None and not isinstance(found, dict):
            raise ValueError(f"calibration is {found!r}; expected a dict or None.")
        for name, limit in (("image_scores", MAX_STORED_SCORES), ("pixel_scores", MAX_PIXEL_SCORES)):
            scores = getattr(self, name)
            if scores is None:
                continue
            count = (found or {}).get("num_images")
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"calibration['num_images'] is {count!r}; expected a positive integer.")
            if len(scores) != min(count, limit) or not (np.isfinite(scores).all() and (np.diff(scores) >= 0).all()):
                raise ValueError(
                    f"{name} has {len(scores)} values; expected {min(count, limit)} in ascending order, because "
                    f"calibration['num_images'] is {count}."
                )

    def p_value(self, score: float) -> float | None:
        """
        Compute the p-value of a score: the probability that a normal image has a score at least as large.

        Args:
            score (`float`): score of the image.

        Returns:
            `float`, *optional*: the p-value, in (0, 1], see [`p_value`]. `None` without calibration scores.
        """
        if self.image_scores is None or self.calibration is None:
            return None
        return p_value(score, self.image_scores, self.calibration["num_images"])

    def without_calibration(self) -> "DecisionConfig":
        """
        Return a copy that keeps the thresholds, but not the calibration.

        Returns:
            [`DecisionConfig`]: the copy.
        """
        return replace(self, calibration=None, image_scores=None, pixel_scores=None)

    def checksum(self) -> str:
        """
        Compute a checksum of all values, to identify a calibration in results.

        Returns:
            `str`: 16 hexadecimal digits.
        """
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: the fields. Scores are lists of the shortest numbers that give the same float32 numbers.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("image_scores", "pixel_scores"):
            if content[name] is not None:
                content[name] = [float(str(score)) for score in content[name]]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DecisionConfig":
        """
        Create from a dict, as returned by [`DecisionConfig.to_dict`].

        Args:
            content (`Mapping[str, Any]`): the fields. Missing fields have their defaults.

        Returns:
            [`DecisionConfig`]: the settings.

        Raises:
            ValueError: if a field is unknown, or a value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise ValueError(f"{name!r} is not a field of {cls.__name__}; expected {', '.join(known)}.")
        return cls(**content)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> "DecisionConfig":
        """
        Load the settings of a checkpoint. Of a checkpoint of version 0.1, they are read from its `config.json`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of the checkpoint, or one of its files.
            hub_kwargs:
                Options to load from the Hub, such as `revision`, `token` and `subfolder`.

        Returns:
            [`DecisionConfig`]: the settings. The defaults if the checkpoint does not contain any.

        Raises:
            OSError: if the checkpoint is not found or a file is damaged.
            ValueError: if a value is not allowed.
        """
        source = os.fspath(pretrained_model_name_or_path)
        source = os.path.dirname(source) if os.path.isfile(source) else source
        path = _find(source, DECISION_NAME, hub_kwargs)
        if path is None:
            path = _find(source, "config.json", hub_kwargs)
            if path is None and _is_offline(hub_kwargs) and not os.path.isdir(source):
                raise OSError(f"{source!r} is not in the cache of the Hub; expected a folder or a cached checkpoint.")
            return cls() if path is None else cls._from_file(_from_legacy(_read_json(path)), path)
        content = _read_json(path)
        name = content.pop("scores_file", None)
        if name is not None:
            scores = _find(source, SCORES_NAME, hub_kwargs)
            if name != SCORES_NAME or scores is None:
                raise OSError(f"scores_file is {name!r} in {path}; expected {SCORES_NAME!r}, in the same folder.")
            try:
                content.update(load_file(scores))
            except SafetensorError as error:
                raise OSError(f"{scores} is damaged: {error}") from error
        return cls._from_file(content, path)

    @classmethod
    def _from_file(cls, content: Mapping[str, Any], path: str) -> "DecisionConfig":
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path} is not valid: {error}") from error

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """
        Write `decision.json` and, for more than 1,000 scores, `decision.safetensors`. Each file is written under a
        temporary name first, so an interruption leaves no partial file.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to. It is created if it does not exist.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if a value is not allowed.
        """
        self.check_values()
        folder, content = Path(save_directory), self.to_dict()
        folder.mkdir(parents=True, exist_ok=True)
        scores = {name: getattr(self, name) for name in ("image_scores", "pixel_scores")}
        scores = {name: value for name, value in scores.items() if value is not None}
        separate = any(len(value) > MAX_SCORES_IN_JSON for value in scores.values())
        if separate:
            content = {name: value for name, value in content.items() if name not in scores}
            content["scores_file"] = SCORES_NAME
            _replace(folder / SCORES_NAME, save(scores))
        # One line per field, because a line per score would be long.
        lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in content.items()]
        _replace(folder / DECISION_NAME, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        if not separate:
            (folder / SCORES_NAME).unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_offline(hub_kwargs: Mapping[str, Any]) -> bool:
    return is_offline_mode() or bool(hub_kwargs.get("local_files_only"))


def _find(source: str | os.PathLike, name: str, hub_kwargs: Mapping[str, Any]) -> str | None:
    """Return the path of a file of a checkpoint, or None if the checkpoint does not contain it."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=not _is_offline(
            hub_kwargs
        ),  # a file that is not in the cache is missing
        **hub_kwargs,
    )


def _read_json(path: str | os.PathLike) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected a dict")
    except ValueError as error:
        raise OSError(f"{path} is not a valid JSON file: {error}") from error
    return content


def _from_legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields that `config.json` contained in version 0.1."""
    content = {name: config[name] for name in ("image_threshold", "pixel_threshold") if config.get(name) is not None}
    found = config.get("calibration")
    if not found:
        return content
    image, pixel = ({**(found.get(level) or {})} for level in ("image", "pixel"))
    settings = found.get("settings") or {}
    calibration = {name: value for name, value in found.items() if name not in ("image", "pixel")}
    calibration.update({name: image[name] for name in ("num_images", "num_anomalous") if name in image})
    calibration.setdefault("num_images", pixel.get("num_images"))
    top_k = settings.get("top_k")
    content.update({name: settings[name] for name in ("tile_size", "tile_overlap") if name in settings})
    content.update(
        calibration=calibration,
        min_region_area=pixel.get("min_region_area", 0.0),
        top_k=None if top_k == config.get("top_k", 50) else top_k,
    )
    for name, part, limit in (("image_scores", image, MAX_STORED_SCORES), ("pixel_scores", pixel, MAX_PIXEL_SCORES)):
        scores = part.get("scores")
        if scores is not None:
            if sorted(scores) != list(scores):
                raise ValueError(f"The {name} of the calibration are not sorted; expected ascending order.")
            content[name] = stored_scores(scores, limit)
    return content


__all__ = [
    "DECISION_NAME",
    "MAX_PIXEL_SCORES",
    "MAX_STORED_SCORES",
    "SCORES_NAME",
    "DecisionConfig",
    "p_value",
    "stored_scores",
]
