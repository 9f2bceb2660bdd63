"""What determines the result of a dataset, to reuse results of the same inputs only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.contents import digest_of_all, image_digests
from ..utils.serialization import to_json
from ..utils.versions import SCORING_VERSION
from .parts import read_parts


if TYPE_CHECKING:
    from datasets import Dataset

KEY_FILE = "key.json"
# Hash of every image with its mask, to say what changed.
CONTENTS_FILE = ".contents.json"


class SetKey:
    """
    What determines the result of one dataset.

    Args:
        settings (`Mapping[str, Any]`): settings. If one differs, an existing result is only replaced on request.
        dataset (`datasets.Dataset`): the images, not decoded. All image and mask files are read.
        more (`Mapping[str, Any]`): further JSON-serializable values. If one differs, the dataset is evaluated again.
    """

    def __init__(self, settings: Mapping[str, Any], dataset: "Dataset", more: Mapping[str, Any]) -> None:
        ids = list(dataset["image_id"])
        columns = {name: list(dataset[name]) for name in ("label", "category", "defect")}
        images, masks = image_digests(dataset["image"]), image_digests(dataset["mask"])
        self.settings = json.loads(to_json({"scoring_version": SCORING_VERSION, **settings}))
        rows = zip(images, masks, *columns.values())
        self.contents = [[name, digest_of_all(row)[:16]] for name, row in zip(ids, rows)]
        self.rows = digest_of_all(ids, columns["category"])
        others = [json.dumps(more, sort_keys=True)] * len(ids)
        self.digest = digest_of_all(ids, images, masks, *columns.values(), others)

    def to_dict(self) -> dict[str, Any]:
        """
        Convert the key to the form in which it is stored with a result.

        Returns:
            `dict[str, Any]`: `settings`, `contents`, a hash of all images, masks and labels, and `rows`, a hash of ids
            and categories.
        """
        return {"settings": self.settings, "contents": self.digest, "rows": self.rows}

    def is_key_of(self, found: Any) -> bool:
        """
        Check whether a stored key is the same.

        Args:
            found: content of a JSON file, or `None`.

        Returns:
            `bool`: whether settings and contents are equal.
        """
        return isinstance(found, dict) and all(found.get(name) == value for name, value in self.to_dict().items())

    def is_progress(self, staging: Path, save_maps: bool) -> bool:
        """
        Check whether saved progress can be resumed. Images that are not evaluated yet may have changed, for example if
        a damaged one was replaced.

        Args:
            staging (`pathlib.Path`): folder of the progress.
            save_maps (`bool`): whether anomaly maps are saved.

        Returns:
            `bool`: whether the evaluated images are the same. `False` if they have no maps, but maps are saved.
        """
        found, contents = read_json(staging / KEY_FILE), read_json(staging / CONTENTS_FILE)
        if found is None or contents is None or (save_maps and not found.get("save_maps")):
            return False
        if found.get("settings") != self.settings or found.get("rows") != self.rows:
            return False
        old, new = contents.get("images", []), self.contents
        if [row[0] for row in old] != [row[0] for row in new]:
            return False
        done = (position for part in read_parts(staging).values() for position in part["recorder.positions"])
        return all(old[position] == new[position] for position in done)

    def different_settings(self, found: Mapping[str, Any]) -> list[str]:
        """
        Compare the settings with those of an existing result.

        Args:
            found (`Mapping[str, Any]`): its key.

        Returns:
            `list[str]`: one phrase per difference, with both values.
        """
        return differences(found.get("settings") or {}, self.settings)

    def different_contents(self, folder: Path) -> str:
        """
        Count the images that differ from an existing result.

        Args:
            folder (`pathlib.Path`): folder of the existing result.

        Returns:
            `str`: phrase with the number of changed, new and removed images.
        """
        found = read_json(folder / CONTENTS_FILE)
        if found is None:
            return "the data changed"
        old, new = {row[0]: row[1] for row in found.get("images", [])}, {row[0]: row[1] for row in self.contents}
        shared = [name for name in new if name in old]
        changed = sum(new[name] != old[name] for name in shared)
        counts = {"changed": changed, "new": len(new) - len(shared), "removed": len(old) - len(shared)}
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"the data changed (images: {text})" if text else "the data or the record of the training changed"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """
    Compare nested settings.

    Args:
        old, new (`Mapping[str, Any]`): settings.
        prefix (`str`, defaults to `""`): name of the nested settings, with a dot.

    Returns:
        `list[str]`: phrases such as `"masks.threshold (was 0, now 127)"`.
    """
    found = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{prefix}{name}.")
        elif was != now:
            found.append(f"{prefix}{name} (was {json.dumps(was)}, now {json.dumps(now)})")
    return found


def read_json(file: Path) -> dict[str, Any] | None:
    """
    Read a JSON file that can be missing or damaged.

    Args:
        file (`pathlib.Path`): the file.

    Returns:
        `dict[str, Any] | None`: its content, or `None`.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


__all__ = ["CONTENTS_FILE", "KEY_FILE", "SetKey", "differences", "read_json"]
