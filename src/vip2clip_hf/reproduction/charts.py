"""Charts of the paper: the gain over static prompts (Fig. 5) and the ablation of K (Fig. 6)."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.figures import new_figure
from ..utils.files import write_atomically
from ..utils.text import shown
from .chart_data import IMAGE_METRICS, F1Gain, TopKResult, gain_notes, seeds_text, top_k_notes
from .chart_tables import gains_csv, gains_markdown, top_k_csv, top_k_markdown
from .figure_files import write_figure
from .measured import LEVELS


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"image": "#3a6ea5", "pixel": "#d9822b"}
# Colours of datasets that can be told apart by colour-blind readers (Okabe and Ito), and markers.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vP"
BAR = 0.38
# Characters per inch at the size of the notes.
CHARACTERS = 17


def draw_gains(gains: Sequence[F1Gain], titles: Mapping[str, str] | None = None) -> "Figure":
    """
    Draw the gain of F1 over static prompts for each dataset (Fig. 5 of the paper).

    Each dataset has a bar for the image level and one for the pixel level: the mean of the paired differences over the
    seeds, with their standard deviation as error bar. A bar is hatched and pale if the mean is not larger than the
    standard deviation, or if there is only one seed. A gain that was not measured has no bar but a text, and the
    reason is below the chart.

    Args:
        gains (`Sequence[F1Gain]`): the gains, see [`f1_gains`].
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `matplotlib.figure.Figure`: the chart.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no gains, or two of the same dataset and level.
    """
    _check([(gain.dataset, f"{gain.level} level") for gain in gains], "gains")
    datasets = list(dict.fromkeys(gain.dataset for gain in gains))
    notes = gain_notes(gains, titles)
    width = max(5.5, 1.4 + 1.0 * len(datasets))
    figure = new_figure(width, 3.6)
    axis = figure.subplots()
    for gain in gains:
        _draw_gain(axis, gain, datasets.index(gain.dataset) + BAR * (LEVELS.index(gain.level) - 0.5))
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlim(-0.6, len(datasets) - 0.4)
    axis.set_xticks(range(len(datasets)), [_title(name, titles) for name in datasets], fontsize=8, parse_math=False)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", labelsize=8)
    axis.margins(y=0.18)
    if all(math.isnan(gain.spread.mean) for gain in gains):
        axis.set_ylim(-1, 1)
        axis.set_yticks([])
    axis.set_ylabel("gain of F1 (percentage points)", fontsize=8)
    _grid(axis)
    _gains_legend(figure, gains)
    axis.set_title("Full model compared with static prompts", fontsize=10)
    numbers = [gain.spread.number for gain in gains]
    caption = _caption("Mean of the paired differences", numbers, "standard deviation of the differences")
    _add_notes(figure, [caption, *notes], width)
    return figure


def draw_top_k(results: Sequence[TopKResult], chosen: int, titles: Mapping[str, str] | None = None) -> "Figure":
    """
    Draw image-level AUROC, AP and F1 by K, the number of top patches in the image score (Fig. 6 of the paper).

    There is a panel for each metric with a value, and always one for AUROC. Each dataset is a line of means over the
    seeds, with their standard deviation as error bars. The K are equally spaced. A value that was not measured or is
    undefined is a gap in the line, and the reason is below the chart.

    Args:
        results (`Sequence[TopKResult]`): the results, see [`top_k_results`].
        chosen (`int`): K of the full model, marked in the chart.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `matplotlib.figure.Figure`: the chart.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no results, two of the same dataset and K, or none for the chosen K.
    """
    _check([(one.dataset, f"K = {one.top_k}") for one in results], "results")
    numbers = sorted({one.top_k for one in results})
    if chosen not in numbers:
        raise ValueError(f"chosen is {chosen}; expected one of the K of the results: {', '.join(map(str, numbers))}.")
    datasets = list(dict.fromkeys(one.dataset for one in results))
    metrics = [
        metric
        for metric in IMAGE_METRICS
        if metric == IMAGE_METRICS[0] or any(not math.isnan(one.spread(metric).mean) for one in results)
    ]
    width = 1.0 + 3.2 * len(metrics)
    figure = new_figure(width, 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(panels, metrics):
        for number, dataset in enumerate(datasets):
            own = [one for one in results if one.dataset == dataset]
            _draw_line(axis, own, metric, numbers, number, len(datasets), _title(dataset, titles))
        mark = axis.axvline(numbers.index(chosen), color="0.45", linestyle="--", linewidth=0.9, zorder=0)
        mark.set_label(f"chosen K = {chosen}")
        axis.set_xlim(-0.5, len(numbers) - 0.5)
        axis.set_xticks(range(len(numbers)), map(str, numbers))
        axis.tick_params(labelsize=8)
        axis.margins(y=0.1)
        axis.set_xlabel("K", fontsize=8)
        axis.set_title(f"{metric} (image level, %)", fontsize=9)
        _grid(axis)
        if all(math.isnan(one.spread(metric).mean) for one in results):
            axis.set_yticks([])
            axis.text(0.5, 0.5, "no results", ha="center", va="center", transform=axis.transAxes, fontsize=8)
    handles = {label: handle for axis in panels for handle, label in zip(*axis.get_legend_handles_labels())}
    legend = figure.legend(
        handles=[*handles.values()], loc="outside upper center", ncols=max(1, int(width / 1.5)), fontsize=8,
        frameon=False,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    seeds = [one.measured.num_seeds for one in results]
    _add_notes(figure, [_caption("Mean", seeds, "standard deviation"), *top_k_notes(results, titles)], width)
    return figure


def write_gains(
    gains: Sequence[F1Gain], folder: str | os.PathLike, titles: Mapping[str, str] | None = None
) -> list[Path]:
    """
    Write Fig. 5 as `figure5.png` and `figure5.pdf`, and its numbers as `figure5.csv` and `figure5.md`.

    Args:
        gains (`Sequence[F1Gain]`): the gains, see [`f1_gains`].
        folder (`str` or `os.PathLike`): folder to write to; created if it does not exist. Existing files are replaced.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `list[pathlib.Path]`: paths of the files.

    Raises:
        ImportError: if matplotlib or tabulate is not installed.
        OSError: if a file cannot be written.
        ValueError: if there are no gains, or two of the same dataset and level.
    """
    paths = write_figure(draw_gains(gains, titles), folder, 5)
    texts = {"csv": gains_csv(gains), "md": gains_markdown(gains, titles)}
    return [*paths, *_write_texts(texts, folder, 5)]


def write_top_k(
    results: Sequence[TopKResult], chosen: int, folder: str | os.PathLike, titles: Mapping[str, str] | None = None
) -> list[Path]:
    """
    Write Fig. 6 as `figure6.png` and `figure6.pdf`, and its numbers as `figure6.csv` and `figure6.md`.

    Args:
        results (`Sequence[TopKResult]`): the results, see [`top_k_results`].
        chosen (`int`): K of the full model.
        folder (`str` or `os.PathLike`): folder to write to; created if it does not exist. Existing files are replaced.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `list[pathlib.Path]`: paths of the files.

    Raises:
        ImportError: if matplotlib or tabulate is not installed.
        OSError: if a file cannot be written.
        ValueError: if there are no results, two of the same dataset and K, or none for the chosen K.
    """
    paths = write_figure(draw_top_k(results, chosen, titles), folder, 6)
    texts = {"csv": top_k_csv(results), "md": top_k_markdown(results, chosen, titles)}
    return [*paths, *_write_texts(texts, folder, 6)]


# Parts of the charts


def _draw_gain(axis: "Axes", gain: F1Gain, position: float) -> None:
    found, color = gain.spread, COLORS[gain.level]
    if math.isnan(found.mean):
        axis.annotate(
            "no result", (position, 0), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
            rotation=90, fontsize=7, color=color,
        )  # fmt: skip
    else:
        style: dict[str, Any] = (
            {"facecolor": color} if gain.exceeds_spread else {"facecolor": f"{color}40", "hatch": "////"}
        )
        has_error = not math.isnan(found.deviation)
        bars = axis.bar(
            position, found.mean, BAR, edgecolor=color, linewidth=0.8, yerr=found.deviation if has_error else None,
            error_kw={"capsize": 3, "elinewidth": 1, "ecolor": "black"}, **style,
        )  # fmt: skip
        bars.set_label(f"{gain.dataset}, {gain.level}")
        up = found.mean >= 0
        end = found.mean + (1 if up else -1) * (found.deviation if has_error else 0)
        axis.annotate(
            f"{found.mean:+.1f}", (position, end), xytext=(0, 3 if up else -3), textcoords="offset points",
            ha="center", va="bottom" if up else "top", fontsize=7,
        )  # fmt: skip
    if gain.published is not None:
        axis.plot(position, gain.published, marker="D", markersize=5, color="white", markeredgecolor="black", zorder=4)


def _gains_legend(figure: "Figure", gains: Sequence[F1Gain]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [Patch(color=COLORS[level], label=f"{level} level") for level in LEVELS]
    if any(not gain.exceeds_spread and not math.isnan(gain.spread.mean) for gain in gains):
        handles.append(
            Patch(facecolor="#00000020", edgecolor="0.3", hatch="////", label="not larger than the spread, or unknown")
        )
    if any(gain.published is not None for gain in gains):
        handles.append(Line2D([], [], linestyle="", marker="D", color="white", markeredgecolor="black", label="paper"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)


def _draw_line(
    axis: "Axes", own: Sequence[TopKResult], metric: str, numbers: list[int], number: int, count: int, title: str
) -> None:
    """Draw the line of a dataset. Lines are shifted a little, so that error bars do not cover each other."""
    shift = 0.0 if count == 1 else 0.2 * (number / (count - 1) - 0.5)
    found = {one.top_k: one.spread(metric) for one in own}
    if all(math.isnan(one.mean) for one in found.values()):
        return  # nor in the legend
    means = [found[k].mean if k in found else math.nan for k in numbers]
    deviations = [found[k].deviation if k in found else math.nan for k in numbers]
    axis.errorbar(
        [position + shift for position in range(len(numbers))], means, yerr=deviations, capsize=2.5, elinewidth=0.9,
        linewidth=1.3, markersize=4, color=LINES[number % len(LINES)],
        marker=MARKERS[number // len(LINES) % len(MARKERS)], label=title,
    )  # fmt: skip


def _grid(axis: "Axes") -> None:
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _caption(what: str, numbers: Sequence[int], deviation: str) -> str:
    if not any(numbers):
        return "No results."
    text = f"{what}, {seeds_text(numbers)}."
    if max(numbers) > 1:
        text += f" Error bars: {deviation}."
    if 1 in numbers:
        text += " One seed: no error bar, the spread is unknown."
    return text


def _add_notes(figure: "Figure", lines: Sequence[str], width: float) -> None:
    """Write lines below the chart, and make room for them."""
    wrapped = [part for line in lines for part in textwrap.wrap(shown(line), int(width * CHARACTERS))]
    figure.set_figheight(figure.get_figheight() + 0.14 * len(wrapped))
    figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=7, parse_math=False)


def _title(name: str, titles: Mapping[str, str] | None) -> str:
    return shown((titles or {}).get(name, name))


def _check(names: Sequence[tuple[str, str]], argument: str) -> None:
    if not names:
        raise ValueError(f"{argument} is empty; expected at least one.")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{argument} has {names.count(name)} entries for {', '.join(name)}; expected one.")


def _write_texts(texts: Mapping[str, str], folder: str | os.PathLike, number: int) -> list[Path]:
    paths = []
    for extension, text in texts.items():
        paths.append(Path(folder) / f"figure{number}.{extension}")
        write_atomically(paths[-1], text)
    return paths


__all__ = ["draw_gains", "draw_top_k", "write_gains", "write_top_k"]
