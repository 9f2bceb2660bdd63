"""Distances of patches to reference patches: exact nearest neighbours in blocks, and a subset that covers them."""

import torch
import torch.nn.functional as F

from .maps_vip2clip import without_autocast


# Cosines that are computed at once, and the largest number of queries in a block. A block stays in the cache of a CPU;
# an accelerator needs larger ones.
CPU_BLOCK, DEVICE_BLOCK, QUERIES = 1 << 20, 1 << 26, 2048
# Rows of a block in an exported graph, which must not depend on the number of queries.
EXPORTED_STEP = 4096
# Dimensions and seed of the random projection that a covering subset is chosen in, and its number of steps.
PROJECTED, PROJECTION_SEED, STEPS = 64, 0, 500
# Distances to new centers that are computed at once.
COVERING_BLOCK = 1 << 22


def nearest_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Compute the distance of every query to its nearest row: 1 - the largest cosine.

    All rows are compared. Memory is limited, because the cosines are computed in blocks.

    Args:
        queries (`torch.FloatTensor` of shape `(num_layers, num_queries, width)`):
            L2-normalized features, float32 or float64.
        rows (`torch.FloatTensor` of shape `(num_layers, num_rows, width)`):
            L2-normalized features, at least one row, of any floating dtype. Of another dtype than the queries, each
            block is converted and normalized again, because rounding changes the lengths.

    Returns:
        `torch.FloatTensor` of shape `(num_layers, num_queries)`: distances in [0, 2].
    """
    largest = CPU_BLOCK if queries.device.type == "cpu" else DEVICE_BLOCK
    found = []
    with without_autocast(queries.device.type):
        for layer in range(queries.shape[0]):
            # In an exported graph, the number of queries is symbolic.
            known = isinstance(queries.shape[1], int)
            for part in queries[layer].split(QUERIES) if known else (queries[layer],):
                step = max(1, largest // max(1, part.shape[0])) if known else EXPORTED_STEP
                blocks = (rows[layer, start : start + step] for start in range(0, rows.shape[1], step))
                if rows.dtype != queries.dtype:
                    blocks = (F.normalize(block.to(queries.dtype), dim=-1) for block in blocks)
                # One buffer for all blocks: small results between large ones fragment the memory of malloc, which
                # then grows as if all cosines were kept.
                keeps = known and not (torch.is_grad_enabled() and (part.requires_grad or rows.requires_grad))
                buffer = part.new_empty(part.shape[0] * min(step, rows.shape[1])) if keeps else None
                best = [_cosines(part, block, buffer).amax(dim=-1) for block in blocks]  # (Q,) each
                found.append(best[0] if len(best) == 1 else torch.stack(best).amax(dim=0))
        return (1 - torch.cat(found).view(queries.shape[:2])).clamp(0, 2)  # (L, Q)


def _cosines(queries: torch.Tensor, rows: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor:
    count = queries.shape[0] * rows.shape[0]
    return torch.mm(queries, rows.mT, out=None if buffer is None else buffer[:count].view(queries.shape[0], -1))


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
    adjacent = adjacent.to(features.device)
    found = []
    for layer in normalized(features):
        cosines = (layer @ layer.mT).masked_fill(adjacent, -1)  # (P, P)
        found.append((1 - cosines.amax(dim=-1)).clamp(0, 2))
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
        lengths, size = centers.square().sum(dim=1), max(1, COVERING_BLOCK // len(centers))
        for start in range(0, total, size):
            block = slice(start, start + size)
            nearest = torch.addmm(lengths, small[block], centers.mT, alpha=-2).amin(dim=1) + squares[block]
            distances[block] = torch.minimum(distances[block], nearest)
        distances[chosen[-1]] = -1
        chosen.append(distances.topk(min(step, left)).indices)
        left -= len(chosen[-1])
    return torch.cat(chosen).sort().values


def subspace(projection: torch.nn.Module) -> torch.Tensor | None:
    """
    Compute an orthonormal basis of the features that a projection can return, if these fill fewer dimensions.

    Cosines do not change in this basis and are faster to compute. CLIP projects the patches of small vision towers to
    more dimensions than the tower has.

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


__all__ = ["covering_rows", "nearest_distances", "normalized", "self_distances", "subspace"]
