"""The graph that is exported: the model with everything precomputed that does not depend on the image."""

import copy

import torch
from torch import nn

from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.prompt_prefix_vip2clip import ViP2ClipPromptPrefix


class ExportedDetector(nn.Module):
    """
    The graph that is exported. The model given is left as it is; weights in float32 on the CPU are shared with it.

    Held as constants are the position table at the image size, the embeddings of the few tokens that prompts are made
    of (instead of CLIP's table of 49408), keys and values of what all prompts begin with, and without image
    conditioning the prompts' embeddings, so that the text tower is left out.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32.

    Raises:
        ValueError: a model that cannot be exported; names the field of the configuration.
    """

    def __init__(self, model: ViP2ClipForAnomalyDetection):
        super().__init__()
        check_exportable(model)
        with torch.inference_mode(False), torch.no_grad():
            self.model = private_copy(model)
            prefix = self.model.get_prompt_prefix()
            self.prefix_length = 0 if prefix is None else prefix.length
            self.num_blocks = 0 if prefix is None else len(prefix.keys)
            _keep_used_tokens(self.model)
            _resize_positions(self.model)
            if self.model.config.use_image_conditioning:
                for number in range(self.num_blocks):
                    self.register_buffer(f"prefix_key_{number}", prefix.keys[number].clone())
                    self.register_buffer(f"prefix_value_{number}", prefix.values[number].clone())
            else:
                nothing = torch.zeros(1, self.model.config.clip_config.projection_dim)
                self.register_buffer("text_embeds", self.model.get_prompt_embeds(nothing).clone())
                self.model.clip.text_model = self.model.clip.text_projection = None
                self.model.prompt_learner = self.model.image_conditioned_adapter = None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixel_values` (B, 3, S, S) float32 -> `scores` (B,) and `anomaly_maps` (B, S, S), both in [0, 1]."""
        model = self.model
        image_embeds, patch_embeds = model.get_vision_features(pixel_values)
        if model.config.use_image_conditioning:
            text_embeds = model.encode_prompts(model.get_prompts(image_embeds), self._prefix())
        else:
            text_embeds = self.text_embeds.expand(pixel_values.shape[0], -1, -1)
        aligned = model.align(text_embeds, patch_embeds, image_embeds)
        return aligned.scores, model.get_anomaly_maps(aligned.layer_maps)

    def _prefix(self) -> ViP2ClipPromptPrefix | None:
        if self.num_blocks == 0:
            return None
        keys, values = (
            [getattr(self, f"prefix_{kind}_{number}") for number in range(self.num_blocks)]
            for kind in ("key", "value")
        )
        return ViP2ClipPromptPrefix(self.prefix_length, keys, values)


def check_exportable(model: ViP2ClipForAnomalyDetection):
    """
    Raises:
        ValueError: a model that cannot be exported; names the field of the configuration and what would do.
    """
    config = model.config
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("Weights of the model are offloaded or on the meta device; load it without device_map.")
    found = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if found != ["float32"]:
        raise ValueError(
            f"dtype is {' and '.join(found)}; models are exported in float32. Load it with dtype=torch.float32."
        )
    for tower in (config.clip_config.vision_config, config.clip_config.text_config):
        attention = tower._attn_implementation
        if attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation is {attention!r}; expected 'sdpa' or 'eager', of which graphs can be made. Load "
                'the model with attn_implementation="sdpa".'
            )
    channels = config.clip_config.vision_config.num_channels
    if channels != 3:
        raise ValueError(
            f"clip_config.vision_config.num_channels is {channels}; expected 3, the images of ViP2ClipImageProcessor."
        )


# The graph


def private_copy(model: ViP2ClipForAnomalyDetection) -> ViP2ClipForAnomalyDetection:
    """The model in eval mode on the CPU, without gradients. Weights that are there already are shared, all else is
    its own."""
    shared = {}
    for parameter in model.parameters():
        weight = parameter.detach().cpu()
        # Of what is made in inference mode it cannot be told whether it is written to, so that nothing could be kept.
        weight = weight.clone() if weight.is_inference() else weight
        shared[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    private = copy.deepcopy(model, shared)
    for module in private.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.cpu()
    return private.eval().requires_grad_(False)


def _keep_used_tokens(model: ViP2ClipForAnomalyDetection):
    """Cut the token table down to the tokens of the prompts, and number these anew."""
    config = model.config
    embeddings = model.clip.text_model.embeddings
    used = [config.bos_token_id, *config.normal_token_ids, *config.anomalous_token_ids, config.eos_token_id]
    number = {token: index for index, token in enumerate(dict.fromkeys(used))}
    rows = embeddings.token_embedding.weight[torch.tensor(list(number))].clone()
    embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=True)
    for name in ("normal_token_ids", "anomalous_token_ids"):
        setattr(config, name, tuple(number[token] for token in getattr(config, name)))
    config.bos_token_id, config.eos_token_id = number[config.bos_token_id], number[config.eos_token_id]


def _resize_positions(model: ViP2ClipForAnomalyDetection):
    """Store the position table of the vision tower at the size of the model's images."""
    embeddings, size = model.clip.vision_model.embeddings, model.config.image_size
    table = embeddings.interpolate_pos_encoding(torch.empty(0), size, size)[0].clone()
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=True)


__all__ = ["ExportedDetector", "check_exportable", "private_copy"]
