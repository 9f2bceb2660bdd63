"""The report of a prediction: one page that loads no other files."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.files import write_atomically
from .chart import histogram
from .pictures import Picture, legend, make_pictures, picture_side
from .predictions import Predictions
from .summary import settings_lines, summary_lines, title_of
from .templates import asset, render


# By default, at most this number of photos have pictures and rows. More would be slow in a browser.
NUM_PICTURES, NUM_ROWS = 1000, 10_000
# Photos without picture are summed up in the notes, with some of the reasons.
MOST_REASONS = 5


def write_report(
    found: Predictions,
    output: str | os.PathLike[str],
    *,
    num_pictures: int = NUM_PICTURES,
    num_rows: int = NUM_ROWS,
    title: str | None = None,
    on_picture: Callable[[], Any] | None = None,
) -> dict[str, int]:
    """
    Write the report of a prediction to one HTML file.

    Args:
        found ([`Predictions`]): the results, see [`read_predictions`].
        output (`str` or `os.PathLike`): the file; an existing one is replaced.
        num_pictures (`int`, defaults to 1000): the photos with the highest scores get pictures, up to this number.
        num_rows (`int`, defaults to 10,000): the photos with the highest scores are listed, up to this number.
        title (`str`, *optional*): heading of the page. By default, the name of the folder.
        on_picture (`Callable`, *optional*): called after each photo, for a progress bar.

    Returns:
        `dict[str, int]`: `num_photos`, `num_rows`, `num_pictures`, `num_heatmaps` and `num_bytes` of the page.

    Raises:
        ImportError: if Jinja2 is not installed.
        OSError: if the file cannot be written.
        ValueError: if a number is negative.
    """
    for name, value in (("num_pictures", num_pictures), ("num_rows", num_rows)):
        if value < 0:
            raise ValueError(f"{name} is {value}; expected an integer of at least 0.")
    shown = found.most_anomalous()[:num_rows]
    with_picture = shown[:num_pictures]
    pictures = make_pictures(found.photos, with_picture, picture_side(len(with_picture)), on_picture)
    text = build_report(found, pictures, num_rows=num_rows, title=title)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    return {
        "num_photos": len(found.rows),
        "num_rows": len(shown),
        "num_pictures": sum(one.photo is not None for one in pictures.values()),
        "num_heatmaps": sum(one.heatmap is not None for one in pictures.values()),
        "num_bytes": output.stat().st_size,
    }


def build_report(
    found: Predictions,
    pictures: Mapping[int, Picture],
    *,
    num_rows: int = NUM_ROWS,
    title: str | None = None,
) -> str:
    """
    Build the page of a report.

    Args:
        found ([`Predictions`]): the results.
        pictures (`Mapping[int, Picture]`): pictures by position of the photo in the table. Others have none.
        num_rows (`int`, defaults to 10,000): the photos with the highest scores are listed, up to this number.
        title (`str`, *optional*): heading of the page. By default, the name of the folder.

    Returns:
        `str`: the page, in HTML.

    Raises:
        ImportError: if Jinja2 is not installed.
    """
    order = found.most_anomalous()
    normal, anomalous = found.labels
    rows = [found.rows[position] for position in order]
    has_truth = any(row.truth is not None for row in rows)
    listed = [_row(found, position, pictures.get(position)) for position in order[:num_rows]]
    return render(
        __package__,
        "predictions.html.jinja",
        script=asset("predictions.js"),
        predictions_style=asset("predictions.css"),
        title=title or f"Inspection of {title_of(found)}",
        labels=(normal, anomalous),
        counts=[
            ("photos", len(found.rows), ""),
            (normal, found.count(normal), "normal"),
            (anomalous, found.count(anomalous), "anomalous"),
            ("unreadable", found.count(None), "unreadable"),
        ],
        summary=summary_lines(found),
        settings=settings_lines(found),
        notes=[*found.notes, *_notes(found, pictures, len(order), len(listed))],
        chart=_chart(found, has_truth),
        threshold=found.threshold,
        rows=listed,
        num_rows=len(order),
        errors=[row for row in found.rows if row.score is None],
        has_truth=has_truth,
        has_p_values=any(row.p_value is not None for row in rows),
        has_area=any(row.anomalous_area is not None for row in rows),
        has_pictures=any(picture.photo for picture in pictures.values()),
        has_heatmaps=any(picture.heatmap for picture in pictures.values()),
        legend=legend(),
    )


def _row(found: Predictions, position: int, picture: Picture | None) -> dict[str, Any]:
    row = found.rows[position]
    kind = LABELS[found.labels.index(row.label)] if row.label in found.labels else ""
    wrong = row.truth is not None and row.truth != kind
    return {
        "row": row,
        "kind": kind,
        "picture": picture,
        "result": "" if row.truth is None else ("wrong" if wrong else "right"),
        "truth": "" if row.truth is None else found.labels[LABELS.index(row.truth)],
        "verdict": "" if not wrong else ("false alarm" if kind == LABELS[1] else "missed"),
    }


def _chart(found: Predictions, has_truth: bool) -> dict[str, Any]:
    rows = [row for row in found.rows if row.score is not None]
    normal, anomalous = found.labels
    if has_truth:  # what overlaps is seen only by the ground truth
        kinds = ((LABELS[0], f"{normal} by ground truth", "good"), (LABELS[1], f"{anomalous} by ground truth", "bad"))
        groups = [(name, css, [row.score or 0.0 for row in rows if row.truth == kind]) for kind, name, css in kinds]
        groups.append(("without ground truth", "unknown", [row.score or 0.0 for row in rows if row.truth is None]))
    else:
        groups = [
            (label, css, [row.score or 0.0 for row in rows if row.label == label])
            for label, css in ((normal, "good"), (anomalous, "bad"))
        ]
    return histogram([group for group in groups if group[2]], found.threshold)


def _notes(found: Predictions, pictures: Mapping[int, Picture], num_read: int, num_listed: int) -> list[str]:
    notes = []
    if num_listed < num_read:
        notes.append(
            f"The {num_listed} photos with the highest scores are listed, of {num_read}. The histogram and the counts "
            "contain all photos."
        )
    if pictures and len(pictures) < num_listed:
        notes.append(f"The {len(pictures)} photos with the highest scores have pictures (--pictures).")
    failed = [one.error for one in pictures.values() if one.error is not None]
    if failed:
        reasons = list(dict.fromkeys(failed))
        more = f" And {len(reasons) - MOST_REASONS} more reasons." if len(reasons) > MOST_REASONS else ""
        notes.append(f"Pictures are missing for {len(failed)} photos. {' '.join(reasons[:MOST_REASONS])}{more}")
    if any(one.photo for one in pictures.values()) and not any(one.heatmap for one in pictures.values()):
        notes.append(
            "There are no heatmaps: add --maps (small files) or --heatmaps to vip2clip predict --output, or --heatmap "
            "FOLDER to vip2clip predict --csv, then write the report again."
        )
    return notes


__all__ = ["NUM_PICTURES", "NUM_ROWS", "build_report", "write_report"]
