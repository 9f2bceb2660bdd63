"""Steps of AnomalyCLIP, compared with a plain reading of its published code."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scipy import ndimage
from transformers import CLIPConfig

from vip2clip_hf.baselines import AnomalyClipConfig, AnomalyClipForAnomalyDetection


Function = Callable[[], tuple[torch.Tensor, ...]]
TRAINING_BATCH = 8


class PublishedReading:
    """
    AnomalyCLIP as its published code computes it, with the weights of a model.

    Both paths run inside the vision tower, with attention as matrix products. Texts have 77 tokens, each layer is
    resized, and maps are smoothed one by one with scipy.

    Args:
        model ([`AnomalyClipForAnomalyDetection`]): model with the weights.
    """

    def __init__(self, model: AnomalyClipForAnomalyDetection) -> None:
        self.model, self.config, self.clip = model, model.config, model.clip
        self.layers: Any = self.config.feature_layers

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attention: Any) -> torch.Tensor:
        """Compute attention and its output projection, from and to (B, T, width)."""
        q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        weights = (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1)
        return attention.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def tower(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the class token (B, width) and the tokens of the feature layers (B, 1 + P, width)."""
        vision, found = self.clip.vision_model, []
        hidden = vision.pre_layrnorm(self.model.embed_patches(pixel_values))
        first = len(vision.encoder.layers) - self.config.dpam_layers
        path = hidden
        for number, block in enumerate(vision.encoder.layers):
            if number < first:
                path = hidden = block(hidden, None)
            else:
                attention, normed = block.self_attn, block.layer_norm1(hidden)
                q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
                path = path + self.attend(v, v, v, attention)
                hidden = hidden + self.attend(q, k, v, attention)
                hidden = hidden + block.mlp(block.layer_norm2(hidden))
            if number + 1 in self.layers:
                found.append(path)
        return hidden[:, 0], found

    def beside_tower(self, states: tuple[torch.Tensor, ...], values: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tokens of the feature layers, if the tower has computed the values already."""
        layers, found = self.clip.vision_model.encoder.layers, []
        first = len(layers) - self.config.dpam_layers
        path = states[first]
        for number in range(first, len(layers)):
            v = values[number - first]
            path = path + self.attend(v, v, v, layers[number].self_attn)
            if number + 1 in self.layers:
                found.append(path)
        return found

    def results(
        self, token: torch.Tensor, tokens: list[torch.Tensor], text_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B,) and smoothed maps (B, S, S)."""
        grid, side, maps = self.config.patch_grid, self.config.side, []
        text = F.normalize(text_embeds, dim=-1)
        image = F.normalize(self.clip.visual_projection(token), dim=-1)
        scores = (image @ text.T / 0.07).softmax(dim=-1)[:, 1]
        for one in tokens:
            patches = F.normalize(self.clip.visual_projection(self.clip.vision_model.post_layernorm(one)), dim=-1)
            both = (patches @ text.T / 0.07).softmax(dim=-1)[:, 1:].mT.unflatten(-1, (grid, grid))
            both = F.interpolate(both, size=side, mode="bilinear")
            maps.append((both[:, 1] + 1 - both[:, 0]) / 2)
        smoothed = [torch.from_numpy(ndimage.gaussian_filter(one.numpy(), 4)) for one in torch.stack(maps).sum(dim=0)]
        return scores, torch.stack(smoothed)

    def text(self) -> torch.Tensor:
        """Return the text embeddings (2, D), from prompts of 77 tokens."""
        config, tower, learner = self.config, self.clip.text_model, self.model.prompt_learner
        embed, rows, ends = tower.embeddings.token_embedding, [], []
        for kind in ("normal", "anomalous"):
            start, *others = config.ids_of(kind)
            ends.append(config.num_context_tokens + len(others))
            padding = tower.config.max_position_embeddings - 1 - ends[-1]
            context = getattr(learner, f"{kind}_context")
            rows.append(
                torch.cat([embed(torch.tensor([start])), context, embed(torch.tensor(others + [0] * padding))])
            )
        hidden = tower.embeddings(inputs_embeds=torch.stack(rows))
        length = hidden.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for number, block in enumerate(tower.encoder.layers):
            if 1 <= number < config.prompt_depth:
                deep = learner.deep_prompts[number - 1].expand(2, -1, -1)
                hidden = torch.cat([hidden[:, :1], deep, hidden[:, 1 + deep.shape[1] :]], dim=1)
            hidden = block(hidden, mask)
        hidden = tower.final_layer_norm(hidden)
        return self.clip.text_projection(torch.stack([hidden[row, end] for row, end in enumerate(ends)]))

    def loss(self, features: Any, labels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the training loss for cached features."""
        grid, side, total = self.config.patch_grid, self.config.side, torch.zeros(())
        text = F.normalize(self.text(), dim=-1)
        one_hot = torch.stack([1 - masks, masks], dim=1).clamp(1e-5, 1 - 1e-5)
        for patches in features.patch_embeds.unbind(1):
            both = (F.normalize(patches, dim=-1) @ text.T / 0.07).softmax(dim=-1).mT.unflatten(-1, (grid, grid))
            both = F.interpolate(both, size=side, mode="bilinear")
            true_class = (one_hot * both).sum(dim=1) + 1e-5
            total = total - ((1 - true_class) ** 2 * true_class.log()).mean()
            for one, mask in ((both[:, 1], masks), (both[:, 0], 1 - masks)):
                overlap, size = (one * mask).flatten(1).sum(1), (one.flatten(1).sum(1) + mask.flatten(1).sum(1))
                total = total + (1 - (2 * overlap + 1) / (size + 1)).mean()
        logits = F.normalize(features.image_embeds, dim=-1) @ text.T / 0.07
        return 4 * total + F.cross_entropy(logits, labels)


def anomalyclip_steps(size: Any) -> dict[str, tuple[Function, Function]]:
    """Return the steps, ours and the reading of the published code, for a backbone with all blocks."""
    large = size.width >= 1024
    vision = {"hidden_size": size.width, "num_hidden_layers": 24 if large else 12}
    vision.update(num_attention_heads=size.width // 64, intermediate_size=4 * size.width)
    text = {"hidden_size": 768, "num_hidden_layers": 12} if large else {"hidden_size": 128, "num_hidden_layers": 4}
    text.update(num_attention_heads=text["hidden_size"] // 64, intermediate_size=4 * text["hidden_size"])
    clip = CLIPConfig(
        vision_config={**vision, "patch_size": size.patch, "image_size": size.side},
        text_config=text,
        projection_dim=size.joint,
    )
    depth = {} if large else {"dpam_layers": 10, "prompt_depth": 3}
    model = AnomalyClipForAnomalyDetection(AnomalyClipConfig(clip_config=clip, image_size=size.side, **depth)).eval()
    published, first = PublishedReading(model), model.config.clip.vision_config.num_hidden_layers
    first -= model.config.dpam_layers
    with torch.no_grad():
        pixels, embeds = torch.randn(1, 3, size.side, size.side), model.get_text_embeds()
        states = model.encode_layers(pixels)
        blocks = model.clip.vision_model.encoder.layers[first:]
        values = [one.self_attn.v_proj(one.layer_norm1(state)) for one, state in zip(blocks, states[first:])]
        features = model.get_image_features(hidden_states=states)
    for name in ("image_embeds", "patch_embeds"):
        copies = getattr(features, name).expand(TRAINING_BATCH, *[-1] * (getattr(features, name).dim() - 1))
        setattr(features, name, copies.clone())
    labels = torch.arange(TRAINING_BATCH) % 2
    masks = (torch.rand(TRAINING_BATCH, size.side, size.side) > 0.9).float()

    def ours(**inputs: Any) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            outputs = model(**inputs, text_embeds=embeds)
        return outputs.scores, outputs.anomaly_maps

    def whole() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return published.results(*published.tower(pixels), embeds)

    def beside() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return published.results(states[-1][:, 0], published.beside_tower(states, values), embeds)

    def prompts(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (function(),)

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model.zero_grad()
        loss.backward()
        return loss.detach(), *(one.grad.clone() for one in model.prompt_learner.parameters())

    def training() -> tuple[torch.Tensor, ...]:
        return gradients(model(**features, labels=labels, mask_labels=masks).loss)

    return {
        "tower and results, 1 image": (lambda: ours(pixel_values=pixels), whole),
        # Generous: in the published code, too, the values cost nothing, because the tower needs them.
        "beside the tower, 1 image": (lambda: ours(hidden_states=states), beside),
        "texts": (lambda: prompts(model.get_text_embeds), lambda: prompts(published.text)),
        "training step, 8 cached images": (training, lambda: gradients(published.loss(features, labels, masks))),
    }


__all__ = ["PublishedReading", "anomalyclip_steps"]
