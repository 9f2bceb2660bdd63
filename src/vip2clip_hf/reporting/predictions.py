"""Results of a prediction in memory, from any source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..models.vip2clip.arguments_vip2clip import LABELS
from .photo_files import PhotoFiles


COLUMNS = ("id", "score", "label", "p_value", "anomalous_area", "error")


@dataclass(slots=True)
class Prediction:
    """
    Result of a photo.

    Args:
        id (`str`): name of the photo.
        score (`float`, *optional*): anomaly score, in [0, 1]. `None` if the photo could not be read.
        label (`str`, *optional*): name of the decision, `"normal"` or `"anomalous"` unless the checkpoint has others.
        p_value (`float`, *optional*): probability that a normal photo has a score at least as large, in (0, 1].
            `None` without a calibration.
        anomalous_area (`float`, *optional*): fraction of anomalous pixels, in [0, 1].
        error (`str`, *optional*): why the photo could not be read.
        truth (`str`, *optional*): label of a dataset, `"normal"` or `"anomalous"`. `None` if it is not known.
    """

    id: str
    score: float | None = None
    label: str | None = None
    p_value: float | None = None
    anomalous_area: float | None = None
    error: str | None = None
    truth: str | None = None


def columns_of(rows: Sequence[Prediction]) -> list[str]:
    """
    Choose the columns of a table.

    Args:
        rows (`Sequence[Prediction]`): the results.

    Returns:
        `list[str]`: names of fields. The column `truth` is there only if labels are known.
    """
    return [*COLUMNS, *(["truth"] if any(row.truth is not None for row in rows) else [])]


@dataclass
class Predictions:
    """
    Results of a prediction.

    Args:
        rows (`list[Prediction]`): one result per photo.
        settings (`dict[str, Any]`): settings of the prediction, as in `settings.json`. Empty if they are not known.
        source (`str`): where the results come from, for the title.
        written (`datetime.datetime`, *optional*): when they were written.
        photos ([`PhotoFiles`]): where photos, maps and heatmaps are.
        notes (`list[str]`): what the reader of the results must know, such as missing photos.
    """

    rows: list[Prediction]
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    written: datetime | None = None
    photos: PhotoFiles = field(default_factory=PhotoFiles)
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, str]:
        """Names of the decisions: normal and anomalous."""
        normal, anomalous = self.settings.get("labels") or LABELS
        return str(normal), str(anomalous)

    @property
    def threshold(self) -> float | None:
        """The image threshold: a photo is anomalous if its score is greater. `None` if it is not known."""
        found = self.settings.get("image_threshold")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def readable(self) -> list[int]:
        """Positions of the rows with a score."""
        return [position for position, row in enumerate(self.rows) if row.score is not None]

    def count(self, label: str | None) -> int:
        """
        Count the photos with a label.

        Args:
            label (`str`, *optional*): the label; `None` for photos that could not be read.

        Returns:
            `int`: the number of photos.
        """
        return sum(row.label == label if row.score is not None else label is None for row in self.rows)

    def most_anomalous(self) -> list[int]:
        """
        Sort the rows with a score.

        Returns:
            `list[int]`: their positions, by descending score, then by name.
        """
        return sorted(self.readable, key=lambda position: (-(self.rows[position].score or 0), self.rows[position].id))


def check_labels(rows: Sequence[Prediction], labels: tuple[str, str], where: str) -> None:
    """
    Check that every label is known.

    Args:
        rows (`Sequence[Prediction]`): the results.
        labels (`tuple[str, str]`): names of the decisions.
        where (`str`): the file, for the message.

    Raises:
        ValueError: if a row has another label, or a score without a label.
    """
    for row in rows:
        if row.score is not None and row.label not in labels:
            raise ValueError(
                f"{where}: the label of {row.id!r} is {row.label!r}; expected {labels[0]} or {labels[1]}."
            )


__all__ = ["COLUMNS", "Prediction", "Predictions", "check_labels", "columns_of"]
