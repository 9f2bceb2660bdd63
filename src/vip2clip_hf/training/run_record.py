"""Record of a training run: its id, what it is trained on, and how."""

import datetime
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..utils.files import write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import versions


RECORD_FILE = "training_run.json"


@dataclass
class RunRecord:
    """
    Record of a training run. It is stored in `training_run.json` in the output folder and in every checkpoint.

    Args:
        recipe (`dict[str, Any]`): settings that change the result, see [`recipe_of`].
        data (`dict[str, str]`): contents of the data, see [`describe_contents`].
        rounding (`dict[str, Any]`): settings that change the result by rounding only, see [`rounding_of`].
        training_sets (`list[dict]`): all datasets the weights were trained on, also before this run.
        run_id (`str`): id of the run, 12 hexadecimal digits.
        started (`str`): date and time of the start, with time zone.
        versions (`dict[str, str]`): versions of the packages.
        continues (`dict[str, Any]`, *optional*): checkpoint of another folder that the run was resumed from.
        resumed (`list[dict]`): steps at which the run was resumed, with the settings that were changed.
        files (`list[str]`): names of the files that the run has written to the output folder, besides checkpoints.
    """

    recipe: dict[str, Any]
    data: dict[str, str]
    rounding: dict[str, Any] = field(default_factory=dict)
    training_sets: list[dict[str, Any]] = field(default_factory=list)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started: str = field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    versions: dict[str, str] = field(default_factory=versions)
    continues: dict[str, Any] | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def write(self, folder: str | os.PathLike) -> None:
        """
        Write the record to a folder.

        Args:
            folder (`str` or `os.PathLike`): output folder or checkpoint.

        Raises:
            OSError: if the file cannot be written.
        """
        content = {"kind": "training", **without_nan(asdict(self))}
        write_atomically(Path(folder, RECORD_FILE), to_json(content))

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "RunRecord | None":
        """
        Read the record in a folder.

        Args:
            folder (`str` or `os.PathLike`): output folder or checkpoint.

        Returns:
            [`RunRecord`], *optional*: the record, or None without a record.

        Raises:
            ValueError: if the record is damaged.
        """
        path = Path(folder, RECORD_FILE)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is damaged; expected the record of a training run.") from error
        known = {one.name: one for one in fields(cls)}
        if not isinstance(content, dict) or content.pop("kind", None) != "training":
            raise ValueError(f"{str(path)!r} is not the record of a training run.")
        content = {name: value for name, value in content.items() if name in known}  # also of later versions
        lists = ("training_sets", "resumed", "files")
        if (
            not all(isinstance(content.get(name), dict) for name in ("recipe", "data"))
            or not isinstance(content.get("run_id"), str)
            or not content["run_id"]
            or not all(isinstance(content.get(name, []), list) for name in lists)
        ):
            raise ValueError(f"{str(path)!r} is damaged; expected the record of a training run.")
        return cls(**content)

    def differences(self, other: "RunRecord") -> dict[str, tuple[Any, Any]]:
        """
        Compare the settings and the data of two runs.

        Args:
            other ([`RunRecord`]): the later run.

        Returns:
            `dict[str, tuple]`: earlier and later value by name, for values that change the result. Settings that only
            one of them knows, such as arguments of a later version of transformers, are left out.
        """
        names = [*self.data, *(name for name in other.data if name not in self.data)]
        data = _compare({n: self.data.get(n) for n in names}, {n: other.data.get(n) for n in names})
        return {**_compare(self.recipe, other.recipe), **data}

    def rounding_differences(self, other: "RunRecord") -> dict[str, tuple[Any, Any]]:
        """Compare what changes the result by rounding only: settings, and the versions of packages."""
        return {**_compare(self.rounding, other.rounding), **_compare(self.versions, other.versions)}

    def describe(self) -> str:
        """Return the id and the start of the run, for messages."""
        return f"{self.run_id}, started {self.started}"


def describe_differences(found: Mapping[str, Sequence[Any]]) -> str:
    """
    Describe differences in one line.

    Args:
        found (`Mapping[str, Sequence]`): earlier and later value by name.

    Returns:
        `str`: such as `"seed (was 111, now 5)"`.
    """
    return ", ".join(f"{name} (was {was}, now {now})" for name, (was, now) in found.items())


def _compare(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    later = json.loads(json.dumps(without_nan(later)))  # the types that are read from a file
    earlier = json.loads(json.dumps(without_nan(earlier)))
    return {name: (value, later[name]) for name, value in earlier.items() if name in later and later[name] != value}


__all__ = ["RECORD_FILE", "RunRecord", "describe_differences"]
