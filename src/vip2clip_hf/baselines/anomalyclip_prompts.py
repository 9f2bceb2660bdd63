"""The learned vectors of AnomalyCLIP, and the text tower with deep prompts."""

import torch
from torch import nn
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask

from ..models.vip2clip.adapters_vip2clip import ViP2ClipAdapter
from .anomalyclip_configuration import KINDS, AnomalyClipConfig
from .vision_embeddings import upcast


class AnomalyClipPromptLearner(ViP2ClipAdapter):
    """The learned vectors: a context for each prompt, and deep prompts, which both prompts share."""

    def __init__(self, config: AnomalyClipConfig) -> None:
        super().__init__()
        width, count = config.clip.text_config.hidden_size, config.num_context_tokens
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.normal_context = nn.Parameter(torch.empty(count, width, dtype=dtype))
        self.anomalous_context = nn.Parameter(torch.empty(count, width, dtype=dtype))
        # One tensor per block: with a depth of 1, a single tensor would be empty, which optimizers and files refuse.
        self.deep_prompts = nn.ParameterList(
            nn.Parameter(torch.empty(config.deep_prompt_length, width, dtype=dtype))
            for _ in range(config.prompt_depth - 1)
        )

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """
        Return the learned vectors.

        Returns:
            `tuple`: the normal and the anomalous context, each of shape `(num_context_tokens, text_width)`, and the
            `prompt_depth - 1` deep prompts of shape `(deep_prompt_length, text_width)`.
        """
        # Copies: FSDP frees the parameters of a module after its forward.
        return self.normal_context.clone(), self.anomalous_context.clone(), [one.clone() for one in self.deep_prompts]


def embed_prompts(
    clip: CLIPModel, contexts: tuple[torch.Tensor, torch.Tensor], config: AnomalyClipConfig
) -> torch.Tensor:
    """
    Build the prompts [start] [context] [words] [end], without position embeddings.

    Args:
        clip (`CLIPModel`): backbone.
        contexts (`tuple[torch.FloatTensor, torch.FloatTensor]`): contexts [normal, anomalous], each of shape
            `(num_context_tokens, text_width)`.
        config ([`AnomalyClipConfig`]): configuration.

    Returns:
        `torch.FloatTensor` of shape `(2, prompt_length, text_width)`: prompts [normal, anomalous] as input embeddings
        of the text tower. The shorter one is padded with end tokens.
    """
    embed = clip.text_model.embeddings.token_embedding
    ids = [config.ids_of(kind) for kind in KINDS]
    longest = max(map(len, ids))
    prompts = []
    for row, context in zip(ids, contexts):
        padded = torch.tensor([*row, *row[-1:] * (longest - len(row))], device=context.device)
        fixed = embed(padded)  # (2 + words, C)
        prompts.append(torch.cat([fixed[:1], context.to(fixed), fixed[1:]]))
    return torch.stack(prompts)  # (2, T, C)


def encode_prompts(
    clip: CLIPModel, prompts: torch.Tensor, deep_prompts: list[torch.Tensor], config: AnomalyClipConfig
) -> torch.Tensor:
    """
    Run prompts through the text tower. Deep prompts replace the states after the start token before blocks 2, 3, ...

    Attention is causal and ignores tokens after the end token. Prompts therefore do not need padding to 77 tokens.

    Args:
        clip (`CLIPModel`): backbone.
        prompts (`torch.FloatTensor` of shape `(2, prompt_length, text_width)`): result of [`embed_prompts`].
        deep_prompts (`list[torch.FloatTensor]`): tensors of shape `(deep_prompt_length, text_width)`.
        config ([`AnomalyClipConfig`]): configuration.

    Returns:
        `torch.FloatTensor` of shape `(2, projection_dim)`: projected end tokens [normal, anomalous], not normalized.
    """
    text = clip.text_model
    hidden = text.embeddings(inputs_embeds=prompts)  # (2, T, C)
    # Positional arguments, because transformers 5.24 renamed the last one.
    mask = create_causal_mask(text.config, hidden, None, None)
    for number, block in enumerate(text.encoder.layers):
        if 1 <= number <= len(deep_prompts):
            learned = deep_prompts[number - 1].expand(len(hidden), -1, -1)  # (2, t, C)
            if config.half_prompts:  # after expand: the gradients of both prompts are rounded before they are added
                learned = learned.half()
            rest = hidden[:, 1 + config.deep_prompt_length :]
            hidden = torch.cat([hidden[:, :1], learned.to(hidden), rest], dim=1)  # (2, T, C)
        hidden = block(hidden, mask, is_causal=True)
    last = [config.num_context_tokens + len(config.ids_of(kind)) - 1 for kind in KINDS]
    ends = torch.stack([states[position] for states, position in zip(hidden, last)])  # (2, C)
    return upcast(clip.text_projection(text.final_layer_norm(ends)))  # (2, D)


__all__ = ["AnomalyClipPromptLearner", "embed_prompts", "encode_prompts"]
