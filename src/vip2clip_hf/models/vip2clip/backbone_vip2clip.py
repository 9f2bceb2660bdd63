"""Load the frozen CLIP backbone, verify its checksum, merge it with adapters, and look up token ids."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but exported lazily
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from .adapter_weights_vip2clip import RENAMED_ADAPTERS, check_adapters, check_names_and_shapes
from .provenance_vip2clip import BackboneReference
from .state_words_vip2clip import CLIP_VOCAB_SIZE, STATE_WORD_TOKEN_IDS, known_token_ids


WEIGHTS_NAME = "model.safetensors"
BACKBONE_PREFIX = "clip."
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_clip(clip: PreTrainedModel | str | os.PathLike, **hub_kwargs: Any) -> tuple[CLIPModel, dict[str, str]]:
    """
    Load a CLIP model and determine its origin.

    Args:
        clip (`CLIPModel`, [`ViP2ClipForAnomalyDetection`], `str` or `os.PathLike`): model, folder or Hub id. Of a
            [`ViP2ClipForAnomalyDetection`], its CLIP model is used.
        hub_kwargs: options of `from_pretrained`, such as `revision`, `token` and `cache_dir`.

    Returns:
        `tuple`: the model, in the dtype of its file, and a dict with its origin. A model that is passed is returned
        itself, not a copy. For a Hub id, the dict contains `backbone_id` and `backbone_revision`. For a model, it
        contains those that are known. For a folder, it is empty, because a path is only valid on one machine.

    Raises:
        OSError: if the checkpoint is not found or damaged.
        TypeError: if `clip` is something else, such as a model of another class.
        ValueError: if it is not a CLIP checkpoint.
        RuntimeError: if weights are missing.
    """
    if isinstance(clip, CLIPModel):
        return clip, _hub_id(clip)
    # Not with isinstance: models from remote code have another class.
    if isinstance(clip, PreTrainedModel) and clip.config.model_type == "vip2clip":
        model: Any = clip
        names = ("backbone_id", "backbone_revision", "backbone_attribution")
        origin = {name: getattr(model.provenance, name) for name in names}
        return model.clip, {name: value for name, value in origin.items() if value is not None}
    if not isinstance(clip, (str, os.PathLike)):
        raise TypeError(
            f"The CLIP backbone is a {type(clip).__name__}; expected a CLIPModel, a ViP2ClipForAnomalyDetection, or "
            "the folder or Hub id of a CLIP checkpoint."
        )
    source = os.fspath(clip)
    with naming("CLIP checkpoint", source):
        config_dict, _ = CLIPConfig.get_config_dict(source, **hub_kwargs)
    if config_dict.get("model_type") != "clip":
        raise ValueError(
            f"Expected a CLIP checkpoint (model_type 'clip') in {source!r}, found model_type "
            f"{config_dict.get('model_type')!r}."
        )
    with naming("CLIP checkpoint", source):
        # Typed as a model; with output_loading_info=True, it is a tuple.
        loaded: Any = CLIPModel.from_pretrained(source, dtype="auto", output_loading_info=True, **hub_kwargs)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise RuntimeError(
            f"The CLIP checkpoint {source!r} lacks {len(missing)} weights ({', '.join(missing[:3])}, ...); expected "
            "a complete checkpoint."
        )
    if os.path.isdir(source):
        return model, {}
    # The Hub cache stores files in a folder with the commit as its name.
    commit = os.path.basename(os.path.dirname(_cached_file(source, "config.json", **hub_kwargs)))
    revision = commit if len(commit) == 40 else hub_kwargs.get("revision", "main")
    return model, {"backbone_id": source, "backbone_revision": revision}


def _cached_file(source: str | os.PathLike, name: str, **hub_kwargs: Any) -> str:
    path = cached_file(source, name, **hub_kwargs)
    if path is None:
        raise OSError(f"{os.fspath(source)!r} does not contain {name}; expected a complete checkpoint.")
    return path


def _hub_id(clip: CLIPModel) -> dict[str, str]:
    name = clip.name_or_path or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return {}
    return {} if os.path.exists(name) else {"backbone_id": name}


@contextlib.contextmanager
def naming(what: str, source: str | os.PathLike) -> Iterator[None]:
    """
    Add to loading errors what could not be loaded and from where. Some messages of the library contain neither.

    Args:
        what (`str`): kind of checkpoint, for the message.
        source (`str` or `os.PathLike`): folder or Hub id.

    Raises:
        OSError: if the code inside raises an `OSError` or a `SafetensorError`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        prefix = f"{what} {os.fspath(source)!r} could not be loaded. "
        if str(error).startswith(prefix):  # added by an inner call
            raise
        where = "" if os.path.isdir(source) else "It is not a folder on this machine. As a Hub id: "
        raise OSError(f"{prefix}{where}{error}") from error


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the library's report of missing weights. This uses a filter, because other messages of the library depend
    on the log level."""
    loader = logging.getLogger("transformers.modeling_utils")

    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loader.addFilter(only_errors)
    try:
        yield
    finally:
        loader.removeFilter(only_errors)


def backbone_checksum(state_dict: dict[str, torch.Tensor], dtype: torch.dtype) -> str:
    """
    Compute the SHA-256 of the names, shapes and values of a CLIP model's weights.

    The checksum does not depend on file format, sharding or dtype of the file, as long as the conversion to `dtype`
    gives the same values.

    Args:
        state_dict (`dict[str, torch.Tensor]`): weights of a `CLIPModel`.
        dtype (`torch.dtype`): dtype the weights are converted to.

    Returns:
        `str`: `"sha256:"` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().to(device="cpu", dtype=dtype).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def merge_adapters_with_backbone(
    checkpoint: str | os.PathLike,
    config: PreTrainedConfig,
    reference: BackboneReference | None,
    backbone: PreTrainedModel | str | os.PathLike | None,
    hub_kwargs: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """
    Combine an adapters-only checkpoint with its backbone, after verifying the checksum of the backbone.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id of the adapters.
        config ([`ViP2ClipConfig`]): configuration of the checkpoint.
        reference ([`BackboneReference`], *optional*): backbone of the checkpoint. `None` if it has no `backbone.json`.
        backbone (`CLIPModel`, [`ViP2ClipForAnomalyDetection`], `str` or `os.PathLike`, *optional*): backbone to use
            instead of `reference.backbone_id`.
        hub_kwargs (`dict`): options for loading the checkpoint, such as `revision`, `token` and `cache_dir`.

    Returns:
        `dict[str, torch.Tensor]`: the state dict of the complete model. The tensors of a model passed as `backbone`
        are shared, not copied.

    Raises:
        OSError: if adapters or backbone are not found, or the reference has no `backbone_id` and none is passed.
        RuntimeError: if weights of the adapters are missing, unknown or have another shape.
        TypeError: if `backbone` is something else.
        ValueError: if the backbone is not the one used in training, the reference has no checksum, the checkpoint
            contains a CLIP model, or a weight of the adapters is not finite.
    """
    adapters = read_adapters(checkpoint, reference is not None, hub_kwargs)
    adapters = {RENAMED_ADAPTERS.get(name, name): tensor for name, tensor in adapters.items()}
    check_names_and_shapes(adapters, config, checkpoint)
    check_adapters(adapters, checkpoint)
    weights = load_reference_backbone(checkpoint, reference, backbone, hub_kwargs).state_dict()
    return {**{BACKBONE_PREFIX + name: tensor for name, tensor in weights.items()}, **adapters}


def read_adapters(
    checkpoint: str | os.PathLike, has_reference: bool, hub_kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """
    Read the weights of an adapters-only checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id.
        has_reference (`bool`): whether it has a `backbone.json`, for the message.
        hub_kwargs (`dict`): options for loading the checkpoint, such as `revision`, `token` and `cache_dir`.

    Returns:
        `dict[str, torch.Tensor]`: weights by name.

    Raises:
        OSError: if the checkpoint is not found or damaged.
        ValueError: if the checkpoint contains a CLIP model.
    """
    with naming("Checkpoint", checkpoint):
        adapters = load_file(_cached_file(checkpoint, WEIGHTS_NAME, **hub_kwargs))
    if any(name.startswith(BACKBONE_PREFIX) for name in adapters):
        raise ValueError(
            f"{checkpoint} contains its own CLIP model, but backbone= and {BackboneReference.file_name} are for "
            f"adapters-only checkpoints; remove {BackboneReference.file_name if has_reference else 'backbone='}."
        )
    return adapters


def load_reference_backbone(
    checkpoint: str | os.PathLike,
    reference: BackboneReference | None,
    backbone: PreTrainedModel | str | os.PathLike | None,
    hub_kwargs: dict[str, Any],
) -> CLIPModel:
    """
    Load the backbone of an adapters-only checkpoint, and verify its checksum.

    Args:
        checkpoint, reference, backbone, hub_kwargs: see [`merge_adapters_with_backbone`].

    Returns:
        `CLIPModel`: the backbone. A model that is passed is returned itself.

    Raises:
        OSError, TypeError, ValueError: see [`merge_adapters_with_backbone`].
    """
    reference = BackboneReference() if reference is None else reference
    source = reference.backbone_id if backbone is None else backbone
    if source is None:
        raise OSError(
            f"{checkpoint} contains only adapters and no Hub id of its CLIP backbone; pass backbone= with the folder, "
            "Hub id or CLIPModel used in training."
        )
    if reference.checksum is None:
        raise ValueError(
            f"{checkpoint} contains no checksum of its CLIP backbone, so the backbone cannot be verified; expected a "
            "checkpoint from vip2clip_hf.hub.save_checkpoint(..., adapters_only=True)."
        )
    options: dict[str, Any] = {}
    if isinstance(source, (str, os.PathLike)):
        options = {k: v for k, v in hub_kwargs.items() if k not in ("revision", "subfolder")}
        if backbone is None:
            options["revision"] = reference.backbone_revision or "main"
    try:
        clip, _ = load_clip(source, **options)
    except OSError as error:
        raise OSError(
            f"{checkpoint} contains only adapters; pass backbone= with the folder of its CLIP backbone. {error}"
        ) from error
    found = backbone_checksum(clip.state_dict(), getattr(torch, reference.dtype))
    if found != reference.checksum:
        revision = f" at revision {reference.backbone_revision}" if reference.backbone_revision else ""
        raise ValueError(
            f"The backbone is not the one {checkpoint} was trained on: expected weights with checksum "
            f"{reference.checksum}, found {found}. Expected backbone: {reference.backbone_id or 'not on the Hub'}"
            f"{revision}."
        )
    return clip


def check_device(device: int | str | torch.device | None) -> None:
    """
    Check that a device can be used.

    Args:
        device (`int`, `str` or `torch.device`, *optional*): the device. `None` and negative integers are accepted.

    Raises:
        ValueError: if the device does not exist on this machine.
    """
    if device is None or (isinstance(device, int) and device < 0):  # pipelines use -1 for the CPU
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # the class depends on the backend
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device is {str(device)!r}, which cannot be used here ({reason}); expected a device of this machine, "
            "such as cpu, cuda, cuda:1 or mps."
        ) from error


def tokens_of(model: object, words: dict[str, str | None]) -> dict[str, Any] | None:
    """
    Return the token ids of a ViP²-CLIP model, if it has the same state words.

    Args:
        model: a [`ViP2ClipForAnomalyDetection`], or any other object.
        words (`dict[str, str | None]`): state words, with the keys `"normal"` and `"anomalous"`.

    Returns:
        `dict[str, Any]`, *optional*: fields of [`ViP2ClipConfig`]. `None` if a word differs, or for another object.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "vip2clip":
        return None
    if any(word is not None and word != getattr(config, f"{kind}_word") for kind, word in words.items()):
        return None
    names = ["bos_token_id", "eos_token_id"]
    names += [f"{kind}_{field}" for kind, word in words.items() if word is not None for field in ("word", "token_ids")]
    return {name: getattr(config, name) for name in names}


def token_settings(
    words: dict[str, str | None],
    vocab_size: int,
    tokenizer: Any = None,
    source: str | None = None,
    **hub_kwargs: Any,
) -> dict[str, int | str | tuple[int, ...]]:
    """
    Look up token ids and return them as fields of the configuration.

    A tokenizer is only used if one is passed or the ids of a word are unknown.

    Args:
        words (`dict[str, str | None]`): state words to look up, with the keys `"normal"` and `"anomalous"`.
        vocab_size (`int`): size of the backbone's vocabulary.
        tokenizer (tokenizer, `str` or `os.PathLike`, *optional*): tokenizer, or its folder or Hub id.
        source (`str`, *optional*): folder or Hub id of the backbone, to load the tokenizer from.
        hub_kwargs: options of `from_pretrained`, such as `revision`, `token` and `cache_dir`.

    Returns:
        `dict[str, int | str | tuple[int, ...]]`: fields of [`ViP2ClipConfig`]. Empty if the defaults can be used.

    Raises:
        OSError: if the tokenizer cannot be loaded.
        ValueError: if the ids of a word are unknown and there is no tokenizer, or the tokenizer does not know a word.
    """
    known = known_token_ids(vocab_size)
    unknown = [word for word in words.values() if word is not None and word not in known]
    if tokenizer is None and not unknown:
        return {}
    if tokenizer is None and source is None:
        raise ValueError(
            f"The token ids of {', '.join(map(repr, unknown))} are unknown; pass tokenizer=, or normal_token_ids= and "
            f"anomalous_token_ids=. In CLIP's vocabulary of {CLIP_VOCAB_SIZE} tokens, the ids of these words are "
            f"known: {', '.join(STATE_WORD_TOKEN_IDS)}."
        )
    if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained(source if tokenizer is None else tokenizer, **hub_kwargs)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # From a folder without tokenizer files, the library creates a tokenizer with special tokens only.
    special = {*ids.values(), getattr(tokenizer, "unk_token_id", None)}
    for kind, word in words.items():
        if word is None:
            continue
        found = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        if not found or special & set(found):
            raise ValueError(
                f"The tokenizer has no tokens for {word!r} (it returns {found}); its files may be missing. Pass "
                f"another tokenizer=, or {kind}_token_ids=."
            )
        ids[f"{kind}_token_ids"] = found
        if known.get(word, found) == found:  # unless another tokenizer has as many tokens as that of CLIP
            ids[f"{kind}_word"] = word
    return {name: value for name, value in ids.items() if value is not None}


__all__ = [
    "backbone_checksum",
    "check_device",
    "load_clip",
    "load_reference_backbone",
    "merge_adapters_with_backbone",
    "naming",
    "quiet_loading",
    "read_adapters",
    "token_settings",
    "tokens_of",
]
