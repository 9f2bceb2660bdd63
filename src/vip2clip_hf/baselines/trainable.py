"""Base class of the baselines that are trained: what the trainer and the feature cache need of a model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from .base import BaselineModel
from .pretrained import BaselinePreTrainedModel
from .vision_embeddings import BaselineVisionEmbeddings


@dataclass
class BaselineImageFeatures(ModelOutput):
    """
    Output of the frozen part of a trained baseline, which the feature cache stores.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(batch_size, image_feature_size)`):
            Class token as the method uses it, before normalization.
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, width)`):
            Patch tokens of the feature layers, as the trained part of the method takes them.
    """

    image_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None


class TrainableBaselineModel(BaselineModel):
    """
    Base class of the baselines that are trained. CLIP is frozen.

    Attributes:
        feature_fields (`tuple[str, ...]`): fields of the configuration that change the result of `get_image_features`,
            besides `image_size` and `position_interpolation`.
        caches_features (`bool`): whether the frozen part can be computed once for all epochs. False for methods with
            prompts in the vision tower.
        optimizer_class (`type`): optimizer of the published recipe.
    """

    feature_fields: tuple[str, ...] = ("feature_layers",)
    caches_features = True
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam
    # The loss is a mean over the batch. The trainer accounts for the number of accumulated batches.
    accepts_loss_kwargs = False

    @property
    def feature_settings(self) -> dict[str, Any]:
        """What changes the result of `get_image_features`: the class and fields of the configuration, by name."""
        names = ("model_type", "image_size", "position_interpolation", *self.feature_fields)
        own = f"{type(self).__module__}.{type(self).__qualname__}"  # a subclass can compute other features
        return {"class": own, **{name: getattr(self.config, name) for name in names}}

    @property
    def feature_modules(self) -> list[str]:
        """Names of the modules that compute the features: those of the class and its bases, those of this package
        whose names start with them, and that of the position embeddings."""
        bases = {one.__module__ for one in type(self).__mro__ if issubclass(one, BaselinePreTrainedModel)}
        found = {name for name in bases if getattr(sys.modules[name], "__file__", None)}  # not in a notebook
        own = [name.rpartition(".")[2] for name in bases if name.rpartition(".")[0] == __package__]
        paths = [path for name in own for path in Path(__file__).parent.glob(f"{name}*.py")]
        return sorted({*found, BaselineVisionEmbeddings.__module__, *(f"{__package__}.{one.stem}" for one in paths)})

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape `(num_layers, num_patches, width)` of the `patch_embeds` of an image."""
        raise NotImplementedError

    @property
    def image_feature_size(self) -> int:
        """Length of the `image_embeds` of an image."""
        return self.config.clip.projection_dim

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each part of the loss by its name. The part `image` is a mean over images, the others are means
        over images with a valid mask."""
        raise NotImplementedError

    def optimizer_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """
        Group the trainable parameters by learning rate.

        Args:
            learning_rate (`float`): learning rate.

        Returns:
            `list[dict]`: parameter groups for a torch optimizer, with `params` and `lr`.
        """
        return [{"params": [one for one in self.parameters() if one.requires_grad], "lr": learning_rate}]

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """
        Compute what the feature cache stores: the frozen part of the method.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`, instead of images.
            return_dict (`bool`, *optional*): not used; the output is always a [`BaselineImageFeatures`].

        Returns:
            [`BaselineImageFeatures`]: embeddings.
        """
        raise NotImplementedError

    def features_for(
        self,
        pixel_values: torch.Tensor | None,
        image_embeds: torch.Tensor | None,
        patch_embeds: torch.Tensor | None,
        hidden_states: tuple[torch.Tensor, ...] | None,
    ) -> BaselineImageFeatures:
        """
        Return the features of a call: those passed, or those of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`, *optional*): images.
            image_embeds, patch_embeds (`torch.FloatTensor`, *optional*): results of `get_image_features`.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*): result of `encode_layers`.

        Returns:
            [`BaselineImageFeatures`]: the features.

        Raises:
            ValueError: if not exactly one kind of input is passed, or the embeddings have another shape.
        """
        cached = image_embeds is not None or patch_embeds is not None
        if (pixel_values is not None) + (hidden_states is not None) + cached != 1:
            raise ValueError(
                "Expected one of pixel_values, hidden_states, or image_embeds with patch_embeds; found "
                + ("none of them." if not cached and pixel_values is None else "several of them.")
            )
        if not cached:
            return self.get_image_features(pixel_values, hidden_states)
        shapes = (self.image_feature_size,), self.feature_shape
        found = [None if one is None else tuple(one.shape[1:]) for one in (image_embeds, patch_embeds)]
        if tuple(found) != shapes:
            raise ValueError(
                f"image_embeds and patch_embeds have the shapes (batch_size, ...) {found[0]} and {found[1]}; expected "
                f"{shapes[0]} and {shapes[1]}, the result of get_image_features."
            )
        return BaselineImageFeatures(image_embeds=image_embeds, patch_embeds=patch_embeds)

    def class_names_for(self, class_name: str | Sequence[str] | None, batch_size: int) -> list[str]:
        """
        Return the name of the class of each image.

        Args:
            class_name (`str` or `Sequence[str]`, *optional*): one name for all images, or one per image. By default,
                `config.class_name`.
            batch_size (`int`): number of images.

        Returns:
            `list[str]`: the names.

        Raises:
            ValueError: if there are more or fewer names than images.
        """
        if class_name is None or isinstance(class_name, str):
            return [self.config.class_name if class_name is None else class_name] * batch_size
        if len(class_name) != batch_size:
            raise ValueError(f"class_name has {len(class_name)} names; expected one for each of {batch_size} images.")
        return list(class_name)


__all__ = ["BaselineImageFeatures", "TrainableBaselineModel"]
