"""Save checkpoints and publish them on the Hub."""

import inspect
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..checkpoints.saving import (
    CODE_FILES,
    FILE_NAMES,
    OPTIONAL_FILES,
    TOKENIZER_FILES,
    WEIGHT_FILE,
    write_checkpoint,
)
from ..models.vip2clip.decision_config_vip2clip import DECISION_NAME
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .endpoint import write_endpoint


# Patterns of the names of weights, with a fixed length, because `*` also matches files in folders.
OTHER_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"]


def save_checkpoint(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    *,
    push_to_hub: bool | str = False,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload ViP²-CLIP checkpoint",
    with_endpoint: bool = False,
    endpoint_requirement: str | None = None,
    **options: Any,
) -> Path:
    """
    Write a complete checkpoint folder and optionally publish it on the Hub.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model to save.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model. Its image size must be the `image_size` of the model.
        folder (`str` or `os.PathLike`):
            Folder to write to. It is created if it does not exist.
        push_to_hub (`bool` or `str`, defaults to `False`):
            Repository to publish to (`"org/name"`), or `True` to use the name of the folder.
        token (`str` or `bool`, *optional*):
            Access token. Defaults to the token saved by `hf auth login`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to public, unless the organization has another default.
        commit_message (`str`, defaults to `"Upload ViP²-CLIP checkpoint"`):
            Message of the commit.
        with_endpoint (`bool`, defaults to `False`):
            Whether to add the files of a handler for Hugging Face Inference Endpoints, see [`write_endpoint`].
        endpoint_requirement (`str`, *optional*):
            What pip installs in the endpoint. Defaults to this version of the package, which must be on PyPI then.
        options:
            `adapters_only`, `backbone_checksum`, `run` and `max_shard_size`, see
            [`vip2clip_hf.checkpoints.write_checkpoint`].

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError: if the image processor does not match the model, or adapters contain NaN or infinite values.
        OSError: if the folder cannot be written.
        `huggingface_hub.errors.HfHubHTTPError`: if the Hub rejects the request, for example because of missing rights.

    Example:

    ```python
    >>> from vip2clip_hf import save_checkpoint

    >>> save_checkpoint(model, image_processor, "detector", push_to_hub="org/detector", private=True)
    ```
    """
    folder = write_checkpoint(model, image_processor, folder, **options)
    endpoint: dict[str, Any] = {"with_endpoint": with_endpoint, "endpoint_requirement": endpoint_requirement}
    if push_to_hub:
        push_checkpoint(folder, push_to_hub, token=token, private=private, commit_message=commit_message, **endpoint)
    elif with_endpoint:
        write_endpoint(folder, endpoint_requirement)
    return folder


def push_checkpoint(
    folder: str | os.PathLike,
    repository: bool | str = True,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload ViP²-CLIP checkpoint",
    with_endpoint: bool = False,
    endpoint_requirement: str | None = None,
) -> str:
    """
    Publish a checkpoint folder on the Hub. Only files of the checkpoint are uploaded, including its references, which
    are features of photos and the names of their files. Weights that the repository
    contains under other names are deleted, if they would be loaded instead.

    Args:
        folder (`str` or `os.PathLike`):
            Folder written by [`save_checkpoint`], or the checkpoint of another method.
        repository (`bool` or `str`, defaults to `True`):
            Repository to publish to (`"org/name"`), or `True` to use the name of the folder.
        token (`str` or `bool`, *optional*):
            Access token. Defaults to the token saved by `hf auth login`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to public, unless the organization has another default.
        commit_message (`str`, defaults to `"Upload ViP²-CLIP checkpoint"`):
            Message of the commit.
        with_endpoint (`bool`, defaults to `False`):
            Whether to write the files of a handler for Hugging Face Inference Endpoints to the folder, see
            [`write_endpoint`], and to publish them.
        endpoint_requirement (`str`, *optional*):
            What pip installs in the endpoint. Defaults to this version of the package, which must be on PyPI then.

    Returns:
        `str`: id of the repository.

    Raises:
        OSError: if the folder does not contain a checkpoint, or, with `with_endpoint`, that of another method.
        `huggingface_hub.errors.HfHubHTTPError`: if the Hub rejects the request, for example because of missing rights.
    """
    folder = Path(folder)
    known = {*FILE_NAMES, *TOKENIZER_FILES, *(path.name for path in CODE_FILES)}
    names = [path.name for path in folder.glob("*") if path.name in known or WEIGHT_FILE.fullmatch(path.name)]
    if "config.json" not in names:
        raise OSError(f"{str(folder)!r} does not contain config.json; expected a folder written by save_checkpoint.")
    if with_endpoint:
        names += write_endpoint(folder, endpoint_requirement)
    api = HfApi(token=token)
    repo_id = repository if isinstance(repository, str) else folder.resolve().name
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=sorted(names),
        # An old model.safetensors in the repository would be loaded instead of the shards, and other files may belong
        # to the checkpoint of another method.
        delete_patterns=[
            *([] if "model.safetensors" in names else OTHER_WEIGHTS),
            *(name for name in (*OPTIONAL_FILES, DECISION_NAME) if name not in names),
        ],
        commit_message=commit_message,
    )
    return repo_id


def check_push_access(repository: str, *, token: str | bool | None = None, private: bool | None = None) -> None:
    """
    Check write access to a repository, before hours of training. The repository is created if it does not exist.

    Args:
        repository (`str`):
            Repository to publish to (`"org/name"`).
        token (`str` or `bool`, *optional*):
            Access token. Defaults to the token saved by `hf auth login`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to public, unless the organization has another default.

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`: if the Hub rejects the request, for example because of missing rights.
        OSError: if the Hub cannot be reached.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repository, private=private, exist_ok=True).repo_id
    if "write" in inspect.signature(api.auth_check).parameters:  # not in older versions
        api.auth_check(repo_id, write=True)


__all__ = ["check_push_access", "push_checkpoint", "save_checkpoint"]
