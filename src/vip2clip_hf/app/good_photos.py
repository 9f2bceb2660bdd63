"""Good photos in the web app: compare with them, and choose thresholds from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..calibration.from_normal import calibrate
from ..calibration.rates import DEFAULT_RATE, rate_interval, smallest_rate
from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..references.adapting import adapt
from .results import PhotoInspector


# How good photos are used: as references that also choose the thresholds, or for the thresholds only.
COMPARE, THRESHOLDS = "compare", "thresholds"


@dataclass(frozen=True, eq=False)
class GoodPhotos:
    """
    What photos of good parts gave.

    Args:
        count (`int`): number of photos that were used.
        references ([`ReferenceBank`], *optional*, defaults to `"auto"`): the photos as references, or those of the
            checkpoint if the photos choose thresholds only.
        decision ([`DecisionConfig`], *optional*): thresholds. `None` if one photo is too few to choose them.
        rate (`float`, *optional*): false-alarm rate of the thresholds.
        rate_interval (`tuple[float, float]`, *optional*): range that contains the true rate with a probability of
            90 %.
        found (`tuple[int, int]`, *optional*): number of photos with synthetic defects that are called anomalous, and
            of all of them.
        unusual (`tuple[str, ...]`): names of photos that look unlike the others.
        notes (`tuple[str, ...]`): what was decided without being asked for.
    """

    count: int
    references: ReferenceBank | str | None = "auto"
    decision: DecisionConfig | None = None
    rate: float | None = None
    rate_interval: tuple[float, float] | None = None
    found: tuple[int, int] | None = None
    unusual: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: `num_photos`, `compared` (whether photos are compared with them), `image_threshold`,
            `pixel_threshold`, `false_alarm_rate`, `rate_interval`, `synthetic_defects` (`found` and `of`), `unusual`
            and `notes`. `None` for what is undefined.
        """
        decision = self.decision
        return {
            "num_photos": self.count,
            "compared": isinstance(self.references, ReferenceBank),
            "image_threshold": None if decision is None else decision.image_threshold,
            "pixel_threshold": None if decision is None else decision.pixel_threshold,
            "false_alarm_rate": self.rate,
            "rate_interval": None if self.rate_interval is None else list(self.rate_interval),
            "synthetic_defects": None if self.found is None else {"found": self.found[0], "of": self.found[1]},
            "unusual": list(self.unusual),
            "notes": list(self.notes),
        }


@dataclass
class Uploads:
    """
    Uploads that can be used, and the others.

    Args:
        images (`list[dict]`): `bytes` and `path` (the name) of each photo.
        problems (`list[tuple[str, str]]`): name and error of each upload that cannot be used.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_uploads(inspector: PhotoInspector, paths: Sequence[str]) -> Uploads:
    """
    Read uploaded photos of good parts. An upload that cannot be read does not stop the others.

    Args:
        inspector ([`PhotoInspector`]): reads and checks the photos.
        paths (`Sequence[str]`): paths of the uploads.

    Returns:
        [`Uploads`]: the photos and the problems.
    """
    found = Uploads()
    for position, path in enumerate(paths):
        name = os.path.basename(path)
        if position >= inspector.max_images:
            found.problems.append((name, f"skipped; the limit is {inspector.max_images}. Raise it with --max-images."))
            continue
        try:
            inspector.read(path, name)
            with open(path, "rb") as file:
                found.images.append({"bytes": file.read(), "path": name})
        except (OSError, ValueError) as error:
            found.problems.append((name, str(error)))
    return found


def use_good_photos(
    inspector: PhotoInspector, paths: Sequence[str], use: str = COMPARE, false_alarm_rate: float | None = None
) -> tuple[GoodPhotos | None, list[tuple[str, str]]]:
    """
    Choose references and thresholds from uploaded photos of good parts. The model is not changed.

    Args:
        inspector ([`PhotoInspector`]): the inspector, with the references and thresholds of the checkpoint.
        paths (`Sequence[str]`): paths of the uploads.
        use (`str`, defaults to `"compare"`): `"compare"` uses the photos as references, like [`adapt`];
            `"thresholds"` for the thresholds only, like [`calibrate`].
        false_alarm_rate (`float`, *optional*): largest fraction of good photos called anomalous, in (0, 1). By
            default 0.05, or the smallest rate that the number of photos allows.

    Returns:
        `tuple[GoodPhotos | None, list[tuple[str, str]]]`: the result, `None` if the photos cannot be used, and name
        and error of each upload that cannot be used.

    Raises:
        ValueError: if `use` is unknown.
    """
    if use not in (COMPARE, THRESHOLDS):
        raise ValueError(f"use is {use!r}; expected {COMPARE!r} or {THRESHOLDS!r}.")
    uploads = read_uploads(inspector, paths)
    if not uploads.images:
        return None, uploads.problems
    choose = _compare if use == COMPARE else _choose_thresholds
    try:
        found, unreadable = choose(inspector, uploads.images, false_alarm_rate)
    except (OSError, ValueError) as error:
        return None, [*uploads.problems, ("good photos", str(error))]
    return found, [*uploads.problems, *unreadable.items()]


def _compare(
    inspector: PhotoInspector, images: list[dict[str, Any]], rate: float | None
) -> tuple[GoodPhotos, dict[str, str]]:
    found = adapt(inspector.detector, images, false_alarm_rate=rate)
    counted = found.synthetic_counts()
    return GoodPhotos(
        count=len(found.bank),
        references=found.bank,
        decision=found.decision if found.scores else None,
        rate=found.false_alarm_rate,
        rate_interval=found.rate_interval,
        found=(counted["detected"], counted["num_photos"]) if found.synthetic else None,
        unusual=tuple(found.outliers),
        notes=tuple(found.notes),
    ), found.unreadable


def _choose_thresholds(
    inspector: PhotoInspector, images: list[dict[str, Any]], rate: float | None
) -> tuple[GoodPhotos, dict[str, str]]:
    if len(images) < 2:
        raise ValueError("One photo is too few to choose thresholds; expected at least 2 photos of good parts.")
    if rate is None:
        rate = max(DEFAULT_RATE, smallest_rate(len(images)))
    found = calibrate(inspector.detector, images, rate)
    count = int((found.decision.calibration or {})["num_images"])
    return GoodPhotos(
        count=count,
        decision=found.decision,
        rate=rate,
        rate_interval=rate_interval(count, rate),
        unusual=tuple(found.suspicious),
    ), found.unreadable


__all__ = ["COMPARE", "THRESHOLDS", "GoodPhotos", "Uploads", "read_uploads", "use_good_photos"]
