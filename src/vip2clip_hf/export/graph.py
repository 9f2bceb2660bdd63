"""The exported graph: the model, with all parts that do not depend on the image precomputed."""

import copy
from typing import Any

import torch
from torch import nn

from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank


# Outputs of every graph, and those that a graph with references has in addition.
OUTPUTS = ("scores", "anomaly_maps")
REFERENCE_OUTPUTS = ("reference_scores", "zero_shot_scores", "zero_shot_maps")


class ExportedDetector(nn.Module):
    """
    Module to export. The model is not changed; weights that are already on the CPU are shared with it.

    Constants of the graph are the position table at the image size and the embeddings of the tokens in the prompts
    (CLIP's full table has 49408 tokens). Without image conditioning, the prompt embeddings are constants too, and the
    text tower is removed.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32.
        references ([`ReferenceBank`], *optional*):
            Photos of good parts. Their features are constants of the graph, and scores and maps combine both.

    Raises:
        ValueError: if the model cannot be exported, see [`check_exportable`], or the references belong to another
            model.
    """

    text_embeds: torch.Tensor

    def __init__(self, model: ViP2ClipForAnomalyDetection, references: ReferenceBank | None = None) -> None:
        super().__init__()
        check_exportable(model)
        if references is not None:
            references.check_model(model)
        with torch.inference_mode(False), torch.no_grad():
            self.model = private_copy(model)
            self.references = None if references is None else _as_constants(references, self.model)
            _keep_used_tokens(self.model)
            _resize_positions(self.model)
            if not self.model.config.use_image_conditioning:
                unused = torch.zeros(1, self.model.clip.visual_projection.out_features)
                self.register_buffer(
                    "text_embeds", self.model.get_prompt_features(unused, return_dict=True).text_embeds.clone()
                )
                del self.model.clip.text_model, self.model.clip.text_projection
                del self.model.prompt_learner, self.model.image_conditioned_adapter

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return OUTPUTS if self.references is None else (*OUTPUTS, *REFERENCE_OUTPUTS)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Score images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`):
                Images from the image processor, float32.

        Returns:
            `tuple[torch.Tensor, ...]`: `scores` of shape `(batch_size,)` and `anomaly_maps` of shape
            `(batch_size, image_size, image_size)`, both float32 in [0, 1]. With references, also `reference_scores` of
            shape `(batch_size,)`, in [0, 2], and scores and maps without references.
        """
        model = self.model
        images = model.get_image_features(pixel_values, return_dict=True)
        image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
        if model.config.use_image_conditioning:
            text_embeds = model.encode_prompts(model.get_prompts(image_embeds), return_dict=True).text_embeds
        else:
            text_embeds = self.text_embeds.expand(pixel_values.shape[0], -1, -1)
        aligned = model.align(text_embeds, patch_embeds, image_embeds, top_k=model.decision.top_k)
        anomaly_maps = model.get_anomaly_maps(aligned["layer_maps"])
        if self.references is None:
            return aligned["scores"], anomaly_maps
        logits = aligned["logits"]
        compared = model.compare_with_references(self.references, patch_embeds, logits, anomaly_maps)
        return (*compared[:3], aligned["scores"], anomaly_maps)


def check_exportable(model: ViP2ClipForAnomalyDetection) -> None:
    """
    Check that a model can be exported: float32, `sdpa` or `eager` attention, three channels, not on the meta device.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model.

    Raises:
        ValueError: if the model cannot be exported. The message names the setting to change.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("Weights are offloaded or on the meta device; expected weights in memory. Omit device_map.")
    found = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()} - {"float32"})
    if found:
        raise ValueError(f"dtype is {' and '.join(found)}; expected float32. Load the model with dtype=torch.float32.")
    for tower in (model.clip.vision_model, model.clip.text_model):
        attention = tower.config._attn_implementation
        if attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation is {attention!r}; expected 'sdpa' or 'eager'. Load the model with "
                'attn_implementation="sdpa".'
            )
    channels = model.clip.vision_model.config.num_channels
    if channels != 3:
        raise ValueError(
            f"clip_config.vision_config.num_channels is {channels}; expected 3, the number of "
            "channels that ViP2ClipImageProcessor returns."
        )


def private_copy(model: ViP2ClipForAnomalyDetection) -> ViP2ClipForAnomalyDetection:
    """
    Copy a model to the CPU, in eval mode and without gradients. Weights that are already on the CPU are shared.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model; it is not changed.

    Returns:
        [`ViP2ClipForAnomalyDetection`]: the copy.
    """
    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach().cpu(), requires_grad=False)
    shared[id(model.references)] = model.references  # banks do not change
    private = copy.deepcopy(model, shared)
    for module in private.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.cpu()
    return private.eval().requires_grad_(False)


def _as_constants(references: ReferenceBank, model: ViP2ClipForAnomalyDetection) -> ReferenceBank:
    """Copy a bank with its features prepared for the CPU. Without a smaller basis, they stay in float16, which is
    exact and half the size."""
    found = copy.copy(references)
    prepared = found.rows_on(torch.device("cpu"), model.clip.visual_projection)
    if prepared.basis is None:
        prepared.rows = references.features.clone()  # tensors that were created in inference mode cannot be exported
    return found


def _keep_used_tokens(model: ViP2ClipForAnomalyDetection) -> None:
    """Reduce the token table to the tokens of the prompts and renumber them."""
    config = model.config
    embeddings = model.clip.text_model.embeddings
    words = {name: getattr(config, name) for name in ("normal_token_ids", "anomalous_token_ids")}
    used = [config.bos_token_id, *(token for tokens in words.values() for token in tokens), config.eos_token_id]
    number = {token: index for index, token in enumerate(dict.fromkeys(used))}
    rows = embeddings.token_embedding.weight[torch.tensor(list(number))].clone()
    embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=True)
    for name, tokens in words.items():
        setattr(config, name, tuple(number[token] for token in tokens))
    config.bos_token_id, config.eos_token_id = number[config.bos_token_id], number[config.eos_token_id]


def _resize_positions(model: ViP2ClipForAnomalyDetection) -> None:
    """Replace the position table of the vision tower by one at the image size of the model."""
    embeddings, size = model.clip.vision_model.embeddings, model.config.image_size
    table = embeddings.interpolate_pos_encoding(torch.empty(0), size, size)[0].clone()
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=True)
    embeddings.position_ids = torch.arange(len(table))[None]


__all__ = ["OUTPUTS", "REFERENCE_OUTPUTS", "ExportedDetector", "check_exportable", "private_copy"]
