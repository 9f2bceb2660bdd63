"""Textbook implementation of ViP²-CLIP, for comparison."""

import torch
import torch.nn.functional as F
from scipy import ndimage

from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.models.vip2clip import ViP2ClipImageFeatures, ViP2ClipPromptFeatures


class Textbook:
    """
    ViP²-CLIP from plain library calls.

    It uses prompts of 77 tokens, keeps all hidden states, projects every patch, and smooths maps one by one with
    scipy. The stages and results are those of the model, except for rounding.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model with the weights.
    """

    def __init__(self, model: ViP2ClipForAnomalyDetection) -> None:
        self.model, self.config, self.clip = model, model.config, model.clip

    def get_image_features(self, pixel_values: torch.Tensor) -> ViP2ClipImageFeatures:
        """Return image embeddings (B, D) and patch embeddings (B, L, P, D)."""
        clip = self.clip
        output = clip.vision_model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True)
        token = output.pooler_output if self.config.image_embeds_layernorm else output.last_hidden_state[:, 0]
        image_embeds = F.normalize(clip.visual_projection(token), dim=-1)
        layers = [
            clip.visual_projection(clip.vision_model.post_layernorm(output.hidden_states[number]))[:, 1:]
            for number in self.config.feature_layers
        ]
        patch_embeds = torch.stack([F.normalize(layer, dim=-1) for layer in layers], dim=1)
        return ViP2ClipImageFeatures(image_embeds=image_embeds, patch_embeds=patch_embeds)

    def get_prompt_features(self, image_embeds: torch.Tensor) -> ViP2ClipPromptFeatures:
        """Return text embeddings (B, 2, D)."""
        text, prompts = self.clip.text_model, self.model.get_prompts(image_embeds)
        longest = text.config.max_position_embeddings
        padded = F.pad(prompts, (0, 0, 0, longest - prompts.shape[2])).flatten(0, 1)
        hidden = text.embeddings(inputs_embeds=padded)
        mask = torch.full((longest, longest), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
        mask = mask.to(hidden.dtype)[None, None]
        for block in text.encoder.layers:
            hidden = block(hidden, mask)
        hidden = text.final_layer_norm(hidden).unflatten(0, (-1, 2))
        ends = torch.stack([hidden[:, i, length - 1] for i, length in enumerate(self.config.prompt_lengths)], dim=1)
        return ViP2ClipPromptFeatures(text_embeds=F.normalize(self.clip.text_projection(ends), dim=-1))

    def align(self, text_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B,) and layer maps (B, L, 2, P)."""
        config, perception = self.config, self.model.fine_grained_perception
        heads, temperature = config.fgp_num_heads, config.temperature
        text_embeds, maps, layer_logits = text_embeds.float(), [], []

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

        for patches in patch_embeds.float().unbind(1):
            queries, keys, values = (
                split(projection(states))
                for projection, states in (
                    (perception.q_proj, text_embeds),
                    (perception.k_proj, patches),
                    (perception.v_proj, patches),
                )
            )
            scale = None if config.fgp_scaled else 1.0
            attended = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
            refined = F.normalize(perception.out_proj(attended.transpose(1, 2).flatten(2)), dim=-1)
            cosines = patches @ refined.mT
            probabilities = (cosines / temperature).softmax(-1)
            maps.append(probabilities.mT)
            chosen = (cosines[..., 1] - cosines[..., 0]).topk(config.top_k, dim=-1).indices
            pooled = torch.stack([image[places].mean(0) for image, places in zip(patches, chosen)])
            if config.image_score == "pooled_features":
                pooled = F.normalize(pooled, dim=-1)
            layer_logits.append((refined @ pooled[..., None])[..., 0] / temperature)
        logits = torch.stack(layer_logits)
        if config.image_score == "pooled_features":
            scores = logits.softmax(-1).mean(0)[:, 1]
        else:
            scores = logits.mean(0).softmax(-1)[:, 1]
        return scores, torch.stack(maps, dim=1)

    def get_anomaly_maps(self, layer_maps: torch.Tensor) -> torch.Tensor:
        """Return anomaly maps (B, S, S)."""
        grid, size = self.config.patch_grid, self.config.image_size
        layers = [
            F.interpolate(layer.unflatten(-1, (grid, grid)), (size, size), mode="bilinear", align_corners=False)
            for layer in layer_maps.unbind(1)
        ]
        mean = torch.stack([(1 - layer[:, 0] + layer[:, 1]) / 2 for layer in layers]).mean(0).cpu().numpy()
        return torch.stack(
            [torch.from_numpy(ndimage.gaussian_filter(layer_mean, self.config.smoothing_sigma)) for layer_mean in mean]
        )
