"""Begin or resume a training run in an output folder, and refuse what would mix two runs."""

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.utils import logging

from ..models.vip2clip.provenance_vip2clip import Provenance
from .resuming import STATE_FILE, checkpoints_in, is_complete_checkpoint, last_complete_checkpoint, run_of
from .run_folder import RunFolder
from .run_record import RECORD_FILE, RunRecord, describe_differences


logger = logging.get_logger(__name__)


def begin_run(
    folder: RunFolder,
    record: RunRecord,
    resume: str | os.PathLike | bool | None = None,
    *,
    overwrite: bool = False,
    allow_changes: bool = False,
    files: Sequence[str] = (),
) -> tuple[str | None, RunRecord, RunRecord | None]:
    """
    Check that a training run can begin, or find the checkpoint to resume from. Does not change the folder, except that
    a checkpoint without a record to resume from gets one.

    Args:
        folder ([`RunFolder`]): output folder, locked.
        record ([`RunRecord`]): the settings and the data of the training that begins.
        resume (`str` or `bool`, *optional*): path of a checkpoint, or `True` for the last complete checkpoint of the
            run in the folder. Without a complete checkpoint, the training starts from the beginning.
        overwrite (`bool`, defaults to `False`): whether to delete the files of an earlier run in the folder.
        allow_changes (`bool`, defaults to `False`): whether to resume with other settings or other data.
        files (`Sequence[str]`, *optional*): names of files that the training writes besides the model.

    Returns:
        `tuple[str | None, RunRecord, RunRecord | None]`: path of the checkpoint to resume from, or None; the record of
        the run; and an earlier run to delete, or None.

    Raises:
        OSError: if the folder contains another run or other files that would be replaced, if the checkpoint is not
            complete, or if the folder cannot be written.
        ValueError: if the settings or the data are not those of the checkpoint, or a record is damaged.
    """
    if overwrite and resume:
        raise ValueError("overwrite_output_dir and resume_from_checkpoint are both set; expected one of them.")
    earlier = _read_record(folder)
    if resume is True:
        checkpoint = _find_last(folder, earlier)
        if checkpoint is None:
            _check_restart(folder, record, earlier, allow_changes, files)
    elif resume:
        checkpoint = os.fspath(resume)
        _check_complete(checkpoint)
    else:
        checkpoint = None
        _check_unused(folder, files, ignore=earlier if overwrite else None)
    if checkpoint is not None:
        _continue(folder, record, earlier, checkpoint, allow_changes, files)
    return checkpoint, record, earlier if overwrite else None


def union(*lists: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Join lists of training datasets.

    Args:
        *lists (`Iterable[dict]`): entries of [`describe_training_set`].

    Returns:
        `list[dict]`: the entries in their order, each once.
    """
    found: list[dict[str, Any]] = []
    for entry in (entry for one in lists for entry in one):
        if entry not in found:
            found.append(entry)
    return found


def _read_record(folder: RunFolder) -> RunRecord | None:
    """Read the record of the folder. If it is missing or damaged, use that of the checkpoints of a single run."""
    damage = None
    try:
        record = RunRecord.read(folder.path)
    except ValueError as error:
        record, damage = None, error
    if record is not None:
        return record
    paths = [path for _, path in checkpoints_in(folder.path) if run_of(path) is not None]
    if len({run_of(path) for path in paths}) == 1:
        record = RunRecord.read(paths[-1])
        logger.warning(
            f"{RECORD_FILE} in {str(folder.path)!r} is {'damaged' if damage else 'missing'}; using the record in "
            f"{paths[-1].name}."
        )
        return record
    if damage is not None:
        raise ValueError(f"{damage} Move the file, or choose another output_dir.") from damage
    return None


def _find_last(folder: RunFolder, earlier: RunRecord | None) -> str | None:
    """Find the last complete checkpoint of the run. Says which checkpoints are left out."""
    found = checkpoints_in(folder.path)
    if earlier is None:
        runs = sorted({run for _, path in found if (run := run_of(path)) is not None})
        if runs:
            raise ValueError(
                f"{str(folder.path)!r} contains checkpoints of several training runs ({', '.join(runs)}); expected "
                "one. Pass the path of a checkpoint as resume_from_checkpoint, with another output_dir."
            )
        last = last_complete_checkpoint(folder.path)
        ignored = []
    else:
        last = last_complete_checkpoint(folder.path, earlier.run_id)
        ignored = [path.name for _, path in found if run_of(path) != earlier.run_id and is_complete_checkpoint(path)]
    step = -1 if last is None else int(last.rsplit("-", 1)[1])
    damaged = [
        path.name
        for number, path in found
        if number > step and (earlier is None or run_of(path) == earlier.run_id) and (path / STATE_FILE).is_file()
    ]
    if ignored:
        logger.warning(f"Ignoring {', '.join(ignored)}: other training runs have written them.")
    if damaged:
        logger.warning(f"Ignoring {', '.join(damaged)}: not written completely, or damaged.")
    if last is None:
        logger.warning("No complete checkpoint found. Training starts from the beginning.")
    else:
        logger.warning(f"Resuming from {last}.")
    return last


def _check_restart(
    folder: RunFolder, record: RunRecord, earlier: RunRecord | None, allow_changes: bool, files: Sequence[str]
) -> None:
    """Check that a run without a complete checkpoint can start again. It keeps its id."""
    _check_unused(folder, files, ignore=earlier)
    if earlier is None:
        return
    if earlier.files and (changed := earlier.differences(record)) and not allow_changes:
        raise ValueError(
            f"{str(folder.path)!r} contains a model that was trained with other settings: "
            f"{describe_differences(changed)}. Use another output_dir, or delete the earlier run with "
            "overwrite_output_dir=True and without resume_from_checkpoint."
        )
    record.run_id, record.files = earlier.run_id, earlier.files


def _check_complete(checkpoint: str) -> None:
    if is_complete_checkpoint(checkpoint):
        return
    last = last_complete_checkpoint(Path(checkpoint).parent)
    raise OSError(
        f"{checkpoint!r} is not a complete checkpoint of a training run"
        + (f"; the last complete checkpoint in the same folder is {last}." if last else ".")
    )


def _check_unused(folder: RunFolder, files: Sequence[str], ignore: RunRecord | None = None) -> None:
    """Check that a new run would not be mixed with another and not replace files, except those of one run."""
    checkpoints, found = folder.in_the_way(files)
    if ignore is not None:
        checkpoints = [name for name in checkpoints if run_of(folder.path / name) != ignore.run_id]
        found = [name for name in found if name not in ignore.files]
    found = [name for name in found if name.endswith(".safetensors") or name in files] or found  # name these first
    if checkpoints:
        runs = {run_of(folder.path / name) for name in checkpoints}
        names = " and ".join(checkpoints[:2]) + (f" and {len(checkpoints) - 2} more" if checkpoints[2:] else "")
        record = RunRecord.read(folder.path / checkpoints[0]) if None not in runs else None
        if record is None:
            raise OSError(
                f"{str(folder.path)!r} contains {names} of a training run without a readable record; expected a new "
                "folder. Choose another output_dir, or move them. To resume them, set resume_from_checkpoint."
            )
        raise OSError(
            f"{str(folder.path)!r} contains {names} of another training run ({record.describe()}); expected a new "
            "folder. Choose another output_dir, resume the run with resume_from_checkpoint=True, or delete it with "
            "overwrite_output_dir=True."
        )
    if found:
        earlier = RunRecord.read(folder.path) if run_of(folder.path) else None
        of = "" if earlier is None or found[0] not in earlier.files else f" of training run {earlier.describe()}"
        how = ", or delete the run with overwrite_output_dir=True" if of else ", or move the files"
        raise OSError(
            f"{str(folder.path)!r} contains {', '.join(found[:3])}{of}, which this training would replace; expected a "
            f"new folder. Choose another output_dir{how}."
        )


def _continue(
    folder: RunFolder,
    record: RunRecord,
    earlier: RunRecord | None,
    checkpoint: str,
    allow_changes: bool,
    files: Sequence[str],
) -> None:
    """Compare the settings and data with those of the checkpoint, and make `record` the continuation of its run."""
    found = _read_checkpoint_record(checkpoint, allow_changes)
    inside = os.path.realpath(Path(checkpoint).parent) == os.path.realpath(folder.path)
    step = TrainerState.load_from_json(str(Path(checkpoint, STATE_FILE))).global_step
    changed = {} if found is None else found.differences(record)
    if changed and not allow_changes:
        raise ValueError(
            f"{checkpoint!r} was trained with other settings: {describe_differences(changed)}. Use the original "
            "settings, or set allow_changed_recipe=True to resume with these."
        )
    if not inside:
        _check_unused(folder, files)
        origin = {"run_id": None if found is None else found.run_id, "checkpoint": Path(checkpoint).name, "step": step}
        record.continues = origin
    else:
        if earlier is not None and found is not None and earlier.run_id != found.run_id:
            raise ValueError(
                f"{checkpoint!r} belongs to training run {found.describe()}, but the folder to run "
                f"{earlier.describe()}; expected the same run. Resume it with another output_dir."
            )
        _check_later(folder, found, checkpoint, step, bool(changed))
        for one in (found, earlier):
            if one is not None:
                record.run_id, record.started = one.run_id, one.started
    if found is None:
        logger.warning(
            f"{checkpoint} has no record of its settings and its training data, so they cannot be compared with those "
            "of this training."
        )
        found = RunRecord(record.recipe, record.data, versions=record.versions)
        found.training_sets = Provenance.from_pretrained(checkpoint).training_sets
        if inside:  # its next resume must find it
            RunRecord(record.recipe, record.data, run_id=record.run_id).write(checkpoint)
    if changed:
        logger.warning(f"Resuming with other settings: {describe_differences(changed)}.")
    rounding = found.rounding_differences(record)
    if rounding:
        logger.warning(
            f"Resuming with {describe_differences(rounding)}: results can differ from those of an uninterrupted "
            "training by rounding."
        )
    entry: dict[str, Any] = {
        "step": step, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "changed": {name: list(values) for name, values in changed.items()},
    }  # fmt: skip
    if record.versions != found.versions:
        entry["versions"] = record.versions
    record.versions = found.versions
    record.continues = found.continues if inside else record.continues
    record.resumed = [*found.resumed, entry]
    record.training_sets = union(found.training_sets, record.training_sets)
    record.files = earlier.files if inside and earlier is not None else []


def _read_checkpoint_record(checkpoint: str, allow_changes: bool) -> RunRecord | None:
    try:
        return RunRecord.read(checkpoint)
    except ValueError as error:
        if allow_changes:
            logger.warning(f"{error} Its settings are not compared.")
            return None
        raise ValueError(
            f"{error} The settings cannot be compared; resume from another checkpoint, or set "
            "allow_changed_recipe=True."
        ) from error


def _check_later(folder: RunFolder, found: RunRecord | None, checkpoint: str, step: int, changed: bool) -> None:
    """Check that no later checkpoint of the run, with the original settings, would be mixed with the new ones."""
    if not changed or found is None:
        return
    later = [
        path.name for number, path in checkpoints_in(folder.path) if number > step and run_of(path) == found.run_id
    ]
    if later:
        raise ValueError(
            f"{checkpoint!r} is followed by {', '.join(later)}, which were trained with the original settings; "
            "expected the last checkpoint. Choose another output_dir, or delete them."
        )


__all__ = ["begin_run", "union"]
