"""Steps of the other methods outside of the vision tower, compared with a plain reading of their published codes."""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import cosine_similarity
from transformers import CLIPConfig

from vip2clip_hf import ViP2ClipImageProcessor, generate_image
from vip2clip_hf.baselines import AprilGanConfig, AprilGanForAnomalyDetection, AprilGanReferences


class Size(NamedTuple):
    """Size of a backbone and its images. Towers have four blocks."""

    width: int
    joint: int
    patch: int
    side: int

    @property
    def grid(self) -> int:
        """Number of patches along one side."""
        return self.side // self.patch

    def clip_config(self) -> CLIPConfig:
        """Return the configuration of a CLIP model with random weights."""
        vision = {"hidden_size": self.width, "patch_size": self.patch, "image_size": self.side, "num_hidden_layers": 4}
        vision.update(num_attention_heads=self.width // 64, intermediate_size=4 * self.width)
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        return CLIPConfig(vision_config=vision, text_config=text, projection_dim=self.joint)


SIZES = {"tiny": Size(192, 192, 16, 320), "ViT-L/14": Size(1024, 768, 14, 518)}


class Step(NamedTuple):
    """A step: ours, and the reading of the published code. Both return tensors to compare."""

    ours: Callable[[], tuple[torch.Tensor, ...]]
    published: Callable[[], tuple[torch.Tensor, ...]]


def april_gan_steps(size: Size) -> dict[str, Step]:
    """Return the steps of APRIL-GAN: the zero-shot and the few-shot result of one image, and a training step."""
    layers = (1, 2, 3, 4)
    config = AprilGanConfig(clip_config=size.clip_config(), image_size=size.side, feature_layers=layers)
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
        "zero-shot, 1 image": Step(ours_zero_shot, zero_shot),
        "few-shot, 1 image, 4 references": Step(ours_few_shot, few_shot),
        "training step, 8 images": Step(ours_training, training),
    }


# Steps of each method.
METHODS: dict[str, Callable[[Size], dict[str, Step]]] = {"april-gan": april_gan_steps}


def compare(step: Step, repeats: int, threads: int) -> tuple[float, float, float]:
    """Return the shortest times in milliseconds, interleaved, and the largest difference of the results."""
    # With one thread, the time of other programs does not count.
    clock = time.process_time if threads == 1 else time.perf_counter
    pairs = zip(step.ours(), step.published())  # prepares references, too
    difference = max((ours - other).abs().max().item() for ours, other in pairs)
    least = [float("inf")] * 2
    for _ in range(repeats):
        for place, function in enumerate(step):
            start = clock()
            function()
            least[place] = min(least[place], 1000 * (clock() - start))
    return least[0], least[1], difference


def benchmark_rivals(options: argparse.Namespace) -> None:
    """Print the time of each step, and its ratio to that of the reading of the published code."""
    torch.set_num_threads(options.threads)
    for name in options.sizes:
        for method in options.methods:
            torch.manual_seed(0)
            print(f"{method}, {name}")
            for label, step in METHODS[method](SIZES[name]).items():
                ours, published, difference = compare(step, options.repeats, options.threads)
                print(
                    f"  {label:34s} {ours:9.1f} ms, published {published:9.1f} ms, ratio {ours / published:.2f}, "
                    f"difference {difference:.0e}",
                    flush=True,
                )


__all__ = ["METHODS", "SIZES", "Size", "Step", "benchmark_rivals"]
