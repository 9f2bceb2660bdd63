"""Where the frozen CLIP comes from: loading it whole, checking that it is the right one, its token ids."""

import contextlib
import copy
import hashlib
import logging
import os

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedConfig
from transformers.utils import cached_file

from .configuration_vip2clip import CLIP_VOCAB_SIZE, STATE_WORD_TOKEN_IDS


WEIGHTS_NAME = "model.safetensors"
BACKBONE_PREFIX = "clip."
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_clip(clip: CLIPModel | str | os.PathLike, **hub_kwargs) -> tuple[CLIPModel, dict[str, str]]:
    """
    A whole CLIP and where it is from.

    Args:
        clip (`CLIPModel`, `str` or `os.PathLike`): a model, a folder or a Hub id.
        hub_kwargs: `revision`, `token`, `cache_dir`, ... as for any `from_pretrained`.

    Returns:
        `tuple`: the model, in the precision of its file, and `backbone_id` and `backbone_revision` of a Hub
        checkpoint; of a model only the id, where it has one, and nothing of a folder: a path means nothing elsewhere.

    Raises:
        OSError: nothing there. ValueError: something else than a CLIP. RuntimeError: weights are missing.
    """
    if isinstance(clip, CLIPModel):
        return clip, _hub_id(clip)
    source = os.fspath(clip)
    with naming("CLIP checkpoint", source):
        config_dict, _ = CLIPConfig.get_config_dict(source, **hub_kwargs)
    if config_dict.get("model_type") != "clip":
        raise ValueError(
            f"Expected a CLIP checkpoint (model_type 'clip') in {source!r}, found model_type "
            f"{config_dict.get('model_type')!r}."
        )
    with naming("CLIP checkpoint", source):
        clip, info = CLIPModel.from_pretrained(source, dtype="auto", output_loading_info=True, **hub_kwargs)
    missing = sorted(info["missing_keys"])
    if missing:
        raise RuntimeError(
            f"The CLIP checkpoint {source!r} lacks {len(missing)} weights ({', '.join(missing[:3])}, ...); expected "
            "a complete one."
        )
    if os.path.isdir(source):
        return clip, {}
    # The folder of the cache a file lies in is named after the commit.
    commit = os.path.basename(os.path.dirname(cached_file(source, "config.json", **hub_kwargs)))
    revision = commit if len(commit) == 40 else hub_kwargs.get("revision", "main")
    return clip, {"backbone_id": source, "backbone_revision": revision}


def _hub_id(clip: CLIPModel) -> dict[str, str]:
    name = clip.name_or_path
    try:
        validate_repo_id(name)
    except HFValidationError:
        return {}
    return {} if os.path.exists(name) else {"backbone_id": name}


@contextlib.contextmanager
def naming(what: str, source: str | os.PathLike):
    """Say what could not be loaded from where: the library's messages for an unreachable Hub and for a damaged file of
    weights do not."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        prefix = f"{what} {os.fspath(source)!r} could not be loaded. "
        if str(error).startswith(prefix):  # already said further inside
            raise
        where = "" if os.path.isdir(source) else "There is no such folder on this machine; as a Hub id: "
        raise OSError(f"{prefix}{where}{error}") from error


@contextlib.contextmanager
def quiet_loading():
    """Keep the library's report of missing weights out of the log. A filter, not a level: on its level the library
    makes other messages depend."""
    loader = logging.getLogger("transformers.modeling_utils")

    def only_errors(record):
        return record.levelno >= logging.ERROR

    loader.addFilter(only_errors)
    try:
        yield
    finally:
        loader.removeFilter(only_errors)


def backbone_checksum(state_dict: dict[str, torch.Tensor], dtype: torch.dtype) -> str:
    """
    SHA-256 over names, shapes and values of a CLIPModel's weights in `dtype`. Independent of file format, sharding
    and of the precision the file happens to hold, as long as the conversion to `dtype` gives the same values.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().to(device="cpu", dtype=dtype).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def merge_adapters_with_backbone(
    checkpoint: str | os.PathLike, config: PreTrainedConfig, backbone, hub_kwargs: dict
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """
    The whole state dict of a checkpoint of adapters only, after the backbone's checksum has been compared.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id of the adapters.
        config ([`ViP2ClipConfig`]): its configuration.
        backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*): instead of the Hub id the configuration names.
        hub_kwargs (`dict`): `revision`, `token`, `cache_dir`, ... of the checkpoint.

    Returns:
        `tuple`: the configuration of the whole model, and its weights.

    Raises:
        OSError: the backbone is not named or cannot be found. ValueError: it is another one, or cannot be told to be
            the right one, or the checkpoint is not one of adapters only.
    """
    if backbone is None and config.backbone_id is None:
        raise OSError(
            f"{checkpoint} holds adapters only and names no Hub id for its CLIP backbone. Pass backbone= with the "
            "folder, Hub id or CLIPModel it was trained on."
        )
    with naming("Checkpoint", checkpoint):
        adapters = load_file(cached_file(checkpoint, WEIGHTS_NAME, **hub_kwargs))
    if any(name.startswith(BACKBONE_PREFIX) for name in adapters):
        raise ValueError(f"{checkpoint} holds a CLIP of its own; backbone= is for checkpoints of adapters only.")
    if config.backbone_checksum is None:
        raise ValueError(
            f"{checkpoint} states no checksum of its CLIP backbone, so that no backbone can be told to be the right "
            "one; write it with vip2clip_hf.hub.save_checkpoint(..., adapters_only=True)."
        )
    given = isinstance(backbone, CLIPModel)
    if not given:
        source, options = backbone, {}
        if backbone is None:
            source, options["revision"] = config.backbone_id, config.backbone_revision or "main"
        options.update({k: v for k, v in hub_kwargs.items() if k not in ("revision", "subfolder")})
        try:
            backbone, _ = load_clip(source, **options)
        except OSError as error:
            raise OSError(
                f"{checkpoint} holds adapters only: pass backbone= with the folder of its CLIP. {error}"
            ) from error
    weights = backbone.state_dict()
    found = backbone_checksum(weights, getattr(torch, config.backbone_dtype or "float32"))
    if found != config.backbone_checksum:
        raise ValueError(
            f"The backbone given is not the one {checkpoint} was trained on: expected weights with checksum "
            f"{config.backbone_checksum}, found {found}. Expected backbone: {config.backbone_id or 'not on the Hub'}"
            f"{f' at revision {config.backbone_revision}' if config.backbone_revision else ''}."
        )
    config = copy.deepcopy(config)
    config.adapters_only = False
    # A model that was given stays the caller's: its weights are copied.
    return config, {**{BACKBONE_PREFIX + k: v.clone() if given else v for k, v in weights.items()}, **adapters}


def check_device(device: int | str | torch.device | None):
    """
    Raises:
        ValueError: a device that is none, or is not there.
    """
    if device is None or (isinstance(device, int) and device < 0):  # the library's number of the CPU
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # whatever torch raises
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device is {str(device)!r}, which cannot be used here ({reason}); expected one that torch has on this "
            "machine, such as cpu, cuda, cuda:1 or mps."
        ) from error


def token_settings(
    words: dict[str, str | None], vocab_size: int, tokenizer=None, source: str | None = None, **hub_kwargs
) -> dict[str, int | tuple[int, ...]]:
    """
    Token ids as entries of the configuration. A tokenizer is only loaded when one is named or a word is not known.

    Args:
        words (`dict[str, str | None]`): by `"normal"` and `"anomalous"`, the state words whose ids are wanted.
        vocab_size (`int`): size of the backbone's vocabulary.
        tokenizer (tokenizer, `str` or `os.PathLike`, *optional*): a tokenizer, or where it is.
        source (`str`, *optional*): folder or Hub id of the backbone, which usually holds the tokenizer as well.
        hub_kwargs: `revision`, `token`, `cache_dir`, ... as for any `from_pretrained`.

    Raises:
        ValueError: a word whose ids are not known, and no tokenizer.
    """
    known = STATE_WORD_TOKEN_IDS if vocab_size == CLIP_VOCAB_SIZE else {}
    unknown = [word for word in words.values() if word is not None and word not in known]
    if tokenizer is None and not unknown:
        return {}
    if tokenizer is None and source is None:
        raise ValueError(
            f"The token ids of {', '.join(map(repr, unknown))} are not known: pass tokenizer=, or normal_token_ids= "
            f"and anomalous_token_ids=. With CLIP's vocabulary of {CLIP_VOCAB_SIZE} tokens ids are known for "
            f"{', '.join(STATE_WORD_TOKEN_IDS)}."
        )
    if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained(source if tokenizer is None else tokenizer, **hub_kwargs)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # A folder without the files of a tokenizer gives one that knows nothing but its special tokens.
    special = {*ids.values(), getattr(tokenizer, "unk_token_id", None)}
    for kind, word in words.items():
        if word is None:
            continue
        found = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        if not found or special & set(found):
            raise ValueError(
                f"The tokenizer has no tokens for {word!r} (it gives {found}); its files may be missing. Pass another "
                f"tokenizer=, or {kind}_token_ids=."
            )
        ids[f"{kind}_token_ids"] = found
    return {name: value for name, value in ids.items() if value is not None}


__all__ = [
    "backbone_checksum",
    "check_device",
    "load_clip",
    "merge_adapters_with_backbone",
    "naming",
    "quiet_loading",
    "token_settings",
]
