"""Output folder of an evaluation: which results can be reused, and how new ones replace old ones."""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.contents import decoding
from ..utils.file_state import digest_of
from ..utils.files import file_names, write_atomically
from ..utils.outputs import is_inside
from ..utils.run_folder import MANIFEST_FILE, PROGRESS_FOLDER, RunFolder, files_below
from ..utils.serialization import to_json
from ..utils.versions import merge_versions, versions
from .set_key import CONTENTS_FILE, KEY_FILE, SetKey, read_json


logger = logging.get_logger(__name__)
RESULT_FILE, SETTINGS_FILE, SCORES_FILE = "result.json", "settings.json", "scores.csv"
RUN_FILES = (SETTINGS_FILE, "results.json", "results.csv", "tables.md", "tables.tex")
# Names that the folder of a dataset cannot have.
RESERVED = {*RUN_FILES, "lock"}
# Names in the progress that no dataset can have.
RUN_STAGING, MOVING_FILE = ".run", ".moving.json"


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
        self.folders = {name: _folder_of(name) for name in names}
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
            if os.path.exists(root) and is_inside(root, self.path):
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
            if result is not None and result.get("unreadable"):
                if not skip_unreadable:
                    plans[name] = self._again(name, "images that cannot be read were left out")
                elif result["run"].get("decoding") != decoding():
                    plans[name] = self._again(name, "images that could not be read may be readable now")
        if refused := {name: plan[2] for name, plan in plans.items() if plan[2]}:
            texts = [f"{name}: {', '.join(found)}" for name, found in refused.items()]
            raise OSError(
                f"{str(self.path)!r} contains an evaluation with different settings: {'; '.join(texts)}; choose "
                "another folder, or overwrite the evaluation (--overwrite)."
            )
        results = (
            f"{self.folders[name]}/{file}" for name in keys for file in (RESULT_FILE, SCORES_FILE, CONTENTS_FILE)
        )
        self.run.check_foreign([*RUN_FILES, *results])  # before hours of work
        if others := self._old_sets - set(self.folders.values()):
            what = "are deleted at the end" if overwrite else "stay, but are not part of the new tables"
            logger.warning(f"Earlier results in {str(self.path)!r} {what}: {', '.join(sorted(others))}.")
        for name, key in keys.items():
            if plans[name][0] == "evaluate":
                self._begin(name, key, save_maps)
            elif plans[name][0] in ("reuse", "draw"):
                shutil.rmtree(self.staging(name), ignore_errors=True)
        return {name: plan[:2] for name, plan in plans.items()}

    def _begin(self, name: str, key: SetKey, save_maps: bool) -> None:
        """Prepare the folder for the progress of a dataset. Progress of the same images is kept."""
        staging = self.staging(name)
        found = read_json(staging / KEY_FILE)
        used = [versions()]
        if key.is_progress(staging, save_maps):
            old = list((found or {}).get("versions", []))
            used = old + [one for one in used if one not in old]
            if len(used) > len(old) > 0:
                logger.warning(f"{name}: the evaluation was begun with {_describe(old[-1])}, and is resumed.")
        else:
            if found is not None:
                changed = ", ".join(key.different_settings(found)) or "other data, or without maps"
                logger.warning(f"{name}: the progress of an unfinished evaluation is deleted: {changed}.")
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(staging / "new" / "sheets", ignore_errors=True)
        (staging / "new" / RESULT_FILE).unlink(missing_ok=True)
        if not save_maps:
            shutil.rmtree(staging / "new" / "maps", ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
        write_atomically(staging / CONTENTS_FILE, json.dumps({"images": key.contents}))
        content = {**key.to_dict(), "save_maps": save_maps, "versions": used}
        write_atomically(staging / KEY_FILE, to_json(content))

    def _plan(
        self, name: str, key: SetKey, overwrite: bool, sheets: Mapping[str, Any], save_maps: bool
    ) -> tuple[str, dict[str, Any] | None, list[str]]:
        """Return the action for a dataset, its existing result, and the settings that differ."""
        staging, folder = self.staging(name), self.path / self.folders[name]
        if key.is_key_of(read_json(staging / KEY_FILE)):
            result = read_json(staging / "new" / RESULT_FILE)
            run = (result or {}).get("run") or {}
            if run.get("sheets") == sheets and (not save_maps or _has_maps(run)):
                return "move", result, []
        if overwrite or f"{self.folders[name]}/{RESULT_FILE}" not in self.run.files:
            return "evaluate", None, []
        result = read_json(folder / RESULT_FILE)
        run = result.get("run") if result else None
        if not isinstance(run, dict) or not isinstance(run.get("key"), dict):
            return self._again(name, f"{RESULT_FILE} is damaged or missing")
        if found := key.different_settings(run["key"]):
            return "evaluate", None, found
        if not key.is_key_of(run["key"]):
            return self._again(name, f"{key.different_contents(folder)} since the evaluation")
        sizes = run.get("files") or {}
        wrong = [file for file, size in sizes.items() if not _has_size(folder / file, size)]
        if lost := [file for file in wrong if not file.startswith("sheets/")]:
            return self._again(name, f"missing or damaged: {', '.join(lost[:3])}")
        if save_maps and not _has_maps(run):
            return self._again(name, "the evaluation did not save anomaly maps")
        if run.get("versions") != versions():
            logger.warning(f"{name}: the results were computed with {_describe(run.get('versions'))}, and are kept.")
        return ("draw" if wrong or sheets != run.get("sheets") else "reuse"), result, []

    @staticmethod
    def _again(name: str, reason: str) -> tuple[str, None, list[str]]:
        logger.warning(f"{name}: {reason}. The dataset is evaluated again.")
        return "evaluate", None, []

    def commit(self, name: str, result: dict[str, Any], key: SetKey, kept: Mapping[str, int]) -> None:
        """
        Finish a dataset. Its new files move to the folder, or wait for [`EvaluationFolder.finish`] if they replace an
        earlier result.

        Args:
            name (`str`): name of the dataset.
            result (`dict[str, Any]`): the result, JSON-serializable. The list of its files is added.
            key (`SetKey`): key of the dataset.
            kept (`Mapping[str, int]`): size of each file of the earlier result that still belongs to it.
        """
        new = self.staging(name) / "new"
        new.mkdir(parents=True, exist_ok=True)
        write_atomically(new / CONTENTS_FILE, json.dumps({"images": key.contents}))
        sizes = {file: (new / file).stat().st_size for file in files_below(new) if file != RESULT_FILE}
        result["run"]["files"] = {**kept, **sizes}
        # Written last, because it marks the dataset as finished.
        write_atomically(new / RESULT_FILE, to_json(result))
        if self.folders[name] in self._old_sets:
            self.wait(name)
        else:
            self._move([self.folders[name]])

    def versions(self, name: str) -> dict[str, Any]:
        """
        Return the versions that evaluated a dataset.

        Args:
            name (`str`): name of the dataset.

        Returns:
            `dict[str, Any]`: version by package. If a run was resumed with another version, a list.
        """
        found = (read_json(self.staging(name) / KEY_FILE) or {}).get("versions") or [versions()]
        return merge_versions(found)

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
            self.run.claim(f"{prefix}{file}" for file in files_below(new))
        write_atomically(progress / MOVING_FILE, to_json({"folders": list(folders), "removed": list(removed)}))
        self._apply()

    def _apply(self) -> None:
        """Do what the file `moving.json` says. It can be interrupted and repeated."""
        progress = self.path / PROGRESS_FOLDER
        plan = read_json(progress / MOVING_FILE)
        if plan is None:
            return
        for folder in plan.get("folders", []):
            if folder == RUN_STAGING:
                for file in files_below(progress / RUN_STAGING):
                    os.replace(progress / RUN_STAGING / file, self.path / file)
                shutil.rmtree(progress / RUN_STAGING, ignore_errors=True)
                continue
            new = progress / folder / "new"
            result = read_json(new / RESULT_FILE)
            if result is not None:  # moved last
                files = (result.get("run") or {}).get("files") or {}
                keep = {f"{folder}/{file}" for file in (*files, RESULT_FILE)}
                self.run.delete({name for name in self.run.files if name.startswith(f"{folder}/")} - keep)
                for file in sorted(files_below(new), key=lambda file: file == RESULT_FILE):
                    target = self.path / folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(new / file, target)
            shutil.rmtree(progress / folder, ignore_errors=True)
        self.run.delete(plan.get("removed", []))
        (progress / MOVING_FILE).unlink()

    def _files_of_0_1(self) -> list[str]:
        """List the files of an evaluation without a manifest, by their names and places."""
        settings = read_json(self.path / SETTINGS_FILE)
        if settings is None or (self.path / MANIFEST_FILE).exists():
            return []
        if settings.get("kind") == "prediction":
            self.run.check_kind("prediction")
        if "model_checksum" not in settings or not isinstance(settings.get("data"), dict):
            return []
        found = list(RUN_FILES)
        for name in file_names(list(settings["data"])).values():
            folder = self.path / name
            found += [f"{name}/{file}" for file in (RESULT_FILE, SCORES_FILE, CONTENTS_FILE)]
            for kind, extensions in (("sheets", (".png",)), ("maps", (".npy", ".json"))):
                with contextlib.suppress(OSError):
                    found += [
                        f"{name}/{kind}/{file}" for file in os.listdir(folder / kind) if file.endswith(extensions)
                    ]
        return found


def _folder_of(name: str) -> str:
    """Choose the folder of a dataset, independent of the other datasets."""
    folder = file_names([name])[name]
    if folder != name or folder.lower() in RESERVED:
        folder = f"{folder}-{digest_of(name.encode('utf-8', 'surrogatepass'))[:6]}"
    return folder


def _has_maps(run: Mapping[str, Any]) -> bool:
    return any(file.startswith("maps/") for file in run.get("files") or {})


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _describe(found: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, dict) else "unknown"


__all__ = ["EvaluationFolder"]
