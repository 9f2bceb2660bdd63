"""Base class of the baselines: a CLIP backbone with a text tokenizer, building from CLIP, loading and saving."""

import math
import os
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, initialization as init
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from ..models.vip2clip.backbone_vip2clip import BACKBONE_PREFIX, HUB_KWARGS, load_clip, naming, quiet_loading
from .configuration import BaselineConfig
from .prompts import build_prompts
from .tokenizing import check_tokenizer, find_tokenizer, tokenize


_Model = TypeVar("_Model", bound="BaselineModel")
# Prompts that run through the text tower together.
TEXT_BATCH = 128


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """
    Convert half precision to float32. Keep float32 and float64.

    Args:
        tensor (`torch.Tensor`): the tensor.

    Returns:
        `torch.Tensor`: the tensor in float32 or float64.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class BaselineVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings, with a configurable interpolation of the position embeddings."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config.clip.vision_config)
        self.mode = config.position_interpolation

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
        patch: Any = self.patch_size  # typed as a pair, too
        grid = (height // patch, width // patch)
        if grid == (native, native):
            return table
        mode, _, antialias = self.mode.partition("_")
        patches = upcast(table[:, 1:]).mT.unflatten(-1, (native, native))
        patches = F.interpolate(patches, size=grid, mode=mode, align_corners=False, antialias=bool(antialias))
        return torch.cat([table[:, :1], patches.flatten(2).mT.to(table.dtype)], dim=1)  # (1, 1 + grid * grid, hidden)


class BaselineModel(PreTrainedModel):
    """
    Base class of baselines.

    Attributes:
        clip (`CLIPModel`): the backbone.
        tokenizer: its text tokenizer. `None` if the checkpoint has none; text cannot be encoded then.
        method_name (`str`): name of the method in tables.
    """

    config: Any
    config_class = BaselineConfig
    method_name = ""
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
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether initialization may overwrite loaded weights. It may not, as in [`ViP2ClipPreTrainedModel`]."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """CLIP is a separate model and initializes its own weights, except one."""
        super()._init_weights(module)
        if isinstance(module, BaselineModel):
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
        backbone: Any = load_clip(clip, **hub_kwargs)[0]
        if tokenizer is None and isinstance(clip, (str, os.PathLike)):
            tokenizer = find_tokenizer(clip, **hub_kwargs)
        elif isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = find_tokenizer(tokenizer, **hub_kwargs)
        check_tokenizer(tokenizer, backbone.config.text_config)
        config = cls.config_class(clip_config=CLIPConfig.from_dict(backbone.config.to_dict()), **config_overrides)
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
        model.tokenizer = tokenizer
        return model

    @classmethod
    def from_pretrained(cls: type[_Model], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Load a checkpoint with its tokenizer.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub id.
            args, kwargs: arguments of `PreTrainedModel.from_pretrained`, and fields of the configuration to override.

        Returns:
            The model, in eval mode. With `output_loading_info=True`, a tuple of the model and the loading info.

        Raises:
            OSError: if the checkpoint is not found.
            RuntimeError: if weights are missing. They are never initialized randomly, unless `output_loading_info` is
                set.
            ValueError: if the checkpoint belongs to another model type, or a value is not allowed.
        """
        source, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        with naming("Checkpoint", source):
            loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        if missing and not wants_info:
            raise RuntimeError(
                f"{source} lacks {len(missing)} of the model's weights ({missing[0]}, ...); expected all of them, "
                "because missing weights would be random."
            )
        model.tokenizer = find_tokenizer(source, **hub_kwargs)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model and its tokenizer, as `PreTrainedModel.save_pretrained` does."""
        is_main_process = args[0] if args else kwargs.get("is_main_process", True)
        if is_main_process and self.tokenizer is not None and not os.path.isfile(save_directory):
            self.tokenizer.save_pretrained(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Upload the files of a model. Write the tokenizer again, to include it in the files that were modified."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    # Texts

    def get_prompts(self, class_name: str | None = None) -> tuple[list[str], list[str]]:
        """
        Write the prompts of a class.

        Args:
            class_name (`str`, *optional*): name of the class. By default, `config.class_name`.

        Returns:
            `tuple[list[str], list[str]]`: the normal and the anomalous prompts.

        Raises:
            ValueError: if the name is empty.
        """
        name = self.config.class_name if class_name is None else class_name
        if not name.strip():
            raise ValueError(f"class_name is {name!r}; expected a text that is not empty.")
        texts = self.config.prompts
        normal, anomalous = (
            build_prompts(states, texts.templates, name) for states in (texts.normal_states, texts.anomalous_states)
        )
        return normal, anomalous

    def check_tokenizer(self) -> None:
        """
        Check that the model has a text tokenizer that belongs to its text tower.

        Raises:
            ValueError: if it has none, or another one.
        """
        check_tokenizer(self.tokenizer, self.config.clip.text_config)

    def encode_prompts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        Encode tokenized prompts.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_prompts, length)`): token ids with start and end token.

        Returns:
            `torch.FloatTensor` of shape `(num_prompts, projection_dim)`: projected end tokens, not normalized.
        """
        parts = [
            self.clip.text_projection(self.clip.text_model(input_ids=ids.to(self.device)).pooler_output)
            for ids in input_ids.long().split(TEXT_BATCH)
        ]
        return upcast(torch.cat(parts))  # (N, D)

    def pool_prompts(self, features: torch.Tensor) -> torch.Tensor:
        """
        Combine the embeddings of the prompts of one kind. Each method has its own rule.

        Args:
            features (`torch.FloatTensor` of shape `(num_prompts, projection_dim)`): result of `encode_prompts`.

        Returns:
            `torch.FloatTensor` of shape `(projection_dim,)`: the embedding.
        """
        raise NotImplementedError

    def get_text_embeds(self, class_name: str | None = None) -> torch.Tensor:
        """
        Compute the text embeddings of a class.

        Args:
            class_name (`str`, *optional*): name of the class. By default, `config.class_name`.

        Returns:
            `torch.FloatTensor` of shape `(2, projection_dim)`: the embeddings [normal, anomalous].

        Raises:
            ValueError: if the model has no tokenizer, or the name gives a prompt that is too long.
        """
        prompts = self.get_prompts(class_name)
        ids = [tokenize(self.tokenizer, texts, self.config.clip.text_config) for texts in prompts]
        return torch.stack([self.pool_prompts(self.encode_prompts(one)) for one in ids])  # (2, D)

    # Images

    def embed_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Compute the input of the vision tower, before its first layer norm.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`): the images.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`: class token and patches, with
            position embeddings.

        Raises:
            ValueError: if the images have another shape.
        """
        shape, side = tuple(pixel_values.shape), self.config.side
        channels = self.config.clip.vision_config.num_channels
        if len(shape) != 4 or shape[0] == 0 or shape[1:] != (channels, side, side):
            raise ValueError(
                f"pixel_values has shape {shape}; expected (batch_size, {channels}, {side}, {side}). Use "
                f"ViP2ClipImageProcessor(size={side})."
            )
        return self.clip.vision_model.embeddings(pixel_values, interpolate_pos_encoding=True)  # (B, 1 + P, width)

    def encode_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Run the vision tower on tokens.

        Args:
            hidden (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): result of `embed_patches`,
                or some of its tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`: hidden states after the last block,
            before the last layer norm.
        """
        vision = self.clip.vision_model
        return vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state  # (B, T, width)

    def text_embeds_for(self, text_embeds: torch.Tensor | None, class_name: str | None) -> torch.Tensor:
        """
        Return the text embeddings of a call: those passed, or those of a class.

        Args:
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`, *optional*): result of `get_text_embeds`.
            class_name (`str`, *optional*): name of the class.

        Returns:
            `torch.FloatTensor` of shape `(2, projection_dim)`: the embeddings [normal, anomalous].

        Raises:
            ValueError: if both are passed, or the embeddings have another shape.
        """
        if text_embeds is None:
            return self.get_text_embeds(class_name)
        if class_name is not None:
            raise ValueError("text_embeds and class_name are both set; expected one of them.")
        expected = (2, self.config.clip.projection_dim)
        if tuple(text_embeds.shape) != expected:
            raise ValueError(f"text_embeds has shape {tuple(text_embeds.shape)}; expected {expected}.")
        return upcast(text_embeds.to(self.device))  # (2, D)


__all__ = ["BaselineModel", "BaselineVisionEmbeddings", "upcast"]
