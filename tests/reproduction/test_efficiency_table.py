"""Table 3: published rows as in the paper, and our rows with hardware and ratio."""

import csv
import re

import pytest

from vip2clip_hf.reproduction.efficiency_table import (
    HEADERS,
    efficiency_notes,
    efficiency_rows,
    efficiency_tables,
    write_efficiency_table,
)


CPU = {"device": "cpu", "name": "EPYC", "cores": 2, "threads": 2}
GPU = {"device": "cuda", "name": "NVIDIA H200", "cores": 16, "threads": 8}
PAPER = [
    ["AnomalyCLIP (paper, NVIDIA L20)", "1.02", "90.72 ± 0.16", "2.75", "5.56"],
    ["AdaCLIP (paper, NVIDIA L20)", "2.24", "134.20 ± 0.39", "3.17", "10.67"],
    ["ViP²-CLIP (paper, NVIDIA L20)", "0.54", "48.69 ± 0.19", "2.21", "4.15"],
]


def inference(hardware=CPU, batch=1, dtype="float32", compiled=False, **other):
    def times(mean, sd):
        return {"median": mean, "mean": mean, "sd": sd}

    return {
        "name": "ViP²-CLIP", "hardware": hardware, "versions": {"torch": "2.13"}, "batch_size": batch,
        "image_size": 518, "num_images": 8, "repeats": 3, "warmup": 1, "prepare": times(0.01, 0.001),
        "score": times(7.7, 0.12), "tower": times(7.0, 0.1), "ratio": times(1.1, 0.01), "memory_bytes": 1_900_000_000,
        "memory_kind": "CPU, peak" if hardware is CPU else "GPU, peak", "variant": dtype, "dtype": dtype,
        "compile": compiled, "trainable_parameters": 4_149_120, **other,
    }  # fmt: skip


def training(hardware=CPU, cache=False, **other):
    return {
        "cache": cache, "hardware": hardware, "versions": {"torch": "2.13"}, "dtype": "float32", "batch_size": 8,
        "image_size": 518, "measured_steps": 3, "step_seconds": 60.0, "image_seconds": 7.5,
        "cache_image_seconds": 7.2 if cache else None, "tower_image_seconds": 6.0, "step_ratio": 1.25,
        "num_images": 2162, "num_steps": 2710, "seconds": 162600.0, "extrapolated": True, "ratio": 1.25,
        "memory_bytes": 2_700_000_000, "memory_kind": "CPU, peak", "trainable_parameters": 4_149_120, **other,
    }  # fmt: skip


def test_rows_of_the_paper():
    assert HEADERS == [
        "Model", "Training Time (h)", "Inference Time (ms)", "GPU Cost (GB)", "Trainable Parameters (M)"
    ]  # fmt: skip
    assert efficiency_rows({}) == PAPER
    assert "Ours has not been measured." in efficiency_notes({})


def test_rows_of_ours():
    """One row in the setting of the paper: float32, batch 1, not compiled, and training without the cache."""
    results = {
        "inference": [inference(), inference(batch=8), inference(dtype="bfloat16"), inference(compiled=True)],
        "training": [training(cache=True, seconds=1.0), training(GPU, seconds=2.0), training()],
    }
    assert efficiency_rows(results)[3:] == [
        [
            "ViP²-CLIP, ours (CPU: EPYC, 2 threads)", "45.17* (1.25 × tower per image and epoch)",
            "7700.00 ± 120.00 (1.10 × tower)", "1.90 (CPU)", "4.15",
        ]
    ]  # fmt: skip
    assert any(note.startswith("* Extrapolated from 3 measured steps") for note in efficiency_notes(results))
    results["training"] = [training(extrapolated=False, seconds=180.0, ratio=0.0123)]
    (row,) = efficiency_rows(results)[3:]
    assert row[1] == "0.05 (0.012 × tower per image and epoch)"
    assert not any("Extrapolated" in note for note in efficiency_notes(results))


def test_a_gpu_is_named_and_a_missing_measurement_is_a_dash():
    (row,) = efficiency_rows({"inference": [inference(GPU, trainable_parameters=None)]})[3:]
    assert row[0] == "ViP²-CLIP, ours (NVIDIA H200)"
    assert (row[1], row[3], row[4]) == ("-", "1.90", "-")
    assert not any("(CPU)" in note for note in efficiency_notes({"inference": [inference(GPU)]}))


def test_every_time_of_ours_has_a_ratio():
    results = {"inference": [inference(), inference(GPU, batch=8)], "training": [training(), training(cache=True)]}
    tables = efficiency_tables(results)
    assert list(tables) == [
        "Table 3. Computational efficiency", "Inference, all variants",
        "Training, with and without the feature cache",
    ]  # fmt: skip
    for table in tables.values():
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        timed = [place for place, title in enumerate(head) if re.search(r"\((ms|h)\)", title)]
        assert timed
        for row in rows:
            for place in timed:
                assert "(paper" in row[0] or row[place] == "-" or re.search(r"\([\d.]+ × tower", row[place]), row


def test_files(tmp_path):
    results = {"inference": [inference()], "training": [training(cache=True)]}
    written = write_efficiency_table(results, tmp_path / "new")
    assert [path.name for path in written] == ["table3.md", "table3.tex", "table3.csv"]
    markdown, latex = (path.read_text(encoding="utf-8") for path in written[:2])
    for text in ("48.69 ± 0.19", "7700.00 ± 120.00 (1.10 × tower)", "They cannot be compared", "torch 2.13"):
        assert text in markdown
    for text in (r"ViP\textsuperscript{2}-CLIP (paper, NVIDIA L20)", r"48.69 $\pm$ 0.19", r"$\times$ tower"):
        assert text in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 3
    with open(written[2], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["paper"] * 3 + ["inference", "training"]
    assert float(rows[0]["seconds_per_image"]) == pytest.approx(0.09072)
    assert (rows[3]["seconds_per_image"], rows[3]["ratio_to_tower"], rows[3]["memory_bytes"]) == (
        "7.7", "1.1", "1900000000"
    )  # fmt: skip
    assert (rows[4]["ratio_to_tower"], rows[4]["training_seconds"], rows[4]["cache"]) == ("1.25", "162600.0", "True")
