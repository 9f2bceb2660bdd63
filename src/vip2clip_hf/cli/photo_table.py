"""Results of `vip2clip predict` without --output as rows of a table, with their settings."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sources import Photo, Photos


if TYPE_CHECKING:
    from ..reporting.predictions import Prediction, Predictions


def root_of(photos: Photos) -> str | None:
    """
    Choose the folder that names in a table are relative to.

    Args:
        photos ([`Photos`]): the photos.

    Returns:
        `str`, *optional*: the folder that was predicted, or the deepest folder that contains all photos. `None` if
        there are only URLs, or files on several drives.
    """
    files = [os.path.abspath(photo.source) for photo in photos.photos if photo.is_file]
    if len(photos.folders) == 1:
        root = os.path.abspath(photos.folders[0])
        if all(file.startswith(os.path.join(root, "")) for file in files):
            return root
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files]) if files else None
    except ValueError:  # drives of Windows
        return None


def name_in(root: str | None, photo: Photo) -> str | None:
    """
    Name a photo in a table.

    Args:
        root (`str`, *optional*): folder of the table, see [`root_of`].
        photo ([`Photo`]): the photo.

    Returns:
        `str`, *optional*: path below the folder, with forward slashes; the path itself without a folder, and the URL
        of a photo that is no file. `None` if the photo is outside of the folder.
    """
    if not photo.is_file:
        return photo.name if photo.source[:5].lower() == "data:" else photo.source
    path = os.path.abspath(photo.source)
    if root is None:
        return path
    relative = os.path.relpath(path, root)
    return None if relative.split(os.sep)[0] == os.pardir else relative.replace(os.sep, "/")


class PhotoTable:
    """
    Rows of a table of photos, with those of an earlier table.

    Args:
        photos ([`Photos`]): the photos to predict.
        earlier (`pathlib.Path`, *optional*): CSV file to append to, if it exists. Photos in it are left out, except
            for those that could not be read.

    Raises:
        OSError: if the settings of the file are missing, or it cannot be read.
        ValueError: if the file is no table of photos, or a photo is outside of the folder of the table.
    """

    def __init__(self, photos: Photos, earlier: Path | None = None) -> None:
        self.rows: dict[str, Prediction] = {}
        self.settings: dict[str, Any] = {}
        self.root = root_of(photos)
        if earlier is not None and earlier.exists():
            self._read(earlier)
        self.names = {photo.source: name_in(self.root, photo) for photo in photos.photos}
        outside = [source for source, name in self.names.items() if name is None]
        if outside:
            raise ValueError(
                f"{outside[0]!r} is outside of {self.root!r}, the folder of the photos in the table; write another "
                "table."
            )
        known = {name for name, row in self.rows.items() if row.error is None}
        self.new = [photo for photo in photos.photos if self.key(photo) not in known]
        self.num_earlier = len(self.rows)

    def _read(self, file: Path) -> None:
        from ..reporting.csv_files import read_csv, settings_file

        rows, self.settings = read_csv(file)
        if "source" not in self.settings:
            raise OSError(
                f"{str(settings_file(file))!r} is missing, so {str(file)!r} could get results of another model; write "
                "another table, or replace it with --overwrite."
            )
        self.rows = {row.id: row for row in rows}
        self.root = (self.settings["source"] or {}).get("folder")

    def key(self, photo: Photo) -> str:
        """
        Name a photo as in the file of the table.

        Args:
            photo ([`Photo`]): one of the photos.

        Returns:
            `str`: its name, in one line of valid text.
        """
        from ..utils.text import shown

        return shown(self.names[photo.source] or photo.source)

    def check(self, settings: dict[str, Any], file: Path | None) -> None:
        """
        Check that new rows have the settings of the earlier ones.

        Args:
            settings (`dict[str, Any]`): settings now.
            file (`pathlib.Path`, *optional*): the table, for the message.

        Raises:
            OSError: if they differ.
        """
        from ..inference.differences import explain_differences
        from ..utils.serialization import to_json

        free = ("heatmaps_folder", "source")
        settings = json.loads(to_json(settings))  # comparable to settings read from a file
        if self.settings:
            old, new = (
                {key: value for key, value in one.items() if key not in free} for one in (self.settings, settings)
            )
            if different := explain_differences(old, new):
                raise OSError(
                    f"{str(file)!r} was created with {different}; write another table, or replace it with --overwrite."
                )
            if settings.get("heatmaps_folder") is None:
                settings = {**settings, "heatmaps_folder": self.settings.get("heatmaps_folder")}
        self.settings = settings

    def add(self, photo: Photo, entry: dict[str, Any], area: float | None) -> None:
        """
        Add the result of a photo.

        Args:
            photo ([`Photo`]): the photo.
            entry (`dict[str, Any]`): its record in the JSON list.
            area (`float`, *optional*): fraction of its pixels that are anomalous.
        """
        from ..reporting.predictions import Prediction
        from ..utils.text import shown

        name, error = self.key(photo), entry.get("error")
        self.rows[name] = Prediction(
            name,
            entry.get("score"),
            entry.get("label"),
            entry.get("p_value"),
            area,
            None if error is None else shown(error),
        )

    def predictions(self, where: str = "") -> "Predictions":
        """
        Return all rows.

        Args:
            where (`str`): where they are written, for messages.

        Returns:
            [`Predictions`]: the results, with the places of the photos.
        """
        from ..reporting.photo_files import PhotoFiles
        from ..reporting.predictions import Predictions

        rows = list(self.rows.values())
        exact = {self.key(Photo(source, "")): name for source, name in self.names.items()}
        names = [exact.get(row.id) or row.id for row in rows]
        return Predictions(rows, self.settings, where, photos=PhotoFiles(self.root, names))


def table_settings(
    detector: Any, model: str, options: dict[str, Any], root: str | None, heatmaps: str | None
) -> dict[str, Any]:
    """
    Collect the settings of a table of photos, as in `settings.json` of `predict --output`.

    Args:
        detector ([`AnomalyDetectionPipeline`] or [`OnnxDetector`]): the pipeline.
        model (`str`): checkpoint folder, Hub id, or folder of an export.
        options (`dict[str, Any]`): arguments that the pipeline was created with.
        root (`str`, *optional*): folder of the photos.
        heatmaps (`str`, *optional*): folder of the heatmaps.

    Returns:
        `dict[str, Any]`: the settings, JSON-serializable.

    Raises:
        RuntimeError: if the model cannot be identified.
    """
    from ..inference.differences import calibrated_with
    from ..models.vip2clip.arguments_vip2clip import threshold_pair
    from ..utils.files import name_of
    from ..utils.versions import versions

    decision = detector.decision
    pair = threshold_pair(options.get("threshold"), (decision.image_threshold, decision.pixel_threshold))
    exported = hasattr(detector, "scoring_settings")
    if exported:
        settings = detector.scoring_settings(pair)
    else:
        from ..inference.settings import scoring_settings

        settings = scoring_settings(detector, pair)
    return {
        "kind": "prediction",
        **settings,
        "source": {"folder": root},
        "heatmaps_folder": heatmaps,
        "model": name_of(model),
        "versions": versions(settings["runtime"]) if exported else versions(),
        "calibrated_with": calibrated_with(decision),
    }


def heatmaps_folder(heatmap: Path | None, tables: Sequence[Path | None], several: bool) -> str | None:
    """
    Return the folder of the heatmaps, relative to the table, so that both can be moved together.

    Args:
        heatmap (`pathlib.Path`, *optional*): option of the command.
        tables (`Sequence[pathlib.Path]`): tables to write.
        several (`bool`): whether heatmap is a folder.

    Returns:
        `str`, *optional*: the path.
    """
    table = next((one for one in tables if one is not None), None)
    if heatmap is None or table is None or not several:
        return None
    try:
        return Path(os.path.relpath(heatmap, table.parent)).as_posix()
    except ValueError:  # another drive of Windows
        return os.path.abspath(heatmap)


__all__ = ["PhotoTable", "heatmaps_folder", "name_in", "root_of", "table_settings"]
