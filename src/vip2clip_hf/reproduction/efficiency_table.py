"""Write Table 3 of the paper: published rows, measured rows with their hardware, and all measured variants.

A time of ours is never written without its ratio to the vision tower alone, and never as a difference from a published
time, which was measured on other hardware.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.published_ablations import EFFICIENCY, EFFICIENCY_TITLES
from ..evaluation.tables import tabulate_rows
from ..utils.csv_cells import safe_cell
from ..utils.files import write_atomically
from .efficiency import PAPER_BATCH_SIZE


PUBLISHED_HARDWARE = "NVIDIA L20"
HEADERS = ["Model", *EFFICIENCY_TITLES]
INFERENCE_HEADERS = [
    "Model", "Hardware", "Precision", "Compiled", "Batch", "Pixels", "Images", "Prepare (ms)", "Inference (ms)",
    "Vision tower (ms)", "Memory (GB)",
]  # fmt: skip
TRAINING_HEADERS = [
    "Model", "Feature cache", "Hardware", "Precision", "Batch", "Pixels", "Step, per image (ms)",
    "Cache pass, per image (ms)", "Vision tower (ms)", "Images", "Steps", "Training (h)", "Memory (GB)",
]  # fmt: skip
CSV_FIELDS = (
    "part", "model", "hardware", "dtype", "compile", "cache", "batch_size", "image_size", "num_images",
    "prepare_seconds", "seconds_per_image", "seconds_per_image_median", "seconds_per_image_sd",
    "tower_seconds_per_image", "ratio_to_tower", "cache_seconds_per_image", "training_seconds",
    "training_ratio_to_tower", "extrapolated", "memory_bytes", "memory_kind", "trainable_parameters",
)  # fmt: skip
# Characters that tabulate does not write for LaTeX.
_LATEX = {"²": r"\textsuperscript{2}", "±": r"$\pm$", "×": r"$\times$"}


def efficiency_rows(results: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[str]]:
    """
    Create the rows of Table 3: the published rows, and ours in the setting of the paper, float32 and batch size 1.

    Args:
        results (`Mapping`): `"inference"`, results of [`measure_inference`] or [`measure_variants`], and
            `"training"`, results of [`measure_training`]. Both can be missing.

    Returns:
        `list[list[str]]`: the rows, with a cell for each of `HEADERS`.
    """
    rows = [
        [
            f"{name} (paper, {PUBLISHED_HARDWARE})",
            f"{row.training_hours:.2f}",
            f"{row.inference_ms:.2f} ± {row.inference_ms_spread:.2f}",
            f"{row.gpu_gb:.2f}",
            f"{row.trainable_millions:.2f}",
        ]
        for name, row in EFFICIENCY.items()
    ]
    for one in results.get("inference", ()):
        if one["batch_size"] == PAPER_BATCH_SIZE and not one.get("compile") and one.get("dtype") in (None, "float32"):
            training = [found for found in results.get("training", ()) if _same_setting(found, one)]
            count = one.get("trainable_parameters")
            rows.append(
                [
                    f"{one['name']}, ours ({_hardware(one)})",
                    _hours(training[0]) if training else "-",
                    _time(one["score"], one["ratio"]["median"]),
                    _memory(one),
                    "-" if count is None else f"{count / 1e6:.2f}",
                ]
            )
    return rows


def _same_setting(training: dict[str, Any], inference: dict[str, Any]) -> bool:
    """Whether a training without the feature cache is of the same model on the same hardware."""
    same = ("hardware", "image_size", "trainable_parameters")
    return (
        not training["cache"]
        and training.get("name", "ViP²-CLIP") == inference["name"]
        and training["dtype"] == "float32"
        and all(training[name] == inference.get(name) for name in same)
    )


def inference_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """
    Create the rows of the table of all variants.

    Args:
        results (`Sequence[dict]`): results of [`measure_inference`] or [`measure_variants`].

    Returns:
        `list[list[str]]`: the rows, with a cell for each of `INFERENCE_HEADERS`.
    """
    rows = []
    for one in results:
        compiled = one.get("compile")
        rows.append(
            [
                one["name"], _hardware(one), one.get("dtype") or "-",
                "-" if compiled is None else "yes" if compiled else "no", str(one["batch_size"]),
                str(one["image_size"]), str(one["num_images"]),
                _time(one["prepare"], one["prepare"]["median"] / one["tower"]["median"]),
                _time(one["score"], one["ratio"]["median"]), _time(one["tower"], 1.0), _memory(one),
            ]
        )  # fmt: skip
    return rows


def training_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """
    Create the rows of the table of trainings with and without the feature cache.

    Args:
        results (`Sequence[dict]`): results of [`measure_training`].

    Returns:
        `list[list[str]]`: the rows, with a cell for each of `TRAINING_HEADERS`.
    """
    rows = []
    for one in results:
        tower, cached = one["tower_image_seconds"], one["cache_image_seconds"]
        rows.append(
            [
                one.get("name", "ViP²-CLIP"), "yes" if one["cache"] else "no", _hardware(one), one["dtype"],
                str(one["batch_size"]), str(one["image_size"]),
                _time({"mean": one["image_seconds"]}, one["step_ratio"]),
                "-" if cached is None else _time({"mean": cached}, cached / tower), _time({"mean": tower}, 1.0),
                str(one["num_images"]), str(one["num_steps"]), _hours(one), _memory(one),
            ]
        )  # fmt: skip
    return rows


def _time(seconds: Mapping[str, float | None], ratio: float) -> str:
    """Milliseconds, their deviation if known, and the ratio to the vision tower."""
    deviation = seconds.get("sd")
    spread = "" if deviation is None else f" ± {1000 * deviation:.2f}"
    return f"{1000 * (seconds['mean'] or 0.0):.2f}{spread} ({_factor(ratio)} × tower)"


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _hours(training: dict[str, Any]) -> str:
    hours = training["seconds"] / 3600
    text = f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"
    return f"{text}{'*' * training['extrapolated']} ({_factor(training['ratio'])} × tower per image and epoch)"


def _memory(result: dict[str, Any]) -> str:
    kind = "" if result["hardware"]["device"] == "cuda" else " (CPU)"
    return f"{result['memory_bytes'] / 1e9:.2f}{kind}"


def _hardware(result: dict[str, Any]) -> str:
    found = result["hardware"]
    if found["device"] == "cuda":
        return str(found["name"])
    return f"CPU: {found['name']}, {found['threads']} {'thread' if found['threads'] == 1 else 'threads'}"


def efficiency_notes(results: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """
    Explain the tables: what is compared, what is extrapolated, and what memory is.

    Args:
        results (`Mapping`): see [`efficiency_rows`].

    Returns:
        `list[str]`: the notes.
    """
    inference, training = results.get("inference", ()), results.get("training", ())
    notes = [
        f"The rows of the paper are from its Table 3 (arXiv:2505.17692), measured on VisA with an "
        f"{PUBLISHED_HARDWARE}. They cannot be compared with times and memory on other hardware."
    ]
    if not inference and not training:
        return [*notes, "Ours has not been measured."]
    notes.append(
        "× tower: divided by the time of the vision tower of CLIP alone, on images of the same size, in the same "
        "precision, not compiled, measured alternately in the same run. Absolute times depend on the load of the "
        "machine."
    )
    if inference:
        notes.append(
            "Inference: per image, mean ± standard deviation over the repeats; the ratio is the median over the "
            "repeats. Preparing images is not part of it."
        )
    steps = sorted({one["measured_steps"] for one in training if one["extrapolated"]})
    if steps:
        notes.append(
            f"* Extrapolated from {' or '.join(map(str, steps))} measured steps and the measured time of the cache "
            "pass, without evaluation and saving."
        )
    if training:
        notes.append("Training in the setting of the paper is without the feature cache.")
    kinds = dict.fromkeys(one["memory_kind"] for one in (*inference, *training))
    notes.append(f"Memory: {'; '.join(kinds)}. 1 GB is 10^9 bytes. In Table 3, it is the memory of inference.")
    if any(one["hardware"]["device"] == "cpu" for one in (*inference, *training)):
        notes.append("(CPU): not the memory of a GPU, and it includes the libraries and other data of the process.")
    found = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in one["versions"].items()) for one in (*inference, *training)
    )
    return [*notes, f"Versions: {'; '.join(found)}."]


def efficiency_tables(results: Mapping[str, Sequence[dict[str, Any]]], tablefmt: str = "github") -> dict[str, str]:
    """
    Format Table 3 and the tables of all variants.

    Args:
        results (`Mapping`): see [`efficiency_rows`].
        tablefmt (`str`, defaults to `"github"`): table format of the tabulate library.

    Returns:
        `dict[str, str]`: tables by title. Tables of variants are left out if they are empty.

    Raises:
        ImportError: if tabulate is not installed.
    """
    tables = {
        "Table 3. Computational efficiency": (efficiency_rows(results), HEADERS),
        "Inference, all variants": (inference_rows(results.get("inference", ())), INFERENCE_HEADERS),
        "Training, with and without the feature cache": (
            training_rows(results.get("training", ())),
            TRAINING_HEADERS,
        ),
    }
    return {title: tabulate_rows(rows, headers, tablefmt) for title, (rows, headers) in tables.items() if rows}


def write_efficiency_table(
    results: Mapping[str, Sequence[dict[str, Any]]], folder: Path, *, footer: Sequence[str] = ()
) -> list[Path]:
    """
    Write `table3.md`, `table3.tex` and `table3.csv`.

    Args:
        results (`Mapping`): see [`efficiency_rows`].
        folder (`pathlib.Path`): folder to write to, created if missing.
        footer (`Sequence[str]`): more notes.

    Returns:
        `list[pathlib.Path]`: the files.

    Raises:
        ImportError: if tabulate is not installed.
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    notes = [*efficiency_notes(results), *footer]
    parts = [f"## {title}\n\n{table}\n" for title, table in efficiency_tables(results).items()]
    markdown = "\n".join([*parts, *(f"- {note}" for note in notes)]) + "\n"
    latex = "\n".join(f"% {title}\n{table}\n" for title, table in efficiency_tables(results, "latex_booktabs").items())
    for character, command in _LATEX.items():
        latex = latex.replace(character, command)
    latex += "".join(f"% {note}\n" for note in notes)
    written = []
    for ending, text in (("md", markdown), ("tex", latex), ("csv", _csv(results))):
        path = folder / f"table3.{ending}"
        write_atomically(path, text)
        written.append(path)
    return written


def _csv(results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """One row per published method, measured variant and measured training; numbers are not rounded."""
    rows: list[dict[str, Any]] = [
        {
            "part": "paper", "model": name, "hardware": PUBLISHED_HARDWARE,
            "seconds_per_image": row.inference_ms / 1000, "seconds_per_image_sd": row.inference_ms_spread / 1000,
            "training_seconds": row.training_hours * 3600, "memory_bytes": round(row.gpu_gb * 1e9),
            "memory_kind": "GPU Cost", "trainable_parameters": round(row.trainable_millions * 1e6),
        }
        for name, row in EFFICIENCY.items()
    ]  # fmt: skip
    for one in results.get("inference", ()):
        rows.append(
            {
                **one, "part": "inference", "model": one["name"], "hardware": _hardware(one),
                "prepare_seconds": one["prepare"]["mean"], "seconds_per_image": one["score"]["mean"],
                "seconds_per_image_median": one["score"]["median"], "seconds_per_image_sd": one["score"]["sd"],
                "tower_seconds_per_image": one["tower"]["mean"], "ratio_to_tower": one["ratio"]["median"],
            }
        )  # fmt: skip
    for one in results.get("training", ()):
        rows.append(
            {
                **one, "part": "training", "model": one.get("name", "ViP²-CLIP"),
                "hardware": _hardware(one), "seconds_per_image": one["image_seconds"],
                "tower_seconds_per_image": one["tower_image_seconds"], "ratio_to_tower": one["step_ratio"],
                "cache_seconds_per_image": one["cache_image_seconds"], "training_seconds": one["seconds"],
                "training_ratio_to_tower": one["ratio"],
            }
        )  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for row in rows:
        cells = [row.get(name) for name in CSV_FIELDS]
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


__all__ = [
    "HEADERS",
    "INFERENCE_HEADERS",
    "PUBLISHED_HARDWARE",
    "TRAINING_HEADERS",
    "efficiency_notes",
    "efficiency_rows",
    "efficiency_tables",
    "inference_rows",
    "training_rows",
    "write_efficiency_table",
]
