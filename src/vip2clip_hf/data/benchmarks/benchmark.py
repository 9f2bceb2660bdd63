"""The description of one benchmark."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Benchmark:
    """
    One data set of the paper.

    Args:
        name (`str`): short name, as `load_benchmark` takes it.
        title (`str`): full name.
        domain (`"industrial"` or `"medical"`): table of the paper it stands in (1 or 2).
        source (`str`): where it is downloaded.
        citation (`str`): what to cite, from the paper's references.
        layouts (`tuple[str, ...]`): layouts it is found in, see [`vip2clip_hf.data.layouts`], in the order in which
            they are tried.
        evaluated (`str`): which images the paper evaluates, in words.
        categories (`tuple[str, ...]`): names of the categories, in the order of the results. A set of one category
            carries its own name.
        normal, anomalous (`int`): images of the evaluated split, as published.
        counts (`dict[str, tuple[int, int]]`): the same by category, where known.
        train_counts (`dict[str, int]`): normal training images by category, where known.
        counts_source (`str`): who says so.
        licence (`str`, *optional*): as stated by its makers, or by whom else; None where not established.
        has_masks (`bool`): whether anomalous images have masks. Without, image metrics only.
        mask_threshold (`int`): mask values greater than this are anomalous. 127 where masks are stored lossily, so
            that compression noise around the defect is not marked; the released code takes 0 for every set.
        folders (`tuple[str, ...]`): what re-packs call the folder of a set of one category.
        notes (`dict[str, str]`): what to know about a layout, by its name.
    """

    name: str
    title: str
    domain: str
    source: str
    citation: str
    layouts: tuple[str, ...]
    evaluated: str
    categories: tuple[str, ...]
    normal: int
    anomalous: int
    counts_source: str
    licence: str | None = None
    has_masks: bool = True
    mask_threshold: int = 0
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    train_counts: dict[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def expected(self, category: str) -> tuple[int, int] | None:
        """Published number of normal and anomalous images of a category in the evaluated split, where known."""
        if len(self.categories) == 1:
            return self.normal, self.anomalous
        return self.counts.get(category)


__all__ = ["Benchmark"]
