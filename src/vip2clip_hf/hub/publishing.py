"""Save a checkpoint and publish it on the Hub."""

import inspect
import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..checkpoints.saving import CODE_FILES, WEIGHT_FILE, write_checkpoint
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


def save_checkpoint(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    *,
    push_to_hub: bool | str = False,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload ViP²-CLIP checkpoint",
    **options: Any,
) -> Path:
    """
    Write a complete checkpoint folder and, on request, publish it.

    Args:
        model, image_processor, folder, options:
            See [`vip2clip_hf.checkpoints.write_checkpoint`]: `adapters_only`, `run`, `max_shard_size`, ...
        push_to_hub (`bool` or `str`, defaults to `False`):
            Publish the folder: `True` under the name of the folder, a string as that repository (`"org/name"`).
        token, private, commit_message:
            See [`push_checkpoint`].

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError, OSError: see [`vip2clip_hf.checkpoints.write_checkpoint`].
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refuses.
    """
    folder = write_checkpoint(model, image_processor, folder, **options)
    if push_to_hub:
        push_checkpoint(folder, push_to_hub, token=token, private=private, commit_message=commit_message)
    return folder


def push_checkpoint(
    folder: str | os.PathLike,
    repository: bool | str = True,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload ViP²-CLIP checkpoint",
) -> str:
    """
    Publish a folder that [`save_checkpoint`] has written, in one commit. Files of other kinds stay here.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        repository (`bool` or `str`, defaults to `True`):
            `"org/name"`; `True` for the name of the folder.
        token, private, commit_message:
            As in `huggingface_hub.HfApi.create_repo` and `create_commit`.

    Returns:
        `str`: the id of the repository.

    Raises:
        OSError: no such checkpoint.
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refuses.
    """
    folder = Path(folder)
    known = {"README.md", "config.json", "preprocessor_config.json", *(path.name for path in CODE_FILES)}
    names = [path.name for path in folder.glob("*") if path.name in known or WEIGHT_FILE.fullmatch(path.name)]
    if "config.json" not in names:
        raise OSError(f"{str(folder)!r} is no folder that save_checkpoint has written; expected one with config.json.")
    api = HfApi(token=token)
    repo_id = repository if isinstance(repository, str) else folder.resolve().name
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sorted(names)]
    if "model.safetensors" not in names:
        # One file of weights left from an earlier checkpoint would be loaded instead of the shards.
        operations += [
            CommitOperationDelete(path_in_repo=name)
            for name in api.list_repo_files(repo_id)
            if WEIGHT_FILE.fullmatch(name) and name not in names
        ]
    api.create_commit(repo_id=repo_id, operations=operations, commit_message=commit_message)
    return repo_id


def check_push_access(repository: str, *, token: str | bool | None = None, private: bool | None = None):
    """
    Make the repository where it is not there, and ask whether it may be written to: before hours of training, not
    after.

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refuses.
        OSError: it cannot be reached.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repository, private=private, exist_ok=True).repo_id
    if "write" in inspect.signature(api.auth_check).parameters:  # not in all versions
        api.auth_check(repo_id, write=True)


__all__ = ["check_push_access", "push_checkpoint", "save_checkpoint"]
