"""The baselines as detectors of the evaluation, with the category of the dataset as class name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..inference.detector import PreparePhotos
from ..models.loading import weights_digest
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.provenance_vip2clip import Provenance
from ..utils.eval_mode import eval_mode
from .base import BaselineModel
from .references import References, references_digest


if TYPE_CHECKING:
    from PIL import Image

    GoodPhotos = References | Sequence[Image.Image]

# Photos of good parts that run through the model together.
BATCH_SIZE = 4


class BaselineDetector:
    """
    A baseline and an image processor as a [`Detector`].

    The evaluation asks for a detector of each category. Its prompts contain the name of the category, and it has the
    references of the category.

    Args:
        model ([`BaselineModel`]):
            Model, on the device to run on.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor with the `image_size` of the model.
        name (`str`, *optional*):
            Name in tables. By default, that of the method.
        class_name (`str` or `Mapping[str, str]`, *optional*):
            Name of the class in the prompts: one for all categories, or by category. By default, and for categories
            that are not in the mapping, the name of the category as the method writes it; `config.class_name` outside
            an evaluation.
        references (*optional*):
            Photos of good parts, for methods that use them: a list of RGB photos or the result of `encode_images`, the
            same for all categories, or a mapping with one for each category. By default, the detector is zero-shot,
            also if the model has references.

    Attributes:
        image_size (`int`): side of the anomaly maps, that of the model.
        map_maximum (`float`): what a map is divided by to draw methods on one scale.
        prepare (`Callable`): takes a list of RGB photos and returns `pixel_values` of shape
            `(batch_size, 3, image_size, image_size)`, float32. It raises ValueError if the image processor produces
            images of another size.

    Raises:
        ValueError: if the model has no text tokenizer, or there are references or class names for a model that does
            not use them.

    Example:

    ```python
    >>> from vip2clip_hf import evaluate_detector, load_folder
    >>> from vip2clip_hf.baselines import BaselineDetector

    >>> evaluate_detector(BaselineDetector(model, image_processor), load_folder("nuts"))["mean"]["image_auroc"]
    ```
    """

    def __init__(
        self,
        model: BaselineModel,
        image_processor: ViP2ClipImageProcessor,
        *,
        name: str | None = None,
        class_name: str | Mapping[str, str] | None = None,
        references: "GoodPhotos | Mapping[str, GoodPhotos] | None" = None,
    ) -> None:
        model.check_tokenizer()
        for what, value, used in (
            ("references", references, model.references_class is not None),
            ("class_name", class_name, model.uses_class_names),
        ):
            if value is not None and not used:
                title = what.replace("_", " ").removesuffix("s") + "s"
                raise ValueError(f"{what} is set, but {type(model).__name__} does not use {title}; remove it.")
        self.model, self.image_processor = model, image_processor
        self.name = model.method_name if name is None else name
        self.class_name, self.references = class_name, references
        self.image_size: int = model.config.side
        self.map_maximum: float = model.map_maximum(references is not None)
        self.prepare = PreparePhotos(image_processor, self.image_size)
        self._text_embeds: torch.Tensor | None = None
        self._encoded: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON types. Reading it hashes all weights, about a second per gigabyte."""
        skipped = ("transformers_version", "dtype", "architectures", "_name_or_path")
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in skipped}
        towers = config.pop("clip_config")
        for part in (towers, towers["vision_config"], towers["text_config"]):
            for name in skipped:
                part.pop(name, None)
        digest = hashlib.sha256(json.dumps(towers, sort_keys=True, default=str).encode())
        return {
            "config": {**config, "clip_config": f"sha256:{digest.hexdigest()}"},
            "class_name": dict(self.class_name) if isinstance(self.class_name, Mapping) else self.class_name,
            "weights": weights_digest(self.model),
            "references": _digest(self.references),
        }

    @property
    def provenance(self) -> Provenance:
        """Training datasets and backbone of the model."""
        return self.model.provenance

    @property
    def trained(self) -> bool:
        """Whether the model adds weights to CLIP, which need training."""
        return bool(self.model.adapter_state_dict())

    @property
    def dtype(self) -> str:
        """Dtype of the backbone, such as `"float32"`."""
        return str(self.model.clip.dtype).removeprefix("torch.")

    def with_references(self, references: "GoodPhotos | Mapping[str, GoodPhotos] | None") -> "BaselineDetector":
        """
        Return a detector with other references. The model is shared.

        Args:
            references (*optional*): see the class.

        Returns:
            [`BaselineDetector`]: the detector.

        Raises:
            ValueError: if the model does not use references.
        """
        return type(self)(
            self.model, self.image_processor, name=self.name, class_name=self.class_name, references=references
        )

    def for_category(self, category: str) -> "BaselineDetector":
        """
        Return the detector of a category. The model is shared.

        Args:
            category (`str`): name of the category.

        Returns:
            [`BaselineDetector`]: a detector with the class name and the references of the category.

        Raises:
            ValueError: if references are a mapping without this category.
        """
        name = self.class_name
        if isinstance(name, Mapping):
            name = name.get(category)
        if name is None and self.model.uses_class_names:
            name = self.model.config.name_of_category(category)
        references = self.references
        if isinstance(references, Mapping):
            if category not in references:
                raise ValueError(
                    f"There are no references of the category {category!r}; expected photos of good parts for each "
                    f"category, found {', '.join(map(repr, references)) or 'none'}."
                )
            references = references[category]
        return type(self)(
            self.model,
            self.image_processor,
            name=self.name,
            class_name=name,
            references=references,
        )

    def score(
        self, batch: torch.Tensor, hidden_states: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the model, in evaluation mode and without gradients.

        Args:
            batch (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): result of `prepare`.
            hidden_states (`tuple[torch.Tensor, ...]`, *optional*): result of `encode_layers` of the model, or of
                another one with the same vision tower, for this batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: scores of shape `(batch_size,)` and maps of shape
            `(batch_size, image_size, image_size)`, from 0 to `map_maximum`, on the device of the model.

        Raises:
            ValueError: if the batch has another shape, or class names or references are a mapping: call
                `for_category` first.
        """
        options = self.encode()
        if hidden_states is None:
            options["pixel_values"] = batch.to(self.model.device)
        else:
            options["hidden_states"] = hidden_states
        with eval_mode(self.model), torch.inference_mode():
            outputs = self.model(**options)
        return outputs.scores, outputs.anomaly_maps

    def encode(self) -> dict[str, Any]:
        """
        Encode what does not depend on the images: the prompts and the references. Another call returns the same.

        Returns:
            `dict[str, Any]`: arguments of the model.

        Raises:
            ValueError: if class names or references are a mapping, or there are 0 references.
        """
        if isinstance(self.class_name, Mapping) or isinstance(self.references, Mapping):
            raise ValueError(
                "class_name or references is a mapping by category; expected the detector of a category, "
                "for_category(name). evaluate_detector calls it."
            )
        options: dict[str, Any] = {}
        with eval_mode(self.model), torch.inference_mode():
            if self.model.text_depends_on_image:
                options["class_name"] = self.class_name
            else:
                if self._text_embeds is None:
                    self._text_embeds = self.model.get_text_embeds(self.class_name)
                options["text_embeds"] = self._text_embeds
            if self.model.references_class is not None:
                options["references"] = self._encode_references()
        return options

    def _encode_references(self) -> Any:
        references: Any = self.references
        model: Any = self.model
        if self._encoded is None and references is not None:
            if isinstance(references, Sequence):
                if not len(references):
                    raise ValueError("references contains 0 photos; expected at least one.")
                parts = [
                    model.encode_images(self.prepare(references[start : start + BATCH_SIZE]).to(model.device))
                    for start in range(0, len(references), BATCH_SIZE)
                ]
                references = model.references_class.join(parts)
            self._encoded = model.references_for(references)
        return self._encoded


def _digest(references: Any) -> Any:
    """Identify references, as JSON types."""
    if references is None:
        return None
    if isinstance(references, Mapping):
        return {category: _digest(one) for category, one in references.items()}
    if not isinstance(references, Sequence):
        return references_digest(references)
    digest = hashlib.sha256()
    for photo in references:
        digest.update(f"{photo.mode} {photo.size}".encode() + photo.tobytes())
    return f"sha256:{digest.hexdigest()}"


__all__ = ["BaselineDetector"]
