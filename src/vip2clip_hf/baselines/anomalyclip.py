"""
AnomalyCLIP (arXiv:2310.18961): learned prompts without class name, and value-value attention for patch tokens.

Default settings are those of the published code (github.com/zqhang/AnomalyCLIP), from whose outputs the tests were
recorded. No code was copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from ..models.vip2clip.loss_vip2clip import vip2clip_loss
from ..models.vip2clip.maps_vip2clip import resize_maps, without_autocast
from .anomalyclip_configuration import KINDS, AnomalyClipConfig
from .anomalyclip_prompts import AnomalyClipPromptLearner, embed_prompts, encode_prompts
from .anomalyclip_vision import project_tokens, value_path
from .trainable import BaselineImageFeatures, TrainableBaselineModel
from .vision_embeddings import upcast


# Smoothing of the focal loss in the published code.
FOCAL_SMOOTH = 1e-5
# Standard deviation of new vectors in the published code.
INITIAL_STD = 0.02


@dataclass
class AnomalyClipOutput(ModelOutput):
    """
    Output of [`AnomalyClipForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `mask_labels`):
            Training loss.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*, returned with `loss`):
            Parts of the loss, without their weights: `image`, `focal`, `dice_anomalous` and `dice_normal`. The last
            three are summed over layers.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, *optional*):
            Smoothed anomaly map, the sum over the feature layers, in [0, number of layers]. `None` in training.
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Cosines of the image and the prompts [normal, anomalous], divided by the temperature.
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of each patch in each feature layer, in [0, 1].
        text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`):
            Embeddings of the prompts [normal, anomalous], L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings, L2-normalized.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    layer_maps: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class AnomalyClipForAnomalyDetection(TrainableBaselineModel):
    r"""
    AnomalyCLIP for zero-shot anomaly detection.

    With the class token f, the patch tokens p of the feature layers and the text embeddings t = [normal, anomalous]:

    - Text: [start] [12 learned vectors] "object." [end], and the same with "damaged object.". Before the text blocks
      2 to 9, 4 learned vectors, which both prompts share, replace the states after the start token.
    - Score: softmax(cos(f, t) / 0.07). The class token is projected without CLIP's last layer norm.
    - Map: softmax(cos(p, t) / 0.07) of each patch, resized bilinearly, summed over the feature layers and smoothed.
      In the last 19 vision blocks, patch tokens pass value-value attention, see [`value_path`].

    The score does not use the map. Only `prompt_learner` is trained. It stays in float32 if the model is in half
    precision. The prompts have no class name, so texts are the same for all images.

    Args:
        config ([`AnomalyClipConfig`]): configuration. A model created from a configuration has random weights; use
            `from_clip` or `from_pretrained`.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor
    >>> from vip2clip_hf.baselines import convert_anomalyclip_checkpoint

    >>> model = convert_anomalyclip_checkpoint("epoch_15.pth", "openai/clip-vit-large-patch14-336")
    >>> image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    >>> outputs = model(**image_processor("photo.jpg", return_tensors="pt"))
    ```
    """

    config: AnomalyClipConfig
    config_class = AnomalyClipConfig
    method_name = "AnomalyCLIP"
    feature_fields = ("feature_layers", "dpam_layers")
    uses_class_names = False
    _keep_in_fp32_modules_strict = ["prompt_learner"]

    def __init__(self, config: AnomalyClipConfig) -> None:
        super().__init__(config)
        self.prompt_learner = AnomalyClipPromptLearner(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the learned vectors as the published code does."""
        if isinstance(module, AnomalyClipPromptLearner):
            for parameter in module.parameters():
                init.normal_(parameter, mean=0.0, std=INITIAL_STD)
        else:
            super()._init_weights(module)

    @classmethod
    def settings_from_tokenizer(cls, tokenizer: Any, config_overrides: dict[str, Any]) -> dict[str, Any]:
        """
        Return the token ids of the prompts.

        Args:
            tokenizer: the tokenizer.
            config_overrides (`dict[str, Any]`): fields that the caller sets, such as `normal_text`.

        Returns:
            `dict[str, Any]`: fields of [`AnomalyClipConfig`].

        Raises:
            ValueError: if the tokenizer does not know a word.
        """
        fields = cls.config_class.__dataclass_fields__
        found: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        for kind in KINDS:
            text = config_overrides.get(f"{kind}_text", fields[f"{kind}_text"].default)
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
            if config_overrides.get(f"{kind}_token_ids") is None and (not ids or special & set(ids)):
                raise ValueError(
                    f"The tokenizer does not know the words of {kind}_text, {text!r}; expected words that it knows, "
                    'such as "good" and "damaged" for the bundled backbone.'
                )
            found[f"{kind}_token_ids"] = ids
        return found

    # Texts

    def get_prompts(self, class_name: str | None = None) -> tuple[list[str], list[str]]:
        """
        Write the prompts. A learned vector is written as X.

        Args:
            class_name (`str`, *optional*): not used, because the prompts have no class name.

        Returns:
            `tuple[list[str], list[str]]`: the normal and the anomalous prompt, one of each.
        """
        context = "X " * self.config.num_context_tokens
        return [context + self.config.normal_text], [context + self.config.anomalous_text]

    def check_tokenizer(self) -> None:
        """Accept a model without tokenizer: the configuration contains the token ids of the prompts."""

    def get_text_embeds(self, class_name: str | None = None) -> torch.Tensor:
        """
        Compute the text embeddings.

        Args:
            class_name (`str`, *optional*): not used, because the prompts have no class name.

        Returns:
            `torch.FloatTensor` of shape `(2, projection_dim)`: the embeddings [normal, anomalous], not normalized.
        """
        normal, anomalous, deep = self.prompt_learner()
        prompts = embed_prompts(self.clip, (normal, anomalous), self.config)  # (2, T, C)
        return encode_prompts(self.clip, prompts, deep, self.config)  # (2, D)

    # Images

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, projection_dim)` of the `patch_embeds` of an image."""
        return len(self.config.feature_layers or ()), self.config.patch_grid**2, self.config.clip.projection_dim

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Compute the embeddings of images and patches, the frozen part of the method.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`, instead of images.
            return_dict (`bool`, *optional*): not used; the output is always a [`BaselineImageFeatures`].

        Returns:
            [`BaselineImageFeatures`]: the projected class token, and the projected patch tokens of the feature layers,
            not normalized.

        Raises:
            ValueError: if images or states have another shape.
        """
        config, layers = self.config, self.config.feature_layers or ()
        states = self.states_for(pixel_values, hidden_states)
        path = value_path(self.clip, states, config.dpam_layers, max(layers))
        return BaselineImageFeatures(
            image_embeds=self.clip.visual_projection(states[-1][:, 0]),  # (B, D)
            patch_embeds=project_tokens(self.clip, [tokens[:, 1:] for tokens in path], layers),  # (B, L, P, D)
        )

    # Comparison

    def map_maximum(self, with_references: bool = False) -> float:
        """See [`BaselineModel.map_maximum`]: the number of feature layers."""
        return float(len(self.config.feature_layers or ()))

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each part of the loss: 1 for the image, `local_loss_weight` for pixels."""
        pixels = dict.fromkeys(("focal", "dice_anomalous", "dice_normal"), float(self.config.local_loss_weight))
        return {"image": 1.0, **pixels}

    def compute_loss(
        self,
        logits: torch.Tensor,
        layer_maps: torch.Tensor,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        mask_valid: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Compute the training loss: the cross-entropy of images, plus `local_loss_weight` times focal loss and dice
        losses of both maps, summed over layers.

        Args:
            logits, layer_maps: see [`AnomalyClipOutput`].
            labels, mask_labels, mask_valid: see `forward`.

        Returns:
            `tuple`: the loss, and its parts by name, without their weights.

        Raises:
            ValueError: if no labels are passed, or a mask has another size.
        """
        if mask_labels is not None and mask_valid is not None:
            # Images without a mask must not affect the loss, even if their placeholder contains NaN.
            mask_labels = torch.where(mask_valid.bool()[:, None, None], mask_labels, 0)
        return vip2clip_loss(
            logits=logits,
            labels=labels,
            layer_maps=None if mask_labels is None else resize_maps(layer_maps, self.config.side),
            mask_labels=None if mask_labels is None else mask_labels != 0,
            mask_valid=mask_valid,
            local_loss_weight=float(self.config.local_loss_weight),
            focal_smooth=FOCAL_SMOOTH,
        )

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> AnomalyClipOutput | tuple:
        """
        Compute scores and anomaly maps, or the loss if there are labels.

        Pass `pixel_values`, `hidden_states`, or `image_embeds` with `patch_embeds`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*), patch_embeds
                (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`, *optional*):
                Results of `get_image_features`.
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`, *optional*):
                Result of `get_text_embeds`, to compute it once for many images.
            class_name (`str` or `Sequence[str]`, *optional*):
                Not used, because the prompts have no class name.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 for normal images, 1 for anomalous images. Adds the image loss.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                0 for normal pixels, other values for anomalous pixels. Adds the pixel losses.
            mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without a mask. They only contribute to the image loss.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
                Result of `encode_layers`, to share the vision tower among methods.
            kwargs:
                `return_dict`, as in other models.

        Returns:
            [`AnomalyClipOutput`] or `tuple`: scores and maps, and the loss with labels.

        Raises:
            ValueError: if inputs are missing, are passed twice, or have another shape.
        """
        features = self.features_for(pixel_values, image_embeds, patch_embeds, hidden_states)
        text = self.text_embeds_for(text_embeds, None)  # (2, D)
        with without_autocast(self.device.type):
            embeds: Any = (text, features.image_embeds, features.patch_embeds)
            text, image, patches = (F.normalize(upcast(one), dim=-1) for one in embeds)
            scaled = text / self.config.temperature
            logits = image @ scaled.T  # (B, 2)
            grid = self.config.patch_grid
            layer_maps = (patches @ scaled.T).softmax(dim=-1).mT.unflatten(-1, (grid, grid))  # (B, L, 2, g, g)
            loss, parts, maps = None, None, None
            if labels is not None or mask_labels is not None:
                loss, parts = self.compute_loss(logits, layer_maps, labels, mask_labels, mask_valid)
            else:
                # Resizing is linear, so the sum over layers is resized. The probabilities of a patch add up to 1.
                sigma = float(self.config.smoothing_sigma)
                maps = resize_maps(layer_maps[:, :, 1].sum(dim=1), self.config.side, sigma)  # (B, S, S)
            return AnomalyClipOutput(
                loss=loss,
                loss_components=parts,
                scores=logits.softmax(dim=-1)[:, 1],
                anomaly_maps=maps,
                logits=logits,
                layer_maps=layer_maps,
                text_embeds=text,
                image_embeds=image,
            )


__all__ = ["AnomalyClipForAnomalyDetection", "AnomalyClipOutput"]
