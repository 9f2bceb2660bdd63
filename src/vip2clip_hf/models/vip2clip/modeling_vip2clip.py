"""ViP²-CLIP for anomaly detection.

The data flow, with one public method per stage:

    pixel_values -> get_vision_features -> image_embeds, patch_embeds
    image_embeds -> get_prompt_embeds   -> text_embeds
    text_embeds, patch_embeds -> align  -> layer maps, logits, scores
    layer maps   -> get_anomaly_maps    -> anomaly maps

Section, equation and table numbers refer to the paper (arXiv:2505.17692). In shape comments, B is the batch size, L
the number of feature layers, P the number of patches, T the number of tokens, r the number of image tokens, D the size
of CLIP's joint space, C the width of the text tower.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.utils.generic import ModelOutput

from .adapters_vip2clip import ViP2ClipFineGrainedPerception, ViP2ClipImageConditionedAdapter, ViP2ClipPromptLearner
from .backbone_vip2clip import (
    BACKBONE_PREFIX,
    HUB_KWARGS,
    load_clip,
    merge_adapters_with_backbone,
    naming,
    quiet_loading,
    token_settings,
)
from .configuration_vip2clip import ViP2ClipConfig
from .loss_vip2clip import vip2clip_loss
from .maps_vip2clip import resize_maps, without_autocast
from .prompt_prefix_vip2clip import PromptPrefixCache, ViP2ClipPromptPrefix, ViP2ClipTextAttention


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
        attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True`):
            Attention of the prompts over the patches. One tensor per feature layer, of shape
            `(batch_size, num_heads, 2, num_patches)`.
    """

    layer_maps: torch.Tensor
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    layer_logits: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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
            Logits [normal, anomalous] of the image. `softmax(logits)[:, 1]` equals `scores`.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`):
            Smoothed anomaly map (eq. 11), in [0, 1].
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of every patch in every feature layer, before upsampling.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, projection_dim)`):
            Prompt embeddings refined for every feature layer (eq. 6), L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embedding, the projected class token, L2-normalized.
        attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True`):
            Attention of the prompts over the patches, as in the paper's Fig. 3. One tensor per feature layer, of shape
            `(batch_size, num_heads, 2, num_patches)`.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    layer_maps: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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
        table = self.position_embedding.weight  # (1 + native * native, hidden)
        native = math.isqrt(table.shape[0] - 1)
        patch = self.vip2clip_config.clip_patch_size
        grid = (height // patch, width // patch)
        if grid == (native, native):
            return table[None]
        patches = _upcast(table[1:]).T.reshape(1, -1, native, native)
        patches = F.interpolate(
            patches, size=grid, mode=self.vip2clip_config.position_interpolation, align_corners=False
        )
        return torch.cat([table[:1], patches.flatten(2)[0].T.to(table.dtype)])[None]  # (1, 1 + grid * grid, hidden)


class ViP2ClipPreTrainedModel(PreTrainedModel):
    """Base class of ViP²-CLIP models: configuration, weight initialization and supported features."""

    config: ViP2ClipConfig
    config_class = ViP2ClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # declared as a list, but a tuple in the library's models
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch. Without this, the Trainer scales it by the number of accumulation steps and
    # processes.
    accepts_loss_kwargs = False
    _no_split_modules = [
        "CLIPEncoderLayer",
        "CLIPTextEmbeddings",
        "ViP2ClipVisionEmbeddings",
        "ViP2ClipFineGrainedPerception",
        "ViP2ClipImageConditionedAdapter",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the released code does: learned vectors from a normal distribution, linear layers with
        PyTorch's default. CLIP is a separate model and initializes its own weights."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (ViP2ClipPromptLearner, ViP2ClipImageConditionedAdapter)):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class ViP2ClipForAnomalyDetection(ViP2ClipPreTrainedModel):
    r"""
    ViP²-CLIP for zero-shot anomaly detection: predicts an anomaly score and an anomaly map for each image.

    The model adds small trainable adapters to a frozen CLIP. It has three stages:

    - The image-conditioned adapter (ICA) builds a normal and an anomalous prompt for the image.
    - Fine-grained perception (FGP) refines both prompts with the image patches of every feature layer.
    - Unified text-patch alignment (UTPA) compares the patches with the refined prompts, which gives the score and the
      map.

    Only `prompt_learner`, `image_conditioned_adapter` and `fine_grained_perception` are trained. CLIP always stays
    frozen and in eval mode, also after loading, `train()` and `requires_grad_()`.

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
        for block in self.clip.text_model.encoder.layers:
            # Same module and weights. The class adds attention to a cached prompt prefix.
            block.self_attn.__class__ = ViP2ClipTextAttention
        self.prompt_learner = ViP2ClipPromptLearner(config)
        self.image_conditioned_adapter = ViP2ClipImageConditionedAdapter(config)
        self.fine_grained_perception = ViP2ClipFineGrainedPerception(config)
        self.gradient_checkpointing = False
        self._prefix_cache = PromptPrefixCache()
        self.post_init()
        self.freeze_backbone()

    # Building and loading

    def freeze_backbone(self) -> None:
        """Freeze CLIP: disable its gradients and switch it to eval mode."""
        self.clip.requires_grad_(False)
        self.clip.eval()

    def train(self, mode: bool = True) -> "ViP2ClipForAnomalyDetection":
        """
        Switch the adapters to training or eval mode. CLIP stays frozen.

        Args:
            mode (`bool`, defaults to `True`): whether to use training mode.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model itself.
        """
        super().train(mode)
        # from_pretrained enables the gradients of all weights. Its last step is eval(), which calls this method.
        self.freeze_backbone()
        return self

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> "ViP2ClipForAnomalyDetection":
        # Called by to(), half(), cuda(), ... Do not keep the old weights in memory.
        self._prefix_cache.clear()
        return super()._apply(fn, *args, **kwargs)

    def requires_grad_(self, requires_grad: bool = True) -> "ViP2ClipForAnomalyDetection":
        """
        Enable or disable the gradients of the adapters. CLIP stays frozen.

        Args:
            requires_grad (`bool`, defaults to `True`): whether the adapters have gradients.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model itself.
        """
        super().requires_grad_(requires_grad)
        self.freeze_backbone()
        return self

    def adapter_state_dict(self) -> dict[str, torch.Tensor]:
        """
        Return the weights of the adapters.

        Returns:
            `dict[str, torch.Tensor]`: the state dict without the weights of CLIP.
        """
        return {k: v for k, v in self.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}

    @classmethod
    def from_clip(
        cls,
        clip: CLIPModel | str | os.PathLike,
        tokenizer: Any = None,
        *,
        variant: str = "paper",
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        device_map: Any = None,
        revision: str = "main",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **config_overrides: Any,
    ) -> "ViP2ClipForAnomalyDetection":
        """
        Create a model from a CLIP checkpoint, with new, untrained adapters.

        Args:
            clip (`CLIPModel`, `str` or `os.PathLike`):
                Backbone: a model, a folder or a Hub id. The weights of a model are copied.
            tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
                Tokenizer, or its folder or Hub id. Only needed for state words other than the words of the paper's
                Table 6.
            variant (`"paper"` or `"release"`, defaults to `"paper"`):
                Variant of the model, see [`ViP2ClipConfig.from_variant`].
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`):
                Dtype of the model, regardless of the dtype in the checkpoint.
            attn_implementation (`str`, *optional*):
                Attention implementation of CLIP, such as `"eager"` or `"sdpa"`.
            device_map (`str` or `dict`, *optional*):
                Devices of the modules, as in `PreTrainedModel.from_pretrained`.
            revision, token, cache_dir, local_files_only (*optional*):
                Options to load from the Hub, as in `PreTrainedModel.from_pretrained`.
            config_overrides:
                Fields of [`ViP2ClipConfig`] that replace the values of the variant.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model, in eval mode.

        Raises:
            OSError: if the checkpoint is not found.
            RuntimeError: if weights are missing from the checkpoint.
            ValueError: if it is not a CLIP checkpoint, or an override is not a field of the configuration or not
                allowed.
        """
        hub_kwargs: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        # Report a misspelled name before loading the backbone.
        ViP2ClipConfig.check_names(config_overrides)
        defaults = ViP2ClipConfig.from_variant(variant)
        source = None if isinstance(clip, CLIPModel) else os.fspath(clip)
        clip_model, origin = load_clip(clip, revision=revision, **hub_kwargs)
        words = {
            kind: config_overrides.get(f"{kind}_word", getattr(defaults, f"{kind}_word"))
            for kind in ("normal", "anomalous")
            if config_overrides.get(f"{kind}_token_ids") is None
        }
        clip_config = CLIPConfig.from_dict(clip_model.config.to_dict())
        vocab_size = clip_model.text_model.embeddings.token_embedding.num_embeddings
        settings = {
            "clip_config": clip_config,
            **origin,
            **token_settings(words, vocab_size, tokenizer, source, revision=revision, **hub_kwargs),
            **config_overrides,
        }
        config = ViP2ClipConfig.from_variant(variant, **settings)
        # Copy the weights of a model that belongs to the caller.
        weights = {BACKBONE_PREFIX + k: v if source else v.clone() for k, v in clip_model.state_dict().items()}
        kwargs = {"attn_implementation": attn_implementation, "device_map": device_map}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        # The adapters are missing on purpose. A report of missing weights would be misleading.
        with quiet_loading():
            return super().from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        backbone: CLIPModel | str | os.PathLike | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> "ViP2ClipForAnomalyDetection":
        """
        Load a checkpoint. The checkpoint is complete, or contains only the adapters.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of the checkpoint.
            config ([`ViP2ClipConfig`], `str` or `os.PathLike`, *optional*):
                Configuration to use instead of the configuration in the checkpoint.
            backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*):
                CLIP backbone of an adapters-only checkpoint: a model, a folder or a Hub id. By default, the
                `backbone_id` in the configuration. Its weights must match the checksum in the configuration.
            output_loading_info (`bool`, defaults to `False`):
                Whether to also return a dict with missing and unexpected keys.
            kwargs:
                Arguments of `PreTrainedModel.from_pretrained`, such as `dtype`, `device_map` and
                `attn_implementation`, and fields of [`ViP2ClipConfig`] to override.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model, in eval mode. With `output_loading_info=True`, a tuple of the
            model and the loading info.

        Raises:
            OSError: if checkpoint or backbone are not found.
            RuntimeError: if weights are missing or have another shape. They are never initialized randomly.
            ValueError: if the checkpoint belongs to another model type, its backbone is not the one used in training,
                or a value of the configuration is not allowed.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(
                None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs
            )
        checkpoint = pretrained_model_name_or_path
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        if not isinstance(config, PreTrainedConfig):
            overrides = {
                name: kwargs.pop(name)
                for name in list(kwargs)
                if name == "output_attentions"
                or (name in cls.config_class.__dataclass_fields__ and name not in ("dtype", *HUB_KWARGS))
            }
            source = checkpoint if config is None else config
            with naming("Checkpoint", source):
                config = cls.config_class.from_pretrained(source, **hub_kwargs, **overrides)
        # Typed as a model; with output_loading_info=True, it is a tuple.
        loaded: Any
        if config.adapters_only or backbone is not None:
            config, weights = merge_adapters_with_backbone(checkpoint, config, backbone, hub_kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_KWARGS}
            loaded = super().from_pretrained(
                None, *model_args, config=config, state_dict=weights, output_loading_info=True, **kwargs
            )
            loaded[0].name_or_path = loaded[0].config.name_or_path = str(checkpoint)
        else:
            with naming("Checkpoint", checkpoint):
                loaded = super().from_pretrained(
                    checkpoint, *model_args, config=config, output_loading_info=True, **kwargs
                )
        model, info = loaded
        # With ignore_mismatched_sizes=True, the library also initializes weights of another shape.
        missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if missing:
            raise RuntimeError(
                f"{checkpoint} lacks {len(missing)} of the model's weights "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); expected all of them, because "
                "missing weights would be random. For an adapters-only checkpoint, pass backbone=. To add new "
                "adapters to a CLIP checkpoint, use ViP2ClipForAnomalyDetection.from_clip."
            )
        return loaded if output_loading_info else model

    # Stages

    def get_vision_features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute image and patch embeddings with the frozen vision tower (section 3).

        Only the hidden states of the feature layers are kept in memory.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Square images from [`ViP2ClipImageProcessor`]. Their side must be a multiple of the patch size.

        Returns:
            `tuple`: two L2-normalized tensors:

            - `image_embeds` of shape `(batch_size, projection_dim)`, from the class token of the last block.
            - `patch_embeds` of shape `(batch_size, num_layers, num_patches, projection_dim)`, from the patch tokens of
              the blocks in `feature_layers`, in row-major order. Post layer norm and projection are applied.

        Raises:
            ValueError: if the shape is wrong, or a value is not finite.
        """
        self._check_pixel_values(pixel_values)
        vision = self.clip.vision_model
        hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden = vision.pre_layrnorm(hidden)  # (B, 1 + P, width)
        patch_embeds = []
        for number, block in enumerate(vision.encoder.layers, start=1):
            hidden = block(hidden, None)
            if number in self.config.feature_layers:
                projected = self.clip.visual_projection(vision.post_layernorm(hidden[:, 1:]))  # (B, P, D)
                patch_embeds.append(F.normalize(projected, dim=-1))
        class_token = hidden[:, 0]
        if self.config.image_embeds_layernorm:
            class_token = vision.post_layernorm(class_token)
        image_embeds = F.normalize(self.clip.visual_projection(class_token), dim=-1)  # (B, D)
        return image_embeds, torch.stack(patch_embeds, dim=1)  # (B, L, P, D)

    def get_prompts(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """
        Build the prompts of eqs. 4 and 5, [start] [context] [state word] [image tokens] [end].

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings. They do not need to be normalized.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`: the prompts [normal, anomalous]
            as input embeddings of the text tower, without position embeddings. If the state words differ in length,
            the shorter prompt is padded with end tokens.
        """
        config, learned = self.config, self.prompt_learner
        image_embeds = F.normalize(image_embeds, dim=-1)
        image_tokens = self.image_conditioned_adapter(image_embeds, learned.image_tokens)  # (B, r, C)
        batch_size, longest = image_tokens.shape[0], max(config.prompt_lengths)
        prompts = []
        for context, word_ids, length in zip(
            (learned.normal_context, learned.anomalous_context),
            (config.normal_token_ids, config.anomalous_token_ids),
            config.prompt_lengths,
        ):
            fixed_ids = [config.bos_token_id, *(word_ids or ()), config.eos_token_id]
            fixed = self.clip.text_model.embeddings.token_embedding(
                torch.tensor(fixed_ids, device=context.device)
            )  # (2 + words, C)
            prefix = torch.cat([fixed[:1], context, fixed[1:-1]]).expand(batch_size, -1, -1)
            suffix = fixed[-1:].expand(batch_size, 1 + longest - length, -1)
            prompts.append(torch.cat([prefix, image_tokens, suffix], dim=1))
        return torch.stack(prompts, dim=1)  # (B, 2, T, C)

    def get_prompt_prefix(self) -> ViP2ClipPromptPrefix | None:
        """
        Run the prompt prefix, the tokens that the prompts of all images share, through the text tower.

        The prefix consists of start token, context and state word. If the state words differ in length, both are cut
        to the shorter length. The result is cached until weights or settings change.

        Returns:
            [`ViP2ClipPromptPrefix`]: the prefix for [`encode_prompts`]. `None` if a prefix is not useful or not safe:

            - with gradients enabled or in training mode,
            - in compiled, exported and traced graphs,
            - if weights are on the meta device or offloaded,
            - if PyTorch does not count writes to the weights, for example because they were created in inference mode,
            - with attention implementations other than `"eager"` and `"sdpa"`.
        """
        text = self.clip.text_model
        contexts = [self.prompt_learner.normal_context, self.prompt_learner.anomalous_context]
        weights = [*text.parameters(), *contexts]
        if (
            self.training
            or torch.is_grad_enabled()
            or not _has_values(contexts[0])
            or text.config._attn_implementation not in ("eager", "sdpa")
            or not all(_counts_writes(weight) for weight in weights)
        ):
            return None
        config, device = self.config, contexts[0].device.type
        autocast = torch.is_autocast_enabled(device) if torch.amp.is_autocast_available(device) else False
        settings = (
            config.bos_token_id,
            config.normal_token_ids,
            config.anomalous_token_ids,
            text.config._attn_implementation,
            torch.get_autocast_dtype(device) if autocast else None,
        )
        prefix = self._prefix_cache.get(settings, weights, contexts)
        if prefix is None:
            no_image = contexts[0].new_zeros(1, config.clip_projection_dim)  # the prefix does not depend on the image
            length = min(config.prompt_lengths) - config.num_image_tokens - 1
            prefix = ViP2ClipPromptPrefix(length)
            self._run_text_blocks(self._embed_prompts(self.get_prompts(no_image))[:, :length], record=prefix)
            self._prefix_cache.put(settings, weights, contexts, prefix)
        return prefix

    def encode_prompts(self, prompts: torch.Tensor, prefix: ViP2ClipPromptPrefix | None = None) -> torch.Tensor:
        """
        Run prompts through the text tower and project their end tokens.

        Attention is causal and ignores tokens after the end token. Prompts therefore do not need padding to 77 tokens.

        Args:
            prompts (`torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`):
                Prompts from [`get_prompts`].
            prefix ([`ViP2ClipPromptPrefix`], *optional*):
                Prefix from [`get_prompt_prefix`]. Its tokens are not run again. The result is the same up to rounding.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: the prompt embeddings, not normalized.
        """
        text, start = self.clip.text_model, 0 if prefix is None else prefix.length
        hidden = self._run_text_blocks(self._embed_prompts(prompts)[:, start:], prefix)
        hidden = hidden.unflatten(0, (-1, 2))
        lengths = self.config.prompt_lengths
        ends = torch.stack([hidden[:, i, n - 1 - start] for i, n in enumerate(lengths)], dim=1)  # (B, 2, C)
        return self.clip.text_projection(text.final_layer_norm(ends))

    def _embed_prompts(self, prompts: torch.Tensor) -> torch.Tensor:
        """Add position embeddings: (B, 2, T, C) -> (B * 2, T, C)."""
        return self.clip.text_model.embeddings(inputs_embeds=prompts.flatten(0, 1))

    def _run_text_blocks(
        self,
        hidden: torch.Tensor,
        prefix: ViP2ClipPromptPrefix | None = None,
        record: ViP2ClipPromptPrefix | None = None,
    ) -> torch.Tensor:
        """Run the blocks of the text tower: (B * 2, T, C) -> (B * 2, T, C)."""
        text = self.clip.text_model
        if prefix is None:
            # sdpa uses is_causal, and its mask is None. eager uses the mask. Arguments are positional, because
            # transformers 5.24 renamed the last one.
            mask = create_causal_mask(text.config, hidden, None, None)
        else:
            # A token attends to the whole prefix, to itself and to the tokens before it.
            length, seen = hidden.shape[1], prefix.length
            mask = torch.ones(length, seen + length, dtype=torch.bool, device=hidden.device)
            mask = mask.tril(seen)[None, None]  # (1, 1, T, prefix + T)
            if text.config._attn_implementation == "eager":  # adds the mask to the logits
                mask = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        for number, block in enumerate(text.encoder.layers):
            earlier = None if prefix is None else (prefix.keys[number], prefix.values[number])
            run = partial(block, attention_mask=mask, is_causal=True, prefix=earlier, record=record)
            # The library's layers checkpoint activations only in training mode, but CLIP stays in eval mode.
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(run, hidden)
            else:
                hidden = run(hidden)
        return hidden

    def get_prompt_embeds(
        self, image_embeds: torch.Tensor, prefix: ViP2ClipPromptPrefix | None = None
    ) -> torch.Tensor:
        """
        Compute the embeddings of the image-conditioned prompts (ICA, section 4.1).

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings. They do not need to be normalized.
            prefix ([`ViP2ClipPromptPrefix`], *optional*):
                Prefix from [`get_prompt_prefix`], which is called by default.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: the prompt embeddings [normal, anomalous],
            L2-normalized.
        """
        batch_size = image_embeds.shape[0]
        if not self.config.use_image_conditioning:
            image_embeds = image_embeds[:1]  # all images have the same prompts
        prompts = self.get_prompts(image_embeds)
        prefix = self.get_prompt_prefix() if prefix is None else prefix
        text_embeds = F.normalize(self.encode_prompts(prompts, prefix), dim=-1)
        return text_embeds.expand(batch_size, -1, -1)

    def align(
        self,
        text_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        image_embeds: torch.Tensor | None = None,
        *,
        top_k: int | None = None,
        output_attentions: bool = False,
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
            output_attentions (`bool`, defaults to `False`):
                Whether to return the attention of the prompts over the patches.
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
        grid = math.isqrt(num_patches)
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
            attentions=attention.unbind(1) if output_attentions and attention is not None else None,
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

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        mask_label_valid: torch.Tensor | None = None,
        top_k: int | None = None,
        return_dict: bool | None = None,
    ) -> ViP2ClipAnomalyDetectionOutput | tuple:
        """
        Compute anomaly scores and anomaly maps, and the loss if there are labels.

        Pass either `pixel_values`, or `image_embeds` and `patch_embeds`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 for normal images, 1 for anomalous images. Adds the image loss.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                1 for anomalous pixels, 0 for normal pixels. Adds the pixel losses.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Image embeddings from [`get_vision_features`].
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                Patch embeddings from [`get_vision_features`].
            output_attentions (`bool`, *optional*):
                Whether to return the attention of the prompts over the patches.
            mask_label_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                `False` for images without a mask. They only contribute to the image loss.
            top_k (`int`, *optional*):
                Number of top patches per layer used for the image score (eq. 8). By default, `top_k` of the
                configuration.
            return_dict (`bool`, *optional*):
                Whether to return a [`ViP2ClipAnomalyDetectionOutput`] instead of a tuple.

        Returns:
            [`ViP2ClipAnomalyDetectionOutput`] or `tuple`: the outputs.

        Raises:
            ValueError: if inputs are missing or have the wrong shape, `top_k` is out of range, pixels or embeddings
                are not finite, or labels or masks contain values other than 0 and 1.
        """
        # Get the prefix first. It compares weights, which waits for all work queued on an accelerator.
        prefix = self.get_prompt_prefix()
        normalized = pixel_values is not None  # embeddings passed by the caller may not be normalized
        if pixel_values is not None:
            if image_embeds is not None or patch_embeds is not None:
                raise ValueError("Pass either pixel_values, or image_embeds and patch_embeds, not both.")
            image_embeds, patch_embeds = self.get_vision_features(pixel_values)
        elif image_embeds is None or patch_embeds is None:
            raise ValueError("Pass pixel_values, or both image_embeds and patch_embeds from get_vision_features.")
        else:
            self._check_embeds(image_embeds, patch_embeds)
        self._check_labels(patch_embeds.shape[0], labels, mask_labels, mask_label_valid)
        if mask_labels is not None and mask_label_valid is not None:
            # Images without a mask must not affect the loss, even if their placeholder contains NaN.
            mask_labels = torch.where(mask_label_valid.bool()[:, None, None], mask_labels, 0)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if return_dict is None:
            return_dict = self.config.return_dict

        text_embeds = self.get_prompt_embeds(image_embeds, prefix)
        aligned = self.align(
            text_embeds,
            patch_embeds,
            image_embeds,
            top_k=top_k,
            output_attentions=bool(output_attentions),
            normalized=normalized,
        )

        loss, parts = None, None
        if labels is not None or mask_labels is not None:
            per_layer = self.config.image_score == "pooled_features" and aligned.layer_logits is not None
            loss, parts = vip2clip_loss(
                logits=aligned.layer_logits if per_layer else aligned.logits,
                labels=labels,
                layer_maps=None if mask_labels is None else resize_maps(aligned.layer_maps, self.config.image_size),
                mask_labels=mask_labels,
                mask_label_valid=mask_label_valid,
                local_loss_weight=self.config.local_loss_weight,
                focal_gamma=self.config.focal_gamma,
                focal_smooth=self.config.focal_smooth,
            )
            if self.config.alignment == "dual" and mask_labels is None:
                # Distributed training needs a gradient for every parameter, but this loss does not use the FGP.
                loss = loss + 0.0 * aligned.layer_maps.sum()
        output = ViP2ClipAnomalyDetectionOutput(
            loss=loss,
            loss_components=parts,
            logits=aligned.logits,
            scores=aligned.scores,
            anomaly_maps=self.get_anomaly_maps(aligned.layer_maps),
            layer_maps=aligned.layer_maps,
            text_embeds=aligned.text_embeds,
            image_embeds=F.normalize(image_embeds, dim=-1),
            attentions=aligned.attentions,
        )
        return output if return_dict else output.to_tuple()

    # Checks. Checks of values are skipped in traced and compiled graphs.

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        shape = tuple(pixel_values.shape)
        patch, channels = self.config.clip_patch_size, self.config.clip_vision_config.num_channels
        if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3] or shape[2] % patch or 0 in shape:
            raise ValueError(
                f"pixel_values has shape {shape}; expected (batch_size, {channels}, side, side), where side is a "
                f"multiple of {patch}, such as {self.config.image_size}. Use ViP2ClipImageProcessor."
            )
        self._check_finite("pixel_values", pixel_values)

    def _check_embeds(self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> None:
        width, image, patch = self.config.clip_projection_dim, tuple(image_embeds.shape), tuple(patch_embeds.shape)
        if (
            len(image) != 2
            or len(patch) != 4
            or image[0] != patch[0]
            or {image[-1], patch[-1]} != {width}
            or 0 in patch
        ):
            raise ValueError(
                f"image_embeds has shape {image} and patch_embeds {patch}; expected (batch_size, {width}) and "
                f"(batch_size, num_layers, num_patches, {width}), as returned by get_vision_features."
            )
        self._check_finite("image_embeds", image_embeds)
        self._check_finite("patch_embeds", patch_embeds)

    def _check_finite(self, name: str, tensor: torch.Tensor) -> None:
        if _has_values(tensor) and not torch.isfinite(tensor).all():
            positions = (~torch.isfinite(tensor).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(
                f"{name} contains NaN or infinite values for the images at positions {positions} of the batch; "
                "expected finite values."
            )

    def _check_labels(
        self,
        batch_size: int,
        labels: torch.Tensor | None,
        mask_labels: torch.Tensor | None,
        mask_label_valid: torch.Tensor | None,
    ) -> None:
        size = self.config.image_size
        for name, tensor, shape in (
            ("labels", labels, (batch_size,)),
            ("mask_label_valid", mask_label_valid, (batch_size,)),
            ("mask_labels", mask_labels, (batch_size, size, size)),
        ):
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}.")
            if name == "mask_labels" and mask_label_valid is not None and _has_values(tensor):
                tensor = tensor[mask_label_valid.bool()]
            if _has_values(tensor) and tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
                found = torch.unique(tensor[(tensor != 0) & (tensor != 1)])[:5].tolist()
                raise ValueError(f"{name} contains the values {found}; expected only 0 (normal) and 1 (anomalous).")


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read: not in compiled and traced graphs, and not on the meta device."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not in __all__
    return not (torch.compiler.is_compiling() or tracing or tensor.is_meta)


def _counts_writes(weight: torch.Tensor) -> bool:
    """Whether PyTorch counts the writes to a weight: not for weights created in inference mode, tensor subclasses of
    other libraries and transforms of torch.func."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and not weight.is_meta and not weight.is_inference()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(weight)


__all__ = [
    "ViP2ClipAlignmentOutput",
    "ViP2ClipAnomalyDetectionOutput",
    "ViP2ClipForAnomalyDetection",
    "ViP2ClipPreTrainedModel",
]
