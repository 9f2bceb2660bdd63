"""Steps of WinCLIP on scores and embeddings: windows, harmonic aggregation, and the association with references."""

import torch
import torch.nn.functional as F


def window_indices(grid: int, scale: int) -> torch.Tensor:
    """
    List the patches of every window of `scale` x `scale` patches, with stride 1.

    Args:
        grid (`int`): number of patches along one side.
        scale (`int`): number of patches along one side of a window.

    Returns:
        `torch.LongTensor` of shape `(num_windows, scale * scale)`: indices of patches in row-major order.
        `num_windows` is `(grid - scale + 1) ** 2`; windows are in row-major order too.
    """
    windows = torch.arange(grid * grid).view(grid, grid).unfold(0, scale, 1).unfold(1, scale, 1)
    return windows.flatten(2).flatten(0, 1)  # (W, scale * scale)


def class_scores(embeds: torch.Tensor, text_embeds: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Compute the probability of the anomalous prompts: softmax(cos(e, t) / temperature).

    Args:
        embeds (`torch.FloatTensor` of shape `(..., projection_dim)`): embeddings of images or windows.
        text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`): text embeddings [normal, anomalous].
        temperature (`float`): temperature of the softmax.

    Returns:
        `torch.FloatTensor` of shape `(...)`: the scores, in [0, 1].
    """
    cosines = F.normalize(embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T  # (..., 2)
    return (cosines / temperature).softmax(dim=-1)[..., 1]


def harmonic_aggregation(window_scores: torch.Tensor, grid: int, scale: int) -> torch.Tensor:
    """
    Compute the score of each patch: the harmonic mean of the scores of the windows that cover it.

    A window with score 0 gives 0 to its patches.

    Args:
        window_scores (`torch.FloatTensor` of shape `(batch_size, num_windows)`): scores, at least 0.
        grid (`int`): number of patches along one side.
        scale (`int`): number of patches along one side of a window.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, grid, grid)`: scores of patches.
    """
    side = grid - scale + 1
    # 1 / 0 is infinite, and so is each sum that contains it.
    inverse = window_scores.reciprocal().view(-1, 1, side, side)
    both = torch.cat([inverse, torch.ones_like(inverse[:1])])  # (B + 1, 1, side, side)
    padded = F.pad(both, (scale - 1,) * 4)
    # The windows that cover a patch are a window of windows. divisor_override=1 gives their sum.
    sums = F.avg_pool2d(padded, scale, stride=1, divisor_override=1)[:, 0]  # (B + 1, grid, grid)
    return sums[-1] / sums[:-1]  # (B, grid, grid)


def harmonic_mean(maps: torch.Tensor) -> torch.Tensor:
    """
    Compute the harmonic mean over the first axis. It is 0 where a map is 0.

    Args:
        maps (`torch.FloatTensor` of shape `(num_maps, ...)`): maps, at least 0.

    Returns:
        `torch.FloatTensor` of shape `(...)`: the harmonic mean.
    """
    return len(maps) / maps.reciprocal().sum(dim=0)


def association(embeds: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """
    Compute the distance to the nearest reference: the minimum of (1 - cos) / 2 over all patches, or windows, of all
    reference images.

    Args:
        embeds (`torch.FloatTensor` of shape `(batch_size, num, dim)`): embeddings of patches or windows.
        references (`torch.FloatTensor` of shape `(num_references, num, dim)`): those of the reference images.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num)`: distances, in [0, 1].
    """
    known = F.normalize(references.flatten(0, 1), dim=-1)  # (k * num, dim)
    # The maximum first: one subtraction for each patch instead of one for each pair.
    distances = (1 - (F.normalize(embeds, dim=-1) @ known.T).amax(dim=-1)) / 2  # (B, num)
    # Rounding makes some distances of equal patches negative. Their inverses would cancel in the harmonic mean.
    return distances.clamp(min=0)


__all__ = ["association", "class_scores", "harmonic_aggregation", "harmonic_mean", "window_indices"]
