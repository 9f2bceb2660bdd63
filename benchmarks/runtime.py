"""Exported models in onnxruntime and OpenVINO, in float32 and with 8-bit integers, compared with the pipeline."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint, example_photos
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.export.exporting import export_onnx
from vip2clip_hf.models.vip2clip.image_listing_vip2clip import list_images
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps
from vip2clip_hf.runtime import OnnxDetector

from .common import new_model


ENGINES = ("onnxruntime", "openvino")


def benchmark_runtime(options: argparse.Namespace) -> None:
    """Measure time (CPU time of one thread), agreement with the pipeline and, with data, AUROC."""
    torch.set_num_threads(1)
    photos = [str(path) for path in list_images(example_photos() / "toys" / "test")]
    if options.random_vit_l:
        model = new_model(None, image_size=options.image_size).eval()
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
    else:
        checkpoint = options.model or bundled_checkpoint()
        model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint, dtype=torch.float32)
        processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        exports = {"float32": Path(folder, "float32"), "int8": Path(folder, "int8")}
        good = options.calibration_photos or str(example_photos() / "toys" / "good")
        export_onnx(model, processor, exports["float32"])
        report = export_onnx(model, processor, exports["int8"], quantize="int8", calibration_photos=good)
        found = report["quantization"]
        print(f"Linear layers in int8: {found['num_layers']}; in float32: {found['num_float_layers']}")
        detectors = {
            f"{engine} {kind}": OnnxDetector(path, engine=engine, threads=1)
            for engine in ENGINES
            for kind, path in exports.items()
        }
        pipeline = AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
        _times({"PyTorch float32": pipeline, **detectors}, photos, options.repeats)
        for path in options.data or ():
            _accuracy(path, detectors, model.config.image_size)
        for kind, path in exports.items():
            print(f"{kind}: {(path / 'model.onnx').stat().st_size / 1e6:.1f} MB")


def _times(detectors: dict, photos: list[str], repeats: int) -> None:
    expected = [detectors["PyTorch float32"](photo) for photo in photos]
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(repeats):
        for name, detector in detectors.items():  # interleaved, because other programs may run
            start = time.process_time()
            detector(photos[0])
            times[name].append(time.process_time() - start)
    print("| | seconds of CPU time | ratio | largest difference of scores | of maps |\n|---|---|---|---|---|")
    for name, detector in detectors.items():
        found = [detector(photo) for photo in photos]
        scores = max(abs(one["score"] - two["score"]) for one, two in zip(expected, found))
        maps = max(float(np.abs(one["anomaly_map"] - two["anomaly_map"]).max()) for one, two in zip(expected, found))
        ratio = min(times["PyTorch float32"]) / min(times[name])
        print(f"| {name} | {min(times[name]):.3f} | {ratio:.2f} | {scores:.1e} | {maps:.1e} |")


def _accuracy(path: str, detectors: dict[str, OnnxDetector], size: int) -> None:
    """Print the AUROC of images and pixels, at the size of the model."""
    data = load_folder(path, split="test")
    labels = np.asarray(data["label"])
    print(f"{path}: {len(labels)} images")
    for name, detector in detectors.items():
        scores, maps, masks = [], [], []
        for row in data:
            found = detector(row["image"])
            scores.append(found["score"])
            shape = found["mask"].shape
            mask = np.zeros(shape) if row["mask"] is None else np.asarray(row["mask"].convert("L").resize(shape[::-1]))
            both = np.stack([found["anomaly_map"], (mask > 0).astype(np.float32)])
            small = resize_maps(torch.from_numpy(both), size // 2).numpy()
            maps.append(small[0])
            masks.append(small[1] > 0.5)
        pixel = roc_auc_score(np.stack(masks).ravel(), np.stack(maps).ravel())
        print(f"  {name}: image AUROC {roc_auc_score(labels, scores):.4f}, pixel AUROC {pixel:.4f}")
