"""A script as users write it. Type checkers accept it, see test_types_for_users.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vip2clip_hf import (
    AnomalyDetectionPipeline,
    AnomalyDetectionResult,
    AnomalyRegion,
    CallOptions,
    bundled_checkpoint,
    decode_result,
    example_photos,
)


def worst_region(result: AnomalyDetectionResult) -> AnomalyRegion | None:
    regions = result.get("regions")
    return max(regions, key=lambda region: region["area"]) if regions else None


def photos(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as photo:
            yield photo.convert("RGB")


def main() -> list[str]:
    detector = AnomalyDetectionPipeline.from_pretrained(
        bundled_checkpoint(), device="cpu", threshold=(0.5, None), dtype="float32", local_files_only=True
    )
    folder = example_photos()
    options: CallOptions = {"regions": True, "heatmap": True, "threshold": 0.5, "tile_size": 0}

    # One photo.
    result = detector(str(folder / "hazelnut_damaged_1.jpg"), **options)
    score: float = result["score"]
    label: str = result["label"]
    area = float(result["mask"].mean())
    peak = float(np.max(result["anomaly_map"], initial=0.0))
    lines = [f"{label}: {score:.3f}, {area:.3f} of the pixels, at most {peak:.3f}"]
    p_value = result.get("p_value")
    if p_value is not None:
        lines.append(f"p-value {p_value:.3f}")
    region = worst_region(result)
    if region is not None:
        left, top, right, bottom = region["box"]
        lines.append(f"{right - left} x {bottom - top} pixels, mean {region['mean_score']:.2f}")
    lines.append(f"heatmap of {result['heatmap'].width} pixels")

    # A path, an array and a PIL image.
    with Image.open(folder / "hazelnut_normal_1.jpg") as photo:
        scores = [detector(folder / "hazelnut_normal_1.jpg")["score"], detector(np.asarray(photo))["score"]]
        scores.append(detector(photo, top_k=None, references=None)["score"])
    lines.append(f"{max(scores) - min(scores):.1f}")

    # Several photos, as a list and one after another.
    paths = [str(path) for path in sorted(folder.glob("*.jpg"))]
    results = detector(paths, batch_size=2)
    lines.append(", ".join(f"{one['score']:.2f}" for one in results[:2]))
    for one in detector(photos(folder), batch_size=2):
        lines.append(one["label"].upper())

    # As JSON, and back.
    text: str = result.to_json(mask="rle", anomaly_map="png")
    decoded = decode_result(json.loads(text))
    height, width = decoded.size
    lines.append(f"{height} x {width}, {int(decoded['mask'].sum())} pixels")
    encoded = result.to_dict(mask=None, heatmap=None)
    lines.append(", ".join(sorted(encoded)))
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
