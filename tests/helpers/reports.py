"""Results of a prediction without a model: photos, maps, a CSV file and its settings."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vip2clip_hf.reporting.csv_files import write_csv
from vip2clip_hf.reporting.predictions import Prediction


THRESHOLD = 0.5
CALIBRATION = {"method": "conformal", "false_alarm_rate": 0.1, "num_images": 19, "date": "2026-01-02"}
# Names that would be markup, attributes, formulas or commands.
EVIL = (
    "<script>alert(1)<_script>.png",
    "\" onerror='alert(1)'.png",
    "=1+2.png",
    "@SUM(A1).png",
    "sub/Ünï ✓ <b>.png",
    "-10.png",
)


def write_results(root: Path, count: int = 12, *, names: tuple[str, ...] = (), maps: bool = True, **settings) -> Path:
    """
    Write photos in `root/photos`, and `root/results.csv` with their scores, from 0 to 1 in steps.

    Returns the CSV file.
    """
    photos, rng = root / "photos", np.random.default_rng(0)
    names = (*names, *(f"part {number:03d}.jpg" for number in range(count - len(names))))
    rows = []
    for number, name in enumerate(names):
        file = photos / name
        file.parent.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize((80, 60)).save(file)
        score = round(number / (count - 1), 4)
        label = "anomalous" if score > THRESHOLD else "normal"
        p_value = max(1, round(20 * (1 - score))) / 20
        rows.append(Prediction(name, score, label, p_value, score / 10))
        if maps:
            target = root / "maps" / f"{name}.npy"
            target.parent.mkdir(parents=True, exist_ok=True)
            anomaly_map = np.zeros((12, 12), dtype=np.float16)
            anomaly_map[2:6, 2:6] = score
            np.save(target, anomaly_map)
    (photos / "broken.png").write_text("no image")
    rows.append(Prediction("broken.png", error="'broken.png' cannot be read as an image."))
    content = {"kind": "prediction", "model": "org/model", "image_threshold": THRESHOLD, "pixel_threshold": 0.4}
    content.update(source={"folder": str(photos)}, calibrated_with=CALIBRATION, labels=["normal", "anomalous"])
    content.update(settings)
    write_csv(rows, root / "results.csv", json.loads(json.dumps(content)))
    return root / "results.csv"
