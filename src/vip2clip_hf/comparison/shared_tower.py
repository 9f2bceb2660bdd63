"""Find the methods whose vision tower computes the same, to run it once for all of them."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.loading import processor_settings, weights_digest
from ..utils.eval_mode import eval_mode
from .competitors import Competitor


# Entries of the configuration of a tower that change what it computes with the same weights.
FIELDS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "attention_dropout")


@dataclass
class TowerGroup:
    """
    Methods whose hidden states are the same for the same photos.

    Args:
        competitors (`list[Competitor]`): the methods, at least one.
        tower ([`BaselineModel`], *optional*): the model that runs the vision tower for all of them. `None` if each
            method runs on its own.
    """

    competitors: list[Competitor]
    tower: Any = None

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Run the vision tower.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): the photos.

        Returns:
            `tuple[torch.Tensor, ...]`: see [`BaselineModel.encode_layers`].
        """
        with eval_mode(self.tower), torch.inference_mode():
            return self.tower.encode_layers(pixel_values.to(self.tower.device))


@torch.no_grad()
def tower_key(model: Any, image_processor: Any) -> str | None:
    """
    Identify the hidden states of a model: the weights of its vision tower up to the last block, its position
    embeddings at the size of the images, its computation, and how photos become pixel values.

    At the native size of a backbone, the mode of resizing position embeddings does not matter.

    Args:
        model ([`BaselineModel`] or [`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.

    Returns:
        `str`, *optional*: a digest. `None` if `forward` of the model does not take hidden states.
    """
    if "hidden_states" not in inspect.signature(model.forward).parameters:
        return None
    tower, size = model.clip.vision_model, int(model.config.image_size)
    embeddings = tower.embeddings
    positions = embeddings.interpolate_pos_encoding(embeddings.class_embedding, size, size)  # (1, 1 + P, width)
    parts = {
        "config": {name: getattr(tower.config, name) for name in FIELDS},
        "attention": str(tower.config._attn_implementation),
        "processor": processor_settings(image_processor),
        "image_size": size,
        "dtype": str(model.clip.dtype),
        "device": str(model.device),
        "weights": [weights_digest(one) for one in (embeddings.patch_embedding, tower.pre_layrnorm, tower.encoder)],
        "tokens": [_digest(one) for one in (embeddings.class_embedding, positions)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().data).hexdigest()


def group_by_tower(competitors: Sequence[Competitor]) -> list[TowerGroup]:
    """
    Group methods with the same vision tower.

    Args:
        competitors (`Sequence[Competitor]`): the methods. Those that cannot run are left out.

    Returns:
        `list[TowerGroup]`: the groups, in the order of their first method.
    """
    groups: dict[str, list[Competitor]] = {}
    for one in competitors:
        if one.subject is not None:
            key = tower_key(model_of(one), one.subject.image_processor)
            groups.setdefault(one.key if key is None else key, []).append(one)
    found = []
    for members in groups.values():
        tower = next((model for model in map(model_of, members) if hasattr(model, "encode_layers")), None)
        if len(members) > 1 and tower is None:
            found += [TowerGroup([one]) for one in members]
        else:
            found.append(TowerGroup(members, tower if len(members) > 1 else None))
    return found


def model_of(one: Competitor) -> Any:
    """
    Return the model of a method that can run.

    Args:
        one ([`Competitor`]): the method.

    Returns:
        the model.
    """
    subject: Any = one.subject
    return subject.model if hasattr(subject, "model") else subject.detector.model


__all__ = ["TowerGroup", "group_by_tower", "model_of", "tower_key"]
