"""Output folder of an evaluation: which results can be reused, and how new ones replace old ones."""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..utils.contents import digest_of_all, image_digests
from ..utils.files import file_names, write_atomically
from ..utils.run_folder import PROGRESS_FOLDER, RunFolder
from ..utils.serialization import to_json
from ..utils.versions import versions
from .parts import read_parts


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
RESULT_FILE, KEY_FILE, SETTINGS_FILE, SCORES_FILE = "result.json", "key.json", "settings.json", "scores.csv"
# Hash of every image and mask, to say what changed.
CONTENTS_FILE = ".contents.json"
RUN_FILES = (SETTINGS_FILE, "results.json", "results.csv", "tables.md", "tables.tex")
# Names in the progress that no dataset can have.
RUN_STAGING, MOVING_FILE = ".run", ".moving.json"
# Raise it with each change of the code that changes scores, maps or metrics of the same inputs.
SCORING_VERSION = 1


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
        self.digest = digest_of_all(
            ids, images, masks, *columns.values(), [json.dumps(more, sort_keys=True)] * len(ids)
        )

    def to_dict(self) -> dict[str, Any]:
        """
        Convert the key to the form in which it is stored with a result.

        Returns:
            `dict[str, Any]`: `settings`, and `contents`, a hash of all images, masks and labels.
        """
        return {"settings": self.settings, "contents": self.digest}

    def different_settings(self, found: Mapping[str, Any]) -> list[str]:
        """
        Compare the settings with those of an existing result.

        Args:
            found (`Mapping[str, Any]`): its key.

        Returns:
            `list[str]`: one phrase per difference, with both values if they are short.
        """
        old, phrases = found.get("settings") or {}, []
        for name in sorted({*old, *self.settings}):
            was, now = json.dumps(old.get(name)), json.dumps(self.settings.get(name))
            if was != now:
                phrases.append(f"{name} (was {was}, now {now})" if len(was + now) < 200 else name)
        return phrases

    def different_contents(self, folder: Path) -> str:
        """
        Count the images that differ from an existing result.

        Args:
            folder (`pathlib.Path`): folder of the existing result.

        Returns:
            `str`: phrase with the number of changed, new and removed images.
        """
        found = _read_json(folder / CONTENTS_FILE)
        if found is None:
            return "the data changed"
        old, new = dict(found["images"]), dict(self.contents)
        shared = [name for name in new if name in old]
        changed = sum(new[name] != old[name] for name in shared)
        counts = {"changed": changed, "new": len(new) - len(shared), "removed": len(old) - len(shared)}
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"the data changed (images: {text})" if text else "the data or the record of the training changed"


class EvaluationFolder:
    """
    Output folder of an evaluation. All methods are called by the first process only.

    New files are written to `.progress/` and moved when the dataset is finished. If the folder contains an earlier
    result of a dataset, it stays until all datasets are finished.

    Args:
        path (`pathlib.Path`): the folder.
        names (`Sequence[str]`): names of the datasets.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.run = path, RunFolder(path, "evaluation")
        # Names of the files of the run are taken.
        chosen = file_names([*RUN_FILES, *names])
        self.folders = {name: chosen[name] if name not in RUN_FILES else f"{name}-data" for name in names}
        self._old_sets: set[str] = set()
        self._waiting: list[str] = []

    def staging(self, name: str) -> Path:
        """
        Return the folder for the progress of a dataset.

        Args:
            name (`str`): name of the dataset.

        Returns:
            `pathlib.Path`: folder with the parts of the recorder, and the new files in `new/`.
        """
        return self.path / PROGRESS_FOLDER / self.folders[name]

    def prepare(
        self,
        keys: Mapping[str, SetKey],
        roots: Sequence[Any],
        overwrite: bool,
        sheets: Mapping[str, Any],
        save_maps: bool,
        skip_unreadable: bool,
    ) -> dict[str, tuple[str, dict[str, Any] | None]]:
        """
        Lock the folder and decide what to do for each dataset. Existing results are not changed.

        Args:
            keys (`Mapping[str, SetKey]`): key of each dataset.
            roots (`Sequence`): folders or Hub ids of the datasets.
            overwrite (`bool`): whether to replace results with other settings.
            sheets (`Mapping[str, Any]`): settings of the sheets.
            save_maps (`bool`): whether anomaly maps are saved.
            skip_unreadable (`bool`): whether a result without the images that cannot be read is accepted.

        Returns:
            `dict[str, tuple[str, dict | None]]`: for each dataset `"reuse"` or `"draw"` (only the sheets) with the
            existing result, `"move"` with a new result from an interrupted run, or `"evaluate"`.

        Raises:
            OSError: if the folder contains something else, a dataset, or results with other settings, if another
                program is evaluating into it, or if it cannot be written.
        """
        for root in roots:
            # A Hub id is not a path that exists.
            if os.path.exists(root) and Path(root).resolve().is_relative_to(self.path.resolve()):
                raise OSError(
                    f"The dataset {str(root)!r} is in the output folder {str(self.path)!r}; choose another folder."
                )
        old = self._files_of_0_1()
        if self.run.check(old) and old and not overwrite:
            raise OSError(
                f"{str(self.path)!r} contains an evaluation of an earlier version, which did not record the contents "
                "of the images; choose another folder, or overwrite the evaluation (--overwrite)."
            )
        self.run.lock()
        self._apply()  # after an interruption
        self._old_sets = {name.partition("/")[0] for name in self.run.files if "/" in name}
        plans = {name: self._plan(name, key, overwrite, sheets, save_maps) for name, key in keys.items()}
        for name, (_, result, _) in plans.items():
            if result is not None and result.get("unreadable") and not skip_unreadable:
                plans[name] = self._again(name, "images that cannot be read were left out")
        if refused := {name: plan[2] for name, plan in plans.items() if plan[2]}:
            texts = [f"{name}: {', '.join(differences)}" for name, differences in refused.items()]
            raise OSError(
                f"{str(self.path)!r} contains an evaluation with different settings: {'; '.join(texts)}; choose "
                "another folder, or overwrite the evaluation (--overwrite)."
            )
        for name, key in keys.items():
            staging = self.staging(name)
            if plans[name][0] in ("reuse", "draw"):
                shutil.rmtree(staging, ignore_errors=True)
            elif plans[name][0] == "evaluate" and _read_json(staging / KEY_FILE) != key.to_dict():
                if staging.exists() and not _is_valid_progress(staging, key):
                    if (staging / KEY_FILE).exists():
                        logger.warning(f"{name}: the progress of an unfinished evaluation of other data is deleted.")
                    shutil.rmtree(staging)
                staging.mkdir(parents=True, exist_ok=True)
                write_atomically(staging / CONTENTS_FILE, json.dumps({"images": key.contents}))
                write_atomically(staging / KEY_FILE, to_json(key.to_dict()))
        return {name: plan[:2] for name, plan in plans.items()}

    def _plan(
        self, name: str, key: SetKey, overwrite: bool, sheets: Mapping[str, Any], save_maps: bool
    ) -> tuple[str, dict[str, Any] | None, list[str]]:
        """Return the action for a dataset, its existing result, and the settings that differ."""
        staging, folder = self.staging(name), self.path / self.folders[name]
        progress = _read_json(staging / KEY_FILE)
        if progress is not None:
            if not overwrite and (differences := key.different_settings(progress)):
                return "evaluate", None, differences
            if progress == key.to_dict() and (result := _read_json(staging / "new" / RESULT_FILE)):
                return "move", result, []
        if overwrite or f"{self.folders[name]}/{RESULT_FILE}" not in self.run.files:
            return "evaluate", None, []
        result = _read_json(folder / RESULT_FILE)
        run = result.get("run") if result else None
        if not isinstance(run, dict) or not isinstance(run.get("key"), dict):
            return self._again(name, f"{RESULT_FILE} is damaged or missing")
        if differences := key.different_settings(run["key"]):
            return "evaluate", None, differences
        if run["key"] != key.to_dict():
            return self._again(name, f"{key.different_contents(folder)} since the evaluation")
        files = [str(file) for file in run.get("files", [])]
        missing = [file for file in files if not (folder / file).is_file()]
        if lost := [file for file in missing if not file.startswith("sheets/")]:
            return self._again(name, f"{', '.join(lost[:3])} {'is' if len(lost) == 1 else 'are'} missing")
        if save_maps and not any(file.startswith("maps/") for file in files):
            return self._again(name, "the evaluation did not save anomaly maps")
        if run.get("versions") != versions():
            logger.warning(f"{name}: the results were computed with {_describe(run.get('versions'))}, and are kept.")
        return ("draw" if missing or sheets != run.get("sheets") else "reuse"), result, []

    @staticmethod
    def _again(name: str, reason: str) -> tuple[str, None, list[str]]:
        logger.warning(f"{name}: {reason}. The dataset is evaluated again.")
        return "evaluate", None, []

    def commit(self, name: str, result: dict[str, Any], key: SetKey, kept: Sequence[str] = ()) -> None:
        """
        Finish a dataset. Its new files move to the folder, or wait for [`EvaluationFolder.finish`] if they replace an
        earlier result.

        Args:
            name (`str`): name of the dataset.
            result (`dict[str, Any]`): the result, JSON-serializable. The list of its files is added.
            key (`SetKey`): key of the dataset.
            kept (`Sequence[str]`): files of the earlier result that still belong to it.
        """
        new = self.staging(name) / "new"
        new.mkdir(parents=True, exist_ok=True)
        write_atomically(new / CONTENTS_FILE, json.dumps({"images": key.contents}))
        result["run"]["files"] = sorted({*kept, *_files_below(new)} - {RESULT_FILE})
        # Written last, because it marks the dataset as finished.
        write_atomically(new / RESULT_FILE, to_json(result))
        if self.folders[name] in self._old_sets:
            self.wait(name)
        else:
            self._move([self.folders[name]])

    def wait(self, name: str) -> None:
        """
        Keep the new files of a dataset in the progress until all datasets are finished.

        Args:
            name (`str`): name of the dataset.
        """
        self._waiting.append(self.folders[name])

    def finish(self, files: Mapping[str, str], overwrite: bool) -> None:
        """
        Move the files that wait, write the files of the run, and release the lock.

        Args:
            files (`Mapping[str, str]`): content of each file of the run.
            overwrite (`bool`): whether to delete the results of datasets that are not part of this run.

        Raises:
            OSError: if a file of the user would be replaced.
        """
        staging = self.path / PROGRESS_FOLDER / RUN_STAGING
        staging.mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomically(staging / name, content)
        own = set(self.folders.values())
        removed = [name for name in self.run.files if "/" in name and name.partition("/")[0] not in own]
        self._move([*self._waiting, RUN_STAGING], removed if overwrite else [])
        if overwrite and (others := self.run.others()):
            logger.warning(
                f"{len(others)} files in {str(self.path)!r} were not written by an evaluation and are kept: "
                f"{others[0]}{', ...' if len(others) > 1 else ''}"
            )
        self.run.release()

    def _move(self, folders: Sequence[str], removed: Sequence[str] = ()) -> None:
        """Move the new files of datasets from the progress. An interrupted move is completed by the next run."""
        progress = self.path / PROGRESS_FOLDER
        for folder in folders:
            new = progress / folder if folder == RUN_STAGING else progress / folder / "new"
            prefix = "" if folder == RUN_STAGING else f"{folder}/"
            self.run.claim(f"{prefix}{file}" for file in _files_below(new))
        write_atomically(progress / MOVING_FILE, to_json({"folders": list(folders), "removed": list(removed)}))
        self._apply()

    def _apply(self) -> None:
        """Do what the file `moving.json` says. It can be interrupted and repeated."""
        progress = self.path / PROGRESS_FOLDER
        plan = _read_json(progress / MOVING_FILE)
        if plan is None:
            return
        for folder in plan["folders"]:
            if folder == RUN_STAGING:
                for file in _files_below(progress / RUN_STAGING):
                    os.replace(progress / RUN_STAGING / file, self.path / file)
                shutil.rmtree(progress / RUN_STAGING, ignore_errors=True)
                continue
            new = progress / folder / "new"
            result = _read_json(new / RESULT_FILE)
            if result is not None:  # moved last
                keep = {f"{folder}/{file}" for file in (*result["run"]["files"], RESULT_FILE)}
                self.run.delete({name for name in self.run.files if name.startswith(f"{folder}/")} - keep)
                for file in sorted(_files_below(new), key=lambda file: file == RESULT_FILE):
                    target = self.path / folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(new / file, target)
            shutil.rmtree(progress / folder, ignore_errors=True)
        self.run.delete(plan["removed"])
        (progress / MOVING_FILE).unlink()

    def _files_of_0_1(self) -> list[str]:
        """List the files of an evaluation without a manifest, by their names and places."""
        settings = _read_json(self.path / SETTINGS_FILE)
        if settings is None or (self.path / ".vip2clip.json").exists():
            return []
        if settings.get("kind") == "prediction":
            self.run.check_kind("prediction")
        if "data" not in settings:
            return []
        found = list(RUN_FILES)
        for name in file_names(list(settings["data"])).values():
            folder = self.path / name
            found += [f"{name}/{file}" for file in (RESULT_FILE, SCORES_FILE)]
            for kind, extensions in (("sheets", (".png",)), ("maps", (".npy", ".json"))):
                with contextlib.suppress(OSError):
                    found += [
                        f"{name}/{kind}/{file}" for file in os.listdir(folder / kind) if file.endswith(extensions)
                    ]
        return found


def _is_valid_progress(staging: Path, key: SetKey) -> bool:
    """Check whether only images changed that are not evaluated yet, for example a damaged one that was replaced."""
    found, contents = _read_json(staging / KEY_FILE), _read_json(staging / CONTENTS_FILE)
    if found is None or contents is None or found.get("settings") != key.settings:
        return False
    old, new = contents["images"], key.contents
    if [name for name, _ in old] != [name for name, _ in new]:
        return False
    done = (position for part in read_parts(staging).values() for position in part["recorder.positions"])
    return all(old[position] == new[position] for position in done)


def _files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _describe(found: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, dict) else "unknown"


__all__ = ["EvaluationFolder", "SetKey"]
