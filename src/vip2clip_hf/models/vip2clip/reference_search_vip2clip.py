"""Compare patches with those of references.

On the CPU, most pairs are not compared in full. Patches of good parts vary in few of the dimensions of their features.
In an orthonormal basis whose first k dimensions contain most of the length of the reference patches, the cosine of a
query q and a row r has the bound

    q . r <= q_k . r_k + |q - q_k| |r - r_k|

where q_k is the part of q in the first k dimensions. The right side is a product of k + 1 dimensions. Only rows whose
bound exceeds the best cosine so far are compared in full, so the result is that of comparing all rows.
"""

import torch

from .maps_vip2clip import without_autocast
from .reference_distances_vip2clip import nearest_distances, normalized, self_distances, subspace


# Bounds that are computed at once, 4 MB, and the largest number of queries in a block.
BLOCK, QUERIES = 1 << 20, 512
# Rows that share one maximum of their bounds.
GROUP = 64
# Full comparisons cost about as much as this number of bounds. Above it, a block is compared in full.
COSTLY = 64
# Values of full comparisons that are computed at once.
PAIR_VALUES = 1 << 21
# Largest rounding error of a bound.
MARGIN = 4e-6
# Features with up to this number of values are converted to float32 once; of larger ones, each block in each call.
MAX_FLOAT32_VALUES = 1 << 28
# Banks with fewer rows are compared in full.
LEAST_ROWS = 1024
# Rows that a basis is computed from, rows that are compared to choose its dimensions, and the nearest row that counts.
BASIS_ROWS, SAMPLE_ROWS, SAMPLE_RANK = 8192, 64, 16
# Possible dimensions of a basis. With the length of the rest, these are multiples of 16, which are fastest.
DIMENSIONS = (15, 31, 47, 63, 95, 127, 191, 255, 383, 511)
# Costs of a bound in addition to its product, and of each value of a full comparison, in multiplications of a product.
BOUND_COST, FULL_COST = 8, 30


class PatchSearch:
    """
    Search for the nearest of some rows.

    Args:
        rows (`torch.FloatTensor` of shape `(num_layers, num_rows, width)`): L2-normalized features, float32.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self._bases: list[torch.Tensor] = []
        self._short: list[torch.Tensor] = []
        for layer in rows:
            basis = _basis(layer)
            self._bases.append(basis)
            self._short.append(_shorten(layer, basis))  # (N, k + 1)

    @property
    def dimensions(self) -> list[int]:
        """Number of dimensions of the basis of each layer."""
        return [basis.shape[1] for basis in self._bases]

    def nearest(self, queries: torch.Tensor, skip: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """
        Compute the distance of every query to its nearest row: 1 - the largest cosine.

        Args:
            queries (`torch.FloatTensor` of shape `(num_layers, num_queries, width)`):
                L2-normalized features, float32.
            skip (`tuple[int, int]`, defaults to `(0, 0)`):
                First row, and row after the last, that are left out. Some rows must remain.

        Returns:
            `torch.FloatTensor` of shape `(num_layers, num_queries)`: distances in [0, 2].
        """
        total, found = self.rows.shape[1], []
        spans = [(start, end) for start, end in ((0, skip[0]), (max(skip), total)) if start < end]
        size = min(queries.shape[1], QUERIES) or 1
        step = max(GROUP, BLOCK // size // GROUP * GROUP)
        buffer = torch.empty(size * step, dtype=queries.dtype)
        with without_autocast("cpu"):
            for layer in range(len(queries)):
                for part in queries[layer].split(size):
                    short = _shorten(part, self._bases[layer])
                    best = torch.full((len(part),), -torch.inf)
                    for start, end in spans:
                        for first in range(start, end, step):
                            block = slice(first, min(end, first + step))
                            bounds = _bounds(short, self._short[layer][block], buffer)
                            best = _update(best, part, self.rows[layer, block], bounds)
                    found.append(best)
        return (1 - torch.cat(found)).clamp(0, 2).view(len(queries), -1)


def _basis(rows: torch.Tensor) -> torch.Tensor:
    """Return the first principal directions of rows, of shape (width, k). Of several k, that with which some of the
    rows are compared with all others in the least time."""
    count, width = rows.shape
    sample = rows[:: -(-count // BASIS_ROWS)]
    _, directions = torch.linalg.eigh((sample.mT @ sample).double())  # ascending
    directions = directions.flip(1).float()
    few = rows[:: -(-count // SAMPLE_ROWS)]
    # The nearest rows are often of the same photo, and nearer than those of other photos.
    least = (few @ rows.mT).topk(min(SAMPLE_RANK, count), dim=1).values[:, -1:] - MARGIN
    best, best_cost = directions[:, :0], float("inf")
    for number in (number for number in DIMENSIONS if number < width):
        basis = directions[:, :number].contiguous()
        remaining = (_shorten(few, basis) @ _shorten(rows, basis).mT > least).sum(dim=1).double().mean()
        cost = count * (number + BOUND_COST) + FULL_COST * width * float(remaining)
        if cost < best_cost:
            best, best_cost = basis, cost
    return best


def _shorten(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return coordinates in a basis, and the length of what is missing, of shape (count, k + 1)."""
    inside = rows @ basis
    # The difference of the squared lengths would be less precise.
    return torch.cat([inside, (rows - inside @ basis.mT).norm(dim=1, keepdim=True)], dim=1)


def _bounds(queries: torch.Tensor, rows: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Return the bounds of queries and rows in groups, of shape (Q, num_groups, GROUP). The last row fills its group.
    A new tensor in place of the buffer would take longer than the product."""
    missing = -len(rows) % GROUP
    rows = torch.cat([rows, rows[-1:].expand(missing, -1)]) if missing else rows
    out = buffer[: len(queries) * len(rows)].view(len(queries), len(rows))
    return torch.mm(queries, rows.mT, out=out).view(len(queries), len(rows) // GROUP, GROUP)


def _update(best: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Return the larger of the best cosines so far (Q,) and of those with a block of rows."""
    tops = bounds.amax(dim=2)  # (Q, num_groups)
    # The row with the largest bound is often the nearest.
    group = tops.argmax(dim=1)
    # index_select copies rows; indexing copies values one by one and takes several times as long.
    count, bounds = tops.shape[1], bounds.flatten(0, 1)  # (Q * num_groups, GROUP)
    inside = bounds.index_select(0, torch.arange(len(queries)) * count + group).argmax(dim=1)
    row = (group * GROUP + inside).clamp_max(len(rows) - 1)
    best = torch.maximum(best, (queries * rows.index_select(0, row)).sum(dim=1))
    least = best - MARGIN
    query, group = (tops > least[:, None]).nonzero(as_tuple=True)
    pair, inside = (bounds.index_select(0, query * count + group) > least[query, None]).nonzero(as_tuple=True)
    if COSTLY * len(pair) > len(queries) * len(rows):
        return torch.maximum(best, (queries @ rows.mT).amax(dim=1))
    query, row = query[pair], (group[pair] * GROUP + inside).clamp_max(len(rows) - 1)
    size = max(1, PAIR_VALUES // rows.shape[1])
    for some, others in zip(query.split(size), row.split(size)):
        cosines = (queries.index_select(0, some) * rows.index_select(0, others)).sum(dim=1)
        best = best.scatter_reduce(0, some, cosines, "amax")
    return best


class ReferenceRows:
    """
    Patches of references on a device, prepared for comparing patches of photos with them.

    They are in float32, and in the basis of the features that the model can return, unless this takes too much memory.

    Args:
        features (`torch.FloatTensor` of shape `(num_layers, num_rows, width)`): L2-normalized features, in half
            precision or in float32.
        device (`torch.device`): the device.
        projection (`torch.nn.Module`, *optional*): visual projection of CLIP. `None` if the features do not come from
            it.
    """

    def __init__(self, features: torch.Tensor, device: torch.device, projection: torch.nn.Module | None) -> None:
        self.device, self._search = device, None
        self.basis: torch.Tensor | None = None
        # Tensors created in inference mode could not be used for gradients later.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(device.type):
            rows = features
            if rows.numel() <= MAX_FLOAT32_VALUES:
                # Rounding to half precision has changed the lengths.
                rows, basis = normalized(rows), None if projection is None else subspace(projection)
                if basis is not None:
                    rows, self.basis = rows @ basis, basis.to(device)
                if device.type == "cpu" and rows.shape[1] >= LEAST_ROWS and rows.dtype == torch.float32:
                    self._search = PatchSearch(rows)
            self.rows = rows.to(device)

    def distances(self, patch_embeds: torch.Tensor, skip: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """
        Compute the distance of every patch to its nearest row, averaged over the layers.

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, width)`):
                Patch embeddings of the layers of the rows, and possibly of more.
            skip (`tuple[int, int]`, defaults to `(0, 0)`):
                First row, and row after the last, that are left out. Some rows must remain.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_patches)`: distances in [0, 2], float32 or float64.
        """
        return self.layer_distances(patch_embeds, skip).mean(dim=0)

    def layer_distances(self, patch_embeds: torch.Tensor, skip: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """
        Compute the distance of every patch to its nearest row, for each layer.

        Args:
            patch_embeds, skip: see `distances`.

        Returns:
            `torch.FloatTensor` of shape `(num_layers, batch_size, num_patches)`: distances in [0, 2], float32 or
            float64.
        """
        layers = self.rows.shape[0]
        with without_autocast(patch_embeds.device.type):
            queries = normalized(patch_embeds[:, :layers])  # (B, L, P, D)
            if self.basis is not None:
                queries = queries @ self.basis.to(queries.dtype)
            queries = queries.transpose(0, 1).flatten(1, 2)  # (L, B * P, D)
            # The search depends on values, so it cannot be part of a graph, and it has no gradient.
            if self._search is None or queries.dtype != torch.float32 or _is_traced(queries):
                rows = self.rows
                if skip[0] < skip[1]:
                    rows = torch.cat([rows[:, : skip[0]], rows[:, skip[1] :]], dim=1)
                found = nearest_distances(queries, rows)
            else:
                found = self._search.nearest(queries, skip)
            return found.view(layers, patch_embeds.shape[0], -1)


def _is_traced(queries: torch.Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or type(queries) is not torch.Tensor
        or (queries.requires_grad and torch.is_grad_enabled())
    )


def left_out_distances(
    view_features: torch.Tensor,
    view_photo: torch.Tensor,
    features: torch.Tensor,
    row_photo: torch.Tensor,
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

    Returns:
        `torch.FloatTensor` of shape `(num_views, grid, grid)`: distances in [0, 2]. Of a single photo, to a patch of
        the photo that is not adjacent.
    """
    grid = int(view_features.shape[2] ** 0.5)
    rows, search = features, None
    if rows.shape[1] >= LEAST_ROWS and rows.numel() <= MAX_FLOAT32_VALUES:
        rows = normalized(rows)
        search = PatchSearch(rows)
    found = []
    for view, number in zip(view_features, view_photo.tolist()):
        view = normalized(view)
        first, last = (int(torch.searchsorted(row_photo, number, right=right)) for right in (False, True))
        others = [part for part in (rows[:, :first], rows[:, last:]) if part.shape[1]]
        if not others:
            distances = self_distances(view, grid)
        elif search is None:
            distances = torch.stack([nearest_distances(view, part) for part in others]).amin(dim=0)
        else:
            distances = search.nearest(view, skip=(first, last))
        found.append(distances.mean(dim=0).view(grid, grid))
    return torch.stack(found)


__all__ = ["PatchSearch", "ReferenceRows", "left_out_distances"]
