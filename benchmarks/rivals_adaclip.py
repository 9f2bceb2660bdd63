"""Steps of AdaCLIP outside of the vision tower, compared with a plain reading of the published code."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from transformers import CLIPConfig

from vip2clip_hf.baselines import AdaClipConfig, AdaClipForAnomalyDetection, AdaClipImageFeatures
from vip2clip_hf.baselines.adaclip_loss import adaclip_loss


class Step(NamedTuple):
    """A step: ours, and the reading of the published code. Both return tensors to compare."""

    ours: Callable[[], tuple[torch.Tensor, ...]]
    published: Callable[[], tuple[torch.Tensor, ...]]


# Width, blocks and heads of the text tower, by width of the vision tower.
TEXT = {192: (128, 4, 2), 1024: (768, 12, 12)}
# Number of normal and anomalous sentences, the length of the shortest and longest one with start and end token, and
# the length to which the published code pads.
NORMAL, ANOMALOUS, SHORTEST, LONGEST, PADDED = 28, 20, 9, 15, 77


def adaclip_model(size: Any) -> AdaClipForAnomalyDetection:
    """Create a model. The vision tower has few and narrow blocks, because it does not run."""
    width, blocks, heads = TEXT[size.width]
    few = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    text = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    vocabulary = {"vocab_size": 1000, "bos_token_id": 998, "eos_token_id": 999}
    clip = CLIPConfig(
        vision_config={"hidden_size": size.width, "patch_size": size.patch, "image_size": size.side, **few},
        text_config={**text, **vocabulary, "intermediate_size": 4 * width},
        projection_dim=size.joint,
    )
    return AdaClipForAnomalyDetection(AdaClipConfig(clip_config=clip, image_size=size.side)).eval()


def published_text(model: AdaClipForAnomalyDetection, ids: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Encode the sentences of an image: one kind after the other, all blocks on all 77 tokens. Shape (1, 2, D)."""
    config, text = model.config, model.clip.text_model
    prompter: Any = model.text_prompts
    length, width = config.prompting_length, prompter.shape[-1]
    heads = zip(prompter.dynamic.weight.split(width), prompter.dynamic.bias.split(width))
    dynamic = torch.stack([F.linear(plain, weight, bias) for weight, bias in heads], dim=1)  # (1, L, C)
    mask = torch.full((PADDED, PADDED), float("-inf")).triu(1)[None, None]
    embeds = []
    for part in ids.split((NORMAL, ANOMALOUS)):
        hidden = text.embeddings(F.pad(part, (0, PADDED - part.shape[1])))
        for number, block in enumerate(text.encoder.layers):
            if 0 < number < config.prompting_depth:
                prompts = (dynamic + prompter.static[number - 1]).expand(len(part), -1, -1)
                hidden = torch.cat([hidden[:, :1], prompts, hidden[:, 1 + length :]], dim=1)
            hidden = block(hidden, mask)
        hidden = text.final_layer_norm(hidden)
        ends = hidden[torch.arange(len(part)), part.argmax(dim=-1)]
        features = model.clip.text_projection(ends)
        features = features / features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        embeds.append(mean / mean.norm())
    return torch.stack(embeds)[None]


def published_patches(
    model: AdaClipForAnomalyDetection, tokens: torch.Tensor, text: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return patches and logits of each layer."""
    patches, logits = [], []
    for head, layer in zip(model.patch_heads, tokens.unbind(1)):
        projected = head(layer)
        patches.append(projected / projected.norm(dim=-1, keepdim=True))
        logits.append(100.0 * patches[-1] @ text.mT)
    return patches, logits


def published_clusters(patches: list[torch.Tensor], logits: list[torch.Tensor], clusters: int) -> torch.Tensor:
    """Average the clusters of the most anomalous patches."""
    probabilities = torch.stack(logits, dim=1).mean(dim=1).softmax(dim=2)[:, :, 1]
    count = min(probabilities.shape[1], 5 * clusters)
    indices = probabilities.topk(count, dim=1).indices[..., None]
    chosen = [one.gather(1, indices.expand(-1, -1, one.shape[-1])) for one in patches]
    stacked = torch.cat(chosen, dim=2)[0].detach().numpy()
    labels = torch.from_numpy(KMeans(clusters, n_init="auto").fit_predict(stacked))
    centers = [torch.cat([one[0][labels == number] for one in chosen]).mean(dim=0) for number in range(clusters)]
    return F.normalize(torch.stack(centers).mean(dim=0)[None], dim=1)


def published_score(
    model: AdaClipForAnomalyDetection, image: torch.Tensor, clusters: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Return the probabilities of an image."""
    embeds = model.image_head(image)
    embeds = embeds / embeds.norm(dim=-1, keepdim=True)
    fused = F.normalize(0.2 * clusters + 0.8 * embeds, dim=1)
    return (100.0 * fused[:, None] @ text.mT)[:, 0].softmax(dim=1)


def published_resized(logits: torch.Tensor, size: Any) -> torch.Tensor:
    """Resize the logits of a layer."""
    grids = logits.mT.reshape(1, 2, size.grid, size.grid)
    return F.interpolate(grids, size=size.side, mode="bilinear", align_corners=True)


def published_loss(
    model: AdaClipForAnomalyDetection, probabilities: torch.Tensor, maps: list[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """Compute the loss of an anomalous image."""

    def focal(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        one_hot = torch.zeros(len(target), 2).scatter_(1, target[:, None], 1).clamp(1e-5, 1 - 1e-5)
        true_class = (one_hot * rows).sum(dim=1) + 1e-5
        return -((1 - true_class) ** 2 * true_class.log()).mean()

    def dice(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 1 - ((2 * (rows * target).sum(1) + 1) / (rows.sum(1) + target.sum(1) + 1)).mean()

    loss = focal(probabilities, torch.ones(1, dtype=torch.long))
    for both in maps:
        rows = both.flatten(2).permute(0, 2, 1).reshape(-1, 2)
        loss = loss + focal(rows, mask.flatten().long()) + dice(both[0, 1], mask) + dice(both[0, 0], 1 - mask)
    return loss


def adaclip_steps(size: Any) -> dict[str, Step]:
    """
    Return the steps of AdaCLIP for one image, without the two runs of the vision tower and without tokenization: the
    48 sentences, the rest of an inference, both, and a training step.

    Args:
        size: size of a backbone, with `width`, `joint`, `patch`, `side` and `grid`.

    Returns:
        `dict[str, Step]`: steps by name.
    """
    model = adaclip_model(size)
    config = model.config
    plain, image = torch.randn(1, size.joint), torch.randn(1, size.joint)
    tokens = torch.randn(1, 4, size.grid**2, size.width)
    mask = (torch.rand(1, size.side, size.side) > 0.9).float()
    ids = torch.randint(1, 998, (NORMAL + ANOMALOUS, LONGEST))
    for row, end in zip(ids, torch.linspace(SHORTEST - 1, LONGEST - 1, len(ids)).long()):
        row[end:] = 0
        row[end] = 999
    features = AdaClipImageFeatures(plain_embeds=plain, image_embeds=image, patch_tokens=tokens)
    prompter: Any = model.text_prompts

    def text_embeds() -> torch.Tensor:
        embeds = model.encode_prompts(ids, prompter(plain))
        kinds = embeds.split((NORMAL, ANOMALOUS), dim=1)
        return torch.stack([model.pool_prompts(one) for one in kinds], dim=1)

    with torch.no_grad():
        known = text_embeds()

    def forward(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits of the image, and of the patches."""
        embeds, patches = model.project(features)
        by_patch = config.logit_scale * patches @ text.mT[:, None]
        weight = config.hsf_weight
        fused = F.normalize(weight * model.fuse(patches, by_patch) + (1 - weight) * embeds, dim=-1)
        return 100.0 * (text @ fused[..., None])[..., 0], by_patch.mT.unflatten(-1, (size.grid, size.grid))

    def ours_rest(text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, patch_logits = forward(text)
        logits.softmax(dim=-1)  # not compared: the clusters of the published code are random
        return (model.draw_maps(patch_logits),)

    def published_rest(text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        patches, logits = published_patches(model, tokens, text)
        published_score(model, image, published_clusters(patches, logits, config.clusters), text)
        resized = torch.stack([published_resized(one, size) for one in logits], dim=1).mean(dim=1).softmax(dim=1)
        maps = ((resized[:, 1] + 1 - resized[:, 0]) / 2).numpy()
        return (torch.stack([torch.from_numpy(gaussian_filter(one, sigma=4)) for one in maps]),)

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model.zero_grad()
        loss.backward()
        return model.patch_heads[0].weight.grad.clone(), prompter.static.grad.clone()

    def ours_training() -> tuple[torch.Tensor, ...]:
        logits, patch_logits = forward(text_embeds())
        labels = torch.ones(1, dtype=torch.long)
        return gradients(adaclip_loss(logits, labels, patch_logits, mask, None, model.loss_weights)[0])

    def published_training() -> tuple[torch.Tensor, ...]:
        text = published_text(model, ids, plain)
        patches, logits = published_patches(model, tokens, text)
        score = published_score(model, image, published_clusters(patches, logits, config.clusters), text)
        maps = [published_resized(one, size).softmax(dim=1) for one in logits]
        return gradients(published_loss(model, score, maps, mask[0]))

    frozen = torch.no_grad()
    return {
        "48 sentences": Step(frozen(lambda: (text_embeds(),)), frozen(lambda: (published_text(model, ids, plain),))),
        "heads, clusters, map": Step(frozen(lambda: ours_rest(known)), frozen(lambda: published_rest(known))),
        "both": Step(
            frozen(lambda: ours_rest(text_embeds())),
            frozen(lambda: published_rest(published_text(model, ids, plain))),
        ),
        "training step": Step(ours_training, published_training),
    }


__all__ = ["adaclip_steps"]
