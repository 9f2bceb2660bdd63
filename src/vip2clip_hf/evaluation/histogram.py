"""A histogram of float32 values that is as fine as the metrics need, for values of any range.

Values are counted by bit pattern, so their range does not have to be known in advance. The 2^32 patterns are the
leaves of a tree with three levels: bins of 128 adjacent patterns, parts (eighths of a bin) and leaves (single
patterns). A bin or part is divided when its values, including those about to be added, could change a metric by more
than allowed:

    negatives in the bin > 1e-4 of all negatives               (AUROC: pairs with unknown order)
                         > 3e-5 in the range of AUPRO          (AUPRO: divided by its false positive rate limit)
    pixels in the bin    > 1e-4 of the pixels in and above it  (AP and F1: precision at this rank)

Values counted before the division stay in the bin. They are too few to matter. Memory therefore depends on these
shares and not on the number of values, the errors add up to a known bound, and histograms can be merged.
"""

import numpy as np

from .histogram_counts import (
    BIN_BITS,
    LEAVES,
    NEGATIVE,
    PART_BITS,
    PARTS,
    POSITIVE,
    WEIGHT,
    add_at,
    count_keys,
    count_positive,
    grow,
    parts_and_leaves,
    select_nodes,
    sum_from_above,
    to_values,
    with_pixels,
)


# Bins are stored in pages, so the large gap between zero and other values needs no memory.
PAGE_BITS = 12
PAGE, NUM_PAGES = 1 << PAGE_BITS, 1 << (32 - BIN_BITS - PAGE_BITS)
# Shares of the module docstring. The margin is added to the limit of the false positive rate, because the values below
# the limit change while values are added.
NEGATIVE_SHARE, AUPRO_SHARE, PIXEL_SHARE, AUPRO_MARGIN = 1e-4, 3e-5, 1e-4, 0.2
# Largest number of divided bins, and of divided parts. More are not divided, which widens the bounds.
MAX_NODES = 1 << 17
# Number of divided bins or parts above which unnecessary divisions are undone.
MANY_NODES = 3 << 15


class _Level:
    """The bins of one level: counts without those of finer levels (`own`), counts with those of finer levels
    (`mass`), and the number of the node that divides the bin, or -1 (`node`)."""

    def __init__(self) -> None:
        self.own = np.zeros((3, 0))
        self.mass = np.zeros((3, 0))
        self.node = np.zeros(0, dtype=np.int32)

    def resize(self, size: int) -> None:
        self.own, self.mass = grow(self.own, size), grow(self.mass, size)
        self.node = grow(self.node, size, -1)


class PixelHistogram:
    """
    Count negative and positive values, and sum the weights of the positive values. See the module for the method.

    Args:
        fpr_limit (`float`, defaults to 0.3): false positive rate up to which AUPRO is computed.
    """

    def __init__(self, fpr_limit: float = 0.3) -> None:
        self.fpr_limit = fpr_limit
        self.pages = np.zeros(0, dtype=np.intp)  # numbers of the stored pages, ascending
        self.bins, self.parts = _Level(), _Level()
        self.leaves = np.zeros((3, 0))
        self.parents = np.zeros(0, dtype=np.int64)  # number of the bin that each node divides
        self.part_parents = np.zeros(0, dtype=np.int64)  # index of the part that each node divides
        self.num_nodes = [0, 0]
        self.totals = np.zeros(3)
        self.minimum, self.maximum = np.inf, -np.inf
        self.many_nodes = MANY_NODES

    # Adding

    def add(self, blocks: list[np.ndarray], positive: np.ndarray, weights: np.ndarray) -> None:
        """
        Add values.

        Args:
            blocks (`list[np.ndarray]`, uint32, 1-D each): keys (see `to_keys`) of all values. For speed, each block
                should fit in the cache of the processor.
            positive (`np.ndarray`, uint32, 1-D): keys of the positive values, which are also in `blocks`.
            weights (`np.ndarray`, float64, 1-D): weights of the positive values.
        """
        blocks = [block for block in blocks if block.size]
        if not blocks:
            return
        if max(self.num_nodes) > self.many_nodes:
            self._compact()
        lowest, highest = min(block.min() for block in blocks), max(block.max() for block in blocks)
        self.minimum = min(self.minimum, float(to_values(lowest)))
        self.maximum = max(self.maximum, float(to_values(highest)))
        low, high = int(lowest) >> BIN_BITS, int(highest) >> BIN_BITS
        if high - low < 64 * PAGE:
            self._add_pages(np.arange(low >> PAGE_BITS, (high >> PAGE_BITS) + 1))
        else:
            pages = np.zeros(NUM_PAGES, dtype=np.intp)
            for block in blocks:
                pages += np.bincount(block >> (BIN_BITS + PAGE_BITS), minlength=NUM_PAGES)
            self._add_pages(pages.nonzero()[0])
        first, last = (int(index) for index in self._indices(np.array([low, high])))
        here = slice(first, last + 1)
        positive_indices = self._indices_of_keys(positive, first)
        added = np.zeros((3, here.stop - here.start))
        for block in blocks:
            added[NEGATIVE] += np.bincount(self._indices_of_keys(block, first), minlength=added.shape[1])
        count_positive(added, positive_indices, weights)
        self.totals += added.sum(axis=1)
        self.bins.mass[:, here] += added
        above = sum_from_above(self.bins.mass)
        self._divide_bins(self._find_full(self.bins, here, added, above[:, here]) + here.start)
        nodes = self.bins.node[here]
        undivided = nodes < 0
        self.bins.own[:, here] += added * undivided
        if undivided.all():
            return
        # Second level: index of the part, and number of the leaf in it.
        count = int(added[NEGATIVE : POSITIVE + 1, ~undivided].sum())
        parts, leaves = np.empty(count, dtype=np.intp), np.empty(count, dtype=np.uint8)
        filled = 0
        for block in blocks:
            chosen, node = select_nodes(nodes, self._indices_of_keys(block, first))
            target = slice(filled, filled + len(chosen))
            parts[target], leaves[target] = parts_and_leaves(block[chosen], node)
            filled = target.stop
        chosen, node = select_nodes(nodes, positive_indices)
        positive_parts, positive_leaves = parts_and_leaves(positive[chosen], node)
        weights = weights[chosen]
        size = self.num_nodes[0] * PARTS
        added = count_keys(parts, positive_parts, weights, size)
        self.parts.mass[:, :size] += added
        self._divide_parts(self._find_full(self.parts, slice(0, size), added, self._above_parts(above)))
        undivided = self.parts.node[:size] < 0
        added *= undivided
        self.parts.own[:, :size] += added
        if undivided.all():
            return
        # Third level.
        chosen, node = select_nodes(self.parts.node, parts)
        positive_chosen, positive_node = select_nodes(self.parts.node, positive_parts)
        size = self.num_nodes[1] * LEAVES
        self.leaves[:, :size] += count_keys(
            node * LEAVES + leaves[chosen],
            positive_node * LEAVES + positive_leaves[positive_chosen],
            weights[positive_chosen],
            size,
        )

    def _add_pages(self, numbers: np.ndarray) -> None:
        """Add pages that are not stored yet."""
        pages = np.union1d(self.pages, numbers)
        if pages.size == self.pages.size:
            return
        level = _Level()
        level.resize(pages.size * PAGE)
        old = (np.searchsorted(pages, self.pages)[:, None] * PAGE + np.arange(PAGE)).ravel()
        level.own[:, old], level.mass[:, old] = self.bins.own, self.bins.mass
        level.node[old] = self.bins.node
        self.pages, self.bins = pages, level

    def _indices(self, numbers: np.ndarray, first: int = 0) -> np.ndarray:
        """Indices of bins in stored pages, relative to the index `first`. Overwrites `numbers`, the bin numbers."""
        start = self.pages[0]
        if self.pages[-1] - start == self.pages.size - 1:
            numbers -= start * PAGE + first
            return numbers
        shift = np.zeros(NUM_PAGES, dtype=np.intp)
        shift[self.pages] = (np.arange(self.pages.size) - self.pages) * PAGE - first
        numbers += shift[numbers >> PAGE_BITS]
        return numbers

    def _indices_of_keys(self, keys: np.ndarray, first: int) -> np.ndarray:
        """Like `_indices`, for keys."""
        # Signed integers, because numpy would convert others at every use as an index.
        return self._indices((keys >> BIN_BITS).astype(np.intp), first)

    def _numbers(self, indices: np.ndarray) -> np.ndarray:
        """Bin numbers, int64: the inverse of `_indices`."""
        return (self.pages[indices >> PAGE_BITS] * PAGE + indices % PAGE).astype(np.int64)

    def _find_full(self, level: _Level, here: slice, added: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Find undivided bins that would contain too many values. Returns indices relative to the start of `here`.
        `above` has the negatives and pixels in and above each bin."""
        indices = np.flatnonzero((level.node[here] < 0) & (added[NEGATIVE] + added[POSITIVE] > 0))
        counts = level.own[: POSITIVE + 1, here][:, indices] + added[: POSITIVE + 1, indices]
        return indices[self._too_many(counts, above[:, indices])]

    def _too_many(self, counts: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Whether bins with these counts could change a metric by more than allowed. `counts` has the negatives and
        positives in each bin, `above` the negatives and pixels in and above it."""
        negatives, positives = counts
        in_aupro_range = above[0] - negatives < (self.fpr_limit + AUPRO_MARGIN) * self.totals[NEGATIVE]
        share = np.where(in_aupro_range, AUPRO_SHARE, NEGATIVE_SHARE)
        return (negatives > share * self.totals[NEGATIVE]) | (negatives + positives > PIXEL_SHARE * above[1])

    def _divide_bins(self, indices: np.ndarray) -> None:
        count = min(indices.size, MAX_NODES - self.num_nodes[0])
        indices = indices[indices.size - count :]  # the highest bins, if there is not enough space for all
        start, self.num_nodes[0] = self.num_nodes[0], self.num_nodes[0] + count
        self.bins.node[indices] = np.arange(start, start + count)
        if self.num_nodes[0] * PARTS > self.parts.node.size:
            self.parts.resize(max(self.parts.node.size * 9 // 8, self.num_nodes[0] * PARTS))
        self.parents = np.concatenate([self.parents, self._numbers(indices)])

    def _divide_parts(self, indices: np.ndarray) -> None:
        count = min(indices.size, MAX_NODES - self.num_nodes[1])
        if count < indices.size:
            order = np.argsort(self._part_keys(indices))
            indices = indices[order[indices.size - count :]]
        start, self.num_nodes[1] = self.num_nodes[1], self.num_nodes[1] + count
        self.parts.node[indices] = np.arange(start, start + count)
        if self.num_nodes[1] * LEAVES > self.leaves.shape[1]:
            self.leaves = grow(self.leaves, max(self.leaves.shape[1] * 9 // 8, self.num_nodes[1] * LEAVES))
        self.part_parents = np.concatenate([self.part_parents, indices])

    def _above_parts(self, above: np.ndarray) -> np.ndarray:
        """Negatives and pixels in and above every part, computed from those in and above every bin."""
        count = self.num_nodes[0]
        indices = self._indices(self.parents.astype(np.intp)) if count else self.parents
        inside = sum_from_above(self.parts.mass[:, : count * PARTS].reshape(3, count, PARTS))
        inside += (above - with_pixels(self.bins.mass))[:, indices, None]
        return inside.reshape(2, -1)

    def _part_keys(self, indices: np.ndarray) -> np.ndarray:
        """Smallest key of parts, int64."""
        return (self.parents[indices // PARTS] << BIN_BITS) + (indices % PARTS << PART_BITS)

    def _compact(self) -> None:
        """Undo divisions that are no longer necessary: the more values there are, the less each bin matters."""
        size = self.num_nodes[0] * PARTS
        above = sum_from_above(self.bins.mass)
        bins = (self.bins.node >= 0) & self._too_many(self.bins.mass[: POSITIVE + 1], above)
        of_parts = bins[self._indices(self.parents.astype(np.intp))].repeat(PARTS)
        parts = (self.parts.node[:size] >= 0) & of_parts
        parts &= self._too_many(self.parts.mass[: POSITIVE + 1, :size], self._above_parts(above))
        levels = self.state()
        keep_parts = of_parts[np.flatnonzero(self.parts.own.any(axis=0))]
        leaves = self.part_parents[np.flatnonzero(self.leaves.any(axis=0)) // LEAVES]
        keep_leaves, to_parts = parts[leaves], of_parts[leaves] & ~parts[leaves]
        to_bins = ~of_parts[leaves]
        leaf_keys, leaf_counts = levels["leaf_keys"], levels["leaf_counts"]
        part_keys, part_counts = levels["part_keys"], levels["part_counts"]
        fresh = PixelHistogram(self.fpr_limit)
        fresh.add_state(
            {
                "bin_numbers": np.concatenate(
                    [levels["bin_numbers"], part_keys[~keep_parts] >> BIN_BITS, leaf_keys[to_bins] >> BIN_BITS]
                ),
                "bin_counts": np.concatenate(
                    [levels["bin_counts"], part_counts[:, ~keep_parts], leaf_counts[:, to_bins]], axis=1
                ),
                "part_keys": np.concatenate([part_keys[keep_parts], leaf_keys[to_parts] >> PART_BITS << PART_BITS]),
                "part_counts": np.concatenate([part_counts[:, keep_parts], leaf_counts[:, to_parts]], axis=1),
                "leaf_keys": leaf_keys[keep_leaves],
                "leaf_counts": leaf_counts[:, keep_leaves],
                "range": levels["range"],
            }
        )
        fresh.many_nodes = max(MANY_NODES, 3 * max(fresh.num_nodes) // 2)
        self.__dict__ = fresh.__dict__

    # Merging and saving

    def state(self) -> dict[str, np.ndarray]:
        """Return the keys and counts of all levels and the range of the values, as arrays for `add_state`."""
        bins = np.flatnonzero(self.bins.own.any(axis=0))
        parts = np.flatnonzero(self.parts.own.any(axis=0))
        leaves = np.flatnonzero(self.leaves.any(axis=0))
        nodes = self.part_parents[leaves // LEAVES]
        return {
            "bin_numbers": self._numbers(bins),
            "bin_counts": self.bins.own[:, bins],
            "part_keys": self._part_keys(parts),
            "part_counts": self.parts.own[:, parts],
            "leaf_keys": self._part_keys(nodes) + leaves % LEAVES,
            "leaf_counts": self.leaves[:, leaves],
            "range": np.array([self.minimum, self.maximum], dtype=np.float64),
        }

    def add_state(self, state: dict[str, np.ndarray]) -> None:
        """Add the values of another histogram from its `state()`. Its counts stay on their level."""
        self.minimum = min(self.minimum, float(state["range"][0]))
        self.maximum = max(self.maximum, float(state["range"][1]))
        first_parts = state["leaf_keys"] >> PART_BITS << PART_BITS
        bins = [state["bin_numbers"], state["part_keys"] >> BIN_BITS, state["leaf_keys"] >> BIN_BITS]
        numbers = np.concatenate(bins)
        if not numbers.size:
            return
        self._add_pages(np.unique(numbers >> PAGE_BITS))
        bins = [self._indices(part.astype(np.intp)) for part in bins]
        all_indices = np.concatenate(bins)
        counts = np.concatenate([state["bin_counts"], state["part_counts"], state["leaf_counts"]], axis=1)
        add_at(self.bins.mass, all_indices, counts)
        self.totals += counts.sum(axis=1)
        add_at(self.bins.own, bins[0], state["bin_counts"])
        unique = np.unique(np.concatenate(bins[1:]))
        self._divide_bins(unique[self.bins.node[unique] < 0])
        for keys, values, above in (
            (state["part_keys"], state["part_counts"], bins[1]),
            (first_parts, state["leaf_counts"], bins[2]),
        ):
            node = self.bins.node[above]
            divided = node >= 0
            add_at(self.bins.own, above[~divided], values[:, ~divided])  # no space for more nodes
            indices, values = (node * PARTS + ((keys >> PART_BITS) & (PARTS - 1)))[divided], values[:, divided]
            add_at(self.parts.mass, indices, values)
            if keys is state["part_keys"]:
                add_at(self.parts.own, indices, values)
                continue
            unique = np.unique(indices)
            self._divide_parts(unique[self.parts.node[unique] < 0])
            node, leaves = self.parts.node[indices], state["leaf_keys"][divided] & (LEAVES - 1)
            divided = node >= 0
            add_at(self.parts.own, indices[~divided], values[:, ~divided])
            add_at(self.leaves, (node * LEAVES + leaves)[divided], values[:, divided])

    # Reading

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Return all bins, parts and leaves that contain values as cells, from the highest value to the lowest.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: lowest value of every cell, float32, and negatives, positives and weights
            in it, of shape `(3, cells)`.
        """
        state = self.state()
        # Values that were counted before a bin was divided are ordered as if in its middle.
        orders = [
            2 * ((state["bin_numbers"] << BIN_BITS) + (1 << (BIN_BITS - 1))) - 1,
            2 * (state["part_keys"] + (1 << (PART_BITS - 1))) - 1,
            2 * state["leaf_keys"],
        ]
        keys = np.concatenate([state["bin_numbers"] << BIN_BITS, state["part_keys"], state["leaf_keys"]])
        counts = np.concatenate([state["bin_counts"], state["part_counts"], state["leaf_counts"]], axis=1)
        order = np.argsort(np.concatenate(orders))[::-1]
        return to_values(keys[order]), counts[:, order]

    def bounds(self) -> dict[str, float]:
        """
        Compute upper bounds of the errors of metrics that are computed from the cells.

        Returns:
            `dict[str, float]`: bounds of `auroc`, `aupro`, `ap` and `f1`, in [0, 1]; 0 if each value has its own cell.
        """
        size = self.num_nodes[0] * PARTS
        above = sum_from_above(self.bins.mass)
        levels = [
            (self.bins.own, self.bins.mass, above, self.bins.node >= 0),
            (
                self.parts.own[:, :size],
                self.parts.mass[:, :size],
                self._above_parts(above),
                self.parts.node[:size] >= 0,
            ),
        ]
        negatives, positives, weights = np.maximum(self.totals, 1e-300)
        bounds = {"auroc": 0.0, "aupro": 0.0, "ap": 0.0, "f1": 0.0}
        for own, mass, and_above, divided in levels:
            filled = own.any(axis=0)
            own, mass, and_above, divided = own[:, filled], mass[:, filled], and_above[:, filled], divided[filled]
            if not own.size:
                continue
            bounds["auroc"] += _unordered_pairs(own, mass, POSITIVE) / (negatives * positives)
            bounds["aupro"] += _unordered_pairs(own, mass, WEIGHT) / (negatives * weights * self.fpr_limit)
            pixels = own[NEGATIVE] + own[POSITIVE]
            # A single pixel in an undivided cell is in the correct order.
            single = (pixels <= 1) & ~divided
            pixels = np.where(single, 0, pixels)
            higher = and_above[1] - mass[NEGATIVE] - mass[POSITIVE]
            bounds["ap"] += float((mass[POSITIVE] * pixels / (higher + 1 + pixels)).sum() / positives)
            misplaced = np.where(single, 0, own[NEGATIVE] + np.where(divided, 2 * own[POSITIVE], 0))
            bounds["f1"] = max(bounds["f1"], float((misplaced / (higher + positives)).max()))
        return {name: float(min(1.0, bound)) for name, bound in bounds.items()}


def _unordered_pairs(own: np.ndarray, mass: np.ndarray, kind: int) -> float:
    """Pairs of a negative and a positive (or its weight) whose order is unknown; within a cell, half of them."""
    within = own[NEGATIVE] * own[kind] / 2
    others = own[NEGATIVE] * (mass[kind] - own[kind]) + own[kind] * (mass[NEGATIVE] - own[NEGATIVE])
    return float((within + others).sum())


__all__ = ["PixelHistogram"]
