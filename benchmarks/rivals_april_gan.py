"""Steps of APRIL-GAN outside of the vision tower, and a plain reading of its published code."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import cosine_similarity
from transformers import CLIPConfig

from vip2clip_hf import ViP2ClipImageProcessor, generate_image
from vip2clip_hf.baselines import AprilGanConfig, AprilGanForAnomalyDetection, AprilGanReferences


def _clip_config(size: Any) -> CLIPConfig:
    """Return the configuration of a CLIP model with four vision blocks."""
    vision = {"hidden_size": size.width, "patch_size": size.patch, "image_size": size.side, "num_hidden_layers": 4}
    vision.update(num_attention_heads=size.width // 64, intermediate_size=4 * size.width)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.joint)


def april_gan_steps(size: Any) -> dict[str, tuple[Callable, Callable]]:
    """
    Return the steps of APRIL-GAN: the zero-shot and the few-shot result of one image, and a training step.

    Args:
        size ([`Size`]): size of the backbone.

    Returns:
        `dict`: ours and the reading of the published code, by label.
    """
    layers = (1, 2, 3, 4)
    config = AprilGanConfig(clip_config=_clip_config(size), image_size=size.side, feature_layers=layers)
    model = AprilGanForAnomalyDetection(config).eval()
    count, processor = len(layers), ViP2ClipImageProcessor(size=size.side)
    # Photos, because the search among references depends on how similar patches are.
    photos = [generate_image("grains", size=size.side, seed=seed)[0] for seed in range(8)]
    with torch.no_grad():
        features = model.get_image_features(processor(photos, return_tensors="pt")["pixel_values"])
    image, tokens = features.image_embeds, features.patch_embeds
    text = F.normalize(torch.randn(8, 2, size.joint), dim=-1)
    references = AprilGanReferences(tokens[4:])
    masks = (torch.rand(8, size.side, size.side) > 0.9).float()

    def ours(**options: Any) -> Any:
        inputs = {"image_embeds": image[:1], "patch_embeds": tokens[:1], "text_embeds": text[0], **options}
        return model(**inputs)

    def probabilities(batch: int) -> list[torch.Tensor]:
        """Each layer: mapped, normalized, compared, resized, softmax."""
        found = []
        for index in range(count):
            mapped = model.linear_layers[index](tokens[:batch, index])
            mapped = mapped / mapped.norm(dim=-1, keepdim=True)
            logits = (100 * mapped @ text[:batch].mT).mT.unflatten(2, (size.grid, size.grid))
            resized = F.interpolate(logits, size=size.side, mode="bilinear", align_corners=True)
            found.append(resized.softmax(dim=1))
        return found

    @torch.no_grad()
    def zero_shot() -> tuple[torch.Tensor, ...]:
        scores = (100 * F.normalize(image[:1], dim=-1) @ text[0].T).softmax(dim=-1)[:, 1]
        return scores, sum(one[:, 1] for one in probabilities(1))

    @torch.no_grad()
    def few_shot() -> tuple[torch.Tensor, ...]:
        maps = zero_shot()[1]
        for index in range(count):
            memory = references.patch_embeds[:, index].flatten(0, 1)
            nearest = (1 - cosine_similarity(memory.numpy(), tokens[0, index].numpy())).min(axis=0)
            grid = torch.from_numpy(nearest).view(1, 1, size.grid, size.grid)
            maps = maps + F.interpolate(grid, size=size.side, mode="bilinear", align_corners=True)[:, 0]
        return (maps,)

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model.zero_grad()
        loss.backward()
        return loss.detach(), model.linear_layers[0].weight.grad.clone()

    def training() -> tuple[torch.Tensor, ...]:
        loss = torch.zeros(())
        target = masks.flatten().long()
        for both in probabilities(8):
            rows = both.permute(0, 2, 3, 1).reshape(-1, 2)
            one_hot = torch.zeros(len(target), 2).scatter_(1, target[:, None], 1).clamp(1e-5, 1 - 1e-5)
            true_class = (one_hot * rows).sum(dim=1) + 1e-5
            loss = loss - ((1 - true_class) ** 2 * true_class.log()).mean()
            overlap, flat = (both[:, 1] * masks).flatten(1).sum(1), both[:, 1].flatten(1).sum(1)
            loss = loss + 1 - ((2 * overlap + 1) / (flat + masks.flatten(1).sum(1) + 1)).mean()
        return gradients(loss)

    @torch.no_grad()
    def ours_zero_shot() -> tuple[torch.Tensor, ...]:
        outputs = ours()
        return outputs.scores, outputs.anomaly_maps

    @torch.no_grad()
    def ours_few_shot() -> tuple[torch.Tensor, ...]:
        return (ours(references=references).anomaly_maps,)

    def ours_training() -> tuple[torch.Tensor, ...]:
        batch = {"image_embeds": image, "patch_embeds": tokens, "text_embeds": text, "mask_labels": masks}
        return gradients(ours(**batch).loss)

    return {
        "zero-shot, 1 image": (ours_zero_shot, zero_shot),
        "few-shot, 1 image, 4 references": (ours_few_shot, few_shot),
        "training step, 8 images": (ours_training, training),
    }


__all__ = ["april_gan_steps"]
