"""Write checkpoint folders of baselines, with a model card that names the method, its paper and its licence."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..checkpoints.card import GENERATED, describe_training, is_generated
from ..checkpoints.card_metadata import card_metadata
from ..checkpoints.saving import backbone_reference, check_finite, write_staged
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.provenance_vip2clip import BackboneReference
from ..utils.files import apply_umask, write_atomically
from ..utils.text import encodable
from .base import BaselineModel
from .methods import Method, method_of


def write_baseline(
    model: BaselineModel,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    *,
    adapters_only: bool = False,
    backbone_checksum: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write a checkpoint folder of a baseline. An existing checkpoint is replaced only after all files are written.

    Args:
        model ([`BaselineModel`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        folder (`str` or `os.PathLike`): folder to write to. It is created if it does not exist.
        adapters_only (`bool`, defaults to `False`): whether to leave out the frozen CLIP backbone. Loading then
            fetches it from the Hub, or needs `backbone=`, and verifies its checksum.
        backbone_checksum (`str`, *optional*): checksum of the backbone, if already computed.
        run (`Mapping[str, Any]`, *optional*): information about training and evaluation, see [`model_card`].

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError: if the image processor does not match the model, a trained weight is not finite, or a method
            without trained weights would be saved without its backbone.
        OSError: if the folder cannot be written.
    """
    check_image_processor(image_processor, model.config.side)
    check_finite(model)
    adapters = model.adapter_state_dict()
    if adapters_only and not adapters:
        raise ValueError(f"adapters_only is True, but {model.method_name} has no trained weights; expected False.")

    def write(staged: Path) -> None:
        model.save_pretrained(staged, state_dict=adapters if adapters_only else None)
        image_processor.save_pretrained(staged)
        if adapters_only:
            backbone_reference(model, backbone_checksum).save_pretrained(staged)
        apply_umask(staged)
        (staged / "README.md").write_text(encodable(baseline_card(model, run, adapters_only)), encoding="utf-8")

    return write_staged(folder, write)


def update_card(model: BaselineModel, folder: str | os.PathLike, run: Mapping[str, Any]) -> None:
    """
    Write the model card of a checkpoint again, with new information. A card that is not marked as generated is kept.

    Args:
        model ([`BaselineModel`]): the model of the checkpoint.
        folder (`str` or `os.PathLike`): the checkpoint.
        run (`Mapping[str, Any]`): information about training and evaluation, see [`model_card`].

    Raises:
        OSError: if the card cannot be written.
    """
    path = Path(folder, "README.md")
    if not path.exists() or is_generated(path.read_text(encoding="utf-8")):
        write_atomically(path, baseline_card(model, run, BackboneReference.find(folder) is not None))


def baseline_card(model: BaselineModel, run: Mapping[str, Any] | None = None, adapters_only: bool = False) -> str:
    """
    Create the model card of a baseline.

    Args:
        model ([`BaselineModel`]): the model.
        run (`Mapping[str, Any]`, *optional*): information about training and evaluation, see [`model_card`].
        adapters_only (`bool`, defaults to `False`): whether the checkpoint contains only the trained weights.

    Returns:
        `str`: text of the README.md.
    """
    run, method, provenance = run or {}, method_of(model), model.provenance
    metadata = card_metadata(provenance, run, method.key, method.name)
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        GENERATED,
        f"# {method.name}\n\nThis model finds defects in photos of objects with {method.name} ([paper]({method.paper}"
        ")). It is a reimplementation for `CLIPModel` in the package `vip2clip_hf`, for comparisons, and not from the "
        f"authors. Tests compare it with [this code]({method.code}) ({method.licence}), of which nothing was copied. "
        "Cite the paper if you use it.",
        _describe_content(model, method, adapters_only),
        _describe_use(method, adapters_only and not provenance.backbone_id),
        *describe_training(provenance, run),
        "## Limits\n\nScores are not calibrated probabilities. Choose a threshold on your own photos. The model is "
        "not a medical device.",
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _describe_content(model: BaselineModel, method: Method, adapters_only: bool) -> str:
    config, provenance = model.config, model.provenance
    backbone = f"[{provenance.backbone_id}](https://huggingface.co/{provenance.backbone_id})"
    known = f", {backbone}" if provenance.backbone_id else ""
    parts = "the frozen CLIP backbone" if not method.trained else "the trained weights and the frozen CLIP backbone"
    lines = [
        f"- Content: {'the trained weights, without the frozen CLIP backbone' if adapters_only else parts}{known}.",
        f"- Image size: {config.side} x {config.side} pixels.",
    ]
    if layers := getattr(config, "feature_layers", None):
        lines.append(f"- Feature layers: {', '.join(map(str, layers))}.")
    if method.uses_class_names:
        lines.append(f"- The prompts contain the name of the class, by default {config.class_name!r}.")
    if provenance.backbone_attribution:
        lines.append(f"- Backbone: {provenance.backbone_attribution}")
    return "\n".join(lines)


def _describe_use(method: Method, needs_backbone: bool) -> str:
    backbone = ', backbone="path/to/clip"' if needs_backbone else ""
    name = ', class_name="metal nut"' if method.uses_class_names else ""
    return f"""## How to use

```python
from transformers import AutoModel

from vip2clip_hf import ViP2ClipImageProcessor

# Local folder or Hub id of this checkpoint.
model = AutoModel.from_pretrained("path/to/checkpoint"{backbone})
image_processor = ViP2ClipImageProcessor.from_pretrained("path/to/checkpoint")
outputs = model(**image_processor("photo.jpg", return_tensors="pt"){name})
print(outputs.scores, outputs.anomaly_maps.shape)
```"""


__all__ = ["baseline_card", "update_card", "write_baseline"]
