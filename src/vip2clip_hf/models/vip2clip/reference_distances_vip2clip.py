"""Distances of patches to reference patches: exact nearest neighbours in blocks, and a subset that covers them."""

import torch
import torch.nn.functional as F

from .maps_vip2clip import without_autocast


# Cosines that are computed at once. A block of them stays in the cache of a CPU; an accelerator needs larger ones.
CPU_BLOCK, DEVICE_BLOCK = 1 << 20, 1 << 26
# Rows of a block in an exported graph, which must not depend on the number of queries.
EXPORTED_STEP = 4096
# Dimensions and seed of the random projection that a covering subset is chosen in, and its number of steps.
PROJECTED, PROJECTION_SEED, STEPS = 64, 0, 500


def nearest_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Compute the distance of every query to its nearest row: 1 - the largest cosine.

    All rows are compared. Memory is limited, because the cosines are computed in blocks.

    Args:
        queries (`torch.FloatTensor` of shape `(num_layers, num_queries, width)`):
            L2-normalized features, float32 or float64.
        rows (`torch.FloatTensor` of shape `(num_layers, num_rows, width)`):
            L2-normalized features, at least one row, of any floating dtype. Each block is converted to that of the
            queries.

    Returns:
        `torch.FloatTensor` of shape `(num_layers, num_queries)`: distances in [0, 2].
    """
    layers, count, _ = queries.shape
    largest = CPU_BLOCK if queries.device.type == "cpu" else DEVICE_BLOCK
    step = max(256, largest // max(1, count)) if isinstance(count, int) else EXPORTED_STEP
    best = []
    with without_autocast(queries.device.type):
        for layer in range(layers):
            blocks = (rows[layer, start : start + step].to(queries.dtype) for start in range(0, rows.shape[1], step))
            found = [(queries[layer] @ block.mT).amax(dim=-1) for block in blocks]  # (Q,) each
            best.append(found[0] if len(found) == 1 else torch.stack(found).amax(dim=0))
        return (1 - torch.stack(best)).clamp(0, 2)  # (L, Q)


def self_distances(features: torch.Tensor, grid: int) -> torch.Tensor:
    """
    Compute the distance of every patch to the nearest patch of the same photo that is not adjacent.

    Args:
        features (`torch.FloatTensor` of shape `(num_layers, grid * grid, width)`): L2-normalized features.
        grid (`int`): number of patches per side.

    Returns:
        `torch.FloatTensor` of shape `(num_layers, grid * grid)`: distances in [0, 2].
    """
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    places = torch.stack([y, x], dim=-1).reshape(-1, 2)
    adjacent = (places[:, None] - places[None]).abs().amax(dim=-1) <= min(1, max(0, (grid - 1) // 2))
    features = features.float()
    cosines = (features @ features.mT).masked_fill(adjacent.to(features.device), -1)
    return (1 - cosines.amax(dim=-1)).clamp(0, 2)


def left_out_distances(
    view_features: torch.Tensor,
    view_photo: torch.Tensor,
    features: torch.Tensor,
    row_photo: torch.Tensor,
    basis: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Compute the distance of every patch of every view to the nearest patch of another photo.

    Args:
        view_features (`torch.HalfTensor` of shape `(num_views, num_layers, num_patches, width)`):
            Features of the views.
        view_photo (`torch.IntTensor` of shape `(num_views,)`):
            Photo of each view.
        features (`torch.HalfTensor` of shape `(num_layers, num_rows, width)`), row_photo (`(num_rows,)`):
            Features of all photos, and the photo of each row, in ascending order.
        basis (`torch.FloatTensor` of shape `(width, num_dimensions)`, *optional*):
            Basis to compare them in, see [`subspace`].

    Returns:
        `torch.FloatTensor` of shape `(num_views, grid, grid)`: distances in [0, 2]. Of a single photo, to a patch of
        the photo that is not adjacent.
    """
    grid = int(view_features.shape[2] ** 0.5)
    rows = features if basis is None else features.float() @ basis
    found = []
    for view, number in zip(view_features, view_photo.tolist()):
        first, last = (int(torch.searchsorted(row_photo, number, right=right)) for right in (False, True))
        queries = view.float() if basis is None else view.float() @ basis
        others = [part for part in (rows[:, :first], rows[:, last:]) if part.shape[1]]
        if others:
            distances = torch.stack([nearest_distances(queries, part) for part in others]).amin(dim=0)
        else:
            distances = self_distances(queries, grid)
        found.append(distances.mean(dim=0).view(grid, grid))
    return torch.stack(found)


def covering_rows(features: torch.Tensor, count: int) -> torch.Tensor:
    """
    Choose rows that cover all rows: the greedy k-center coreset of PatchCore (arXiv:2106.08265, section 3.2).

    Each step adds the rows that are farthest from all chosen rows, one at a time for up to 500 rows, several at a time
    for more. Distances are computed in a random projection of all layers.

    Args:
        features (`torch.FloatTensor` of shape `(num_layers, num_rows, width)`): L2-normalized features.
        count (`int`): number of rows to choose.

    Returns:
        `torch.LongTensor` of shape `(min(count, num_rows),)`: positions of the chosen rows, in ascending order.
    """
    total, width = features.shape[1:]
    if count >= total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    small = torch.zeros(total, PROJECTED)
    for layer in features:
        projection = torch.randn(width, PROJECTED, generator=generator) / PROJECTED**0.5
        small += layer.float().cpu() @ projection
    squares = small.square().sum(dim=1)
    # The first is the row nearest to the mean.
    chosen = [(squares - 2 * small @ small.mean(dim=0)).argmin()[None]]
    distances = torch.full((total,), torch.inf)
    step = -(-count // STEPS)
    left = count - 1
    while left:
        centers = small[chosen[-1]]
        found = squares[:, None] - 2 * small @ centers.mT + centers.square().sum(dim=1)
        distances = torch.minimum(distances, found.amin(dim=1))
        distances[chosen[-1]] = -1
        chosen.append(distances.topk(min(step, left)).indices)
        left -= len(chosen[-1])
    return torch.cat(chosen).sort().values


def subspace(projection: torch.nn.Module) -> torch.Tensor | None:
    """
    Compute an orthonormal basis of the features that a projection can return, if these fill fewer dimensions.

    Cosines in this basis are the same, and faster. CLIP projects the patches of small vision towers to more dimensions
    than the tower has.

    Args:
        projection (`torch.nn.Module`): the visual projection of CLIP.

    Returns:
        `torch.FloatTensor` of shape `(width, num_dimensions)`, *optional*: the basis in float32, or `None` if the
        features fill all dimensions.
    """
    weight = projection.weight if type(projection) is torch.nn.Linear else None
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.shape[1] < weight.shape[0]:
        return None
    return torch.linalg.qr(weight.detach().double().cpu())[0].float()


def normalized(features: torch.Tensor) -> torch.Tensor:
    """
    L2-normalize features in float32, or in float64 if they are float64.

    Args:
        features (`torch.FloatTensor` of shape `(..., width)`): the features.

    Returns:
        `torch.FloatTensor` of shape `(..., width)`: the normalized features.
    """
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


__all__ = ["covering_rows", "left_out_distances", "nearest_distances", "normalized", "self_distances", "subspace"]
