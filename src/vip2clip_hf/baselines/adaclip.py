"""
AdaCLIP (arXiv:2407.15795): static and dynamic prompts in both towers of CLIP, and clusters of anomalous patches.

The default is what the published code computes (MIT, Copyright 2024 Yunkang Cao). Its fusion of patches differs from
the paper, as the code says.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from ..models.vip2clip.maps_vip2clip import resize_maps, without_autocast
from .adaclip_configuration import AdaClipConfig
from .adaclip_fusion import gather_patches, kmeans, mean_of_clusters, top_patches
from .adaclip_loss import adaclip_loss
from .adaclip_prompts import AdaClipPrompts, end_positions, kept_dtype, text_blocks, vision_blocks
from .tokenizing import tokenize
from .trainable import TrainableBaselineModel
from .vision_embeddings import upcast


# Prompts that run through the text tower together. Those of one image are never split.
TEXT_BATCH = 512


@dataclass
class AdaClipImageFeatures(ModelOutput):
    """
    Output of [`AdaClipForAnomalyDetection.encode_images`].

    Args:
        plain_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Image embeddings of the vision tower without prompts, not normalized. `None` without dynamic prompts.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings of the vision tower with prompts, not normalized.
        patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, hidden_size)`):
            Outputs of the feature layers with prompts, without class token and prompts.
    """

    plain_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None


@dataclass
class AdaClipOutput(ModelOutput):
    """
    Output of [`AdaClipForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `mask_labels`):
            Training loss.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*, returned with `loss`):
            Parts of the loss: `image`, `focal`, `dice_anomalous` and `dice_normal`. The last three are summed over
            layers.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, *optional*):
            Anomaly maps, in [0, 1]. `None` with labels.
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Scaled cosines of the image and the prompts [normal, anomalous].
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Scaled cosines of each patch and the prompts [normal, anomalous].
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            Embeddings of the prompts [normal, anomalous], L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings after their head, before the fusion with clusters, L2-normalized.
        cluster_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Mean of the clusters of anomalous patches, L2-normalized. `None` with `use_hsf=False`.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    cluster_embeds: torch.Tensor | None = None


class AdaClipForAnomalyDetection(TrainableBaselineModel):
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

    config: AdaClipConfig
    config_class = AdaClipConfig
    method_name = "AdaCLIP"
    text_depends_on_image = True
    caches_features = False
    optimizer_class = torch.optim.AdamW
    _keep_in_fp32_modules_strict = ["vision_prompts", "text_prompts", "patch_heads", "image_head"]

    def __init__(self, config: AdaClipConfig) -> None:
        super().__init__(config)
        vision, text, joint = config.clip.vision_config, config.clip.text_config, config.clip.projection_dim
        depth = config.prompting_depth
        self.vision_prompts = AdaClipPrompts(config, depth, vision.hidden_size) if config.prompts_vision else None
        self.text_prompts = AdaClipPrompts(config, depth - 1, text.hidden_size) if config.prompts_text else None
        kept = kept_dtype()
        self.patch_heads = nn.ModuleList([nn.Linear(vision.hidden_size, joint, dtype=kept) for _ in config.layers])
        self.image_head = nn.Linear(joint, joint, dtype=kept)
        self.text_depends_on_image = config.prompts_text and config.is_dynamic
        # Token ids of prompts, and text embeddings that do not change.
        self._memory: dict[Any, torch.Tensor] = {}
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

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the model. Text embeddings in another precision are not used again."""
        self._memory.clear()
        return super()._apply(*args, **kwargs)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, width)` of the `patch_tokens` of an image."""
        config = self.config
        return len(config.layers), config.patch_grid**2, config.clip.vision_config.hidden_size

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each part of the loss by its name."""
        return {"image": 1.0, "focal": 1.0, "dice_anomalous": 1.0, "dice_normal": 1.0}

    # Texts

    def pool_prompts(self, features: torch.Tensor) -> torch.Tensor:
        """
        Normalize the embeddings of the prompts of one kind, average them, and normalize the mean.

        Args:
            features (`torch.FloatTensor` of shape `(..., num_prompts, projection_dim)`): embeddings of prompts.

        Returns:
            `torch.FloatTensor` of shape `(..., projection_dim)`: the embedding.
        """
        return F.normalize(F.normalize(features, dim=-1).mean(dim=-2), dim=-1)  # (..., D)

    def get_input_ids(self, class_name: str | None = None) -> torch.Tensor:
        """
        Tokenize the prompts of a class. The result is remembered.

        Args:
            class_name (`str`, *optional*): name of the class. By default, `config.class_name`.

        Returns:
            `torch.LongTensor` of shape `(num_prompts, length)`: token ids with start and end token, the normal prompts
                first, on the CPU. The length is that of the longest prompt.

        Raises:
            ValueError: if there is no tokenizer, or a prompt is too long, or too short for the learned prompts.
        """
        normal, anomalous = self.get_prompts(class_name)
        texts = (*normal, *anomalous)
        key = (id(self.tokenizer), texts)
        if key not in self._memory:
            with torch.inference_mode(False):  # the ids are also used in training
                ids = tokenize(self.tokenizer, texts, self.config.clip.text_config)  # (N, T)
            replaced = self.config.prompting_length if self.config.prompts_text else 0
            for text, end in zip(texts, end_positions(ids, self.config.clip.text_config).tolist()):
                if end <= replaced:
                    raise ValueError(
                        f"The prompt {text!r} has {end - 1} tokens; expected at least {replaced}, the "
                        "prompting_length, because learned prompts replace as many of its tokens. Use longer texts, "
                        "such as a state that repeats its word, or a smaller prompting_length."
                    )
            self._memory[key] = ids
        return self._memory[key]

    def encode_prompts(self, input_ids: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """
        Encode tokenized prompts.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_prompts, length)`): token ids with start and end token.
            prompts (`torch.FloatTensor` of shape `(batch_size or 1, depth - 1, prompting_length, text_width)`,
                *optional*): learned prompts from `text_prompts`. By default, the text tower runs without them.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_prompts, projection_dim)`, or `(num_prompts,
                projection_dim)` without learned prompts: projected end tokens, not normalized.
        """
        if prompts is None:
            return super().encode_prompts(input_ids)
        ids, text, parts = input_ids.long().to(self.device), self.clip.text_model, []
        count, ends = len(ids), end_positions(ids, self.config.clip.text_config)
        for part in prompts.split(max(1, TEXT_BATCH // count)):
            hidden = deque(text_blocks(text, ids, part), maxlen=1).pop()  # (b * N, T, C)
            tokens = hidden.view(len(part), count, *hidden.shape[1:])[:, torch.arange(count, device=ids.device), ends]
            parts.append(self.clip.text_projection(text.final_layer_norm(tokens)))  # (b, N, D)
        return upcast(torch.cat(parts))  # (B, N, D)

    def get_text_embeds(
        self, class_name: str | Sequence[str] | None = None, plain_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Compute the text embeddings of a class, or of the classes of images.

        Args:
            class_name (`str` or `Sequence[str]`, *optional*): name of the class, or one name per image. By default,
                `config.class_name`.
            plain_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*): image embeddings
                from `encode_images`. Required if the embeddings depend on the image.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: the embeddings [normal, anomalous] for each
                image. If they do not depend on the image, of shape `(2, projection_dim)` for one class, or
                `(num_names, 2, projection_dim)`.

        Raises:
            ValueError: if embeddings of images are required, there is no tokenizer, or a prompt is too long or short.
        """
        if not self.text_depends_on_image:
            names = [class_name] if class_name is None or isinstance(class_name, str) else list(class_name)
            found = {name: self._encode_class(name, None)[0] for name in dict.fromkeys(names)}  # (2, D)
            single = class_name is None or isinstance(class_name, str)
            return found[names[0]] if single else torch.stack([found[name] for name in names])
        if plain_embeds is None:
            raise ValueError(
                "The text embeddings of AdaCLIP depend on the image; expected plain_embeds of encode_images. To get "
                "scores and maps, call the model with class_name=."
            )
        names = self.class_names_for(class_name, len(plain_embeds))
        groups = {name: [i for i, one in enumerate(names) if one == name] for name in dict.fromkeys(names)}
        embeds = torch.cat([self._encode_class(name, plain_embeds[rows]) for name, rows in groups.items()])
        order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
        return embeds[order.to(embeds.device)]  # (B, 2, D)

    def _encode_class(self, class_name: str | None, plain_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return the text embeddings of a class for images, of shape (B or 1, 2, D)."""
        ids = self.get_input_ids(class_name)
        count = len(self.get_prompts(class_name)[0])
        if self.text_prompts is not None:
            with without_autocast(self.device.type):
                prompts = self.text_prompts(None if plain_embeds is None else upcast(plain_embeds))
            return self._pool_kinds(self.encode_prompts(ids, prompts), count)
        weight = self.clip.text_projection.weight
        # The version changes when weights are loaded.
        key = (id(self.tokenizer), *map(tuple, self.get_prompts(class_name)), weight.data_ptr(), weight._version)
        if key not in self._memory:
            # The text tower is frozen. Tensors of inference mode could not be used for training later.
            with torch.inference_mode(False), torch.no_grad():
                self._memory[key] = self._pool_kinds(self.encode_prompts(ids)[None], count)
        return self._memory[key]

    def _pool_kinds(self, features: torch.Tensor, count: int) -> torch.Tensor:
        """Pool features of shape (B, N, D), of which the first `count` are normal. Shape (B, 2, D)."""
        with without_autocast(self.device.type):
            kinds = features[:, :count], features[:, count:]
            return torch.stack([self.pool_prompts(kind) for kind in kinds], dim=1)

    # Images

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Not available: AdaCLIP has no features to cache, because it trains prompts inside the vision tower.

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
        Average the clusters of the most anomalous patches (hybrid semantic fusion).

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`): patch
                embeddings of `project`.
            patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, 2)`): their logits.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, projection_dim)`: the mean of the clusters, L2-normalized.
        """
        clusters = self.config.k_clusters
        chosen = gather_patches(patch_embeds, top_patches(patch_logits, clusters))  # (B, L, k, D)
        labels = kmeans(chosen.transpose(1, 2).flatten(2), clusters, self.config.kmeans_seed)  # (B, k)
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
                Not supported: there are no features to cache.
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
        text = self._text_for(features, text_embeds, class_name)  # (B, 2, D)
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

    def _text_for(
        self,
        features: AdaClipImageFeatures,
        text_embeds: torch.Tensor | None,
        class_name: str | Sequence[str] | None,
    ) -> torch.Tensor:
        """Return the text embeddings of a call for each image, of shape (B, 2, D)."""
        images: Any = features.image_embeds
        count, width = images.shape
        if text_embeds is None:
            text = self.get_text_embeds(self.class_names_for(class_name, count), features.plain_embeds)
            return text
        if class_name is not None:
            raise ValueError("text_embeds and class_name are both set; expected one of them.")
        if tuple(text_embeds.shape) not in ((2, width), (count, 2, width)):
            raise ValueError(
                f"text_embeds has shape {tuple(text_embeds.shape)}; expected {(2, width)} or {(count, 2, width)}."
            )
        return upcast(text_embeds.to(self.device)).expand(count, -1, -1)

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


__all__ = ["AdaClipForAnomalyDetection", "AdaClipImageFeatures", "AdaClipOutput"]
