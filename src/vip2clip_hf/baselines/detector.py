"""The baselines as detectors of the evaluation, with the category of the dataset as class name."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..inference.detector import PreparePhotos
from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .base import BaselineModel
from .winclip import WinClipForAnomalyDetection, WinClipReferences


if TYPE_CHECKING:
    from PIL import Image

    References = WinClipReferences | Sequence[Image.Image]

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
            Photos of good parts, for WinCLIP: a list of RGB photos or [`WinClipReferences`], the same for all
            categories, or a mapping with one for each category. By default, the detector is zero-shot.

    Attributes:
        image_size (`int`): side of the anomaly maps, that of the model.
        prepare (`Callable`): takes a list of RGB photos and returns `pixel_values` of shape
            `(batch_size, 3, image_size, image_size)`, float32. It raises ValueError if the image processor produces
            images of another size.

    Raises:
        ValueError: if the model has no text tokenizer, or there are references for a model that does not use them.

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
        references: "References | Mapping[str, References] | None" = None,
    ) -> None:
        model.check_tokenizer()
        if references is not None and not isinstance(model, WinClipForAnomalyDetection):
            raise ValueError(f"references is set, but {type(model).__name__} does not use references; remove it.")
        self.model, self.image_processor = model, image_processor
        self.name = model.method_name if name is None else name
        self.class_name, self.references = class_name, references
        self.image_size: int = model.config.side
        self.prepare = PreparePhotos(image_processor, self.image_size)
        self._text_embeds: torch.Tensor | None = None
        self._encoded: WinClipReferences | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON types. Reading it hashes all weights, about a second per gigabyte."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in ("transformers_version", "dtype")}
        names = dict(self.class_name) if isinstance(self.class_name, Mapping) else self.class_name
        checksum = backbone_checksum(self.model.clip.state_dict(), self.model.dtype)
        return {"config": config, "class_name": names, "backbone": checksum, "references": _digest(self.references)}

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
            class_name=self.model.config.name_of_category(category) if name is None else name,
            references=references,
        )

    def score(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the model, in evaluation mode and without gradients.

        Args:
            batch (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): result of `prepare`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: scores of shape `(batch_size,)` and maps of shape
            `(batch_size, image_size, image_size)`, in [0, 1], on the device of the model.

        Raises:
            ValueError: if the batch has another shape, or class names or references are a mapping: call
                `for_category` first.
        """
        if isinstance(self.class_name, Mapping) or isinstance(self.references, Mapping):
            raise ValueError(
                "class_name or references is a mapping by category; expected the detector of a category, "
                "for_category(name). evaluate_detector calls it."
            )
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                options: dict[str, Any] = {"class_name": self.class_name}
                if not self.model.text_depends_on_image:
                    if self._text_embeds is None:
                        self._text_embeds = self.model.get_text_embeds(self.class_name)
                    options = {"text_embeds": self._text_embeds}
                if self.references is not None:
                    options["references"] = self._encode_references(self.references)
                outputs = self.model(batch.to(self.model.device), **options)
        finally:
            self.model.train(was_training)
        return outputs.scores, outputs.anomaly_maps

    def _encode_references(self, references: "References") -> WinClipReferences:
        if isinstance(references, WinClipReferences):
            return references
        if self._encoded is None:
            if not len(references):
                raise ValueError("references contains 0 photos; expected at least one.")
            model: Any = self.model
            self._encoded = WinClipReferences.join(
                [
                    model.encode_images(self.prepare(references[start : start + BATCH_SIZE]).to(model.device))
                    for start in range(0, len(references), BATCH_SIZE)
                ]
            )
        return self._encoded


def _digest(references: Any) -> Any:
    """Identify references, as JSON types."""
    if references is None:
        return None
    if isinstance(references, Mapping):
        return {category: _digest(one) for category, one in references.items()}
    digest = hashlib.sha256()
    if isinstance(references, WinClipReferences):
        digest.update(references.patch_embeds.float().cpu().contiguous().numpy().data)
    else:
        for photo in references:
            digest.update(f"{photo.mode} {photo.size}".encode() + photo.tobytes())
    return f"sha256:{digest.hexdigest()}"


__all__ = ["BaselineDetector"]
