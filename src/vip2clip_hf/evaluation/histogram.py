"""A histogram of float32 values that is as fine as the metrics need it, wherever the values lie.

Values are told apart by their bit pattern, so that no range has to be known. The 2^32 patterns are the leaves of a
tree of three levels: bins of 128 neighbouring patterns, eighths of a bin, single patterns. A bin is divided when
what would be added to it, together with what it holds, could move a metric by more than is allowed:

    negatives in it > 1e-4 of all negatives              (AUROC: pairs that are not told apart)
                    > 3e-5 where AUPRO looks             (which divides by its limit of the false positive rate)
    pixels in it    > 1e-4 of the pixels in it and above (AP, F1: precision at its place in the ranking)

What it held before stays where it is, and is by then too little to matter. So memory depends on these shares and not
on the number of values, the errors add up to a bound that can be stated, and two histograms can be added.
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


# Bins are kept in pages, so that the gap between zero and the smallest value beside it costs nothing.
PAGE_BITS = 12
PAGE, NUM_PAGES = 1 << PAGE_BITS, 1 << (32 - BIN_BITS - PAGE_BITS)
# See above. What is looked at by AUPRO may move while values come in.
NEGATIVE_SHARE, AUPRO_SHARE, PIXEL_SHARE, AUPRO_MARGIN = 1e-4, 3e-5, 1e-4, 0.2
# Nodes of the two finer levels; what would need more stays undivided and widens the bounds.
MAX_NODES = 1 << 17
# From so many on, those that are no longer needed are taken back.
MANY_NODES = 3 << 15


class _Level:
    """Bins of one level: what lies in each undivided, all that lies in it, and the node that divides it, or -1."""

    def __init__(self):
        self.own = np.zeros((3, 0))
        self.mass = np.zeros((3, 0))
        self.node = np.zeros(0, dtype=np.int32)

    def resize(self, size: int):
        self.own, self.mass = grow(self.own, size), grow(self.mass, size)
        self.node = grow(self.node, size, -1)


class PixelHistogram:
    """
    Counts of negative and positive values and the weights of the positive ones, see the module.

    Args:
        fpr_limit (`float`, defaults to 0.3): false positive rate up to which AUPRO is computed.
    """

    def __init__(self, fpr_limit: float = 0.3):
        self.fpr_limit = fpr_limit
        self.pages = np.zeros(0, dtype=np.intp)  # numbers of the pages there are, ascending
        self.bins, self.parts = _Level(), _Level()
        self.leaves = np.zeros((3, 0))
        self.parents = np.zeros(0, dtype=np.int64)  # number of the bin each node of the second level divides
        self.part_parents = np.zeros(0, dtype=np.int64)  # place of the part each node of the third level divides
        self.num_nodes = [0, 0]
        self.totals = np.zeros(3)
        self.minimum, self.maximum = np.inf, -np.inf
        self.many_nodes = MANY_NODES

    # Adding

    def add(self, blocks: list[np.ndarray], positive: np.ndarray, weights: np.ndarray):
        """
        Args:
            blocks (`list[np.ndarray]`, uint32, 1-D each): keys (see `to_keys`) of all values; each block should fit
                the processor's cache.
            positive (`np.ndarray`, uint32, 1-D): keys of those of them that are positive.
            weights (`np.ndarray`, float64, 1-D): their weights.
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
            pages = sum(np.bincount(block >> (BIN_BITS + PAGE_BITS), minlength=NUM_PAGES) for block in blocks)
            self._add_pages(pages.nonzero()[0])
        first, last = self._places(np.array([low, high]))
        here = slice(int(first), int(last) + 1)
        positive_places = self._places_of_keys(positive, first)
        added = np.zeros((3, here.stop - here.start))
        for block in blocks:
            added[NEGATIVE] += np.bincount(self._places_of_keys(block, first), minlength=added.shape[1])
        count_positive(added, positive_places, weights)
        self.totals += added.sum(axis=1)
        self.bins.mass[:, here] += added
        above = sum_from_above(self.bins.mass)
        new = self._too_full(self.bins, here, added, above[:, here])
        self._divide_bins(new + here.start)
        nodes = self.bins.node[here]
        undivided = nodes < 0
        self.bins.own[:, here] += added * undivided
        if undivided.all():
            return
        # To the second level: place of the part, and which leaf of it.
        count = int(added[NEGATIVE : POSITIVE + 1, ~undivided].sum())
        parts, leaves = np.empty(count, dtype=np.intp), np.empty(count, dtype=np.uint8)
        filled = 0
        for block in blocks:
            chosen, node = select_nodes(nodes, self._places_of_keys(block, first))
            there = slice(filled, filled + len(chosen))
            parts[there], leaves[there] = parts_and_leaves(block[chosen], node)
            filled = there.stop
        chosen, node = select_nodes(nodes, positive_places)
        positive_parts, positive_leaves = parts_and_leaves(positive[chosen], node)
        weights = weights[chosen]
        size = self.num_nodes[0] * PARTS
        added = count_keys(parts, positive_parts, weights, size)
        self.parts.mass[:, :size] += added
        self._divide_parts(self._too_full(self.parts, slice(0, size), added, self._above_parts(above)))
        undivided = self.parts.node[:size] < 0
        added *= undivided
        self.parts.own[:, :size] += added
        if undivided.all():
            return
        # To the third.
        chosen, node = select_nodes(self.parts.node, parts)
        positive_chosen, positive_node = select_nodes(self.parts.node, positive_parts)
        size = self.num_nodes[1] * LEAVES
        self.leaves[:, :size] += count_keys(
            node * LEAVES + leaves[chosen],
            positive_node * LEAVES + positive_leaves[positive_chosen],
            weights[positive_chosen],
            size,
        )

    def _add_pages(self, numbers: np.ndarray):
        """Make room for the bins of some pages."""
        pages = np.union1d(self.pages, numbers)
        if pages.size == self.pages.size:
            return
        level = _Level()
        level.resize(pages.size * PAGE)
        old = (np.searchsorted(pages, self.pages)[:, None] * PAGE + np.arange(PAGE)).ravel()
        level.own[:, old], level.mass[:, old] = self.bins.own, self.bins.mass
        level.node[old] = self.bins.node
        self.pages, self.bins = pages, level

    def _places(self, numbers: np.ndarray, first: int = 0) -> np.ndarray:
        """Where the bins of some numbers are, counted from the place `first`; their pages are there. `numbers` is
        overwritten."""
        start = self.pages[0]
        if self.pages[-1] - start == self.pages.size - 1:
            numbers -= start * PAGE + first
            return numbers
        shift = np.zeros(NUM_PAGES, dtype=np.intp)
        shift[self.pages] = (np.arange(self.pages.size) - self.pages) * PAGE - first
        numbers += shift[numbers >> PAGE_BITS]
        return numbers

    def _places_of_keys(self, keys: np.ndarray, first: int) -> np.ndarray:
        """As `_places`, of keys."""
        # Signed, as numpy indexes and counts with; it would convert again at every use.
        return self._places((keys >> BIN_BITS).astype(np.intp), first)

    def _numbers(self, places: np.ndarray) -> np.ndarray:
        """The inverse of `_places`, int64."""
        return (self.pages[places >> PAGE_BITS] * PAGE + places % PAGE).astype(np.int64)

    def _too_full(self, level: _Level, here: slice, added: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Places, from the start of `here`, of undivided bins that would hold too much. `above` counts negatives and
        pixels in a bin and above it."""
        places = np.flatnonzero((level.node[here] < 0) & (added[NEGATIVE] + added[POSITIVE] > 0))
        held = level.own[: POSITIVE + 1, here][:, places] + added[: POSITIVE + 1, places]
        return places[self._too_much(*held, above[:, places])]

    def _too_much(self, negatives: np.ndarray, positives: np.ndarray, above: np.ndarray) -> np.ndarray:
        """Whether so many values in one bin, with so many in it and above it, could move a metric."""
        looked_at = above[0] - negatives < (self.fpr_limit + AUPRO_MARGIN) * self.totals[NEGATIVE]
        share = np.where(looked_at, AUPRO_SHARE, NEGATIVE_SHARE)
        return (negatives > share * self.totals[NEGATIVE]) | (negatives + positives > PIXEL_SHARE * above[1])

    def _divide_bins(self, places: np.ndarray):
        count = min(places.size, MAX_NODES - self.num_nodes[0])
        places = places[places.size - count :]  # the highest come first where there is not room for all
        start, self.num_nodes[0] = self.num_nodes[0], self.num_nodes[0] + count
        self.bins.node[places] = np.arange(start, start + count)
        if self.num_nodes[0] * PARTS > self.parts.node.size:
            self.parts.resize(max(self.parts.node.size * 9 // 8, self.num_nodes[0] * PARTS))
        self.parents = np.concatenate([self.parents, self._numbers(places)])

    def _divide_parts(self, places: np.ndarray):
        count = min(places.size, MAX_NODES - self.num_nodes[1])
        if count < places.size:
            order = np.argsort(self._part_keys(places))
            places = places[order[places.size - count :]]
        start, self.num_nodes[1] = self.num_nodes[1], self.num_nodes[1] + count
        self.parts.node[places] = np.arange(start, start + count)
        if self.num_nodes[1] * LEAVES > self.leaves.shape[1]:
            self.leaves = grow(self.leaves, max(self.leaves.shape[1] * 9 // 8, self.num_nodes[1] * LEAVES))
        self.part_parents = np.concatenate([self.part_parents, places])

    def _above_parts(self, above: np.ndarray) -> np.ndarray:
        """Negatives and pixels in every part and above it, from those in every bin and above it."""
        count = self.num_nodes[0]
        places = self._places(self.parents.astype(np.intp)) if count else self.parents
        inside = sum_from_above(self.parts.mass[:, : count * PARTS].reshape(3, count, PARTS))
        inside += (above - with_pixels(self.bins.mass))[:, places, None]
        return inside.reshape(2, -1)

    def _part_keys(self, places: np.ndarray) -> np.ndarray:
        """First key of parts, int64."""
        return (self.parents[places // PARTS] << BIN_BITS) + (places % PARTS << PART_BITS)

    def _compact(self):
        """Undo divisions that would not be made today: with more values, each bin matters less."""
        size = self.num_nodes[0] * PARTS
        above = sum_from_above(self.bins.mass)
        bins = (self.bins.node >= 0) & self._too_much(*self.bins.mass[: POSITIVE + 1], above)
        of_parts = bins[self._places(self.parents.astype(np.intp))].repeat(PARTS)
        parts = (self.parts.node[:size] >= 0) & of_parts
        parts &= self._too_much(*self.parts.mass[: POSITIVE + 1, :size], self._above_parts(above))
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
        """Everything as arrays: per level the keys and counts of what is there, and which bins are divided."""
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

    def add_state(self, state: dict[str, np.ndarray]):
        """Add what another histogram holds, at the level it holds it."""
        self.minimum = min(self.minimum, float(state["range"][0]))
        self.maximum = max(self.maximum, float(state["range"][1]))
        first_parts = state["leaf_keys"] >> PART_BITS << PART_BITS
        bins = [state["bin_numbers"], state["part_keys"] >> BIN_BITS, state["leaf_keys"] >> BIN_BITS]
        numbers = np.concatenate(bins)
        if not numbers.size:
            return
        self._add_pages(np.unique(numbers >> PAGE_BITS))
        bins = [self._places(part.astype(np.intp)) for part in bins]
        places_of_all = np.concatenate(bins)
        counts = np.concatenate([state["bin_counts"], state["part_counts"], state["leaf_counts"]], axis=1)
        add_at(self.bins.mass, places_of_all, counts)
        self.totals += counts.sum(axis=1)
        add_at(self.bins.own, bins[0], state["bin_counts"])
        divided = np.unique(np.concatenate(bins[1:]))
        self._divide_bins(divided[self.bins.node[divided] < 0])
        for keys, values, above in (
            (state["part_keys"], state["part_counts"], bins[1]),
            (first_parts, state["leaf_counts"], bins[2]),
        ):
            node = self.bins.node[above]
            there = node >= 0
            add_at(self.bins.own, above[~there], values[:, ~there])  # no room for their nodes
            places, values = (node * PARTS + ((keys >> PART_BITS) & (PARTS - 1)))[there], values[:, there]
            add_at(self.parts.mass, places, values)
            if keys is state["part_keys"]:
                add_at(self.parts.own, places, values)
                continue
            wanted = np.unique(places)
            self._divide_parts(wanted[self.parts.node[wanted] < 0])
            node, leaves = self.parts.node[places], state["leaf_keys"][there] & (LEAVES - 1)
            there = node >= 0
            add_at(self.parts.own, places[~there], values[:, ~there])
            add_at(self.leaves, (node * LEAVES + leaves)[there], values[:, there])

    # Reading

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """
        What is there, from the highest value down.

        Returns:
            `tuple`: lowest value of every cell (float32), and counts `(3, cells)` of negatives, positives and weights.
        """
        state = self.state()
        # What a divided bin held before is put in its middle.
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
        How far the metrics read from the cells can be from those of the single values: nothing where every value has a
        cell of its own.
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
            there = own.any(axis=0)
            own, mass, and_above, divided = own[:, there], mass[:, there], and_above[:, there], divided[there]
            if not own.size:
                continue

            def pairs(kind: int, own=own, mass=mass) -> float:
                within = own[NEGATIVE] * own[kind] / 2
                others = own[NEGATIVE] * (mass[kind] - own[kind]) + own[kind] * (mass[NEGATIVE] - own[NEGATIVE])
                return float((within + others).sum())

            bounds["auroc"] += pairs(POSITIVE) / (negatives * positives)
            bounds["aupro"] += pairs(WEIGHT) / (negatives * weights * self.fpr_limit)
            pixels = own[NEGATIVE] + own[POSITIVE]
            # One value of its own is exact; a cell of one pixel cannot be out of order.
            single = (pixels <= 1) & ~divided
            pixels = np.where(single, 0, pixels)
            higher = and_above[1] - mass[NEGATIVE] - mass[POSITIVE]
            bounds["ap"] += float((mass[POSITIVE] * pixels / (higher + 1 + pixels)).sum() / positives)
            misplaced = np.where(single, 0, own[NEGATIVE] + np.where(divided, 2 * own[POSITIVE], 0))
            bounds["f1"] = max(bounds["f1"], float((misplaced / (higher + positives)).max()))
        return {name: float(min(1.0, bound)) for name, bound in bounds.items()}


__all__ = ["PixelHistogram"]
