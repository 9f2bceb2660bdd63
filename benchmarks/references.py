"""Compare photos with references: time beside the vision tower, and subsets of the patches."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPConfig

from vip2clip_hf import (
    ReferenceBank,
    ViP2ClipConfig,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    bundled_checkpoint,
    generate_image,
    load_folder,
)
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import covering_rows
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import top_mean

from .common import vision_operations


# Fractions of the patches that are kept, with the name for the table.
FRACTIONS = {"all": 1.0, "50 %": 0.5, "25 %": 0.25, "10 %": 0.1}


def least_time(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest duration of a call in milliseconds: other programs only make calls longer."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def large_model() -> ViP2ClipForAnomalyDetection:
    """Create a model on a CLIP of the size of ViT-L/14 with random weights."""
    torch.manual_seed(0)
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision.update(patch_size=14, image_size=336)
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    clip = CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)
    return ViP2ClipForAnomalyDetection(ViP2ClipConfig(clip_config=clip)).eval()


@torch.inference_mode()
def measure_speed(model: ViP2ClipForAnomalyDetection, count: int, threads: list[int], repeats: int) -> None:
    """Print the time of the vision tower, and of comparing a photo with references."""
    config = model.config
    processor = ViP2ClipImageProcessor(size=config.image_size)
    photos = [generate_image("grains", size=config.image_size, seed=seed)[0] for seed in range(count + 1)]
    start = time.perf_counter()
    bank = ReferenceBank.from_images(model, processor, photos[:-1])
    print(f"{config.image_size} pixels, {bank}, built in {time.perf_counter() - start:.1f} s")
    pixel_values = processor(photos[-1:], return_tensors="pt")["pixel_values"]
    patch_embeds = model.get_image_features(pixel_values).patch_embeds
    outputs, projection = model(pixel_values, references=None), model.clip.visual_projection

    def compare() -> None:
        bank.check_model(model)
        model.compare_with_references(bank, patch_embeds, outputs.logits, outputs.anomaly_maps)

    compare()  # prepares the references
    search = bank._rows._search if bank._rows is not None else None
    rows = bank.features.float()
    queries = patch_embeds[0, : len(rows)].contiguous()
    operations = 2 * rows.numel() * queries.shape[1] / 1e9
    dimensions = search.dimensions if search is not None else "all"
    prepared = rows.nbytes + sum(part.nbytes for part in (search._short if search is not None else ()))
    print(f"  memory                          {bank.nbytes / 2**20:9.1f} MB, and {prepared / 2**20:.1f} MB prepared")
    print(f"  dimensions of the bounds        {dimensions} of {rows.shape[2]}")
    for number in threads:
        torch.set_num_threads(number)
        tower, scoring, distances, pairs = (float("inf"),) * 4
        for _ in range(repeats):  # interleaved
            tower = min(tower, least_time(lambda: model.get_image_features(pixel_values), 1))
            scoring = min(scoring, least_time(compare, 5))
            distances = min(distances, least_time(lambda: bank.distances(patch_embeds, projection), 5))
            pairs = min(pairs, least_time(lambda: [query @ row.mT for query, row in zip(queries, rows)], 2))
        print(f"  {number} thread{'s' if number > 1 else ''}")
        print(f"    vision tower                  {tower:9.1f} ms ({vision_operations(config) / 1e9:.1f} GFLOP)")
        print(f"    comparison, maps and scores   {scoring:9.1f} ms, {scoring / tower:.1%} of the tower")
        print(f"    of this, distances            {distances:9.1f} ms")
        print(f"    matrix products of all pairs  {pairs:9.1f} ms ({operations:.1f} GFLOP)", flush=True)
    exact = brute_distances(queries, rows)
    difference = (bank.distances(patch_embeds, projection).flatten() - exact).abs().max().item()
    print(f"  largest difference from float64 {difference:9.1e}")


def brute_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Compute the distances in float64 from all pairs, of shape (num_queries,)."""
    found = []
    for query, row in zip(queries.double(), rows):
        row = torch.nn.functional.normalize(row.double(), dim=-1)
        found.append(1 - torch.cat([(part @ row.mT).amax(dim=1) for part in query.split(256)]))
    return torch.stack(found).mean(dim=0)


def auroc(normal: torch.Tensor, anomalous: torch.Tensor) -> float:
    """Return the probability that an anomalous image has the larger score, in percent."""
    pairs = anomalous[:, None] - normal
    return 100 * float(((pairs > 0).double() + 0.5 * (pairs == 0)).mean())


@torch.inference_mode()
def measure_subsets(folder: str, counts: list[int], seeds: int) -> None:
    """Print the image AUROC with all patches of the references, and with subsets of them."""
    checkpoint = bundled_checkpoint()
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)

    train, test = (load_folder(folder, split=split) for split in ("train", "test"))
    labels = torch.tensor(test["label"])
    batches = []
    for start in range(0, len(test), 16):
        pixels = processor(test[start : start + 16]["image"], return_tensors="pt")["pixel_values"]
        batches.append(model.get_image_features(pixels).patch_embeds)
    embeds = torch.cat(batches)

    def evaluate(features: torch.Tensor) -> float:
        kept = ReferenceBank(**{**arguments, "features": features, "row_photo": torch.zeros(features.shape[1]).int()})
        found = [kept.distances(part, model.clip.visual_projection) for part in embeds.split(16)]
        scores = top_mean(kept.maps(torch.cat(found)))
        return auroc(scores[labels == 0], scores[labels == 1])

    for count in counts:
        photos = [row["image"] for row in train.select(range(min(count, len(train))))]
        bank = ReferenceBank.from_images(model, processor, photos, max_patches=None)
        names = ("photos", "view_photo", "view_logits", "view_maps", "view_distances", "options", "fingerprint")
        arguments = {name: getattr(bank, name) for name in names}
        total = bank.features.shape[1]
        print(f"{Path(folder).name}, {len(photos)} references, {total:,} patches: image AUROC of the distances")
        for name, fraction in FRACTIONS.items():
            kept = round(fraction * total)
            start = time.perf_counter()
            greedy = evaluate(bank.features[:, covering_rows(bank.features, kept)])
            took = time.perf_counter() - start
            random = []
            for seed in range(seeds if fraction < 1 else 1):
                order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
                random.append(evaluate(bank.features[:, order[:kept]]))
            spread = f"{sum(random) / len(random):.1f} ({min(random):.1f} to {max(random):.1f})"
            print(f"  {name:5s} greedy {greedy:5.1f}   random {spread}   {took:.1f} s", flush=True)


def benchmark_references(options: argparse.Namespace) -> None:
    """Measure the time of comparing photos with references. With folders, also subsets of the patches."""
    if options.data:
        for folder in options.data:
            measure_subsets(folder, options.references, options.seeds)
        return
    small = ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint())
    measure_speed(small, 40, options.threads, options.repeats)
    if not options.small:
        measure_speed(large_model(), 16, options.threads, max(1, options.repeats // 5))
