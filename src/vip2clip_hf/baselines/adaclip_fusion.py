"""
Hybrid semantic fusion of AdaCLIP: clusters of the most anomalous patches of an image.

The published code clusters with scikit-learn, without a random seed. Here, the result depends only on the patches and
the seed: not on the other images of the batch, and not on the global random number generators.
"""

import math

import torch
import torch.nn.functional as F


# Patches to cluster, for each cluster.
PATCHES_PER_CLUSTER = 5
MAX_ITERATIONS = 300


def top_patches(patch_logits: torch.Tensor, k_clusters: int) -> torch.Tensor:
    """
    Choose the most anomalous patches.

    Args:
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, 2)`): logits
            [normal, anomalous].
        k_clusters (`int`): number of clusters.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_chosen)`: numbers of patches, the most anomalous first.
            `num_chosen` is `5 * k_clusters`, or the number of patches if there are less.
    """
    # The order is that of the anomalous probability, but the difference does not saturate.
    margin = (patch_logits[..., 1] - patch_logits[..., 0]).mean(dim=1)  # (B, P)
    return margin.topk(min(margin.shape[1], PATCHES_PER_CLUSTER * k_clusters), dim=1).indices


def gather_patches(patch_embeds: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """
    Return some patches of each image, in all layers.

    Args:
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, width)`): patches.
        indices (`torch.LongTensor` of shape `(batch_size, num_chosen)`): numbers of patches.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, num_chosen, width)`: the patches.
    """
    index = indices[:, None, :, None].expand(-1, patch_embeds.shape[1], -1, patch_embeds.shape[-1])
    return patch_embeds.gather(2, index)  # (B, L, k, D)


def kmeans(points: torch.Tensor, k_clusters: int, seed: int) -> torch.Tensor:
    """
    Cluster the points of each image with k-means: greedy k-means++, then Lloyd's iterations until nothing changes.

    Computed in float64 on the CPU, from the inner products of the points only. All images use the same random numbers,
    so an image has the same clusters in every batch.

    Args:
        points (`torch.FloatTensor` of shape `(batch_size, num_points, width)`): points.
        k_clusters (`int`): number of clusters.
        seed (`int`): random seed.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_points)`: number of the cluster of each point, on the device of
            the points. A cluster is empty only if there are less than `k_clusters` different points.
    """
    device = points.device
    points = points.detach().cpu().double()
    points = points - points.mean(dim=1, keepdim=True)  # smaller rounding errors
    products = points @ points.mT  # (B, n, n)
    squares = products.diagonal(dim1=1, dim2=2)  # (B, n)
    distances = (squares[:, :, None] + squares[:, None] - 2 * products).clamp_min(0)  # (B, n, n)
    centers = F.one_hot(_first_centers(distances, k_clusters, seed), points.shape[1]).double()  # (B, K, n)
    labels = None
    for _ in range(MAX_ITERATIONS):
        # A center is a weighted mean of points. |x - c|^2 = |x|^2 - 2 xc + |c|^2, and |x|^2 changes no minimum.
        crossed = centers @ products  # (B, K, n)
        nearest = ((crossed * centers).sum(dim=2, keepdim=True) - 2 * crossed).argmin(dim=1)  # (B, n)
        if labels is not None and torch.equal(nearest, labels):
            break
        labels = nearest
        members = F.one_hot(labels, k_clusters).double().mT  # (B, K, n)
        sizes = members.sum(dim=2, keepdim=True)
        centers = torch.where(sizes > 0, members / sizes.clamp_min(1), centers)
    return nearest.to(device)


def _first_centers(distances: torch.Tensor, k_clusters: int, seed: int) -> torch.Tensor:
    """Choose points as first centers, from squared distances of shape (B, n, n). Shape (B, K)."""
    generator = torch.Generator().manual_seed(seed)
    batch_size, num_points = distances.shape[:2]
    trials = 2 + int(math.log(k_clusters))
    first = int(torch.randint(num_points, (), generator=generator))
    chosen = torch.full((batch_size, k_clusters), first)
    nearest = distances[:, first]  # (B, n)
    for number in range(1, k_clusters):
        # Candidates with a probability proportional to their squared distance. The best one reduces the sum the most.
        sums = nearest.cumsum(dim=1)
        draws = torch.rand(trials, generator=generator, dtype=torch.float64) * sums[:, -1:]  # (B, trials)
        candidates = torch.searchsorted(sums, draws, right=True).clamp_max(num_points - 1)
        index = candidates[..., None].expand(-1, -1, num_points)
        after = torch.minimum(distances.gather(1, index), nearest[:, None])  # (B, trials, n)
        best = after.sum(dim=2).argmin(dim=1)  # (B,)
        rows = torch.arange(batch_size)
        chosen[:, number], nearest = candidates[rows, best], after[rows, best]
    return chosen


def mean_of_clusters(patches: torch.Tensor, labels: torch.Tensor, k_clusters: int) -> torch.Tensor:
    """
    Average the centers of the clusters. Each has the same weight, regardless of its size.

    Args:
        patches (`torch.FloatTensor` of shape `(batch_size, num_layers, num_chosen, width)`): result of
            `gather_patches`.
        labels (`torch.LongTensor` of shape `(batch_size, num_chosen)`): cluster of each patch. A center is the mean of
            its patches in all layers.
        k_clusters (`int`): number of clusters. Empty ones do not count.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, width)`: the mean, L2-normalized.
    """
    members = F.one_hot(labels, k_clusters).to(patches.dtype)  # (B, k, K)
    sizes = members.sum(dim=1)  # (B, K)
    weights = 1 / (sizes.gather(1, labels) * (sizes > 0).sum(dim=1, keepdim=True))  # (B, k)
    return F.normalize((patches.mean(dim=1) * weights[..., None]).sum(dim=1), dim=-1)  # (B, D)


__all__ = ["gather_patches", "kmeans", "mean_of_clusters", "top_patches"]
