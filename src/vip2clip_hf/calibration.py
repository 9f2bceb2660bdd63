"""Thresholds from images of one's own: a known rate of false alarms from normal images, or the best from labels.

The guarantee and its numbers are in [`vip2clip_hf.calibration_vip2clip`].
"""

import copy
import datetime
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from .calibration_vip2clip import (
    conformal_threshold,
    min_calibration_images,
    min_region_pixels,
    region_score,
    stored_scores,
)
from .configuration_vip2clip import ViP2ClipConfig
from .files import new_folder, write_atomically
from .image_processing_vip2clip import list_images, load_mask
from .pipeline_anomaly_detection import AnomalyDetectionPipeline


logger = logging.get_logger(__name__)
# Normal images whose score lies this many times the usual spread above the middle, on the scale of logits, look
# anomalous.
SUSPICIOUS = 5.0
# Map values of any number of pixels are counted in so many steps.
_BINS = 65_536
_SECTION = re.compile(r"\n## Decision\n.*?(?=\n## |\Z)", re.DOTALL)


@dataclass
class Calibration:
    """
    Thresholds and where they come from.

    Args:
        content (`dict`):
            What goes into `config.calibration`: `method` ("conformal", "f1" or "recall"), `false_alarm_rate`, `date`,
            `settings` (tiles and top-k the scores were computed with), and for `image` and `pixel` `num_images`,
            `threshold` and, with "conformal", `scores`.
        suspicious (`list[str]`):
            Calibration images that look anomalous, the worst first.
        unreadable (`dict[str, str]`):
            Images that could not be read, and why; they do not count.
    """

    content: dict[str, Any]
    suspicious: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def image_threshold(self) -> float:
        """In [0, 1]; an image is anomalous when its score is greater."""
        return self.content["image"]["threshold"]

    @property
    def pixel_threshold(self) -> float:
        """In [0, 1]; a pixel is anomalous when its value is greater."""
        return self.content["pixel"]["threshold"]

    def apply(self, config: ViP2ClipConfig):
        """Put thresholds and calibration into a configuration."""
        config.image_threshold, config.pixel_threshold = self.image_threshold, self.pixel_threshold
        config.calibration = copy.deepcopy(self.content)
        config.check_values()


def calibrate(
    detector: AnomalyDetectionPipeline,
    normal: str | os.PathLike | Iterable[Any],
    false_alarm_rate: float = 0.01,
    *,
    min_region_area: float = 0.0,
    progress: bool = False,
) -> Calibration:
    """
    Thresholds from normal images by split conformal prediction: on normal images like these (exchangeable with them)
    the rate of images called anomalous is at most `false_alarm_rate`, and so is that of images with any region marked
    in the mask. Each of the two holds by itself, on average over draws of the calibration images.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Made with the options it will be used with (`tile_size`, `top_k`, ...); is not changed.
        normal (`str`, `os.PathLike` or iterable):
            Normal images that nothing was trained or chosen on: a folder, or what the pipeline takes.
        false_alarm_rate (`float`, defaults to 0.01):
            In (0, 1).
        min_region_area (`float`, defaults to 0.0):
            Share of the image a region has to cover to count, in [0, 1); smaller ones then do not appear in the mask.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`Calibration`]; `calibration.apply(detector.model.config)` puts it to use, [`save_calibration`] writes it into
        a checkpoint.

    Raises:
        ValueError: too few images for the rate (says how many it needs), a rate outside (0, 1), an area outside
            [0, 1).
        OSError: the folder cannot be read.
    """
    needed = min_calibration_images(false_alarm_rate)
    if not 0 <= min_region_area < 1:
        raise ValueError(f"min_region_area is {min_region_area}; expected a share of the image in [0, 1).")
    images = list_images(normal) if isinstance(normal, (str, os.PathLike)) and os.path.isdir(normal) else normal
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"{str(images)!r} is no folder; expected one with at least {needed} normal images.")
    if isinstance(images, Sequence) and len(images) < needed:  # before an hour of work
        conformal_threshold([0.0] * len(images), false_alarm_rate)

    names, scores, peaks, unreadable = [], [], [], {}
    for name, result in _results(detector, images, unreadable, progress):
        names.append(name)
        scores.append(result["score"])
        pixels = min_region_pixels(result["anomaly_map"].shape, min_region_area)
        peaks.append(region_score(result["anomaly_map"], pixels))
    for name, reason in unreadable.items():
        logger.warning(f"Left out of the calibration: {name}: {reason}")
    image_threshold = conformal_threshold(scores, false_alarm_rate)
    pixel_threshold = conformal_threshold(peaks, false_alarm_rate)
    suspicious = _suspicious(names, scores)
    if suspicious:
        logger.warning(
            f"{len(suspicious)} of the {len(scores)} calibration images look anomalous, and raise the threshold if "
            f"they are: {', '.join(suspicious[:10])}{', ...' if len(suspicious) > 10 else ''}. Look at them."
        )
    common = {"num_images": len(scores)}
    content = {
        "method": "conformal",
        "false_alarm_rate": float(false_alarm_rate),
        "date": datetime.date.today().isoformat(),
        "settings": detector.score_settings(),
        "image": {**common, "threshold": image_threshold, "scores": stored_scores(scores)},
        "pixel": {
            **common,
            "threshold": pixel_threshold,
            "min_region_area": float(min_region_area),
            "scores": stored_scores(peaks),
        },
    }
    return Calibration(content, suspicious, unreadable)


def calibrate_labelled(
    detector: AnomalyDetectionPipeline,
    dataset: Any,
    *,
    recall: float | None = None,
    mask_threshold: int | float = 0,
    progress: bool = False,
) -> Calibration:
    """
    Thresholds from labelled images: those of the best F1, or the largest that find a wanted share.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Made with the options it will be used with.
        dataset (`datasets.Dataset`):
            As `load_folder` gives it, with normal and anomalous images. Masks, where there are any, give the pixel
            threshold; without any it stays as it is.
        recall (`float`, *optional*):
            Share of anomalous images, and of anomalous pixels, to find at least, in (0, 1]. Without it the best F1.
        mask_threshold (`int` or `float`, defaults to 0):
            Mask values greater than this are anomalous.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        ValueError: labels missing or of one kind only, or a recall outside (0, 1].
    """
    from .data.collator import undecoded
    from .metrics import AnomalyMetrics

    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; expected a share in (0, 1].")
    labels = np.asarray([-1 if label is None else label for label in dataset["label"]])
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(
            f"The data set has {(labels == 0).sum()} normal and {(labels == 1).sum()} anomalous images, and "
            f"{(labels < 0).sum()} without a label; expected normal and anomalous ones, all with labels."
        )
    rows = undecoded(dataset)
    metrics, scores, unreadable = AnomalyMetrics(), [], {}
    marked_values = np.zeros(_BINS, dtype=np.int64)
    found = _results(detector, (rows[number]["image"] for number in range(len(rows))), unreadable, progress)
    for number, (_, result) in enumerate(found):
        if unreadable:
            break
        anomaly_map, mask = result["anomaly_map"], rows[number]["mask"]
        marked = _mask_like(mask, anomaly_map, mask_threshold)
        has_mask = mask is not None or not labels[number]
        metrics.update(
            np.array([result["score"]]), labels[number : number + 1], anomaly_map[None], marked[None],
            has_mask=np.array([has_mask]),
        )  # fmt: skip
        scores.append(result["score"])
        # In float64, where the product is exact: no value is counted above where it is.
        steps = anomaly_map[marked].astype(np.float64) * (_BINS - 1)
        marked_values += np.bincount(steps.astype(np.int64), minlength=_BINS)
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        raise OSError(f"{name} could not be read: {reason}")
    pixel_threshold = detector.model.config.pixel_threshold
    if recall is None:
        best = metrics.compute()["categories"]["all"]
        image_threshold = _just_below(best["image_f1_threshold"])
        if np.isfinite(best["pixel_f1_threshold"]):
            pixel_threshold = _just_below(best["pixel_f1_threshold"])
    else:
        anomalous = np.sort(np.asarray(scores)[labels == 1])[::-1]
        image_threshold = _just_below(anomalous[_needed(recall, len(anomalous)) - 1])
        if marked_values.any():
            beyond = np.cumsum(marked_values[::-1])[::-1]  # with values in this bin or above
            last = np.flatnonzero(beyond >= _needed(recall, int(marked_values.sum())))[-1]
            pixel_threshold = _just_below(last / (_BINS - 1))
    content = {
        "method": "f1" if recall is None else "recall",
        **({} if recall is None else {"recall": float(recall)}),
        "date": datetime.date.today().isoformat(),
        "settings": detector.score_settings(),
        "image": {
            "num_images": len(labels), "num_anomalous": int(labels.sum()), "threshold": image_threshold,
        },
        "pixel": {"num_images": len(labels), "threshold": pixel_threshold},
    }  # fmt: skip
    return Calibration(content)


def _mask_like(mask: Any, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """A mask at the size of a map, as the image processor does it; nothing marked where there is none."""
    if mask is None:
        return np.zeros(anomaly_map.shape, dtype=bool)
    marked = Image.fromarray((load_mask(mask) > threshold).astype(np.uint8) * 255)
    return np.asarray(marked.resize(anomaly_map.shape[::-1], Image.Resampling.BILINEAR)) > 127.5


def _just_below(value: float) -> float:
    """A threshold that the value exceeds, and the next smaller one (in float32) does not."""
    return float(max(0.0, np.nextafter(np.float32(value), np.float32(0))))


def _needed(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))


def _results(detector, images: Iterable[Any], unreadable: dict[str, str], progress: bool):
    """Name and result of every image that can be read, with the map at the size of the model (or of the photo, where
    it is seen in tiles)."""
    from tqdm.auto import tqdm

    for number, image in enumerate(tqdm(images, desc="calibrating", disable=not progress)):
        name = str(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
        try:
            yield name, detector.decision_map(image)
        except OSError as error:
            unreadable[name] = str(error)


def _suspicious(names: list[str], scores: list[float]) -> list[str]:
    values = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(values / (1 - values))
    middle = np.median(logits)
    spread = max(1.4826 * float(np.median(abs(logits - middle))), 0.1)
    far = (logits - middle) / spread
    return [names[place] for place in np.argsort(-far, kind="stable") if far[place] > SUSPICIOUS]


def describe_calibration(config: ViP2ClipConfig) -> str | None:
    """The section of the model card, or None without a calibration."""
    found = config.calibration
    if not found:
        return None
    number = found["image"]["num_images"]
    if found["method"] == "conformal":
        rate, area = found["false_alarm_rate"], (found.get("pixel") or {}).get("min_region_area", 0)
        region = "any region" if not area else f"a region of at least {area:.3%} of the image"
        how = (
            f"by split conformal prediction from {number} normal images: of normal images like these at most "
            f"{rate:g} are called anomalous, and at most {rate:g} have {region} marked."
        )
    elif found["method"] == "recall":
        how = f"from {number} labelled images: the largest that find {found['recall']:g} of what is anomalous."
    else:
        how = f"from {number} labelled images: those of the best F1."
    return (
        f"## Decision\n\nImage threshold {config.image_threshold:.6g}, pixel threshold {config.pixel_threshold:.6g}, "
        f"chosen on {found['date']} {how}"
    )


def save_calibration(
    calibration: Calibration, checkpoint: str | os.PathLike, output: str | os.PathLike | None = None
) -> Path:
    """
    Write a calibration into the configuration and the card of a checkpoint.

    Args:
        calibration ([`Calibration`]).
        checkpoint (`str` or `os.PathLike`):
            Folder of the checkpoint.
        output (`str` or `os.PathLike`, *optional*):
            A new folder for a calibrated copy. Without it the checkpoint itself is changed.

    Returns:
        `Path`: the folder written.

    Raises:
        OSError: no folder, one that cannot be written, or `output` is there already.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise OSError(f"{str(checkpoint)!r} holds no config.json; expected the folder of a checkpoint.")
    if output is not None:
        with new_folder(output) as target:
            shutil.copytree(checkpoint, target, dirs_exist_ok=True)
            _write(calibration, target)
        return Path(output)
    _write(calibration, checkpoint)
    return checkpoint


def _write(calibration: Calibration, folder: Path):
    config = ViP2ClipConfig.from_pretrained(folder)
    calibration.apply(config)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("image_threshold", "pixel_threshold", "calibration"):
        content[name] = getattr(config, name)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    card, section = folder / "README.md", describe_calibration(config)
    written = card.read_text(encoding="utf-8") if card.exists() else "# ViP²-CLIP\n"
    written = _SECTION.sub("", written).rstrip("\n") + f"\n\n{section}\n"
    # The card first: a stop in between leaves the thresholds of before.
    write_atomically(card, written)
    write_atomically(folder / "config.json", text)


__all__ = [
    "Calibration",
    "calibrate",
    "calibrate_labelled",
    "describe_calibration",
    "save_calibration",
]
