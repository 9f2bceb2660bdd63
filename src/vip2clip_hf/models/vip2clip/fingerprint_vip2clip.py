"""What determines the scores of a model, to notice that a calibration belongs to other scores."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .decision_config_vip2clip import DecisionConfig
from .logging_vip2clip import get_logger


logger = get_logger(__name__)
# Fields of the configuration that change scores or maps. top_k is a setting of the decision.
FIELDS = (
    "image_size", "feature_layers", "normal_token_ids", "anomalous_token_ids", "bos_token_id", "eos_token_id",
    "fgp_num_heads", "fgp_scaled", "temperature", "smoothing_sigma", "image_score", "image_embeds_layernorm",
    "position_interpolation", "use_image_conditioning", "use_fine_grained_perception", "alignment",
)  # fmt: skip
# Number of values of each weight of CLIP that are compared.
SAMPLES = 64


def model_fingerprint(model: Any) -> dict[str, Any]:
    """
    Describe what determines the scores of a model: weights, and fields of the configuration.

    The hashes of the weights are computed again only if a parameter was replaced or changed in place.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.

    Returns:
        `dict[str, Any]`: `adapters` and `backbone`, hashes of the adapters and of a sample of CLIP's weights with the
        visual projection (`None` if weights are offloaded or on another process), `dtype` of CLIP, and `config` (the
        fields that change scores). It can be saved as JSON.
    """
    stored = getattr(model, "stored_fingerprint", None)
    if stored is not None:  # of an exported model, which has no weights of torch
        return stored
    config = {name: getattr(model.config, name) for name in FIELDS}
    state = weights_state(model)
    cached = model.__dict__.get("_fingerprint")
    if state is None or cached is None or cached[0] != state:
        cached = (state, _hash_adapters(model), _hash_backbone(model))
        model.__dict__["_fingerprint"] = cached
    return {
        "adapters": cached[1],
        "backbone": cached[2],
        "dtype": str(model.clip.dtype).removeprefix("torch."),
        "config": json.loads(json.dumps(config)),
    }


def calibration_differences(
    calibration: Mapping[str, Any], fingerprint: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> list[str]:
    """
    Compare what determines scores with the values of a calibration.

    Args:
        calibration (`Mapping[str, Any]`): `calibration` of a [`DecisionConfig`]. Calibrations of version 0.1 contain
            `settings` only.
        fingerprint (`Mapping[str, Any]`, *optional*): result of [`model_fingerprint`].
        settings (`Mapping[str, Any]`): `tile_size`, `tile_overlap`, `top_k` and, with references, `references`.

    Returns:
        `list[str]`: one phrase per difference. Empty if scores are those of the calibration.
    """
    expected, found = calibration.get("fingerprint") or {}, fingerprint or {}
    differences = []
    for name, what in (("adapters", "the weights of the adapters"), ("backbone", "the weights of CLIP")):
        pair = (expected.get(name), found.get(name))
        if None not in pair and pair[0] != pair[1]:
            differences.append(what)
    for old, new in (
        ({name: expected[name] for name in ("dtype",) if name in expected}, found),
        (expected.get("config") or {}, found.get("config") or {}),
        ({"references": None, **(calibration.get("settings") or {})}, {"references": None, **settings}),
    ):
        changed = [name for name in sorted(set(old) & set(new)) if old[name] != new[name]]
        differences += [f"{name} ({new[name]}, was {old[name]})" for name in changed]
    return differences


def is_calibrated(model: Any, settings: Mapping[str, Any], decision: DecisionConfig | None = None) -> bool:
    """
    Check whether the calibration of a model belongs to its scores. If not, warn once and say what differs.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model, with its `decision`.
        settings (`Mapping[str, Any]`): `tile_size`, `tile_overlap`, `top_k` and, with references, `references`.
        decision ([`DecisionConfig`], *optional*): the decision with the calibration. By default, that of the model.

    Returns:
        `bool`: whether the model is calibrated with these settings. `False` without a calibration.
    """
    found = (model.decision if decision is None else decision).calibration
    if found is None:
        return False
    fingerprint = model_fingerprint(model) if found.get("fingerprint") else None
    differences = calibration_differences(found, fingerprint, settings)
    if differences:
        _warn(differences)
    return not differences


def is_plain_call(decision: DecisionConfig) -> bool:
    """
    Check whether a call of the model without arguments computes the scores of a calibration. If not, warn once.

    Args:
        decision ([`DecisionConfig`]): settings with the calibration.

    Returns:
        `bool`: `False` for a calibration with tiles, or with another top-k than that of the configuration.
    """
    settings = (decision.calibration or {}).get("settings") or {}
    differences = [f"tile_size (0, was {settings['tile_size']})"] if settings.get("tile_size") else []
    if decision.calibration is not None and decision.top_k is not None:
        differences.append(f"top_k (that of the configuration, was {settings.get('top_k')})")
    if differences:
        _warn(differences)
    return not differences


def _warn(differences: Iterable[str]) -> None:
    logger.warning_once(
        f"The thresholds were calibrated for other scores: {', '.join(differences)} changed since the calibration. "
        "The false-alarm rate or recall of the calibration does not apply, and p_value is None. Calibrate again."
    )


def weights_state(model: Any) -> list[tuple[int, int, int]] | None:
    """
    Get what changes if a parameter is replaced or changed in place.

    Args:
        model (`torch.nn.Module`): the model.

    Returns:
        `list[tuple[int, int, int]] | None`: identity, address and version of each parameter, or `None` if changes
        cannot be noticed, for example in parameters that were created in inference mode.
    """
    try:
        return [(id(weight), weight.data_ptr(), weight._version) for weight in model.parameters()]
    except RuntimeError:  # parameters created in inference mode, or not in memory
        return None


def _hash_adapters(model: Any) -> str | None:
    named = {name: weight for name, weight in model.named_parameters() if not name.startswith("clip.")}
    return _digest(named, {name: weight.reshape(-1) for name, weight in named.items() if _is_plain(weight)})


def _hash_backbone(model: Any) -> str | None:
    named = dict(model.clip.named_parameters())
    values = {}
    for name, weight in named.items():
        if _is_plain(weight):
            flat = weight.reshape(-1)
            step = 1 if name.startswith("visual_projection.") else max(1, flat.numel() // SAMPLES)
            values[name] = flat[::step]
    return _digest(named, values)


def _is_plain(weight: Any) -> bool:
    import torch

    return type(weight) in (torch.Tensor, torch.nn.Parameter)


def _digest(named: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """Return a hash of names, shapes and values. Of quantized weights, the type stands for the values."""
    import torch

    if any(weight.is_meta or hasattr(weight, "full_tensor") for weight in named.values()):
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(named.items()):
        kind = "" if name in values else type(weight).__name__
        digest.update(f"{name} {tuple(weight.shape)} {kind}\n".encode())
    # One transfer per device instead of one per weight.
    by_device: dict[Any, list[Any]] = {}
    for _, value in sorted(values.items()):
        by_device.setdefault(value.device, []).append(value.detach().float())
    for part in by_device.values():
        digest.update(torch.cat(part).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["FIELDS", "calibration_differences", "is_calibrated", "is_plain_call", "model_fingerprint", "weights_state"]
