"""Description of a benchmark."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Benchmark:
    """
    Benchmark of the paper.

    Args:
        name (`str`): short name, the `name` argument of [`load_benchmark`].
        title (`str`): full name.
        domain (`str`): `"industrial"` (Table 1 of the paper) or `"medical"` (Table 2).
        source (`str`): download page.
        citation (`str`): publication to cite, from the references of the paper.
        layouts (`tuple[str, ...]`): names of the possible layouts, in the order they are tried, see
            [`vip2clip_hf.data.layouts`].
        evaluated (`str`): description of the images evaluated in the paper.
        categories (`tuple[str, ...]`): names of the categories, in the order of the results. A dataset without
            categories has one, with the name of the benchmark.
        normal, anomalous (`int`): published number of normal and anomalous images in the evaluated split.
        counts_source (`str`): source of the counts.
        licence (`str`, *optional*): licence, with the source of the statement. None if not established.
        has_masks (`bool`, defaults to `True`): whether anomalous images have masks. If not, only image metrics are
            computed.
        mask_threshold (`int`, defaults to 0): mask values greater than this are anomalous. It is 127 for masks with
            lossy compression, to exclude the noise around the defect. The released code always uses 0.
        counts (`dict[str, tuple[int, int]]`): published number of normal and anomalous images by category, if known.
        train_counts (`dict[str, int]`): published number of normal training images by category, if known.
        folders (`tuple[str, ...]`): other names of the dataset folder, for datasets with one category.
        notes (`dict[str, str]`): remarks for the report, by layout name.
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
        """Published number of normal and anomalous images of a category in the evaluated split. None if unknown."""
        if len(self.categories) == 1:
            return self.normal, self.anomalous
        return self.counts.get(category)


__all__ = ["Benchmark"]
