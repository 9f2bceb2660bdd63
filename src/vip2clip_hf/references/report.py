"""The report of an adaptation: one page without scripts and other files."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..reporting.templates import render
from ..utils.pictures import data_uri, resized_map
from ..utils.text import shown
from .adaptation import Adaptation
from .summary import summary, synthetic_summary


# Side of the pictures in pixels, and how many are shown of each kind.
SIDE, MOST_PICTURES = 220, 24
# Size of the chart, and the number of its points. Of more scores, some are drawn.
WIDTH, HEIGHT, MARGIN, MOST_POINTS = 720, 260, 34, 500


def write_report(detector: AnomalyDetectionPipeline, found: Adaptation, sources: Mapping[str, Any]) -> str:
    """
    Write the report.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with the references.
        found ([`Adaptation`]): the result.
        sources (`Mapping[str, Any]`): photos by name, for pictures. Photos that are not among them have none.

    Returns:
        `str`: the page, in HTML.

    Raises:
        OSError: if a photo cannot be read any more.
    """
    flagged = dict.fromkeys([*found.outliers, *(name for name in found.dropped if name in sources)])
    maps = _maps(detector, found, [name for name in flagged if name in found.scores][:MOST_PICTURES], sources)
    flagged_photos = [
        {
            "name": name,
            "score": found.scores.get(name),
            "dropped": name in found.dropped,
            "image": _load(detector, sources.get(name)),
            "map": maps.get(name),
        }
        for name in list(flagged)[:MOST_PICTURES]
    ]
    pairs = [
        {"names": pair, "images": [_load(detector, sources.get(name)) for name in pair]}
        for pair in found.near_duplicates[: MOST_PICTURES // 2]
    ]
    folder = shlex.quote(shown(str(found.folder)))
    commands = [
        f"vip2clip predict photos --model {folder} --heatmap heatmaps",
        f"vip2clip adapt more_photos --update {folder}",
    ]
    if found.outliers:
        commands.append(f"vip2clip adapt --update {folder} --drop {shlex.quote(shown(found.outliers[0]))}")
    return render(
        __package__,
        "report.html.jinja",
        filters={"picture": _picture},
        found=found,
        summary=summary(found),
        synthetic=synthetic_summary(found),
        chart=_chart(found),
        flagged=flagged_photos,
        pairs=pairs,
        most=MOST_PICTURES,
        overlay=_overlay,
        commands=commands,
    )


def _load(detector: AnomalyDetectionPipeline, source: Any) -> Image.Image | None:
    return None if source is None else _small(detector.load(source))


def _small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    return image


def _maps(
    detector: AnomalyDetectionPipeline, found: Adaptation, names: Iterable[str], sources: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the anomaly maps of some photos that the thresholds were chosen from, at a small size."""
    names = set(names)
    if not names:
        return {}
    if found.num_split:
        maps = ((name, detector.decision_map(sources[name])["anomaly_map"]) for name in names)
    else:
        left_out = found.bank.left_out()
        maps = ((one.photo.name, one.anomaly_map) for one in left_out if one.photo.name in names)
    return {name: resized_map(one, (SIDE, SIDE)) for name, one in maps}


def _overlay(image: Image.Image, anomaly_map: np.ndarray) -> Image.Image:
    """Draw a map over a small photo."""
    small = _small(image)
    return draw_heatmap(small, resized_map(anomaly_map, small.size))


def _picture(image: Image.Image) -> str:
    """Return a small photo as a data URI."""
    return data_uri(_small(image))


def _chart(found: Adaptation) -> dict[str, Any]:
    """Return positions of the scores, in ascending order, and of the threshold."""
    flagged, series = {*found.outliers}, []
    good = sorted(found.scores.items(), key=lambda item: item[1])
    bad = sorted(((f"{one.name} with a {one.defect}", one.score) for one in found.synthetic), key=lambda item: item[1])
    real = sorted((found.defects.scores if found.defects else {}).items(), key=lambda item: item[1])
    for kind, values in (("good", good), ("synthetic", bad), ("defect", real)):
        step = max(1, len(values) // MOST_POINTS)
        points = []
        for place in sorted({*range(0, len(values), step), *range(max(0, len(values) - 20), len(values))}):
            name, score = values[place]
            points.append(
                {
                    "x": round(MARGIN + (place + 0.5) / len(values) * (WIDTH - 2 * MARGIN), 1),
                    "y": _height(score),
                    "kind": "outlier" if kind == "good" and name in flagged else kind,
                    "name": name,
                    "score": score,
                }
            )
        series.append(points)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": MARGIN,
        "right": WIDTH - MARGIN,
        "points": [point for points in series for point in points],
        "threshold": _height(found.image_threshold),
        "ticks": [(value, _height(value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
    }


def _height(score: float) -> float:
    return round(HEIGHT - MARGIN / 2 - score * (HEIGHT - MARGIN), 1)


__all__ = ["write_report"]
