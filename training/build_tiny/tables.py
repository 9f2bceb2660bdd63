"""Tables of the study, as Markdown."""

import argparse
import re
from collections.abc import Sequence

import numpy as np

from .study import CONTRAST, ENTRIES, METRICS, PREVIOUS, REFERENCES, SHIPPED, UNTRAINED, Study, file_of, run_study


TITLES = dict(zip(METRICS, ("image AUROC", "image F1", "pixel AUROC", "AUPRO", "pixel F1"), strict=True))
SEED = re.compile(r"_left_out,_seed_(\d+)\.json$")


def seeds_of(study: Study, entry: str, held_out: str, count: int) -> dict[int, dict[str, float]]:
    """Return the metrics of an entry on a dataset by seed, with a number of references."""
    found = {}
    prefix = file_of(entry, held_out, 0).replace(" ", "_").removesuffix("0")
    for path in sorted((study.folder / "results").glob("*.json")):
        if path.name.startswith(prefix) and (match := SEED.search(path.name)) is not None:
            results = study.stored(path.stem) or {}
            if str(count) in results:
                found[int(match[1])] = {name: 100 * results[str(count)][name] for name in METRICS}
    return found


def spread(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def table_by_set(study: Study, entries: Sequence[tuple[str, str, int]]) -> str:
    """
    Format all metrics by dataset.

    Args:
        study ([`Study`]): the study.
        entries (`Sequence[tuple[str, str, int]]`): title, name of the entry and number of references of each row.

    Returns:
        `str`: a row for each dataset and entry, with mean and standard deviation over the seeds, in percent.
    """
    lines = [f"| left out | detector | {' | '.join(TITLES.values())} |", "|---|---|" + "---|" * len(TITLES)]
    for held_out in study.roots:
        for title, entry, count in entries:
            found = list(seeds_of(study, entry, held_out, count).values())
            if found:
                values = [spread([metrics[name] for metrics in found]) for name in METRICS]
                lines.append(f"| {held_out} | {title} | {' | '.join(values)} |")
    return "\n".join(lines)


def table_of_means(study: Study, entries: Sequence[str], count: int = 0) -> str:
    """
    Format image AUROC by dataset, and the means over the datasets.

    Args:
        study ([`Study`]): the study.
        entries (`Sequence[str]`): names of the entries.
        count (`int`): number of references.

    Returns:
        `str`: a row for each entry, with mean and standard deviation over the seeds, in percent.
    """
    names = list(study.roots)
    means = ("image AUROC", "pixel AUROC", "AUPRO")
    heads = [*(f"{name}: image AUROC" for name in names), *(f"mean: {title}" for title in means), "seeds"]
    lines = [f"| recipe | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for entry in entries:
        found = [seeds_of(study, entry, name, count) for name in names]
        seeds = sorted(set.intersection(*(set(one) for one in found)))
        if not seeds:
            continue
        cells = [spread([one[seed]["image_auroc"] for seed in seeds]) for one in found]
        for name in ("image_auroc", "pixel_auroc", "pixel_aupro"):
            cells.append(spread([float(np.mean([one[seed][name] for one in found])) for seed in seeds]))
        bold = "**" if entry == SHIPPED else ""
        lines.append(f"| {bold}{entry}{bold} | {' | '.join(cells)} | {len(seeds)} |")
    return "\n".join(lines)


def run_and_print(options: argparse.Namespace) -> None:
    """Run a part of the study. Print all results so far: by dataset those of the recipe, and the means of entries."""
    study = run_study(options)
    rows = [("zero-shot", SHIPPED, 0), *((f"references: {k}", SHIPPED, k) for k in REFERENCES)]
    rows += [(title, title, 0) for title in (UNTRAINED, CONTRAST, PREVIOUS)]
    print(table_by_set(study, rows))
    for count in (0, *REFERENCES):
        print(f"\nreferences: {count}\n{table_of_means(study, list(ENTRIES), count)}")
