"""Base class of the baselines: what all methods do with texts and images."""

from typing import Any

import torch
import torch.nn.functional as F

from .pretrained import BaselinePreTrainedModel
from .prompts import build_prompts
from .references import check_references_argument, map_tensors, tensors_of
from .tokenizing import check_tokenizer, tokenize
from .vision_embeddings import upcast


# Prompts that run through the text tower together.
TEXT_BATCH = 128


class BaselineModel(BaselinePreTrainedModel):
    """
    Base class of baselines: prompts as text, and images of `config.image_size`.

    Attributes:
        text_depends_on_image (`bool`): whether the embeddings of the prompts depend on the image.
        uses_class_names (`bool`): whether the prompts contain the name of the class.
    """

    text_depends_on_image = False
    uses_class_names = True

    def map_maximum(self, with_references: bool = False) -> float:
        """
        Return what an anomaly map is divided by to draw methods on one scale: the number of maps in [0, 1] that are
        added up, such as those of layers.

        Args:
            with_references (`bool`, defaults to `False`): whether the method compares with references.

        Returns:
            `float`: 1.0, if maps are probabilities.
        """
        return 1.0

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
        Normalize the embeddings of the prompts of one kind, average them, and normalize the mean. A method can have
        another rule.

        Args:
            features (`torch.FloatTensor` of shape `(..., num_prompts, projection_dim)`): result of `encode_prompts`.

        Returns:
            `torch.FloatTensor` of shape `(..., projection_dim)`: the embedding.
        """
        return F.normalize(F.normalize(features, dim=-1).mean(dim=-2), dim=-1)  # (..., D)

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

    def encode_layers(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Run the vision tower on images, and return the hidden states of all blocks.

        Methods with the same backbone, image size and position embeddings get the same states, so one run serves all
        of them: `forward` takes them as `hidden_states`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`): the images.

        Returns:
            `tuple[torch.FloatTensor, ...]`: 1 + number of blocks states of shape
            `(batch_size, 1 + num_patches, hidden_size)`: the input of the first block, then the output of each block,
            before the last layer norm.

        Raises:
            ValueError: if the images have another shape.
        """
        vision = self.clip.vision_model
        states = [vision.pre_layrnorm(self.embed_patches(pixel_values))]  # (B, 1 + P, width)
        for block in vision.encoder.layers:
            states.append(block(states[-1], None))
        return tuple(states)

    def states_for(
        self, pixel_values: torch.Tensor | None, hidden_states: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        """
        Return the hidden states of a call: those passed, or those of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`.

        Returns:
            `tuple[torch.FloatTensor, ...]`: the states, see `encode_layers`.

        Raises:
            ValueError: if neither is passed, or the states have another number or shape.
        """
        if hidden_states is None:
            if pixel_values is None:
                raise ValueError("pixel_values is None; expected images, or hidden_states of encode_layers.")
            return self.encode_layers(pixel_values)
        vision = self.config.clip.vision_config
        expected = (1 + self.config.patch_grid**2, vision.hidden_size)
        shapes = {tuple(state.shape[1:]) for state in hidden_states}
        if len(hidden_states) != 1 + vision.num_hidden_layers or shapes != {expected}:
            raise ValueError(
                f"hidden_states has {len(hidden_states)} states of (batch_size, *{sorted(shapes)}); expected "
                f"{1 + vision.num_hidden_layers} of (batch_size, *{expected}), the result of encode_layers."
            )
        return hidden_states

    def references_for(self, references: Any) -> Any:
        """
        Return the references of a call: those passed, or those of the model.

        Args:
            references: references, `"auto"` for those of the model, except in training mode, or `None`.

        Returns:
            [`References`], *optional*: the references, on the device of the model.

        Raises:
            ValueError: if the argument has another type.
        """
        check_references_argument(references)
        if isinstance(references, str):
            references = None if self.training else self.references
        if references is None:
            return None
        if self.references_class is None or not isinstance(references, self.references_class):
            expected = getattr(self.references_class, "__name__", None)
            raise ValueError(
                f"references is of type {type(references).__name__}; expected "
                f"{f'{expected}, the result of encode_images' if expected else 'None, because the method uses none'}."
            )
        if all(one.device == self.device for one in tensors_of(references).values()):
            return references  # with what it has computed already
        moved = map_tensors(references, lambda one: one.to(self.device))
        if references is self.references:
            self.references = moved
        return moved

    def run_blocks(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Run the blocks of the vision tower on tokens.

        Args:
            hidden (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): the first of the states of
                `encode_layers`, or some of its tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`: hidden states after the last block,
            before the last layer norm.
        """
        return self.clip.vision_model.encoder(inputs_embeds=hidden).last_hidden_state  # (B, T, width)

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


__all__ = ["BaselineModel"]
