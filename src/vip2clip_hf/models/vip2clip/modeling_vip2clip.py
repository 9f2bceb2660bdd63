"""ViP²-CLIP for anomaly detection.

The data flow of `ViP2ClipForAnomalyDetection.forward`, with one public method per stage:

    pixel_values -> get_image_features    -> image_embeds, patch_embeds    frozen vision tower
    image_embeds -> get_prompt_features   -> text_embeds                   ICA and frozen text tower
    text_embeds, patch_embeds -> align    -> layer maps, logits, scores    FGP and UTPA
    layer maps   -> get_anomaly_maps      -> anomaly maps
    patch_embeds, references -> compare_with_references -> scores, anomaly maps
    logits, layer maps -> compute_loss    -> loss

Section, equation and table numbers refer to the paper (arXiv:2505.17692). In shape comments, B is the batch size, L
the number of feature layers, P the number of patches, T the number of tokens of a prompt, e the number of context
tokens, r the number of object tokens, D the size of CLIP's joint space, C the width of the text tower.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .adapters_vip2clip import ViP2ClipFineGrainedPerception, ViP2ClipImageConditionedAdapter, ViP2ClipPromptLearner
from .configuration_vip2clip import ViP2ClipConfig
from .decision_config_vip2clip import DecisionConfig
from .loss_vip2clip import vip2clip_loss
from .maps_vip2clip import resize_maps, without_autocast
from .pretrained_vip2clip import ViP2ClipPreTrainedModel, disable_dropout
from .provenance_vip2clip import Provenance
from .reference_bank_vip2clip import ReferenceBank
from .reference_rule_vip2clip import top_mean


@dataclass
class ViP2ClipImageFeatures(BaseModelOutputWithPooling):
    """
    Output of [`ViP2ClipForAnomalyDetection.get_image_features`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`):
            Hidden states after the last vision block.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Projected class token, not normalized.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Of the vision tower, returned with `output_hidden_states=True` and `output_attentions=True`.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings: `pooler_output`, L2-normalized.
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
            Patch embeddings of the blocks in `feature_layers`, in row-major order, L2-normalized.
    """

    image_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None


@dataclass
class ViP2ClipPromptFeatures(BaseModelOutputWithPooling):
    """
    Output of [`ViP2ClipForAnomalyDetection.get_prompt_features`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size * 2, prompt_length, text_width)`):
            Hidden states after the last text block. The prompts [normal, anomalous] of an image are adjacent.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, 2, text_width)`):
            Hidden states of the end tokens, after the final layer norm.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Of the text tower, returned with `output_hidden_states=True` and `output_attentions=True`.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            Prompt embeddings [normal, anomalous], L2-normalized.

    If all images have the same prompts (`use_image_conditioning=False`), the text tower runs once, and the batch size
    of all fields except `text_embeds` is 1.
    """

    text_embeds: torch.Tensor | None = None


@dataclass
class ViP2ClipAlignmentOutput(ModelOutput):
    """
    Output of [`ViP2ClipForAnomalyDetection.align`]. All tensors are float32, or float64 if the inputs are.

    Args:
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of every patch in every feature layer, in [0, 1].
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Logits [normal, anomalous] of the image. `softmax(logits)[:, 1]` equals `scores`.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, projection_dim)`):
            Prompt embeddings refined for every feature layer (eq. 6), L2-normalized.
        layer_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2)`, *optional*):
            Similarity of the top patches to the prompts [normal, anomalous] in every feature layer, divided by the
            temperature. `None` with `alignment="dual"`.
        cross_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attention of the prompts over the patches. One tensor per feature layer, of shape
            `(batch_size, fgp_num_heads, 2, num_patches)`. `None` without fine-grained perception.
    """

    layer_maps: torch.Tensor
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    layer_logits: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ViP2ClipAnomalyDetectionOutput(ModelOutput):
    """
    Output of [`ViP2ClipForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `mask_labels`):
            Training loss (eq. 9).
        loss_components (`dict[str, torch.FloatTensor]`, *optional*, returned with `loss`):
            Parts of the loss: `image`, `focal`, `dice_anomalous` and `dice_normal`. The last three are summed over
            layers and not multiplied by `local_loss_weight`.
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Logits [normal, anomalous] of the image. Without references, `softmax(logits)[:, 1]` equals `scores`.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1]. With references, the combined score, see
            [`ReferenceBank`].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`):
            Smoothed anomaly map (eq. 11), in [0, 1]. With references, the combined map.
        reference_scores (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, returned with references):
            Mean of the largest percent of the distance map, in [0, 2].
        reference_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, *optional*):
            Smoothed distances of the patches to the nearest patch of the references, in [0, 2].
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of every patch in every feature layer, before upsampling.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, projection_dim)`):
            Prompt embeddings refined for every feature layer (eq. 6), L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embedding, the projected class token, L2-normalized.
        cross_attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True`):
            Attention of the prompts over the patches, as in the paper's Fig. 3. One tensor per feature layer, of shape
            `(batch_size, fgp_num_heads, 2, num_patches)`.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states and attentions of the vision tower, returned with `output_hidden_states=True` and
            `output_attentions=True`. CLIP returns attentions only with the attention implementation `"eager"`.
        vision_model_output ([`ViP2ClipImageFeatures`], *optional*), text_model_output ([`ViP2ClipPromptFeatures`],
            *optional*): Outputs of both towers, returned with `output_hidden_states=True` or
            `output_attentions=True`. `vision_model_output` requires `pixel_values`.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    layer_maps: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    reference_scores: torch.Tensor | None = None
    reference_maps: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    vision_model_output: ViP2ClipImageFeatures | None = None
    text_model_output: ViP2ClipPromptFeatures | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Convert to a tuple of the values that are not `None`. The outputs of the towers become tuples as well."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def _upcast(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32. Keep float32 and float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ViP2ClipVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings, with a configurable interpolation of the position embeddings."""

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__(config.clip_vision_config)
        self.vip2clip_config = config

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """
        Resize the position embeddings for an image size, without changing the stored ones.

        Args:
            embeddings (`torch.Tensor`): not used, part of the signature in `CLIPVisionEmbeddings`.
            height, width (`int`): size of the image in pixels.

        Returns:
            `torch.Tensor` of shape `(1, 1 + num_patches, hidden_size)`: the position embeddings.
        """
        table = self.position_embedding(self.position_ids)  # (1, 1 + native * native, hidden)
        native = math.isqrt(self.position_embedding.num_embeddings - 1)
        patch = self.vip2clip_config.clip_patch_size
        grid = (height // patch, width // patch)
        if grid == (native, native):
            return table
        patches = _upcast(table[:, 1:]).mT.unflatten(-1, (native, native))
        mode = self.vip2clip_config.position_interpolation
        patches = F.interpolate(patches, size=grid, mode=mode, align_corners=False)
        return torch.cat([table[:, :1], patches.flatten(2).mT.to(table.dtype)], dim=1)  # (1, 1 + grid * grid, hidden)


class ViP2ClipForAnomalyDetection(ViP2ClipPreTrainedModel):
    r"""
    ViP²-CLIP for zero-shot anomaly detection: predicts an anomaly score and an anomaly map for each image.

    The model adds small trainable adapters to a frozen CLIP. It has three stages:

    - The image-conditioned adapter (ICA) builds a normal and an anomalous prompt for the image.
    - Fine-grained perception (FGP) refines both prompts with the image patches of every feature layer.
    - Unified text-patch alignment (UTPA) compares the patches with the refined prompts, which gives the score and the
      map.

    Only `prompt_learner`, `image_conditioned_adapter` and `fine_grained_perception` are trained. CLIP is frozen when
    the model is created or loaded. The adapters stay in float32 if the model is in half precision.

    To load a checkpoint, use [`ViP2ClipForAnomalyDetection.from_pretrained`]. To add new adapters to a CLIP
    checkpoint, use [`ViP2ClipForAnomalyDetection.from_clip`].

    Args:
        config ([`ViP2ClipConfig`]):
            Configuration of the model. All weights are initialized randomly, including those of CLIP.

    Raises:
        ViP2ClipConfigError: if a value of the configuration is not allowed.

    Example:

    ```python
    >>> import torch
    >>> from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor

    >>> model = ViP2ClipForAnomalyDetection.from_pretrained("path/to/checkpoint")
    >>> processor = ViP2ClipImageProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor("photo.jpg", return_tensors="pt")
    >>> with torch.inference_mode():
    ...     outputs = model(**inputs)
    >>> result = processor.post_process_anomaly_detection(outputs, target_sizes=[(1200, 1600)])[0]
    >>> result["score"], result["label"], result["anomaly_map"].shape
    ```
    """

    def __init__(self, config: ViP2ClipConfig) -> None:
        config.check_values()
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip_config)
        self.clip.vision_model.embeddings = ViP2ClipVisionEmbeddings(config)
        self.prompt_learner = ViP2ClipPromptLearner(config)
        self.image_conditioned_adapter = ViP2ClipImageConditionedAdapter(config)
        self.fine_grained_perception = ViP2ClipFineGrainedPerception(config)
        self.decision = DecisionConfig()
        self.provenance = Provenance()
        self.references: ReferenceBank | None = None
        self.post_init()
        self.freeze_backbone()
        self.train(self.training)  # CLIP without dropout

    def train(self, mode: bool = True) -> "ViP2ClipForAnomalyDetection":
        """
        Switch the adapters to training or eval mode. CLIP computes without dropout in both.

        Args:
            mode (`bool`, defaults to `True`): whether to use training mode.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model itself.
        """
        super().train(mode)
        disable_dropout(self.clip)
        return self

    # Stages

    @capture_outputs(tie_last_hidden_states=False)
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: Sequence[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """
        Compute image and patch embeddings with the vision tower (section 3).

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Square images from [`ViP2ClipImageProcessor`]. Their side must be a multiple of the patch size.
            hidden_states (`Sequence[torch.FloatTensor]`, *optional*):
                Instead of images, the states of the vision tower for them, each of shape
                `(batch_size, 1 + num_patches, hidden_size)`: the input of the first block, then the output of each
                block. Another model with the same vision tower may have computed them.
            kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in `CLIPModel`.

        Returns:
            [`ViP2ClipImageFeatures`] or `tuple`: embeddings and hidden states.

        Raises:
            ValueError: if neither or both are passed, or the shape is wrong.
        """
        vision = self.clip.vision_model
        if hidden_states is None and pixel_values is not None:
            self._check_pixel_values(pixel_values)
            hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=True)
            hidden = vision.pre_layrnorm(hidden)  # (B, 1 + P, width)
        else:
            self._check_hidden_states(pixel_values, hidden_states)
        patch_embeds = []
        for number, block in enumerate(vision.encoder.layers, start=1):
            hidden = block(hidden, None) if hidden_states is None else hidden_states[number]
            if number in self.config.feature_layers:
                projected = self.clip.visual_projection(vision.post_layernorm(hidden[:, 1:]))  # (B, P, D)
                patch_embeds.append(F.normalize(projected, dim=-1))
        class_token = hidden[:, 0]
        if self.config.image_embeds_layernorm:
            class_token = vision.post_layernorm(class_token)
        pooled = self.clip.visual_projection(class_token)  # (B, D)
        return ViP2ClipImageFeatures(
            last_hidden_state=hidden,
            pooler_output=pooled,
            image_embeds=F.normalize(pooled, dim=-1),
            patch_embeds=torch.stack(patch_embeds, dim=1),  # (B, L, P, D)
        )

    def get_prompts(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """
        Build the prompts of eqs. 4 and 5, [start] [context] [state word] [object tokens] [end].

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings. They do not need to be normalized.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`: the prompts [normal, anomalous]
            as input embeddings of the text tower, without position embeddings. If the state words differ in length,
            the shorter prompt is padded with end tokens.
        """
        config, embed = self.config, self.get_input_embeddings()
        normal_context, anomalous_context, object_tokens = self.prompt_learner()  # (e, C), (e, C), (r, C)
        tokens = self.image_conditioned_adapter(F.normalize(image_embeds, dim=-1), object_tokens)  # (B, r, C)
        batch_size, longest = tokens.shape[0], max(config.prompt_lengths)
        prompts = []
        for context, word_ids, length in zip(
            (normal_context, anomalous_context),
            (config.normal_token_ids, config.anomalous_token_ids),
            config.prompt_lengths,
        ):
            # The tokens that are the same for all images are embedded once.
            ids = torch.tensor([config.bos_token_id, *(word_ids or ()), config.eos_token_id], device=tokens.device)
            fixed = embed(ids)  # (2 + words, C)
            prefix = torch.cat([fixed[:1], context.to(fixed), fixed[1:-1]]).expand(batch_size, -1, -1)
            suffix = fixed[-1:].expand(batch_size, 1 + longest - length, -1)
            prompts.append(torch.cat([prefix, tokens.to(fixed), suffix], dim=1))
        return torch.stack(prompts, dim=1)  # (B, 2, T, C)

    @capture_outputs(tie_last_hidden_states=False)
    def encode_prompts(self, prompts: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> Any:
        """
        Run prompts through the text tower and project their end tokens.

        Attention is causal and ignores tokens after the end token. Prompts therefore do not need padding to 77 tokens.

        Args:
            prompts (`torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`):
                Prompts from [`get_prompts`].
            kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in `CLIPModel`.

        Returns:
            [`ViP2ClipPromptFeatures`] or `tuple`: embeddings and hidden states.
        """
        text = self.clip.text_model
        hidden = text.embeddings(inputs_embeds=prompts.flatten(0, 1))  # (B * 2, T, C)
        # sdpa uses is_causal, and its mask is None. eager uses the mask. Arguments are positional, because
        # transformers 5.24 renamed the last one.
        mask = create_causal_mask(text.config, hidden, None, None)
        hidden = text.encoder(hidden, mask, is_causal=True).last_hidden_state
        tokens = hidden.unflatten(0, (-1, 2))  # (B, 2, T, C)
        ends = [tokens[:, position, length - 1] for position, length in enumerate(self.config.prompt_lengths)]
        pooled = text.final_layer_norm(torch.stack(ends, dim=1))  # (B, 2, C)
        return ViP2ClipPromptFeatures(
            last_hidden_state=hidden,
            pooler_output=pooled,
            text_embeds=F.normalize(self.clip.text_projection(pooled), dim=-1),  # (B, 2, D)
        )

    @can_return_tuple
    def get_prompt_features(self, image_embeds: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> Any:
        """
        Compute the embeddings of the image-conditioned prompts (ICA, section 4.1).

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings. They do not need to be normalized.
            kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in `CLIPModel`.

        Returns:
            [`ViP2ClipPromptFeatures`] or `tuple`: embeddings and hidden states.
        """
        batch_size = image_embeds.shape[0]
        if not self.config.use_image_conditioning:
            image_embeds = image_embeds[:1]  # all images have the same prompts
        features = self.encode_prompts(self.get_prompts(image_embeds), **{**kwargs, "return_dict": True})
        features.text_embeds = features.text_embeds.expand(batch_size, -1, -1)  # (B, 2, D)
        return features

    def align(
        self,
        text_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        image_embeds: torch.Tensor | None = None,
        *,
        top_k: int | None = None,
        normalized: bool = False,
    ) -> ViP2ClipAlignmentOutput:
        """
        Refine the prompts with the patches (FGP, eq. 6), and compare patches and prompts (UTPA, section 4.2).

        Everything is computed in float32 regardless of the model's dtype, or in float64 if the inputs are float64. The
        embeddings do not need to be normalized.

        Args:
            text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
                Prompt embeddings [normal, anomalous].
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                Patch embeddings on a square grid, in row-major order.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Image embeddings. Required with `alignment="dual"`, otherwise not used.
            top_k (`int`, *optional*):
                Number of top patches per layer used for the image score. By default, `top_k` of the configuration.
            normalized (`bool`, defaults to `False`):
                Whether `patch_embeds` is already L2-normalized. Avoids a copy of it, the most expensive step, in
                float32 and float64. Half precision is always normalized again.

        Returns:
            [`ViP2ClipAlignmentOutput`]: layer maps, logits, scores and refined prompt embeddings.

        Raises:
            ValueError: if the patches do not form a square grid, `top_k` is out of range, or `image_embeds` is
                required but missing.
        """
        config = self.config
        num_patches = patch_embeds.shape[2]
        grid = int(num_patches**0.5)
        if grid * grid != num_patches:
            raise ValueError(f"patch_embeds has {num_patches} patches; expected a square number.")
        top_k = config.top_k if top_k is None else top_k
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= num_patches:
            raise ValueError(
                f"top_k is {top_k!r}; expected an integer from 1 to {num_patches}, the number of patches."
            )

        with without_autocast(patch_embeds.device.type):
            text_embeds = F.normalize(_upcast(text_embeds), dim=-1)  # (B, 2, D)
            if not normalized or patch_embeds.dtype in (torch.float16, torch.bfloat16):
                patch_embeds = F.normalize(_upcast(patch_embeds), dim=-1)  # (B, L, P, D)
            refined, attention = self.fine_grained_perception(text_embeds, patch_embeds)
            refined = F.normalize(refined, dim=-1)  # (B, L, 2, D)

            cosines = patch_embeds @ refined.mT  # (B, L, P, 2)
            probabilities = (cosines / config.temperature).softmax(dim=-1)
            layer_maps = probabilities.mT.unflatten(-1, (grid, grid))  # (B, L, 2, grid, grid)

            layer_logits = None
            if config.alignment == "dual":
                if image_embeds is None:
                    raise ValueError("image_embeds is None; expected image embeddings with alignment='dual'.")
                image_embeds = F.normalize(_upcast(image_embeds), dim=-1)
                logits = (text_embeds @ image_embeds[..., None])[..., 0] / config.temperature  # (B, 2)
            else:
                pooled = self.pool_patches(patch_embeds, cosines, top_k)  # (B, L, D)
                if config.image_score == "pooled_features":
                    pooled = F.normalize(pooled, dim=-1)
                # For mean_logits, do not normalize: the product with a prompt is then the mean cosine of the patches.
                layer_logits = (refined @ pooled[..., None])[..., 0] / config.temperature  # (B, L, 2)
                if config.image_score == "pooled_features":  # log of the mean probability over layers
                    logits = layer_logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(layer_logits.shape[1])
                else:
                    logits = layer_logits.mean(dim=1)
            scores = logits.softmax(dim=-1)[:, 1]
        return ViP2ClipAlignmentOutput(
            layer_maps=layer_maps,
            logits=logits,
            scores=scores,
            text_embeds=refined,
            layer_logits=layer_logits,
            cross_attentions=None if attention is None else attention.unbind(1),
        )

    def pool_patches(self, patch_embeds: torch.Tensor, cosines: torch.Tensor, top_k: int) -> torch.Tensor:
        """
        Average the most anomalous patches of every layer (eq. 8).

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                L2-normalized patch embeddings.
            cosines (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, 2)`):
                Cosine similarities of patches and refined prompts [normal, anomalous].
            top_k (`int`):
                Number of patches to average.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_layers, projection_dim)`: the mean features, not normalized.
        """
        # The order is the same as by anomalous probability, but the difference does not saturate.
        margin = cosines[..., 1] - cosines[..., 0]  # (B, L, P)
        chosen = margin.topk(top_k, dim=-1).indices[..., None].expand(-1, -1, -1, patch_embeds.shape[-1])
        return patch_embeds.gather(2, chosen).mean(dim=2)  # (B, L, D)

    def get_anomaly_maps(self, layer_maps: torch.Tensor) -> torch.Tensor:
        """
        Compute anomaly maps (eq. 11): average the layers, upsample to `image_size` and smooth.

        Args:
            layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
                Probabilities [normal, anomalous] of every patch, for any number of layers.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`: the anomaly maps, in [0, 1].
        """
        # M_n + M_a = 1, so (1 - M_n + M_a) / 2 = M_a.
        maps = resize_maps(layer_maps[:, :, 1].mean(dim=1), self.config.image_size, self.config.smoothing_sigma)
        return maps.clamp(0, 1)

    def compare_with_references(
        self, references: ReferenceBank, patch_embeds: torch.Tensor, logits: torch.Tensor, anomaly_maps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Compare patches with those of references, and combine the distances with the zero-shot result.

        Args:
            references ([`ReferenceBank`]): patches of photos of good parts.
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                Patch embeddings from [`get_image_features`].
            logits (`torch.FloatTensor` of shape `(batch_size, 2)`): zero-shot logits from [`align`].
            anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`): zero-shot maps.

        Returns:
            `tuple`: combined scores of shape `(batch_size,)` and anomaly maps of shape `(batch_size, image_size,
            image_size)`, both in [0, 1], and `reference_scores` and `reference_maps`, see
            [`ViP2ClipAnomalyDetectionOutput`].
        """
        distances = references.distances(patch_embeds, self.clip.visual_projection)  # (B, grid, grid)
        reference_maps = references.maps(distances)  # (B, S, S)
        reference_scores = top_mean(reference_maps)
        scores = references.combined_scores(reference_scores, logits[:, 1] - logits[:, 0])
        return scores, references.combined_maps(reference_maps, anomaly_maps), reference_scores, reference_maps

    def compute_loss(
        self,
        aligned: ViP2ClipAlignmentOutput,
        labels: torch.Tensor | None,
        mask_labels: torch.Tensor | None,
        mask_valid: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Compute the training loss (eqs. 9 and 10) with the settings of the configuration.

        Args:
            aligned ([`ViP2ClipAlignmentOutput`]): output of [`align`].
            labels, mask_labels, mask_valid: see [`forward`]. At least one of `labels` and `mask_labels` is required.

        Returns:
            `tuple`: the loss, and its parts by name, see [`vip2clip_loss`].
        """
        config, size = self.config, self.config.image_size
        if mask_labels is not None and mask_valid is not None:
            # Images without a mask must not affect the loss, even if their placeholder contains NaN.
            mask_labels = torch.where(mask_valid.bool()[:, None, None], mask_labels, 0)
        per_layer = config.image_score == "pooled_features" and aligned.layer_logits is not None
        loss, parts = vip2clip_loss(
            logits=aligned.layer_logits if per_layer else aligned.logits,
            labels=labels,
            layer_maps=None if mask_labels is None else resize_maps(aligned.layer_maps, size),
            mask_labels=None if mask_labels is None else mask_labels != 0,
            mask_valid=mask_valid,
            local_loss_weight=config.local_loss_weight,
            focal_gamma=config.focal_gamma,
            focal_smooth=config.focal_smooth,
        )
        if config.alignment == "dual" and mask_labels is None:
            # Distributed training needs a gradient for every parameter, but this loss does not use the FGP.
            loss = loss + 0.0 * aligned.layer_maps.sum()
        return loss, parts

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        mask_valid: torch.Tensor | None = None,
        top_k: int | None = None,
        references: ReferenceBank | str | None = "auto",
        hidden_states: Sequence[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViP2ClipAnomalyDetectionOutput | tuple:
        """
        Compute anomaly scores and anomaly maps, and the loss if there are labels.

        Pass `pixel_values`, `hidden_states`, or `image_embeds` and `patch_embeds`. Only shapes are checked here. The
        image processor and the data collator check values.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 for normal images, 1 for anomalous images. Adds the image loss.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                0 for normal pixels, other values for anomalous pixels. Adds the pixel losses.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Image embeddings from [`get_image_features`].
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                Patch embeddings from [`get_image_features`].
            mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without a mask. They only contribute to the image loss.
            top_k (`int`, *optional*):
                Number of top patches per layer used for the image score (eq. 8). By default, `top_k` of the
                configuration.
            references ([`ReferenceBank`], *optional*, defaults to `"auto"`):
                Photos of good parts to compare the images with. Scores and maps then combine both. `"auto"` uses the
                references of the checkpoint, `model.references`, except in training mode. `None` uses none.
            hidden_states (`Sequence[torch.FloatTensor]`, *optional*):
                States of the vision tower instead of `pixel_values`, see [`get_image_features`].
            kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            [`ViP2ClipAnomalyDetectionOutput`] or `tuple`: the outputs.

        Raises:
            TypeError: if an argument is unknown.
            ValueError: if inputs are missing or have the wrong shape, `top_k` is out of range, or the references
                belong to another model.
        """
        unknown = set(kwargs) - set(TransformersKwargs.__annotations__)
        if unknown:
            raise TypeError(f"forward() got the unknown arguments {', '.join(sorted(unknown))}.")
        images = None
        if pixel_values is not None or hidden_states is not None:
            if image_embeds is not None or patch_embeds is not None:
                raise ValueError("Pass either pixel_values, or image_embeds and patch_embeds, not both.")
            if hidden_states is None:
                images = self.get_image_features(pixel_values, **{**kwargs, "return_dict": True})
            else:
                images = self.get_image_features(pixel_values, hidden_states, **{**kwargs, "return_dict": True})
            image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
        elif image_embeds is None or patch_embeds is None:
            raise ValueError("Pass pixel_values, or both image_embeds and patch_embeds from get_image_features.")
        self._check_inputs(image_embeds, patch_embeds, labels, mask_labels, mask_valid)

        prompts = self.get_prompt_features(image_embeds, **{**kwargs, "return_dict": True})
        aligned = self.align(
            prompts.text_embeds, patch_embeds, image_embeds, top_k=top_k, normalized=images is not None
        )
        anomaly_maps = self.get_anomaly_maps(aligned.layer_maps)
        loss, parts = None, None
        if labels is not None or mask_labels is not None:
            loss, parts = self.compute_loss(aligned, labels, mask_labels, mask_valid)

        output = ViP2ClipAnomalyDetectionOutput(
            loss=loss,
            loss_components=parts,
            logits=aligned.logits,
            scores=aligned.scores,
            anomaly_maps=anomaly_maps,
            layer_maps=aligned.layer_maps,
            text_embeds=aligned.text_embeds,
            image_embeds=F.normalize(image_embeds, dim=-1),
        )
        if isinstance(references, str):
            if references != "auto":
                raise ValueError(f"references is {references!r}; expected a ReferenceBank, 'auto' or None.")
            references = None if self.training else self.references
        if references is not None:
            # Compare names, not classes: remote code is loaded as separate copies of the classes.
            if not hasattr(references, "check_model"):
                raise ValueError(
                    f"references is of type {type(references).__name__}; expected a ReferenceBank, 'auto' or None. "
                    "Create it with ReferenceBank.from_images."
                )
            references.check_model(self)
            logits: Any = aligned.logits
            compared = self.compare_with_references(references, patch_embeds, logits, anomaly_maps)
            output.scores, output.anomaly_maps, output.reference_scores, output.reference_maps = compared
        with_hidden_states, with_attentions = (
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        if with_attentions:
            output.cross_attentions = aligned.cross_attentions
        if with_hidden_states or with_attentions:
            output.vision_model_output, output.text_model_output = images, prompts
            if images is not None:
                output.hidden_states, output.attentions = images.hidden_states, images.attentions
        return output

    # Checks of shapes

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        shape = tuple(pixel_values.shape)
        patch, channels = self.config.clip_patch_size, self.config.clip_vision_config.num_channels
        if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3] or shape[2] % patch or 0 in shape:
            raise ValueError(
                f"pixel_values has shape {shape}; expected (batch_size, {channels}, side, side), where side is a "
                f"multiple of {patch}, such as {self.config.image_size}. Use ViP2ClipImageProcessor."
            )
        quantized = type(self.clip.visual_projection).__module__.startswith("torch.ao.nn.quantized.dynamic")
        if quantized and pixel_values.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"The linear layers of CLIP are quantized by torch, but the images are in {pixel_values.dtype}; "
                "expected float32. Convert the model with .float() before quantizing it."
            )

    def _check_hidden_states(
        self, pixel_values: torch.Tensor | None, hidden_states: Sequence[torch.Tensor] | None
    ) -> None:
        if hidden_states is None or pixel_values is not None:
            found = "neither" if hidden_states is None else "both"
            raise ValueError(f"Pass either pixel_values or hidden_states; found {found}.")
        vision = self.config.clip_vision_config
        shapes = {tuple(state.shape) for state in hidden_states}
        fits = len(shapes) == 1 and all(len(one) == 3 and one[-1] == vision.hidden_size for one in shapes)
        if len(hidden_states) != 1 + vision.num_hidden_layers or not fits:
            raise ValueError(
                f"hidden_states contains {len(hidden_states)} tensors of the shapes {sorted(shapes)}; expected "
                f"{1 + vision.num_hidden_layers} of (batch_size, 1 + num_patches, {vision.hidden_size})."
            )

    def _check_inputs(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        labels: torch.Tensor | None,
        mask_labels: torch.Tensor | None,
        mask_valid: torch.Tensor | None,
    ) -> None:
        width, image, patch = self.config.clip_projection_dim, tuple(image_embeds.shape), tuple(patch_embeds.shape)
        if (
            len(image) != 2
            or len(patch) != 4
            or image[0] != patch[0]
            or image[-1] != width
            or patch[-1] != width
            or 0 in patch
        ):
            raise ValueError(
                f"image_embeds has shape {image} and patch_embeds {patch}; expected (batch_size, {width}) and "
                f"(batch_size, num_layers, num_patches, {width}), as returned by get_image_features."
            )
        batch, size = patch[0], self.config.image_size
        for name, tensor, shape in (
            ("labels", labels, (batch,)),
            ("mask_valid", mask_valid, (batch,)),
            ("mask_labels", mask_labels, (batch, size, size)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}.")


__all__ = [
    "ViP2ClipAlignmentOutput",
    "ViP2ClipAnomalyDetectionOutput",
    "ViP2ClipForAnomalyDetection",
    "ViP2ClipImageFeatures",
    "ViP2ClipPromptFeatures",
]
