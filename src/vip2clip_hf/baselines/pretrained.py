"""Build the baselines from CLIP, load and save them, with their tokenizer and the origin of their weights."""

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, initialization as init

from ..models.vip2clip.adapter_weights_vip2clip import check_adapters
from ..models.vip2clip.backbone_vip2clip import (
    BACKBONE_PREFIX,
    HUB_KWARGS,
    load_clip,
    load_reference_backbone,
    naming,
    quiet_loading,
    read_adapters,
)
from ..models.vip2clip.pretrained_vip2clip import disable_dropout
from ..models.vip2clip.provenance_vip2clip import BackboneReference, Provenance
from ..models.vip2clip.training_record_vip2clip import check_training_record, remember_weights
from .configuration import BaselineConfig
from .reference_files import read_references, write_references
from .references import check_references_argument
from .tokenizing import check_tokenizer, find_tokenizer
from .vision_embeddings import BaselineVisionEmbeddings


_Model = TypeVar("_Model", bound="BaselinePreTrainedModel")


class BaselinePreTrainedModel(PreTrainedModel):
    """
    Base class of baselines: building from CLIP, loading and saving.

    Attributes:
        clip (`CLIPModel`): the backbone, frozen.
        tokenizer: its text tokenizer. `None` if the checkpoint has none; text cannot be encoded then.
        provenance ([`Provenance`]): origin of the backbone, and the datasets the model was trained on.
        references ([`References`], *optional*): embeddings of photos of good parts, saved with the model.
        references_class (`type`, *optional*): class of the references. `None` for methods without references.
        reference_fields (`tuple[str, ...]`): fields of the configuration that change references, besides `image_size`
            and `position_interpolation`.
        method_name (`str`): name of the method in tables.
    """

    config: Any
    config_class = BaselineConfig
    method_name = ""
    references_class: Any = None
    reference_fields: tuple[str, ...] = ()
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # declared as a list, but a tuple in the library's models
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "BaselineVisionEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: BaselineConfig) -> None:
        config.check_values()
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip)
        self.clip.vision_model.embeddings = BaselineVisionEmbeddings(config)
        self.tokenizer: Any = None
        self.provenance = Provenance()
        self.references: Any = None
        self.post_init()
        self.freeze_backbone()
        self.train(self.training)  # CLIP without dropout

    def train(self: _Model, mode: bool = True) -> _Model:
        """
        Switch the trained weights to training or eval mode. CLIP computes without dropout in both.

        Args:
            mode (`bool`, defaults to `True`): whether to use training mode.

        Returns:
            The model itself.
        """
        super().train(mode)
        disable_dropout(self.clip)
        return self

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether initialization may overwrite loaded weights. It may not, as in [`ViP2ClipPreTrainedModel`]."""
        return False

    def freeze_backbone(self) -> None:
        """Disable the gradients of CLIP. Creating and loading a model call this method."""
        self.clip.requires_grad_(False)

    def adapter_state_dict(self) -> dict[str, torch.Tensor]:
        """
        Return the weights that the method adds to CLIP.

        Returns:
            `dict[str, torch.Tensor]`: the state dict without the weights of CLIP. Empty for methods without training.
        """
        return {k: v for k, v in self.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """CLIP is a separate model and initializes its own weights, except one."""
        super()._init_weights(module)
        if isinstance(module, BaselinePreTrainedModel):
            init.constant_(module.clip.logit_scale, float(module.clip.config.logit_scale_init_value or 0.0))

    # Building, loading and saving

    @classmethod
    def from_clip(
        cls: type[_Model],
        clip: CLIPModel | str | os.PathLike,
        tokenizer: Any = None,
        *,
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
        Create a model from a CLIP checkpoint.

        Args:
            clip (`CLIPModel`, `str` or `os.PathLike`):
                Backbone: a `CLIPModel`, whose weights are shared if they have the same dtype and device, a folder or
                a Hub id.
            tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
                Text tokenizer, or its folder or Hub id. By default, that of the folder or Hub id in `clip`.
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`):
                Dtype of CLIP, regardless of the dtype in the checkpoint.
            attn_implementation (`str`, *optional*):
                Attention implementation of CLIP, such as `"eager"` or `"sdpa"`.
            device_map (`str` or `dict`, *optional*):
                Devices of the modules, as in `PreTrainedModel.from_pretrained`.
            revision, token, cache_dir, local_files_only (*optional*):
                Options to load from the Hub, as in `PreTrainedModel.from_pretrained`.
            config_overrides:
                Fields of the configuration.

        Returns:
            The model, in eval mode.

        Raises:
            OSError: if the checkpoint is not found.
            RuntimeError: if weights are missing from the checkpoint.
            ValueError: if it is not a CLIP checkpoint, it has no text tokenizer, the tokenizer belongs to another text
                tower, or an override is not a field of the configuration or not allowed.
        """
        hub_kwargs: dict[str, Any] = {
            "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only
        }  # fmt: skip
        cls.config_class.check_names(config_overrides)
        backbone: Any
        backbone, origin = load_clip(clip, **hub_kwargs)
        if tokenizer is None and isinstance(clip, (str, os.PathLike)):
            tokenizer = find_tokenizer(clip, **hub_kwargs)
        elif isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = find_tokenizer(tokenizer, **hub_kwargs)
        check_tokenizer(tokenizer, backbone.config.text_config)
        settings = {**cls.settings_from_tokenizer(tokenizer, config_overrides), **config_overrides}
        config = cls.config_class(clip_config=CLIPConfig.from_dict(backbone.config.to_dict()), **settings)
        weights = {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.state_dict().items()}
        kwargs = {"attn_implementation": attn_implementation, "device_map": device_map}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        with quiet_loading():
            loaded: Any = super().from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, **kwargs
            )
        model, info = loaded
        wrong = sorted(
            name for name in {*info["missing_keys"], *info["unexpected_keys"]} if name.startswith(BACKBONE_PREFIX)
        )
        if wrong:
            raise RuntimeError(
                f"{len(wrong)} weights of the CLIP model are missing or unknown ({wrong[0]}, ...); expected the "
                "weights of a CLIPModel. Merge adapters of PEFT first, with merge_and_unload()."
            )
        model.tokenizer, model.provenance = tokenizer, Provenance.from_dict(origin)
        model.freeze_backbone()  # loading replaces the parameters
        remember_weights(model)
        return model

    @classmethod
    def settings_from_tokenizer(cls, tokenizer: Any, config_overrides: dict[str, Any]) -> dict[str, Any]:
        """
        Return fields of the configuration that come from the tokenizer, such as the ids of fixed words.

        Args:
            tokenizer: the tokenizer.
            config_overrides (`dict[str, Any]`): fields that the caller sets.

        Returns:
            `dict[str, Any]`: the fields. The caller's have priority.
        """
        return {}

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: Any,
        *args: Any,
        backbone: CLIPModel | str | os.PathLike | None = None,
        references: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """
        Load a checkpoint with its tokenizer and its references. The checkpoint is complete, or contains only the
        adapters.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub id.
            backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*): CLIP backbone of an adapters-only checkpoint,
                as for [`ViP2ClipForAnomalyDetection`]. By default, the `backbone_id` in its `backbone.json`.
            references (*optional*, defaults to `"auto"`): embeddings of photos of good parts, instead of those in the
                checkpoint. `None` uses none.
            args, kwargs: arguments of `PreTrainedModel.from_pretrained`, and fields of the configuration to override.

        Returns:
            The model, in eval mode. With `output_loading_info=True`, a tuple of the model and the loading info.

        Raises:
            OSError: if the checkpoint is not found, or its references are damaged.
            RuntimeError: if weights are missing. They are never initialized randomly, unless `output_loading_info` is
                set.
            ValueError: if the checkpoint belongs to another model type, its backbone is not the one used in training,
                its references belong to another model, or a value is not allowed.
        """
        check_references_argument(references)
        source, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        with naming("Checkpoint", source):
            reference = BackboneReference.find(source, **hub_kwargs)
        if reference is not None or backbone is not None:
            loaded: Any = cls._merge(source, reference, backbone, hub_kwargs, *args, **kwargs)
        else:
            with naming("Checkpoint", source):
                loaded = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        if missing and not wants_info:
            raise RuntimeError(
                f"{source} lacks {len(missing)} of the model's weights ({missing[0]}, ...); expected all of them, "
                "because missing weights would be random."
            )
        check_adapters(model.adapter_state_dict(), source)
        model.tokenizer = find_tokenizer(source, **hub_kwargs)
        with naming("Checkpoint", source):
            model.provenance = Provenance.from_pretrained(source, **hub_kwargs)
            automatic = isinstance(references, str)
            model.references = read_references(source, model, hub_kwargs) if automatic else references
        model.freeze_backbone()
        remember_weights(model)
        return (model, info) if wants_info else model

    @classmethod
    def _merge(
        cls,
        source: str | os.PathLike,
        reference: BackboneReference | None,
        backbone: CLIPModel | str | os.PathLike | None,
        hub_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load an adapters-only checkpoint with its backbone. Return the model and the loading info."""
        if kwargs.get("state_dict") is not None:
            raise ValueError("state_dict is set, but the checkpoint contains only adapters; remove state_dict=.")
        config = kwargs.pop("config", None)
        if not isinstance(config, BaselineConfig):
            names = [name for name in kwargs if name in cls.config_class.__dataclass_fields__ and name != "dtype"]
            overrides = {name: kwargs.pop(name) for name in names}
            config = cls.config_class.from_pretrained(source if config is None else config, **hub_kwargs, **overrides)
        adapters = read_adapters(source, reference is not None, hub_kwargs)
        clip = load_reference_backbone(source, reference, backbone, hub_kwargs)
        weights = {**{BACKBONE_PREFIX + name: tensor for name, tensor in clip.state_dict().items()}, **adapters}
        kwargs = {name: value for name, value in kwargs.items() if name not in HUB_KWARGS}
        loaded: Any = super().from_pretrained(
            None, *args, config=config, state_dict=weights, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if unknown := sorted(info["unexpected_keys"]):
            raise RuntimeError(
                f"{source} has weights that the model does not have ({unknown[0]}, ...); expected the adapters of a "
                f"{cls.__name__} with this configuration."
            )
        model.name_or_path = model.config.name_or_path = str(source)
        return model, info

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model, its tokenizer, `provenance` and `references`, as `PreTrainedModel.save_pretrained` does."""
        is_main_process = args[0] if args else kwargs.get("is_main_process", True)
        if is_main_process and not os.path.isfile(save_directory):
            self._save_files(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)
        if is_main_process and os.path.isdir(save_directory):
            # Of an adapters-only checkpoint that was replaced by this complete one.
            Path(save_directory, BackboneReference.file_name).unlink(missing_ok=True)

    def _save_files(self, folder: str | os.PathLike) -> None:
        """Write the files next to weights and configuration."""
        check_training_record(self)
        self.provenance.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        write_references(folder, self)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Upload the files of a model. Write our files again, to include them in the files that were modified."""
        self._save_files(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


__all__ = ["BaselinePreTrainedModel"]
