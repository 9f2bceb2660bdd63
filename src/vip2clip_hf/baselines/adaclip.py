"""
AdaCLIP (arXiv:2407.15795): static and dynamic prompts in both towers of CLIP, and clusters of anomalous patches.

The default is what the published code computes (MIT, Copyright 2024 Yunkang Cao). Its fusion of patches differs from
the paper, as the code says.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from ..models.vip2clip.maps_vip2clip import resize_maps, without_autocast
from .adaclip_configuration import AdaClipConfig
from .adaclip_fusion import gather_patches, kmeans, mean_of_best_cluster, mean_of_clusters, top_patches
from .adaclip_loss import adaclip_loss
from .adaclip_outputs import AdaClipImageFeatures, AdaClipOutput
from .adaclip_prompts import AdaClipPrompts, kept_dtype, vision_blocks
from .adaclip_text import AdaClipTextModel
from .vision_embeddings import upcast


class AdaClipForAnomalyDetection(AdaClipTextModel):
    r"""
    AdaCLIP for zero-shot anomaly detection.

    - The vision tower runs twice. Without prompts, it gives the image embedding from which the dynamic prompts are
      computed. With prompts, it gives class token and patches.
    - Vision prompts are the sum of static prompts of the block and dynamic prompts. They follow the patches, and are
      replaced before each of the first `prompting_depth` blocks.
    - Text prompts replace the states of the first tokens of each sentence, before the second to `prompting_depth`-th
      block. So the embeddings of 48 sentences depend on the image. t = [normal, anomalous] are their means.
    - Each feature layer has a linear head for patches, the class token has another one.
    - Map: scaled cosines of patches and t, resized with aligned corners and averaged over layers, then softmax and
      smoothing.
    - Score: softmax of the scaled cosines of t and the image, which is the class token c with the mean h of the
      clusters of anomalous patches, 0.2 h + 0.8 c.

    CLIP is frozen. Features cannot be cached for training, because prompts inside the vision tower are trained.

    Args:
        config ([`AdaClipConfig`]): configuration. A model created from a configuration has random weights; use
            `from_clip`, `from_pretrained` or `convert_adaclip_checkpoint`.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor
    >>> from vip2clip_hf.baselines import AdaClipForAnomalyDetection

    >>> model = AdaClipForAnomalyDetection.from_pretrained("path/to/checkpoint")
    >>> image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    >>> outputs = model(**image_processor("photo.jpg", return_tensors="pt"), class_name="hazelnut")
    ```
    """

    method_name = "AdaCLIP"
    caches_features = False
    optimizer_class = torch.optim.AdamW
    _keep_in_fp32_modules_strict = ["vision_prompts", "text_prompts", "patch_heads", "image_head"]

    def __init__(self, config: AdaClipConfig) -> None:
        super().__init__(config)
        vision, joint, kept = config.clip.vision_config, config.clip.projection_dim, kept_dtype()
        width, depth = vision.hidden_size, config.prompting_depth
        self.vision_prompts = AdaClipPrompts(config, depth, width) if config.prompts_vision else None
        self.patch_heads = nn.ModuleList([nn.Linear(width, joint, dtype=kept) for _ in config.layers])
        self.image_head = nn.Linear(joint, joint, dtype=kept)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the published code does: static prompts from a normal distribution, linear layers with
        PyTorch's default."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, AdaClipPrompts):
            if module.static is not None:
                init.normal_(module.static, mean=0.0, std=self.config.initializer_range)
        else:
            super()._init_weights(module)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, width)` of the `patch_tokens` of an image."""
        config = self.config
        return len(config.layers), config.patch_grid**2, config.clip.vision_config.hidden_size

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each part of the loss by its name."""
        return {"image": 1.0, "focal": 1.0, "dice_anomalous": 1.0, "dice_normal": 1.0}

    # Images

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Not available: AdaCLIP trains prompts inside the vision tower, so its features cannot be cached.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "AdaCLIP trains prompts inside the vision tower, so it has no frozen features to cache; train it without "
            "the feature cache, and pass pixel_values or hidden_states."
        )

    def encode_images(
        self, pixel_values: torch.Tensor | None = None, hidden_states: tuple[torch.Tensor, ...] | None = None
    ) -> AdaClipImageFeatures:
        """
        Run the vision tower without and with prompts.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers` for the images. Only
                the pass with prompts then runs.

        Returns:
            [`AdaClipImageFeatures`]: embeddings and tokens.

        Raises:
            ValueError: if neither or both are passed, or they have another shape.
        """
        if (pixel_values is None) == (hidden_states is None):
            found = "neither" if pixel_values is None else "both"
            raise ValueError(f"Expected either pixel_values or hidden_states, found {found}.")
        config, vision = self.config, self.clip.vision_model
        states: tuple[torch.Tensor, ...]
        with torch.no_grad():
            if pixel_values is not None and self.vision_prompts is not None:
                states = (vision.pre_layrnorm(self.embed_patches(pixel_values)),)  # (B, 1 + P, width)
                if config.is_dynamic:
                    states += (vision.encoder(inputs_embeds=states[0]).last_hidden_state,)
            else:
                states = self.states_for(pixel_values, hidden_states)
            plain = upcast(self._project_class_token(states[-1])) if config.is_dynamic else None  # (B, D)
        if self.vision_prompts is None:
            tokens, last = [states[number][:, 1:] for number in config.layers], states[-1]
        else:
            with without_autocast(self.device.type):
                prompts = self.vision_prompts(plain)  # (B, J, L, width)
            tokens, num_tokens = [], states[0].shape[1]
            for number, last in enumerate(vision_blocks(vision.encoder.layers, states[0], prompts), start=1):
                if number in config.layers:
                    tokens.append(last[:, 1:num_tokens])
        return AdaClipImageFeatures(
            plain_embeds=plain,
            image_embeds=self._project_class_token(last),
            patch_tokens=torch.stack(tokens, dim=1),  # (B, L, P, width)
        )

    def _project_class_token(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden[:, 0]))  # (B, D)

    def project(self, features: AdaClipImageFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Apply the heads to class token and patches.

        Args:
            features ([`AdaClipImageFeatures`]): result of `encode_images`.

        Returns:
            `tuple`: image embeddings of shape `(batch_size, projection_dim)` and patch embeddings of shape
                `(batch_size, num_layers, num_patches, projection_dim)`, float32, L2-normalized.
        """
        image_embeds: Any = features.image_embeds
        patch_tokens: Any = features.patch_tokens
        layers = [head(upcast(tokens)) for head, tokens in zip(self.patch_heads, patch_tokens.unbind(1))]
        patches = F.normalize(torch.stack(layers, dim=1), dim=-1)  # (B, L, P, D)
        return F.normalize(self.image_head(upcast(image_embeds)), dim=-1), patches

    def fuse(self, patch_embeds: torch.Tensor, patch_logits: torch.Tensor) -> torch.Tensor:
        """
        Average the clusters of the most anomalous patches, or the most anomalous cluster (hybrid semantic fusion).

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`): patch
                embeddings of `project`.
            patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, 2)`): their logits.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, projection_dim)`: the mean of the clusters, L2-normalized.
        """
        clusters, seed = self.config.clusters, self.config.kmeans_seed
        if self.config.hsf_selection == "best_cluster":
            mean = patch_embeds.mean(dim=1)  # (B, P, D)
            probabilities = patch_logits.mean(dim=1).softmax(dim=-1)[..., 1]  # (B, P)
            return mean_of_best_cluster(mean, probabilities, kmeans(mean, clusters, seed), clusters)
        chosen = gather_patches(patch_embeds, top_patches(patch_logits, clusters))  # (B, L, k, D)
        labels = kmeans(chosen.transpose(1, 2).flatten(2), clusters, seed)  # (B, k)
        return mean_of_clusters(chosen, labels, clusters)

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
    ) -> AdaClipOutput | tuple:
        """
        Compute scores and anomaly maps, or the loss if there are labels.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            image_embeds, patch_embeds:
                Not supported, because features cannot be cached.
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)` or `(batch_size, 2, projection_dim)`):
                Result of `get_text_embeds`, instead of `class_name`.
            class_name (`str` or `Sequence[str]`, *optional*):
                Name of the class in the prompts, or one name per image. By default, `config.class_name`.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 for normal images, 1 for anomalous images. Adds the image loss.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                0 for normal pixels, other values for anomalous pixels. Adds the pixel losses.
            mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without a mask. They only contribute to the image loss.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
                Result of `encode_layers`, instead of images.
            kwargs:
                `return_dict`, as in other models.

        Returns:
            [`AdaClipOutput`] or `tuple`: scores and maps, or scores and loss.

        Raises:
            ValueError: if the inputs are missing or have another shape, or cached features are passed.
        """
        if image_embeds is not None or patch_embeds is not None:
            self.get_image_features()
        features = self.encode_images(pixel_values, hidden_states)
        text = self.texts_of(features, text_embeds, class_name)  # (B, 2, D)
        config, grid = self.config, self.config.patch_grid
        with without_autocast(self.device.type):
            text = F.normalize(text, dim=-1)
            image, patches = self.project(features)
            by_patch = config.logit_scale * patches @ text.mT[:, None]  # (B, L, P, 2)
            clusters, fused = None, image
            if config.use_hsf:
                clusters = self.fuse(patches, by_patch)
                weight = config.hsf_weight
                fused = F.normalize(weight * clusters + (1 - weight) * image, dim=-1)  # (B, D)
            logits = config.logit_scale * (text @ fused[..., None])[..., 0]  # (B, 2)
            patch_logits = by_patch.mT.unflatten(-1, (grid, grid))  # (B, L, 2, g, g)
            loss, parts, maps = None, None, None
            if labels is None and mask_labels is None:
                maps = self.draw_maps(patch_logits)
            else:
                loss, parts = adaclip_loss(
                    logits, labels, patch_logits, mask_labels, mask_valid, self.loss_weights, config.dice_over_rows
                )
            return AdaClipOutput(
                loss=loss,
                loss_components=parts,
                scores=logits.softmax(dim=-1)[:, 1],
                anomaly_maps=maps,
                logits=logits,
                patch_logits=patch_logits,
                text_embeds=text,
                image_embeds=image,
                cluster_embeds=clusters,
            )

    def draw_maps(self, patch_logits: torch.Tensor) -> torch.Tensor:
        """
        Turn the logits of patches into maps.

        Args:
            patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`): logits
                [normal, anomalous].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`: the maps, in [0, 1].
        """
        size, sigma = self.config.side, float(self.config.smoothing_sigma)
        # Resizing is linear, and a softmax over two logits is the sigmoid of their difference.
        margin = (patch_logits[:, :, 1] - patch_logits[:, :, 0]).mean(dim=1, keepdim=True)  # (B, 1, g, g)
        maps = F.interpolate(margin, size=(size, size), mode="bilinear", align_corners=True)[:, 0].sigmoid()
        return resize_maps(maps, size, sigma) if sigma else maps  # (B, S, S)


__all__ = ["AdaClipForAnomalyDetection"]
