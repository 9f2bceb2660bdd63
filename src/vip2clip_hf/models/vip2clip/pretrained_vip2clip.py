"""Base class of the model: supported features, weight initialization, building from CLIP, and loading."""

import math
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from .adapter_weights_vip2clip import RENAMED_ADAPTERS, check_adapters
from .adapters_vip2clip import ViP2ClipImageConditionedAdapter, ViP2ClipPromptLearner
from .backbone_vip2clip import (
    BACKBONE_PREFIX,
    HUB_KWARGS,
    load_clip,
    merge_adapters_with_backbone,
    naming,
    quiet_loading,
    token_settings,
    tokens_of,
)
from .configuration_tables_vip2clip import check_moved
from .configuration_vip2clip import ViP2ClipConfig
from .decision_config_vip2clip import DecisionConfig
from .provenance_vip2clip import BackboneReference, Provenance
from .reference_bank_vip2clip import ReferenceBank
from .reference_files_vip2clip import remove_references
from .training_record_vip2clip import check_training_record, remember_weights


# Patterns of weight names in checkpoints of version 0.1, and the current names.
RENAMED_WEIGHTS = {f"^{re.escape(old)}$": new for old, new in RENAMED_ADAPTERS.items()}
_Model = TypeVar("_Model", bound="ViP2ClipPreTrainedModel")
# The pipeline in checkpoints with remote code: entry of `config.json`, read by `transformers.pipeline`.
CUSTOM_PIPELINES = {
    "anomaly-detection": {
        "impl": "pipeline_anomaly_detection.AnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}


def disable_dropout(clip: CLIPModel) -> None:
    """Make CLIP compute without dropout, also in training mode."""
    # The blocks of CLIP and modules inside that are not CLIP's own keep their mode: gradient checkpointing and the
    # dropout of LoRA are only active in training mode. The only dropout of CLIP is that of its attention.
    for module in clip.modules():
        if isinstance(module, (PreTrainedModel, CLIPAttention)):
            module.training = False


class ViP2ClipPreTrainedModel(PreTrainedModel):
    """Base class of ViP²-CLIP models: supported features, weight initialization, building and loading."""

    clip: CLIPModel
    decision: DecisionConfig
    provenance: Provenance
    references: ReferenceBank | None

    config: ViP2ClipConfig
    config_class = ViP2ClipConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # declared as a list, but a tuple in the library's models
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch. Without this, the Trainer scales it by the number of accumulation steps and
    # processes.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["prompt_learner", "image_conditioned_adapter", "fine_grained_perception"]
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
    _can_record_outputs = {"hidden_states": CLIPEncoderLayer, "attentions": CLIPAttention}

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether initialization may overwrite loaded weights. It may not: `_init_weights` only uses functions of
        `transformers.initialization`. For other code, the library skips modules without weights of their own, such as
        CLIP's attention, which initialize the weights of their children."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the released code does: learned vectors from a normal distribution, linear layers with
        PyTorch's default. CLIP is a separate model and initializes its own weights."""
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, (ViP2ClipPromptLearner, ViP2ClipImageConditionedAdapter)):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)
        else:
            super()._init_weights(module)
        if isinstance(module, ViP2ClipPreTrainedModel):
            # CLIP does not initialize this parameter. It is not used, but part of CLIP.
            init.constant_(module.clip.logit_scale, float(module.clip.config.logit_scale_init_value or 0.0))

    def freeze_backbone(self) -> None:
        """Disable the gradients of CLIP. Creating and loading a model call this method."""
        self.clip.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the text tower, of shape `(vocab_size, text_width)`."""
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the text tower."""
        self.clip.text_model.embeddings.token_embedding = value

    @property
    def feature_settings(self) -> dict[str, Any]:
        """Fields of the configuration that change the result of `get_image_features`, by name."""
        names = ("image_size", "feature_layers", "image_embeds_layernorm", "position_interpolation")
        return {name: getattr(self.config, name) for name in names}

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, projection_dim)` of the `patch_embeds` of an image."""
        config = self.config
        return len(config.feature_layers), config.patch_grid**2, config.clip_projection_dim

    @property
    def image_feature_size(self) -> int:
        """Length of the `image_embeds` of an image."""
        return self.config.clip_projection_dim

    def adapter_state_dict(self) -> dict[str, torch.Tensor]:
        """
        Return the weights of the adapters.

        Returns:
            `dict[str, torch.Tensor]`: the state dict without the weights of CLIP.
        """
        return {k: v for k, v in self.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model, its `decision` and its `provenance`, as `PreTrainedModel.save_pretrained` does. If the
        class is registered with `register_for_auto_class`, also save the pipeline, to load both with
        `trust_remote_code=True`."""
        is_main_process = args[0] if args else kwargs.get("is_main_process", True)
        if is_main_process and not os.path.isfile(save_directory):  # the library reports a file
            self._save_json_files(save_directory)
        self._save_weights_and_code(save_directory, *args, **kwargs)
        if is_main_process and os.path.isdir(save_directory):
            # Of an adapters-only checkpoint that was replaced by this complete one.
            Path(save_directory, BackboneReference.file_name).unlink(missing_ok=True)

    def _save_weights_and_code(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        if self._auto_class is None:
            return super().save_pretrained(save_directory, *args, **kwargs)
        # The library copies the files that are imported, also in functions.
        from .pipeline_anomaly_detection import AnomalyDetectionPipeline  # noqa: F401

        saved = getattr(self.config, "custom_pipelines", None)
        self.config.custom_pipelines = CUSTOM_PIPELINES
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            # Only in the file: in memory, the entry would make `pipeline(model=model)` ask for trust_remote_code.
            if saved is None:
                del self.config.custom_pipelines
            else:
                self.config.custom_pipelines = saved

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Upload the files of a model. Write our files again, to include them in the files that were modified."""
        self._save_json_files(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _save_json_files(self, folder: str | os.PathLike) -> None:
        check_training_record(self)
        self.decision.save_pretrained(folder)
        self.provenance.save_pretrained(folder)
        if self.references is None:
            remove_references(folder)
        else:
            self.references.save_pretrained(folder)

    @classmethod
    def from_clip(
        cls: type[_Model],
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
    ) -> _Model:
        """
        Create a model from a CLIP checkpoint, with new, untrained adapters.

        Args:
            clip (`CLIPModel`, `str` or `os.PathLike`):
                Backbone: a `CLIPModel` or [`ViP2ClipForAnomalyDetection`], a folder or a Hub id. The weights of a
                model are shared, not copied, if they have the same dtype and device.
            tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
                Tokenizer, or its folder or Hub id. Only needed for state words other than the words of the paper's
                Table 6.
            variant (`"paper"` or `"release"`, defaults to `"paper"`):
                Variant of the model, see [`ViP2ClipConfig.from_variant`].
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`):
                Dtype of CLIP, regardless of the dtype in the checkpoint. The adapters are in float32.
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
        source = None if isinstance(clip, PreTrainedModel) else os.fspath(clip)
        clip_model, origin = load_clip(clip, revision=revision, **hub_kwargs)
        words = {
            kind: config_overrides.get(f"{kind}_word", getattr(defaults, f"{kind}_word"))
            for kind in ("normal", "anomalous")
            if config_overrides.get(f"{kind}_token_ids") is None
        }
        clip_config = CLIPConfig.from_dict(clip_model.config.to_dict())
        vocab_size = clip_model.text_model.embeddings.token_embedding.num_embeddings
        tokens = tokens_of(clip, words) if tokenizer is None else None
        if tokens is None:
            tokens = token_settings(words, vocab_size, tokenizer, source, revision=revision, **hub_kwargs)
        settings = {"clip_config": clip_config, **tokens, **config_overrides}
        config = ViP2ClipConfig.from_variant(variant, **settings)
        weights = {BACKBONE_PREFIX + k: v for k, v in clip_model.state_dict().items()}
        kwargs = {"attn_implementation": attn_implementation, "device_map": device_map}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        # The adapters are missing on purpose. A report of missing weights would be misleading.
        with quiet_loading():
            model, info = cls._load(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, **kwargs
            )
        # For example, layers of PEFT have other names.
        unfit = {*info["missing_keys"], *info["unexpected_keys"]}
        wrong = sorted(name for name in unfit if name.startswith(BACKBONE_PREFIX))
        if wrong:
            raise RuntimeError(
                f"{len(wrong)} weights of the CLIP model are missing or unknown ({wrong[0]}, ...); expected the "
                "weights of a CLIPModel. Merge adapters of PEFT first, with merge_and_unload()."
            )
        model.provenance = Provenance.from_dict(origin)
        remember_weights(model)
        return model

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        backbone: CLIPModel | str | os.PathLike | None = None,
        decision: DecisionConfig | None = None,
        references: ReferenceBank | str | None = "auto",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> _Model:
        """
        Load a checkpoint. The checkpoint is complete, or contains only the adapters.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of the checkpoint.
            config ([`ViP2ClipConfig`], `str` or `os.PathLike`, *optional*):
                Configuration to use instead of the configuration in the checkpoint.
            backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*):
                CLIP backbone of an adapters-only checkpoint: a `CLIPModel` or [`ViP2ClipForAnomalyDetection`], whose
                weights are then shared, a folder or a Hub id. By default, the `backbone_id` in `backbone.json` of the
                checkpoint. Its weights must match the checksum in that file.
            decision ([`DecisionConfig`], *optional*):
                Thresholds, tiles and calibration to use instead of those in the checkpoint.
            references ([`ReferenceBank`], *optional*, defaults to `"auto"`):
                Photos of good parts to compare images with, instead of those in the checkpoint. `None` uses none.
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
            RuntimeError: if weights are missing or have another shape. They are never initialized randomly, unless
                `output_loading_info` (all of them) or `ignore_mismatched_sizes` (those of another shape) is set.
            ValueError: if the checkpoint belongs to another model type, its backbone is not the one used in training,
                a value of the configuration is not allowed, or an adapter weight is not finite.
        """
        if isinstance(references, str) and references != "auto":
            raise ValueError(f"references is {references!r}; expected a ReferenceBank, 'auto' or None.")
        if pretrained_model_name_or_path is None:
            loaded = cls._load(None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs)
            new = loaded[0] if output_loading_info else loaded
            new.decision = new.decision if decision is None else decision
            new.references = None if isinstance(references, str) else references
            return loaded
        checkpoint = pretrained_model_name_or_path
        check_moved(kwargs)
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        if not isinstance(config, PreTrainedConfig):
            fields = set(cls.config_class.__dataclass_fields__) - {"dtype", *HUB_KWARGS} | {"output_attentions"}
            overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
            source = checkpoint if config is None else config
            with naming("Checkpoint", source):
                config = cls.config_class.from_pretrained(source, **hub_kwargs, **overrides)
        with naming("Checkpoint", checkpoint):
            reference = BackboneReference.find(checkpoint, **hub_kwargs)
        if reference is not None or backbone is not None:
            if kwargs.get("state_dict") is not None:
                raise ValueError("state_dict is set, but the checkpoint contains only adapters; remove state_dict=.")
            weights = merge_adapters_with_backbone(checkpoint, config, reference, backbone, hub_kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_KWARGS}
            model, info = cls._load(
                None, *model_args, config=config, state_dict=weights, output_loading_info=True, **kwargs
            )
            model.name_or_path = model.config.name_or_path = str(checkpoint)
        else:
            with naming("Checkpoint", checkpoint):
                model, info = cls._load(checkpoint, *model_args, config=config, output_loading_info=True, **kwargs)
        # Weights that are missing or have another shape are random. Return such a model only to a caller who asked for
        # the report of missing weights, or for ignoring shapes.
        missing = set() if output_loading_info else set(info["missing_keys"])
        if not (output_loading_info or kwargs.get("ignore_mismatched_sizes")):
            missing.update(key for key, *_ in info["mismatched_keys"])
        if missing:
            names = ", ".join([*sorted(missing)[:3], *(["..."] if len(missing) > 3 else [])])
            raise RuntimeError(
                f"{checkpoint} lacks {len(missing)} of the model's weights ({names}); expected all of them, because "
                "missing weights would be random. For an adapters-only checkpoint, pass backbone=. To add new "
                "adapters to a CLIP checkpoint, use ViP2ClipForAnomalyDetection.from_clip."
            )
        check_adapters(model.adapter_state_dict(), checkpoint)
        model.decision = cls._load_decision(checkpoint, model, hub_kwargs) if decision is None else decision
        with naming("Checkpoint", checkpoint):
            model.provenance = Provenance.from_pretrained(checkpoint, **hub_kwargs)
            found = ReferenceBank.find(checkpoint, **hub_kwargs) if isinstance(references, str) else references
        model.references = found
        remember_weights(model)
        return (model, info) if output_loading_info else model  # type: ignore[return-value]  # typed as a model

    @staticmethod
    def _load_decision(checkpoint: str | os.PathLike, model: Any, hub_kwargs: dict[str, Any]) -> DecisionConfig:
        with naming("Checkpoint", checkpoint):
            decision = DecisionConfig.from_pretrained(checkpoint, **hub_kwargs)
            if decision.top_k is not None:
                saved, _ = PreTrainedConfig.get_config_dict(checkpoint, **hub_kwargs)
                if model.config.top_k != saved.get("top_k", ViP2ClipConfig.top_k):
                    decision.top_k = None  # the caller has overridden it
        return decision

    @classmethod
    def _load(cls, *args: Any, **kwargs: Any) -> Any:
        """Call `PreTrainedModel.from_pretrained`, then freeze CLIP: loading replaces the parameters."""
        names = {**RENAMED_WEIGHTS, **(kwargs.pop("key_mapping", None) or {})}
        loaded: Any = super().from_pretrained(*args, key_mapping=names, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        model._weight_conversions = None  # save the current names of the weights, not those of the checkpoint
        model.freeze_backbone()
        return loaded


__all__ = ["CUSTOM_PIPELINES", "ViP2ClipPreTrainedModel", "disable_dropout"]
