"""ViP²-CLIP as a detector of the evaluation: zero-shot, or with photos of good parts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.eval_mode import eval_mode


if TYPE_CHECKING:
    from PIL import Image


class PreparePhotos:
    """
    Prepare photos with an image processor. It does not contain the model: workers get a copy of it.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]): the image processor.
        image_size (`int`): side of the images that the model expects.
    """

    def __init__(self, image_processor: ViP2ClipImageProcessor, image_size: int) -> None:
        self.image_processor, self.image_size = image_processor, image_size

    def __call__(self, images: Sequence["Image.Image"]) -> torch.Tensor:
        pixel_values = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        height, width = pixel_values.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"The image processor produces images of {height} x {width} pixels; expected {self.image_size} x "
                f"{self.image_size}, the image_size of the model. Use ViP2ClipImageProcessor(size={self.image_size})."
            )
        return pixel_values


class ViP2ClipDetector:
    """
    A model and its image processor as a [`Detector`].

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model, on the device to run on. Other models work if they take `pixel_values` and return `scores` and
            `anomaly_maps`.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model.
        name (`str`, defaults to `"ViP²-CLIP"`):
            Name in tables.
        references ([`ReferenceBank`], *optional*):
            Photos of good parts to compare with. By default, the detector is zero-shot, also if the model has
            references.

    Attributes:
        image_size (`int`): side of the anomaly maps, that of the model.
        prepare (`Callable`): takes a list of RGB photos and returns `pixel_values` of shape
            `(batch_size, 3, image_size, image_size)`, float32. It raises ValueError if the image processor produces
            images of another size.

    Raises:
        ValueError: if the size of the maps is not known: the model has no `config.image_size`, and the image processor
            does not resize images to a square.
    """

    def __init__(
        self,
        model: ViP2ClipForAnomalyDetection,
        image_processor: ViP2ClipImageProcessor,
        *,
        name: str = "ViP²-CLIP",
        references: ReferenceBank | None = None,
    ) -> None:
        self.model, self.image_processor = model, image_processor
        self.name, self.references = name, references
        self.image_size = _image_size(model, image_processor)
        self.prepare = PreparePhotos(image_processor, self.image_size)

    def score(
        self, batch: torch.Tensor, hidden_states: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the model, in evaluation mode and without gradients.

        Args:
            batch (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): result of `prepare`.
            hidden_states (`Sequence[torch.Tensor]`, *optional*): states of the vision tower for this batch, see
                [`ViP2ClipForAnomalyDetection.get_image_features`]. The tower does not run then.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: scores of shape `(batch_size,)` and maps of shape
            `(batch_size, image_size, image_size)`, in [0, 1], on the device of the model.

        Raises:
            ValueError: if the batch has another shape, or the references belong to another model.
        """
        options: dict[str, Any] = {}
        if self.references is not None or hasattr(self.model, "references"):  # other models have no such argument
            options["references"] = self.references
        if hidden_states is None:
            options["pixel_values"] = batch.to(self.model.device)
        else:
            options["hidden_states"] = hidden_states
        with eval_mode(self.model), torch.inference_mode():
            outputs = self.model(**options)
        return outputs.scores, outputs.anomaly_maps


def _image_size(model: Any, image_processor: Any) -> int:
    size = getattr(getattr(model, "config", None), "image_size", None)
    if size is not None:
        return size
    found = dict(image_processor.size) if image_processor.do_resize else {}
    if not found or found["height"] != found["width"]:
        raise ValueError(
            f"The model, a {type(model).__name__}, has no config.image_size, and the image processor "
            f"{f'produces images of size {found}' if found else 'does not resize images'}; expected a model with a "
            "size, or an image processor that resizes images to a square."
        )
    return found["height"]


__all__ = ["PreparePhotos", "ViP2ClipDetector"]
