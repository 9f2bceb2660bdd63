"""
WinCLIP (arXiv:2303.14814) without training: windows of patches are compared with prompts and with reference images.

The default is what anomalib 2.7 computes (Apache-2.0). The configuration has switches for what other codes do.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from ..models.vip2clip.maps_vip2clip import resize_maps, without_autocast
from .base import BaselineModel
from .vision_embeddings import upcast
from .winclip_configuration import WinClipConfig
from .winclip_steps import association, class_scores, harmonic_aggregation, harmonic_mean, window_indices


# Tokens of windows that run through the vision tower together.
WINDOW_TOKENS = 16384


@dataclass
class WinClipReferences:
    """
    Embeddings of images at all scales, from [`WinClipForAnomalyDetection.encode_images`]. Those of photos of good
    parts are references.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(num_images, projection_dim)`):
            Projected class tokens, not normalized.
        window_embeds (`dict[int, torch.FloatTensor]`):
            By scale, the embeddings of windows, of shape `(num_images, num_windows, projection_dim)`, not normalized.
        patch_embeds (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`):
            Patch tokens after the last layer norm, not projected.
    """

    image_embeds: torch.Tensor
    window_embeds: dict[int, torch.Tensor]
    patch_embeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.patch_embeds)

    @classmethod
    def join(cls, parts: "list[WinClipReferences]") -> "WinClipReferences":
        """
        Join the embeddings of batches.

        Args:
            parts (`list[WinClipReferences]`): embeddings of at least one batch.

        Returns:
            [`WinClipReferences`]: the embeddings of all images.
        """
        windows = {scale: torch.cat([part.window_embeds[scale] for part in parts]) for scale in parts[0].window_embeds}
        image = torch.cat([part.image_embeds for part in parts])
        return cls(image, windows, torch.cat([part.patch_embeds for part in parts]))


@dataclass
class WinClipOutput(ModelOutput):
    """
    Output of [`WinClipForAnomalyDetection`].

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Image scores, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`):
            Anomaly maps, in [0, 1].
        zero_shot_scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Zero-shot scores. Without references, they equal `scores`.
        grid_maps (`torch.FloatTensor` of shape `(batch_size, grid, grid)`):
            Zero-shot maps of patches, before resizing.
        reference_grid_maps (`torch.FloatTensor` of shape `(batch_size, grid, grid)`, *optional*, returned with
            `references`): Maps of the distances to references, before resizing.
        text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`):
            Text embeddings [normal, anomalous], not normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings, not normalized.
    """

    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    zero_shot_scores: torch.Tensor | None = None
    grid_maps: torch.Tensor | None = None
    reference_grid_maps: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class WinClipForAnomalyDetection(BaselineModel):
    r"""
    WinCLIP for zero-shot and few-shot anomaly detection, without training.

    - Text: t = [normal, anomalous], each the mean of the embeddings of its prompts, not normalized before.
    - Score of an embedding e: softmax(cos(e, t) / temperature), the probability of the anomalous prompts.
    - Windows of k x k patches: class token and patches of the window, with their positions in the image, run through
      the whole vision tower. A patch has the harmonic mean H_k of the scores of the windows that cover it.
    - Zero-shot: the score s of the image; the map Z = 3 / (1/s + 1/H_2 + 1/H_3).
    - Few-shot: distances (1 - cos) / 2 to the nearest patch and window of the references. F is the mean of the maps of
      patches, windows of 2 x 2 and windows of 3 x 3. Map (Z + F) / 2; score (s + max F) / 2, with the maximum over
      patches.

    Maps are resized bilinearly and not smoothed.

    Args:
        config ([`WinClipConfig`]): configuration. A model created from a configuration has random weights; use
            `from_clip` or `from_pretrained`.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor
    >>> from vip2clip_hf.baselines import WinClipForAnomalyDetection

    >>> model = WinClipForAnomalyDetection.from_clip("openai/clip-vit-base-patch16")
    >>> image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    >>> references = model.encode_images(**image_processor(["good_1.jpg", "good_2.jpg"], return_tensors="pt"))
    >>> pixel_values = image_processor("photo.jpg", return_tensors="pt").pixel_values
    >>> outputs = model(pixel_values, class_name="hazelnut", references=references)
    ```
    """

    config: WinClipConfig
    config_class = WinClipConfig
    method_name = "WinCLIP"
    references_class = WinClipReferences
    reference_fields = ("scales",)

    def pool_prompts(self, features: torch.Tensor) -> torch.Tensor:
        """
        Average the embeddings of the prompts of one kind.

        Args:
            features (`torch.FloatTensor` of shape `(num_prompts, projection_dim)`): result of `encode_prompts`.

        Returns:
            `torch.FloatTensor` of shape `(projection_dim,)`: the mean, not normalized.
        """
        return (F.normalize(features, dim=-1) if self.config.normalize_prompts else features).mean(dim=0)  # (D,)

    def encode_images(
        self, pixel_values: torch.Tensor | None = None, hidden_states: tuple[torch.Tensor, ...] | None = None
    ) -> WinClipReferences:
        """
        Compute the embeddings of images, windows and patches. Those of photos of good parts are references.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers` for the images,
                instead of `pixel_values`. Only the windows then run through the vision tower.

        Returns:
            [`WinClipReferences`]: the embeddings.

        Raises:
            ValueError: if there are neither images nor states, or they have another shape.
        """
        if hidden_states is None and pixel_values is not None:
            tokens = self.clip.vision_model.pre_layrnorm(self.embed_patches(pixel_values))  # (B, 1 + P, width)
            last = self.run_blocks(tokens)
        else:
            states = self.states_for(None, hidden_states)
            tokens, last = states[0], states[-1]
        hidden = self.clip.vision_model.post_layernorm(last)  # (B, 1 + P, width)
        windows = {scale: self._encode_windows(tokens, scale) for scale in self.config.scales}
        return WinClipReferences(
            upcast(self.clip.visual_projection(hidden[:, 0])),  # (B, D)
            windows,
            upcast(hidden[:, 1:]),  # (B, P, width)
        )

    def _encode_windows(self, tokens: torch.Tensor, scale: int) -> torch.Tensor:
        """Return the embeddings of windows, of shape (B, W, D)."""
        index = window_indices(self.config.patch_grid, scale).to(tokens.device) + 1  # (W, scale * scale)
        index = F.pad(index, (1, 0))  # the class token first: (W, 1 + scale * scale)
        sequences = tokens[:, index].flatten(0, 1)  # (B * W, 1 + scale * scale, width)
        embeds = [
            self.clip.visual_projection(self.clip.vision_model.post_layernorm(self.run_blocks(part)[:, 0]))
            for part in sequences.split(max(1, WINDOW_TOKENS // sequences.shape[1]))
        ]
        return upcast(torch.cat(embeds)).unflatten(0, (len(tokens), len(index)))  # (B, W, D)

    def zero_shot(self, features: WinClipReferences, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compare images with prompts.

        Args:
            features ([`WinClipReferences`]): result of `encode_images`.
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`): result of `get_text_embeds`.

        Returns:
            `tuple`: scores of shape `(batch_size,)` and maps Z of shape `(batch_size, grid, grid)`.
        """
        grid, temperature = self.config.patch_grid, float(self.config.temperature)
        scores = class_scores(features.image_embeds, text_embeds, temperature)  # (B,)
        maps = [scores.view(-1, 1, 1).expand(-1, grid, grid)]
        for scale, embeds in features.window_embeds.items():
            windows = class_scores(embeds, text_embeds, temperature)  # (B, W)
            maps.append(harmonic_aggregation(windows, grid, scale))
        return scores, harmonic_mean(torch.stack(maps))  # (B,), (B, g, g)

    def few_shot(self, features: WinClipReferences, references: WinClipReferences) -> torch.Tensor:
        """
        Compare images with references.

        Args:
            features ([`WinClipReferences`]): result of `encode_images`.
            references ([`WinClipReferences`]): result of `encode_images` for photos of good parts.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, grid, grid)`: maps F.
        """
        grid = self.config.patch_grid
        maps = [association(features.patch_embeds, references.patch_embeds).unflatten(-1, (grid, grid))]
        for scale, embeds in features.window_embeds.items():
            maps.append(harmonic_aggregation(association(embeds, references.window_embeds[scale]), grid, scale))
        return torch.stack(maps).mean(dim=0)  # (B, g, g)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        class_name: str | None = None,
        references: WinClipReferences | str | None = "auto",
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> WinClipOutput | tuple:
        """
        Compute scores and anomaly maps.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`, *optional*):
                Result of `get_text_embeds`, to compute it once for many images.
            class_name (`str`, *optional*):
                Name of the class in the prompts. By default, `config.class_name`.
            references ([`WinClipReferences`], *optional*, defaults to `"auto"`):
                Result of `encode_images` for photos of good parts. `"auto"` uses the references of the checkpoint,
                `model.references`, except in training mode. `None` uses none: the result is zero-shot.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
                Result of `encode_layers` for the images, instead of `pixel_values`. Only the windows then run through
                the vision tower.
            kwargs:
                `return_dict`, as in other models.

        Returns:
            [`WinClipOutput`] or `tuple`: scores and maps.

        Raises:
            ValueError: if the images have another shape, the references belong to another model, or text embeddings
                and a class are passed.
        """
        text = self.text_embeds_for(text_embeds, class_name)  # (2, D)
        features = self.encode_images(pixel_values, hidden_states)
        good = self.references_for(references)
        if good is not None:
            _check_references(good, features)
        with without_autocast(self.device.type):
            zero_shot_scores, grid_maps = self.zero_shot(features, text)
            scores, maps, reference_maps = zero_shot_scores, grid_maps, None
            if good is not None:
                reference_maps = self.few_shot(features, good)  # (B, g, g)
                scores = (zero_shot_scores + reference_maps.amax(dim=(1, 2))) / 2
                maps = (grid_maps + reference_maps) / 2
            return WinClipOutput(
                scores=scores,
                anomaly_maps=resize_maps(maps, self.config.side),
                zero_shot_scores=zero_shot_scores,
                grid_maps=grid_maps,
                reference_grid_maps=reference_maps,
                text_embeds=text,
                image_embeds=features.image_embeds,
            )


def _check_references(references: WinClipReferences, features: WinClipReferences) -> None:
    found, expected = (
        {"patches": tuple(one.patch_embeds.shape[1:]), **{k: tuple(v.shape[1:]) for k, v in one.window_embeds.items()}}
        for one in (references, features)
    )
    if not len(references):
        raise ValueError("The references contain 0 images; expected at least one.")
    if found != expected:
        raise ValueError(
            f"The embeddings of the references have the shapes {found}; expected {expected}, those of this model. "
            "Encode the references with encode_images of the same model."
        )


__all__ = ["WinClipForAnomalyDetection", "WinClipOutput", "WinClipReferences"]
