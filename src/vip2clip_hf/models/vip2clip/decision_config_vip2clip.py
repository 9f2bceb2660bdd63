"""Settings of decisions: thresholds, tiles and calibration, stored in `decision.json` next to `config.json`."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .arguments_vip2clip import as_integer, check_tiling, is_finite
from .checkpoint_files_vip2clip import CheckpointFile, find_file, read_arrays, write_bytes, write_fields


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
class DecisionConfig(CheckpointFile):
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
            Origin of the thresholds, as written by [`vip2clip_hf.calibration.calibrate`] and
            [`vip2clip_hf.references.adapt`]: `method` (`"conformal"`, `"f1"`, `"recall"` or `"cost"`),
            `false_alarm_rate` or `recall`, `leave_one_out` (whether the images are references), `date`, `num_images`,
            and what determined the scores: `settings` (tiles, top-k and references) and `fingerprint` (weights and
            configuration of the model).
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

    file_name: ClassVar[str] = DECISION_NAME

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
        content = super().to_dict()
        for name in ("image_scores", "pixel_scores"):
            if content[name] is not None:
                content[name] = [float(str(score)) for score in content[name]]
        return content

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the fields that `config.json` of version 0.1 contains."""
        content = {
            name: config[name] for name in ("image_threshold", "pixel_threshold") if config.get(name) is not None
        }
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
        for name, part, limit in (
            ("image_scores", image, MAX_STORED_SCORES),
            ("pixel_scores", pixel, MAX_PIXEL_SCORES),
        ):
            scores = part.get("scores")
            if scores is not None:
                if sorted(scores) != list(scores):
                    raise ValueError(f"The {name} of the calibration are not sorted; expected ascending order.")
                content[name] = stored_scores(scores, limit)
        return content

    @classmethod
    def _complete(
        cls, content: dict[str, Any], path: str, source: str, hub_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        name = content.pop("scores_file", None)
        if name is None:
            return content
        scores = find_file(source, SCORES_NAME, hub_kwargs)
        if name != SCORES_NAME or scores is None:
            raise OSError(f"scores_file is {name!r} in {path}; expected {SCORES_NAME!r}, in the same folder.")
        return {**content, **read_arrays(scores)}

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
        scores = {name: getattr(self, name) for name in ("image_scores", "pixel_scores")}
        scores = {name: value for name, value in scores.items() if value is not None}
        path = Path(save_directory) / SCORES_NAME
        if all(len(value) <= MAX_SCORES_IN_JSON for value in scores.values()):
            super().save_pretrained(save_directory)
            path.unlink(missing_ok=True)
            return
        from safetensors.numpy import save

        self.check_values()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: value for name, value in self.to_dict().items() if name not in scores}
        write_bytes(path, save(scores))
        write_fields(path.with_name(DECISION_NAME), {**content, "scores_file": SCORES_NAME})


__all__ = [
    "DECISION_NAME",
    "MAX_PIXEL_SCORES",
    "MAX_STORED_SCORES",
    "SCORES_NAME",
    "DecisionConfig",
    "p_value",
    "stored_scores",
]
