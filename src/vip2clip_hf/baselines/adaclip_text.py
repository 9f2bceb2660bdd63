"""Text part of AdaCLIP: sentences with learned prompts in the text tower."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from ..models.vip2clip.maps_vip2clip import without_autocast
from .adaclip_configuration import AdaClipConfig
from .adaclip_outputs import AdaClipImageFeatures
from .adaclip_prompts import AdaClipPrompts, end_positions, text_blocks
from .tokenizing import tokenize
from .trainable import TrainableBaselineModel
from .vision_embeddings import upcast


# Prompts that run through the text tower together. Those of one image are never split.
TEXT_BATCH = 512


class AdaClipTextModel(TrainableBaselineModel):
    """
    Base class of [`AdaClipForAnomalyDetection`]: encodes the sentences of a class, for each image.

    Args:
        config ([`AdaClipConfig`]): configuration.
    """

    config: AdaClipConfig
    config_class = AdaClipConfig
    text_depends_on_image = True

    def __init__(self, config: AdaClipConfig) -> None:
        super().__init__(config)
        depth, width = config.prompting_depth - 1, config.clip.text_config.hidden_size
        self.text_prompts = AdaClipPrompts(config, depth, width) if config.prompts_text else None
        self.text_depends_on_image = config.prompts_text and config.is_dynamic
        # Token ids of prompts, and text embeddings that do not change.
        self._memory: dict[Any, torch.Tensor] = {}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the model. Text embeddings in another precision are not used again."""
        self._memory.clear()
        return super()._apply(*args, **kwargs)

    def get_input_ids(self, class_name: str | None = None) -> torch.Tensor:
        """
        Tokenize the prompts of a class. The result is remembered.

        Args:
            class_name (`str`, *optional*): name of the class. By default, `config.class_name`.

        Returns:
            `torch.LongTensor` of shape `(num_prompts, length)`: token ids with start and end token, the normal prompts
                first, on the CPU. The length is that of the longest prompt.

        Raises:
            ValueError: if the model has no tokenizer, or a prompt is too long, or too short for the learned prompts.
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
            ValueError: if embeddings of images are required, the model has no tokenizer, or a prompt is too long or
                short.
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
            # The text tower is frozen. Tensors of inference mode could not be used for training later, and those of
            # autocast have its precision, also after it.
            with torch.inference_mode(False), torch.no_grad(), without_autocast(self.device.type):
                self._memory[key] = self._pool_kinds(self.encode_prompts(ids)[None], count)
        return self._memory[key]

    def _pool_kinds(self, features: torch.Tensor, count: int) -> torch.Tensor:
        """Pool features of shape (B, N, D), of which the first `count` are normal. Shape (B, 2, D)."""
        with without_autocast(self.device.type):
            kinds = features[:, :count], features[:, count:]
            return torch.stack([self.pool_prompts(kind) for kind in kinds], dim=1)

    def texts_of(
        self,
        features: AdaClipImageFeatures,
        text_embeds: torch.Tensor | None,
        class_name: str | Sequence[str] | None,
    ) -> torch.Tensor:
        """
        Return the text embeddings of a call for each image: those passed, or those of classes.

        Args:
            features ([`AdaClipImageFeatures`]): result of `encode_images`.
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)` or `(batch_size, 2, projection_dim)`,
                *optional*): result of `get_text_embeds`.
            class_name (`str` or `Sequence[str]`, *optional*): name of the class, or one name per image.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`: the embeddings [normal, anomalous].

        Raises:
            ValueError: if both are passed, or the embeddings have another shape.
        """
        images: Any = features.image_embeds
        count, width = images.shape
        if text_embeds is None:
            return self.get_text_embeds(self.class_names_for(class_name, count), features.plain_embeds)
        if class_name is not None:
            raise ValueError("text_embeds and class_name are both set; expected one of them.")
        if tuple(text_embeds.shape) not in ((2, width), (count, 2, width)):
            raise ValueError(
                f"text_embeds has shape {tuple(text_embeds.shape)}; expected {(2, width)} or {(count, 2, width)}."
            )
        return upcast(text_embeds.to(self.device)).expand(count, -1, -1)


__all__ = ["AdaClipTextModel"]
