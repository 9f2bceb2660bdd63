"""
APRIL-GAN (arXiv:2305.17382): linear layers map patch tokens to the joint space, where they are compared with prompts.

The default is what the published code computes (MIT). Its results were not compared with the text of the paper.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from ..models.vip2clip.maps_vip2clip import without_autocast
from .april_gan_configuration import AprilGanConfig
from .april_gan_outputs import AprilGanOutput, AprilGanReferences
from .april_gan_steps import (
    april_gan_loss,
    compare_with_prompts,
    compare_with_references,
    layer_margins,
    resize_corners,
)
from .trainable import BaselineImageFeatures, TrainableBaselineModel
from .vision_embeddings import upcast


class AprilGanForAnomalyDetection(TrainableBaselineModel):
    r"""
    APRIL-GAN for zero-shot and few-shot anomaly detection.

    - Text: t = [normal, anomalous]. Each embedding of a prompt is L2-normalized; t is their mean, normalized again.
    - Zero-shot score: p = softmax(100 cos(f, t)), the probability of the anomalous prompts, with the projected class
      token f. It does not use the map.
    - Zero-shot map: for each of `feature_layers`, a linear layer maps the outputs h of the vision block, without last
      layer norm, to the joint space. The logits 100 cos(W h + b, t) are resized bilinearly to the size of the image,
      with aligned corners; then a softmax gives probabilities. Their sum over the layers is the map. It is not
      smoothed.
    - Few-shot map: the zero-shot map, plus for each of `few_shot_layers` the distance 1 - cos of h to the nearest
      patch of the references, resized in the same way.
    - Few-shot score: (p + m) / 2, with m the maximum of the map, divided by the number of its maps (layers of both
      kinds), and at most 1. The published score divides by the range of m over all test images of a class instead:
      [`published_few_shot_scores`].
    - Loss: focal loss and dice loss of the anomalous probabilities at the size of the image, summed over layers.
      Images have no loss. Published recipe: Adam with learning rate 1e-3 and betas (0.5, 0.999), batches of 8, 3
      epochs on MVTec AD or 15 epochs on VisA.

    Args:
        config ([`AprilGanConfig`]): configuration. A model created from a configuration has random weights; use
            `from_clip` or `from_pretrained`.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor
    >>> from vip2clip_hf.baselines import convert_april_gan_checkpoint

    >>> model = convert_april_gan_checkpoint("visa_pretrained.pth", "openai/clip-vit-large-patch14-336")
    >>> image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    >>> references = model.encode_images(**image_processor(["good_1.jpg", "good_2.jpg"], return_tensors="pt"))
    >>> pixel_values = image_processor("photo.jpg", return_tensors="pt").pixel_values
    >>> outputs = model(pixel_values, class_name="hazelnut", references=references)
    ```
    """

    config: AprilGanConfig
    config_class = AprilGanConfig
    method_name = "APRIL-GAN"
    references_class = AprilGanReferences
    reference_fields = ("feature_layers", "few_shot_layers")
    _keep_in_fp32_modules_strict = ["linear_layers"]

    def __init__(self, config: AprilGanConfig) -> None:
        super().__init__(config)
        width, joint = config.clip.vision_config.hidden_size, config.clip.projection_dim
        # In float32, too, if CLIP is in half precision.
        kept = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.linear_layers = nn.ModuleList(nn.Linear(width, joint, dtype=kept) for _ in config.feature_layers)
        self._text_memory: dict[tuple, torch.Tensor] = {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize linear layers with PyTorch's default, as the published code does."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        else:
            super()._init_weights(module)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, hidden_size)` of the `patch_embeds` of an image."""
        config = self.config
        return len(config.feature_layers), config.patch_grid**2, config.clip.vision_config.hidden_size

    def map_maximum(self, with_references: bool = False) -> float:
        """See [`BaselineModel.map_maximum`]: the number of layers, of both kinds with references."""
        if self.config.map_reduction == "mean":
            return 1.0
        return float(len(self.config.feature_layers) + with_references * len(self.config.reference_layers))

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each part of the loss by its name."""
        return {"focal": 1.0, "dice_anomalous": 1.0}

    # Texts

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the model. Embeddings of prompts in another precision are not used again."""
        self._text_memory.clear()
        return super()._apply(*args, **kwargs)

    def get_text_embeds(self, class_name: str | None = None) -> torch.Tensor:
        """
        Compute the text embeddings of a class. While the text tower is frozen, they are computed once for each class.

        Args:
            class_name (`str`, *optional*): name of the class. By default, `config.class_name`.

        Returns:
            `torch.FloatTensor` of shape `(2, projection_dim)`: the embeddings [normal, anomalous], L2-normalized.

        Raises:
            ValueError: if the model has no tokenizer, or the name gives a prompt that is too long.
        """
        tower, projection = self.clip.text_model, self.clip.text_projection.weight
        if any(one.requires_grad for one in (*tower.parameters(), projection)):
            return super().get_text_embeds(class_name)
        name = self.config.class_name if class_name is None else class_name
        # The version changes when weights are loaded into the parameter.
        key = (name, self.config.prompts, id(self.tokenizer), projection.data_ptr(), projection._version)
        if key not in self._text_memory:
            # Tensors created in inference mode could not be used for training later, and those of autocast have its
            # precision, also after it.
            with torch.inference_mode(False), torch.no_grad(), without_autocast(self.device.type):
                self._text_memory[key] = super().get_text_embeds(name)
        return self._text_memory[key]

    def _texts_of(
        self, text_embeds: torch.Tensor | None, class_name: str | Sequence[str] | None, batch_size: int
    ) -> torch.Tensor:
        """Return the text embeddings of each image, of shape (B, 2, D)."""
        if text_embeds is None:
            names = self.class_names_for(class_name, batch_size)
            by_name = {name: self.get_text_embeds(name) for name in dict.fromkeys(names)}
            return torch.stack([by_name[name] for name in names])
        if text_embeds.dim() == 3 and len(text_embeds) == batch_size:
            return torch.stack([self.text_embeds_for(one, class_name) for one in text_embeds])  # type: ignore[arg-type]
        return self.text_embeds_for(text_embeds, class_name).expand(batch_size, -1, -1)  # type: ignore[arg-type]

    # Images

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool | None = None,
    ) -> BaselineImageFeatures:
        """
        Compute what the feature cache stores: the frozen part of the method.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`, instead of images.
            return_dict (`bool`, *optional*): not used; the output is always a [`BaselineImageFeatures`].

        Returns:
            [`BaselineImageFeatures`]: projected class tokens of shape `(batch_size, projection_dim)`, and the outputs
            of the blocks `feature_layers` without class token, of shape
            `(batch_size, num_layers, num_patches, hidden_size)`. Neither is normalized.

        Raises:
            ValueError: if neither images nor states are passed, or they have another shape.
        """
        states = self.states_for(pixel_values, hidden_states)
        token = self.clip.vision_model.post_layernorm(states[-1][:, 0])  # (B, width)
        return BaselineImageFeatures(
            image_embeds=self.clip.visual_projection(token),  # (B, D)
            patch_embeds=self._patches(states, self.config.feature_layers),  # (B, L, P, width)
        )

    @staticmethod
    def _patches(states: tuple[torch.Tensor, ...], layers: Sequence[int]) -> torch.Tensor:
        return torch.stack([states[layer][:, 1:] for layer in layers], dim=1)

    def encode_images(
        self, pixel_values: torch.Tensor | None = None, hidden_states: tuple[torch.Tensor, ...] | None = None
    ) -> AprilGanReferences:
        """
        Compute the patch tokens of images. Those of photos of good parts are references.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`, instead of images.

        Returns:
            [`AprilGanReferences`]: the patch tokens of `config.few_shot_layers`.

        Raises:
            ValueError: if neither images nor states are passed, or they have another shape.
        """
        states = self.states_for(pixel_values, hidden_states)
        return AprilGanReferences(upcast(self._patches(states, self.config.reference_layers)))

    def _few_shot_patches(
        self, states: tuple[torch.Tensor, ...] | None, patch_embeds: torch.Tensor, references: AprilGanReferences
    ) -> torch.Tensor:
        """Return the patches to compare with references, of shape (B, L, P, width), and check the references."""
        known, wanted = self.config.feature_layers, self.config.reference_layers
        expected = (len(wanted), *self.feature_shape[1:])
        found = tuple(references.patch_embeds.shape[1:])
        if not len(references):
            raise ValueError("The references contain 0 images; expected at least one.")
        if found != expected:
            raise ValueError(
                f"The patch tokens of the references have the shape (num_images, *{found}); expected (num_images, "
                f"*{expected}), those of this model. Encode the references with encode_images of the same model."
            )
        if states is not None:
            return self._patches(states, wanted)
        if not set(wanted) <= set(known):
            raise ValueError(
                f"few_shot_layers is {wanted}, and patch_embeds has the layers {known}; expected pixel_values or "
                "hidden_states, or few_shot_layers among feature_layers."
            )
        return patch_embeds[:, [known.index(layer) for layer in wanted]]

    # Maps, scores and the loss

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        class_name: str | Sequence[str] | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        mask_valid: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        references: AprilGanReferences | str | None = "auto",
        **kwargs: Unpack[TransformersKwargs],
    ) -> AprilGanOutput | tuple:
        """
        Compute scores and anomaly maps, or the loss.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            image_embeds, patch_embeds (`torch.FloatTensor`, *optional*):
                Results of `get_image_features`, instead of `pixel_values`. They may be in half precision.
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)` or `(batch_size, 2, projection_dim)`,
                *optional*): Result of `get_text_embeds`, for all images or for each.
            class_name (`str` or `Sequence[str]`, *optional*):
                Name of the class in the prompts, or the name for each image. By default, `config.class_name`.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Not used: the method has no loss for images.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                0 for normal pixels, others are anomalous. With them, the loss is computed instead of the maps.
            mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without mask. They do not contribute to the loss.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
                Result of `encode_layers`, instead of `pixel_values`.
            references ([`AprilGanReferences`], *optional*, defaults to `"auto"`):
                Result of `encode_images` for photos of good parts. `"auto"` uses the references of the checkpoint,
                `model.references`, except in training mode and with masks. `None` uses none: the result is zero-shot.
            kwargs:
                `return_dict`, as in other models.

        Returns:
            [`AprilGanOutput`] or `tuple`: scores, and maps or the loss.

        Raises:
            ValueError: if an input has another shape, several kinds of images or texts are passed, the references
                belong to another model, or there are both references and masks.
        """
        good = None if isinstance(references, str) and mask_labels is not None else self.references_for(references)
        if good is not None and mask_labels is not None:
            raise ValueError("references and mask_labels are both set; expected one of them. Training is zero-shot.")
        states = hidden_states
        if good is not None and pixel_values is not None and hidden_states is None:
            states, pixel_values = self.encode_layers(pixel_values), None
        features: Any = self.features_for(pixel_values, image_embeds, patch_embeds, states)
        image, patches = features.image_embeds, features.patch_embeds
        text = self._texts_of(text_embeds, class_name, len(image))  # (B, 2, D)
        with without_autocast(self.device.type):
            text, image = (F.normalize(upcast(one), dim=-1) for one in (text, image.to(text.device)))
            scale, grid = float(self.config.logit_scale), self.config.patch_grid
            logits = scale * (text @ image[:, :, None])[..., 0]  # (B, 2)
            patch_logits = compare_with_prompts(patches, self.linear_layers, text, scale)
            patch_logits = patch_logits.unflatten(-1, (grid, grid))  # (B, L, 2, g, g)
            probabilities = logits.softmax(dim=-1)[:, 1]
            output = AprilGanOutput(
                scores=probabilities,
                zero_shot_scores=probabilities,
                logits=logits,
                patch_logits=patch_logits,
                text_embeds=text,
                image_embeds=image,
            )
            if mask_labels is not None:
                parts = self.compute_loss(patch_logits, mask_labels, mask_valid)
                output.loss = sum(
                    (self.loss_weights[name] * part for name, part in parts.items()), logits.new_zeros(())
                )
                output.loss_components = parts
                return output
            distances = None
            if good is not None:
                few = self._few_shot_patches(states, patches, good)
                distances = compare_with_references(few, good).unflatten(-1, (grid, grid))  # (B, L, g, g)
                output.reference_grid_maps = distances
            output.anomaly_maps = self.draw_maps(patch_logits, distances)  # (B, S, S)
            output.map_maxima = output.anomaly_maps.amax(dim=(1, 2))  # (B,)
            if distances is not None:
                count = 1 if self.config.map_reduction == "mean" else patch_logits.shape[1] + distances.shape[1]
                output.scores = (probabilities + (output.map_maxima / count).clamp_max(1)) / 2
            return output

    def draw_maps(self, patch_logits: torch.Tensor, distances: torch.Tensor | None = None) -> torch.Tensor:
        """
        Combine the maps of the layers.

        Args:
            patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
                Logits [normal, anomalous].
            distances (`torch.FloatTensor` of shape `(batch_size, num_few_shot_layers, grid, grid)`, *optional*):
                Distances to references.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`: the maps.
        """
        size = self.config.side
        maps, count = layer_margins(patch_logits, size).sigmoid().sum(dim=1), patch_logits.shape[1]  # (B, S, S)
        if distances is not None:
            # The sum first: resizing is linear.
            maps = maps + resize_corners(distances.sum(dim=1, keepdim=True), size)[:, 0]
            count += distances.shape[1]
        return maps / count if self.config.map_reduction == "mean" else maps

    def compute_loss(
        self, patch_logits: torch.Tensor, mask_labels: torch.Tensor, mask_valid: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Compute the parts of the loss.

        Args:
            patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
                Logits [normal, anomalous].
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`):
                0 for normal pixels, others are anomalous.
            mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without mask.

        Returns:
            `dict[str, torch.FloatTensor]`: `focal` and `dice_anomalous`, summed over layers, of shape `()`.

        Raises:
            ValueError: if the masks have another shape.
        """
        batch, size = len(patch_logits), self.config.side
        for name, tensor, expected in (
            ("mask_labels", mask_labels, (batch, size, size)),
            ("mask_valid", mask_valid, (batch,)),
        ):
            if tensor is not None and tuple(tensor.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}.")
        return april_gan_loss(patch_logits, mask_labels, mask_valid, self.config.dice_rows_for_one_image)


__all__ = ["AprilGanForAnomalyDetection"]
