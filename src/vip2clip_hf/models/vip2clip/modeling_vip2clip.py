"""ViP²-CLIP for anomaly detection.

The data flow, one public method a stage:

    pixel_values -> get_vision_features -> image_embeds, patch_embeds
    image_embeds -> get_prompt_embeds   -> text_embeds
    text_embeds, patch_embeds -> align  -> layer maps, logits, scores
    layer maps   -> resize_maps         -> anomaly maps

Section, equation and table numbers are those of the paper (arXiv:2505.17692). In comments on shapes B is the batch, L
the number of feature layers, P the number of patches, D the size of CLIP's joint space, C the width of the text tower.
"""

import math
import os
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.utils import ModelOutput

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
    Output of [`ViP2ClipForAnomalyDetection.align`]. All float32 (float64 where the inputs are).

    Args:
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of every patch at every feature layer, in [0, 1].
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            [normal, anomalous] of the image; `softmax(logits)[:, 1]` is `scores`.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, projection_dim)`):
            Prompts refined at every layer (eq. 6), L2-normalised.
        layer_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2)`, *optional*):
            Similarity of the top-k patches to [normal, anomalous] at every layer, divided by the temperature. Absent
            with `alignment="dual"`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Per layer, attention of the prompts over the patches, `(batch_size, num_heads, 2, num_patches)`.
    """

    layer_maps: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    layer_logits: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ViP2ClipAnomalyDetectionOutput(ModelOutput):
    """
    Output of [`ViP2ClipForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, returned when `labels` or `mask_labels` are given):
            Training loss (eq. 9).
        loss_components (`dict[str, torch.FloatTensor]`, returned with `loss`):
            `image`, `focal`, `dice_anomalous` and `dice_normal`; the last three summed over layers and not yet
            multiplied by `local_loss_weight`.
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            [normal, anomalous] of the image; `softmax(logits)[:, 1]` is `scores`.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`):
            Smoothed anomaly map (eq. 11), in [0, 1].
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Probabilities [normal, anomalous] of every patch at every feature layer, before upsampling.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, projection_dim)`):
            Prompts refined at every layer, L2-normalised.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Projected class token, L2-normalised.
        attentions (`tuple[torch.FloatTensor]`, returned with `output_attentions=True`):
            Per layer, attention of the prompts over the patches, `(batch_size, num_heads, 2, num_patches)`: the maps
            of the paper's Fig. 3.
    """

    loss: torch.FloatTensor | None = None
    loss_components: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    anomaly_maps: torch.FloatTensor | None = None
    layer_maps: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def _upcast(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ViP2ClipVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings with a choice of how the position table is resized."""

    def __init__(self, config: ViP2ClipConfig):
        super().__init__(config.clip_config.vision_config)
        self.vip2clip_config = config

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The position table for an image of `height` x `width` pixels, `(1, 1 + num_patches, hidden_size)`. The
        stored table keeps its native size: resizing it in place would compound with the next size."""
        table = self.position_embedding.weight  # (1 + native * native, hidden)
        native = math.isqrt(table.shape[0] - 1)
        grid = (height // self.patch_size, width // self.patch_size)
        if grid == (native, native):
            return table[None]
        patches = _upcast(table[1:]).T.reshape(1, -1, native, native)
        patches = F.interpolate(
            patches, size=grid, mode=self.vip2clip_config.position_interpolation, align_corners=False
        )
        return torch.cat([table[:1], patches.flatten(2)[0].T.to(table.dtype)])[None]  # (1, 1 + grid * grid, hidden)


class ViP2ClipPreTrainedModel(PreTrainedModel):
    config: ViP2ClipConfig
    config_class = ViP2ClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # forward does not normalise the loss by a number of items; without this the Trainer scales it by the number of
    # accumulation steps and processes.
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
    def _init_weights(self, module: nn.Module):
        """Initialisation of the released code: vectors normal, projections as PyTorch's Linear does by default.
        CLIP, a model of its own, initialises itself."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (ViP2ClipPromptLearner, ViP2ClipImageConditionedAdapter)):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class ViP2ClipForAnomalyDetection(ViP2ClipPreTrainedModel):
    r"""
    Zero-shot anomaly detection with a frozen CLIP, image-conditioned prompts (ICA), prompts refined by the patches of
    every layer (FGP) and one text-patch alignment for image score and map (UTPA).

    CLIP is frozen and in eval mode, and stays so through loading, `train()` and `requires_grad_()`. Trained are
    `prompt_learner`, `image_conditioned_adapter` and `fine_grained_perception`.

    Example:

    ```python
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

    def __init__(self, config: ViP2ClipConfig):
        config.check_values()
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip_config)
        self.clip.vision_model.embeddings = ViP2ClipVisionEmbeddings(config)
        for block in self.clip.text_model.encoder.layers:
            # The same module with the same weights, which attends to what was run before as well.
            block.self_attn.__class__ = ViP2ClipTextAttention
        self.prompt_learner = ViP2ClipPromptLearner(config)
        self.image_conditioned_adapter = ViP2ClipImageConditionedAdapter(config)
        self.fine_grained_perception = ViP2ClipFineGrainedPerception(config)
        self.gradient_checkpointing = False
        self._prefix_cache = PromptPrefixCache()
        self.post_init()
        self.freeze_backbone()

    # Building and loading

    def freeze_backbone(self):
        """Take CLIP out of training: no gradients, eval mode."""
        self.clip.requires_grad_(False)
        self.clip.eval()

    def train(self, mode: bool = True):
        """Switch the adapters between training and evaluation. CLIP is frozen again: loading gives its parameters
        their gradients back, and ends with a call of eval()."""
        super().train(mode)
        self.freeze_backbone()
        return self

    def _apply(self, fn, *args, **kwargs):
        self._prefix_cache.clear()  # to(), half(), cuda(), ...: would hold the weights of before
        return super()._apply(fn, *args, **kwargs)

    def requires_grad_(self, requires_grad: bool = True):
        """Switch the gradients of the adapters; CLIP keeps none."""
        super().requires_grad_(requires_grad)
        self.freeze_backbone()
        return self

    def adapter_state_dict(self) -> dict[str, torch.Tensor]:
        """The trained part of the state dict, without the frozen CLIP."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}

    @classmethod
    def from_clip(
        cls,
        clip: CLIPModel | str | os.PathLike,
        tokenizer=None,
        *,
        variant: str = "paper",
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        device_map=None,
        revision: str = "main",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **config_overrides,
    ) -> "ViP2ClipForAnomalyDetection":
        """
        New, untrained adapters on a CLIP checkpoint.

        Args:
            clip (`CLIPModel`, `str` or `os.PathLike`):
                The backbone: a model (its weights are copied), a folder or a Hub id.
            tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
                Only needed for state words other than those of the paper's Table 6, whose token ids are known.
            variant (`"paper"` or `"release"`, defaults to `"paper"`):
                See [`ViP2ClipConfig.from_variant`].
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`):
                Precision of the model, whatever the checkpoint holds.
            attn_implementation (`str`, *optional*):
                `"eager"`, `"sdpa"`, ... of CLIP's towers.
            device_map (*optional*):
                As for any `from_pretrained`.
            revision, token, cache_dir, local_files_only:
                As for any `from_pretrained`.
            config_overrides:
                Fields of [`ViP2ClipConfig`].

        Raises:
            ValueError: the checkpoint is no CLIP, or an override is no field or not allowed.
            OSError: it cannot be found or reached.
            RuntimeError: it lacks weights.
        """
        hub_kwargs = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        # First, so that a misspelt name does not cost the loading of a backbone.
        ViP2ClipConfig.check_names(config_overrides)
        defaults = ViP2ClipConfig.from_variant(variant)
        source = None if isinstance(clip, CLIPModel) else os.fspath(clip)
        clip, origin = load_clip(clip, revision=revision, **hub_kwargs)
        words = {
            kind: config_overrides.get(f"{kind}_word", getattr(defaults, f"{kind}_word"))
            for kind in ("normal", "anomalous")
            if config_overrides.get(f"{kind}_token_ids") is None
        }
        vocab_size = clip.config.text_config.vocab_size
        settings = {
            "clip_config": CLIPConfig.from_dict(clip.config.to_dict()),
            **origin,
            **token_settings(words, vocab_size, tokenizer, source, revision=revision, **hub_kwargs),
            **config_overrides,
        }
        config = ViP2ClipConfig.from_variant(variant, **settings)
        # A model that was given stays the caller's: its weights are copied.
        weights = {BACKBONE_PREFIX + k: v if source else v.clone() for k, v in clip.state_dict().items()}
        kwargs = {"attn_implementation": attn_implementation, "device_map": device_map}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        # The adapters are meant to be new; a table of missing weights would only frighten.
        with quiet_loading():
            return super().from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        backbone: CLIPModel | str | os.PathLike | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        Load a checkpoint, with its own CLIP or with adapters only.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id.
            config (`ViP2ClipConfig`, `str` or `os.PathLike`, *optional*):
                Configuration to use instead of the checkpoint's.
            backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*):
                For a checkpoint of adapters only: where its CLIP is, instead of the Hub id it names. Its weights must
                have the checksum the checkpoint states.
            kwargs:
                As for any `from_pretrained`: `dtype`, `device_map`, `attn_implementation`, fields of the
                configuration, ...

        Raises:
            ValueError: the checkpoint is of another model type, or its backbone is another one than it was trained
                with.
            OSError: checkpoint or backbone cannot be found or reached.
            RuntimeError: weights are missing or of another shape. Nothing is ever filled with random numbers.
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
        if config.adapters_only or backbone is not None:
            config, weights = merge_adapters_with_backbone(checkpoint, config, backbone, hub_kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_KWARGS}
            model, info = super().from_pretrained(
                None, *model_args, config=config, state_dict=weights, output_loading_info=True, **kwargs
            )
            model.name_or_path = model.config.name_or_path = str(checkpoint)
        else:
            with naming("Checkpoint", checkpoint):
                model, info = super().from_pretrained(
                    checkpoint, *model_args, config=config, output_loading_info=True, **kwargs
                )
        # With ignore_mismatched_sizes=True the library fills weights of another shape as well.
        missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if missing:
            raise RuntimeError(
                f"{checkpoint} lacks {len(missing)} of the model's weights "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), which would have been filled with "
                "random numbers. A checkpoint of adapters only needs `backbone=`; to put new adapters on a CLIP "
                "checkpoint use ViP2ClipForAnomalyDetection.from_clip."
            )
        return (model, info) if output_loading_info else model

    # Stages

    def get_vision_features(self, pixel_values: torch.FloatTensor) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """
        Image and patch embeddings of the frozen vision tower (section 3). Of the hidden states only the feature
        layers are kept.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Square images from [`ViP2ClipImageProcessor`], their side a multiple of the patch.

        Returns:
            `tuple`: image embeddings `(batch_size, projection_dim)`, from the class token of the last block, and
            patch embeddings `(batch_size, num_layers, num_patches, projection_dim)`, blocks `feature_layers` through
            post layer norm and projection, row-major. Both L2-normalised.

        Raises:
            ValueError: another shape, or values that are not finite.
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

    def get_prompts(self, image_embeds: torch.FloatTensor) -> torch.FloatTensor:
        """
        The prompts of eqs. 4 and 5 as input embeddings of the text tower, without position embeddings:
        [start] [context] [state word] [image tokens] [end].

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings; L2-normalised first.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`, order [normal, anomalous]. When
            the state words differ in length the shorter prompt is padded with end tokens.
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
            fixed_ids = [config.bos_token_id, *word_ids, config.eos_token_id]
            fixed = self.clip.text_model.embeddings.token_embedding(
                torch.tensor(fixed_ids, device=context.device)
            )  # (2 + words, C)
            prefix = torch.cat([fixed[:1], context, fixed[1:-1]]).expand(batch_size, -1, -1)
            suffix = fixed[-1:].expand(batch_size, 1 + longest - length, -1)
            prompts.append(torch.cat([prefix, image_tokens, suffix], dim=1))
        return torch.stack(prompts, dim=1)  # (B, 2, T, C)

    def get_prompt_prefix(self) -> ViP2ClipPromptPrefix | None:
        """
        What the prompts of all images begin with, run through the text tower: start token, context and state word
        (without what the longer of two state words has more). Computed once for a set of weights.

        Returns:
            [`ViP2ClipPromptPrefix`] for [`encode_prompts`], or None where it would not be worth it or not be safe:
            with gradients, in training mode, in compiled, exported and traced graphs, with weights that are not here
            (meta, offloaded) or not counted (made in inference mode), with attention other than eager and sdpa.
        """
        text = self.clip.text_model
        contexts = [self.prompt_learner.normal_context, self.prompt_learner.anomalous_context]
        weights = [*text.parameters(), *contexts]
        if (
            self.training
            or torch.is_grad_enabled()
            or not _reads_values(contexts[0])
            or text.config._attn_implementation not in ("eager", "sdpa")
            or not all(_is_counted(weight) for weight in weights)
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
            nothing = contexts[0].new_zeros(1, config.clip_config.projection_dim)
            length = min(config.prompt_lengths) - config.num_image_tokens - 1
            prefix = ViP2ClipPromptPrefix(length)
            self._run_text_blocks(self._embed_prompts(self.get_prompts(nothing))[:, :length], record=prefix)
            self._prefix_cache.put(settings, weights, contexts, prefix)
        return prefix

    def encode_prompts(
        self, prompts: torch.FloatTensor, prefix: ViP2ClipPromptPrefix | None = None
    ) -> torch.FloatTensor:
        """
        Run prompts from [`get_prompts`] through the text tower and read their end tokens. Attention is causal, so
        that nothing behind the end token counts and prompts are not padded to 77 positions.

        Args:
            prompts (`torch.FloatTensor` of shape `(batch_size, 2, prompt_length, text_width)`).
            prefix ([`ViP2ClipPromptPrefix`], *optional*):
                From [`get_prompt_prefix`]: the first tokens of all prompts, which are then not run again. Gives the
                same up to rounding.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`, not normalised.
        """
        text, start = self.clip.text_model, 0 if prefix is None else prefix.length
        hidden = self._run_text_blocks(self._embed_prompts(prompts)[:, start:], prefix)
        hidden = hidden.unflatten(0, (-1, 2))
        lengths = self.config.prompt_lengths
        ends = torch.stack([hidden[:, i, n - 1 - start] for i, n in enumerate(lengths)], dim=1)  # (B, 2, C)
        return self.clip.text_projection(text.final_layer_norm(ends))

    def _embed_prompts(self, prompts: torch.FloatTensor) -> torch.FloatTensor:
        """Position embeddings added: (B, 2, T, C) -> (B * 2, T, C)."""
        return self.clip.text_model.embeddings(inputs_embeds=prompts.flatten(0, 1))

    def _run_text_blocks(
        self,
        hidden: torch.FloatTensor,
        prefix: ViP2ClipPromptPrefix | None = None,
        record: ViP2ClipPromptPrefix | None = None,
    ) -> torch.FloatTensor:
        """The blocks of the text tower, (B * 2, T, C) -> (B * 2, T, C)."""
        text = self.clip.text_model
        if prefix is None:
            # sdpa gets no mask and goes by is_causal, eager goes by the mask: both are needed. By position: the last
            # argument, for the cache, has one name up to transformers 5.23 and another from 5.24 on.
            mask = create_causal_mask(text.config, hidden, None, None)
        else:
            # A token sees the whole prefix, itself and what is before it.
            length, seen = hidden.shape[1], prefix.length
            mask = torch.ones(length, seen + length, dtype=torch.bool, device=hidden.device)
            mask = mask.tril(seen)[None, None]  # (1, 1, T, prefix + T)
            if text.config._attn_implementation == "eager":  # adds it to the logits
                mask = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        for number, block in enumerate(text.encoder.layers):
            earlier = None if prefix is None else (prefix.keys[number], prefix.values[number])
            run = partial(block, attention_mask=mask, is_causal=True, prefix=earlier, record=record)
            # The library's layers checkpoint themselves in training mode only, and CLIP never is.
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(run, hidden)
            else:
                hidden = run(hidden)
        return hidden

    def get_prompt_embeds(
        self, image_embeds: torch.FloatTensor, prefix: ViP2ClipPromptPrefix | None = None
    ) -> torch.FloatTensor:
        """
        Embeddings of the image-conditioned prompts (section 4.1, ICA).

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Image embeddings; L2-normalised first.
            prefix ([`ViP2ClipPromptPrefix`], *optional*):
                From [`get_prompt_prefix`], which is called when it is not given.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`, order [normal, anomalous], L2-normalised.
        """
        batch_size = image_embeds.shape[0]
        if not self.config.use_image_conditioning:
            image_embeds = image_embeds[:1]  # the same prompts for every image
        prompts = self.get_prompts(image_embeds)
        prefix = self.get_prompt_prefix() if prefix is None else prefix
        text_embeds = F.normalize(self.encode_prompts(prompts, prefix), dim=-1)
        return text_embeds.expand(batch_size, -1, -1)

    def align(
        self,
        text_embeds: torch.FloatTensor,
        patch_embeds: torch.FloatTensor,
        image_embeds: torch.FloatTensor | None = None,
        *,
        top_k: int | None = None,
        output_attentions: bool = False,
        normalized: bool = False,
    ) -> ViP2ClipAlignmentOutput:
        """
        Refine the prompts with the patches of every layer (FGP, eq. 6) and align both (UTPA, section 4.2). Computed
        in float32 whatever the precision of the model; float64 stays float64.

        Args:
            text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
                Prompt embeddings [normal, anomalous]. All embeddings are L2-normalised first.
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                Patch embeddings on a square grid, row-major.
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Only used, and then required, with `alignment="dual"`.
            top_k (`int`, *optional*):
                Patches per layer that stand for the image, instead of the configuration's.
            output_attentions (`bool`, defaults to `False`):
                Whether to return the attention of the prompts.
            normalized (`bool`, defaults to `False`):
                Says that `patch_embeds` is L2-normalised already. In float32 this saves a copy of it, the dearest
                step of all; what was rounded to less is normalised all the same.

        Raises:
            ValueError: patches that form no square, more top-k patches than there are, or no image embeddings where
                they are needed.
        """
        config = self.config
        num_patches = patch_embeds.shape[2]
        grid = math.isqrt(num_patches)
        if grid * grid != num_patches:
            raise ValueError(f"patch_embeds has {num_patches} patches; expected a square number of them.")
        top_k = config.top_k if top_k is None else top_k
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= num_patches:
            raise ValueError(f"top_k is {top_k}; expected an integer from 1 to {num_patches}, the patches given.")

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
                    raise ValueError('alignment="dual" scores the image embedding; pass image_embeds to align.')
                image_embeds = F.normalize(_upcast(image_embeds), dim=-1)
                logits = (text_embeds @ image_embeds[..., None])[..., 0] / config.temperature  # (B, 2)
            else:
                pooled = self.pool_patches(patch_embeds, cosines, top_k)  # (B, L, D)
                if config.image_score == "pooled_features":
                    pooled = F.normalize(pooled, dim=-1)
                # Not normalised, the product with the prompts is the mean of the patches' cosines (mean_logits).
                layer_logits = (refined @ pooled[..., None])[..., 0] / config.temperature  # (B, L, 2)
                if config.image_score == "pooled_features":  # log of the mean over layers of the probabilities
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

    def pool_patches(
        self, patch_embeds: torch.FloatTensor, cosines: torch.FloatTensor, top_k: int
    ) -> torch.FloatTensor:
        """
        The feature that stands for the image at every layer (eq. 8): the mean of its most anomalous patches.

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                L2-normalised patch embeddings.
            cosines (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, 2)`):
                Their cosines with the refined prompts [normal, anomalous].
            top_k (`int`):
                Patches to average.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_layers, projection_dim)`, not normalised.
        """
        # Ranking by the margin is ranking by the anomalous probability, but does not saturate.
        margin = cosines[..., 1] - cosines[..., 0]  # (B, L, P)
        chosen = margin.topk(top_k, dim=-1).indices[..., None].expand(-1, -1, -1, patch_embeds.shape[-1])
        return patch_embeds.gather(2, chosen).mean(dim=2)  # (B, L, D)

    def get_anomaly_maps(self, layer_maps: torch.FloatTensor) -> torch.FloatTensor:
        """
        The anomaly map of eq. 11: mean over layers, upsampled to `image_size` and smoothed.

        Args:
            layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`).

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, in [0, 1].
        """
        # Normal and anomalous probability sum to one, so that (1 - M_n + M_a) / 2 is M_a.
        maps = resize_maps(layer_maps[:, :, 1].mean(dim=1), self.config.image_size, self.config.smoothing_sigma)
        return maps.clamp(0, 1)

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        mask_labels: torch.Tensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        patch_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        mask_label_valid: torch.BoolTensor | None = None,
        top_k: int | None = None,
        return_dict: bool | None = None,
    ) -> ViP2ClipAnomalyDetectionOutput | tuple:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*):
                Images from [`ViP2ClipImageProcessor`].
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 normal, 1 anomalous; gives the image loss.
            mask_labels (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*):
                1 for anomalous pixels, 0 for the others; gives the pixel losses.
            image_embeds, patch_embeds (*optional*):
                Output of [`get_vision_features`] computed before, in place of `pixel_values`.
            output_attentions (`bool`, *optional*):
                Whether to return the attention of the prompts over the patches.
            mask_label_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                False for images whose pixels are not annotated: they count in the image loss only.
            top_k (`int`, *optional*):
                Patches per layer that stand for the image (eq. 8), instead of the configuration's.
            return_dict (`bool`, *optional*):
                `False` for a plain tuple.

        Raises:
            ValueError: inputs missing or of the wrong shape, pixels that are not finite, labels or masks with other
                values than 0 and 1.
        """
        # First: it looks at weights, for which an accelerator would have to finish what it has been given.
        prefix = self.get_prompt_prefix()
        normalized = pixel_values is not None  # not what comes from elsewhere
        if pixel_values is not None:
            if image_embeds is not None or patch_embeds is not None:
                raise ValueError("Give either pixel_values, or image_embeds and patch_embeds, not both.")
            image_embeds, patch_embeds = self.get_vision_features(pixel_values)
        elif image_embeds is None or patch_embeds is None:
            raise ValueError("Give pixel_values, or both image_embeds and patch_embeds from get_vision_features.")
        else:
            self._check_embeds(image_embeds, patch_embeds)
        self._check_labels(patch_embeds.shape[0], labels, mask_labels, mask_label_valid)
        if mask_labels is not None and mask_label_valid is not None:
            # What stands in the mask of an image that has none must not matter, not even when it is not a number.
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
                # Nothing else leads to the FGP here, and distributed training wants a gradient for every parameter.
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

    # Checks. They read values, which a traced or compiled graph cannot.

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        vision, shape = self.config.clip_config.vision_config, tuple(pixel_values.shape)
        patch, channels = vision.patch_size, vision.num_channels
        if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3] or shape[2] % patch or 0 in shape:
            raise ValueError(
                f"pixel_values has shape {shape}; expected (batch_size, {channels}, side, side) with a side that is a "
                f"multiple of {patch}, such as the {self.config.image_size} of this model. Use ViP2ClipImageProcessor."
            )
        self._check_finite("pixel_values", pixel_values)

    def _check_embeds(self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor):
        width, one, many = self.config.clip_config.projection_dim, tuple(image_embeds.shape), tuple(patch_embeds.shape)
        if len(one) != 2 or len(many) != 4 or one[0] != many[0] or {one[-1], many[-1]} != {width} or 0 in many:
            raise ValueError(
                f"image_embeds has shape {one} and patch_embeds {many}; expected (batch_size, {width}) and "
                f"(batch_size, num_layers, num_patches, {width}), as get_vision_features returns them."
            )
        self._check_finite("image_embeds", image_embeds)
        self._check_finite("patch_embeds", patch_embeds)

    def _check_finite(self, name: str, tensor: torch.Tensor):
        if _reads_values(tensor) and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"{name} has NaN or infinite values in the images at positions {bad} of the batch.")

    def _check_labels(self, batch_size, labels, mask_labels, mask_label_valid):
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
            if name == "mask_labels" and mask_label_valid is not None and _reads_values(tensor):
                tensor = tensor[mask_label_valid.bool()]
            if _reads_values(tensor) and tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
                found = torch.unique(tensor[(tensor != 0) & (tensor != 1)])[:5].tolist()
                raise ValueError(f"{name} has the values {found}; expected only 0 (normal) and 1 (anomalous).")


def _reads_values(tensor: torch.Tensor) -> bool:
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.is_meta)


def _is_counted(weight: torch.Tensor) -> bool:
    """Whether it can be told that a weight was written to: not of those made in inference mode, of other libraries'
    kinds of tensors, or under a transform of torch.func."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and not weight.is_meta and not weight.is_inference()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(weight)


__all__ = [
    "ViP2ClipAlignmentOutput",
    "ViP2ClipAnomalyDetectionOutput",
    "ViP2ClipForAnomalyDetection",
    "ViP2ClipPreTrainedModel",
]
