"""Build the checkpoint that comes with the package from nothing: a small CLIP, then ViP²-CLIP adapters on it.

python training/build_tiny.py tower --teacher CLIP --output tower
python training/build_tiny.py evaluate --tower tower --teacher CLIP --data A B C --output study
python training/build_tiny.py adapters --tower tower --data A B C --output study --checkpoint vip2clip-tiny

`tower` distils the patch features of a teacher, any CLIP, on generated pictures and, with --data, on crops of real
images. It stops and resumes (--output keeps its state). `adapters` trains on generated anomalies and, with --data, on
real ones. docs/tiny.md has the choices and the figures.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.backbone_vip2clip import backbone_checksum, load_clip
from vip2clip_hf.data import ViP2ClipCollator, describe_training_set, load_folder
from vip2clip_hf.data.feature_cache import FeatureCache
from vip2clip_hf.data.synthetic import ALL, DEFECTS, generate_image, write_dataset
from vip2clip_hf.files import new_folder, umask, write_atomically
from vip2clip_hf.image_processing_vip2clip import IMAGE_EXTENSIONS, load_image
from vip2clip_hf.metrics import AnomalyMetrics
from vip2clip_hf.trainer import parameter_groups


# Crops the tower is taught on, and the grid of patches they have.
CROP, PATCH = 224, 16
# Blocks of the student that stand for blocks of a teacher with 12, and what the adapters then align.
STUDENT_BLOCKS, TEACHER_BLOCKS = (2, 3, 5, 6), (3, 6, 9, 12)
# Ids of the only four tokens that prompts of ViP²-CLIP need.
TOKENS = {"bos_token_id": 0, "normal_token_ids": (1,), "anomalous_token_ids": (2,), "eos_token_id": 3}


def student_config() -> CLIPConfig:
    """Six blocks of width 192, a text tower of two blocks, four tokens: 3 million weights."""
    text = {
        "vocab_size": 4, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2,
        "num_hidden_layers": 2, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 6,
        "image_size": CROP, "patch_size": PATCH, "hidden_act": "gelu",
    }  # fmt: skip
    return CLIPConfig(projection_dim=192, text_config=text, vision_config=vision)


def wrap(clip: CLIPModel, layers: tuple[int, ...], image_size: int = CROP, **options) -> ViP2ClipForAnomalyDetection:
    """ViP²-CLIP around a CLIP: its vision features are what is taught and learned."""
    if clip.config.text_config.vocab_size == 4:
        options = {**TOKENS, "normal_word": None, "anomalous_word": None, **options}
    settings = {"variant": "release", "image_size": image_size, "feature_layers": layers, "top_k": 15, **options}
    return ViP2ClipForAnomalyDetection.from_clip(clip, **settings)


def generated_crop(number: int, seed: int) -> Image.Image:
    """One picture to learn from: a category, half of the time with a defect, cut out and scaled."""
    rng = np.random.default_rng([seed, number])
    category = ALL[rng.integers(len(ALL))] if rng.random() < 0.3 else ALL[-3:][rng.integers(3)]
    defect = DEFECTS[rng.integers(len(DEFECTS))] if rng.random() < 0.5 else None
    picture, _ = generate_image(category, defect, 256, seed=int(rng.integers(1 << 31)))
    return _crop(picture, rng, 0.6)


def _crop(picture: Image.Image, rng: np.random.Generator, smallest: float) -> Image.Image:
    side = min(picture.size) * rng.uniform(smallest, 1)
    left, top = (rng.uniform(0, length - side) for length in picture.size)
    crop = picture.resize((CROP, CROP), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def make_crops(count: int, seed: int, folders: list[Path], share: float = 0.5) -> np.ndarray:
    """Crops to learn from, uint8 (count, CROP, CROP, 3)."""
    photos = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_EXTENSIONS and "ground_truth" not in path.parts
    ]
    rng, crops = np.random.default_rng([seed, 1]), np.empty((count, CROP, CROP, 3), dtype=np.uint8)
    for number in tqdm(range(count), desc="making crops"):
        if photos and rng.random() < share:
            crop = _crop(load_image(photos[rng.integers(len(photos))]), rng, 0.3)
        else:
            crop = generated_crop(number, seed)
        crops[number] = np.asarray(crop.convert("RGB"))
    return crops


def pixel_values(crops: np.ndarray, processor: ViP2ClipImageProcessor) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - mean) / std


def teacher_features(teacher, crops: np.ndarray, processor, batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher says of all crops, in half precision: computed once."""
    images, patches = [], []
    with torch.inference_mode():
        for start in tqdm(range(0, len(crops), batch_size), desc="asking the teacher"):
            pixels = pixel_values(crops[start : start + batch_size], processor)
            # At the size at which its grid of patches is the student's, whatever its patch size.
            side = teacher.config.image_size
            if side != CROP:
                pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            found = teacher.get_vision_features(pixels)
            images.append(found[0].half())
            patches.append(found[1].half())
    return torch.cat(images).clone(), torch.cat(patches).clone()


def build_tower(options: argparse.Namespace):
    output = Path(options.output)
    state_file, log_file = output / "state.pt", output / "log.json"
    output.mkdir(parents=True, exist_ok=True)
    processor = ViP2ClipImageProcessor(size=CROP)
    teacher_clip, _ = load_clip(options.teacher)
    depth = teacher_clip.config.vision_config.num_hidden_layers
    blocks = tuple(-(-block * depth // 12) for block in TEACHER_BLOCKS)
    side = CROP // PATCH * teacher_clip.config.vision_config.patch_size
    teacher = wrap(teacher_clip, blocks, side).eval()
    set_seed(options.seed)
    config = student_config()
    if teacher_clip.config.projection_dim != config.projection_dim:
        config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = (
            teacher_clip.config.projection_dim
        )
    student = wrap(CLIPModel(config), STUDENT_BLOCKS)
    student.clip.requires_grad_(True)
    crops = make_crops(options.crops, options.seed, [Path(folder) for folder in options.data or []])
    image_targets, patch_targets = teacher_features(teacher, crops, processor)
    held_out = max(32, len(crops) // 50)

    weights = [p for n, p in student.clip.named_parameters() if n.startswith(("vision_model.", "visual_projection."))]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.05)
    total = options.steps

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / total))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    log, first = [], 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        student.clip.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        log, first = state["log"], state["step"]
        print(f"Going on at step {first}.")

    def loss_of(positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            image_embeds, patch_embeds = student.get_vision_features(pixel_values(crops[positions], processor))
        of_patches = F.cosine_similarity(patch_embeds.float(), patch_targets[positions].float(), dim=-1)
        of_images = F.cosine_similarity(image_embeds.float(), image_targets[positions].float(), dim=-1)
        return (1 - of_patches.mean()) + 0.1 * (1 - of_images.mean()), of_patches.mean().detach()

    def save(step: int):
        staged = state_file.with_suffix(".tmp")
        torch.save(
            {
                "student": student.clip.state_dict(), "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(), "log": log, "step": step,
            },
            staged,
        )  # fmt: skip
        staged.replace(state_file)
        write_atomically(log_file, json.dumps(log, indent=1) + "\n")

    start = time.perf_counter()
    bar = tqdm(range(first, total), initial=first, total=total, desc="teaching the tower")
    for step in bar:
        rng = np.random.default_rng([options.seed, 2, step])
        loss, cosine = loss_of(rng.integers(held_out, len(crops), size=options.batch_size))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 50 == 0:
            bar.set_postfix(cosine=f"{cosine:.3f}")
        if (step + 1) % 250 == 0 or step + 1 == total:
            with torch.inference_mode():
                kept = float(np.mean([loss_of(np.arange(i, i + 32))[1].item() for i in range(0, held_out - 31, 32)]))
            log.append({"step": step + 1, "cosine_held_out": kept, "seconds": round(time.perf_counter() - start)})
            save(step + 1)
    student.clip.requires_grad_(False)
    student.clip.eval().save_pretrained(output)
    print(f"Tower in {output}; cosine to the teacher on crops not learned from: {log[-1]['cosine_held_out']:.3f}")


# Adapters


class Cached:
    """Embeddings, masks and labels of one data set, computed once with one tower at one size."""

    def __init__(self, model, dataset, folder: Path, name: str):
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
        self.cache = FeatureCache.build(model.eval(), processor, dataset, folder, batch_size=16)
        self.name, self.dataset, self.collator = name, dataset, ViP2ClipCollator(processor)
        self.categories, self.rows = dataset["category"], list(range(len(dataset)))

    @property
    def count(self) -> int:
        return len(self.rows)

    def thinned(self, most: int = 160) -> "Cached":
        """Every n-th image of a large set, for choosing."""
        thin, step = copy.copy(self), max(1, -(-self.count // most))
        thin.rows, thin.categories = self.rows[::step], self.categories[::step]
        return thin

    def row(self, position: int) -> dict:
        return self.cache.row(self.rows[position])

    def batch(self, positions) -> dict[str, torch.Tensor]:
        return self.collator([self.row(position) for position in positions])


def train_adapters(model, sets: list[Cached], per_set: int, epochs: int, rates: tuple[float, float], seed: int):
    """
    Adapters on several sets: `per_set` images of each an epoch (all, where there are fewer), batches of 8. A generator
    that yields after every epoch.
    """
    optimizer = torch.optim.Adam(parameter_groups(model, *rates))
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        chosen = [(one, position) for one in sets for position in rng.permutation(one.count)[:per_set]]
        rng.shuffle(chosen)
        model.train()
        for start in range(0, len(chosen), 8):
            rows = [one.row(int(position)) for one, position in chosen[start : start + 8]]
            loss = model(**sets[0].collator(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        yield epoch + 1


def evaluate_cached(model, data: Cached) -> dict[str, float]:
    """The mean metrics on a set, from its embeddings; masks at the size of the model, as everywhere."""
    metrics = AnomalyMetrics()
    with torch.inference_mode():
        for start in range(0, data.count, 16):
            positions = range(start, min(start + 16, data.count))
            batch = data.batch(positions)
            outputs = model(image_embeds=batch["image_embeds"], patch_embeds=batch["patch_embeds"])
            metrics.update(
                outputs.scores,
                batch["labels"],
                outputs.anomaly_maps,
                batch["mask_labels"],
                [data.categories[position] for position in positions],
                batch["mask_label_valid"],
            )
    return metrics.compute()["mean"]


def local_contrast(data: Cached, size: int) -> dict[str, float]:
    """The trivial detector: how far a pixel is from the mean around it, smoothed; the image by its largest value."""
    metrics = AnomalyMetrics()
    for position in range(data.count):
        image = load_image(data.dataset[position]["image"]).convert("L").resize((size, size))
        grey = np.asarray(image, dtype=np.float32) / 255
        contrast = ndimage.gaussian_filter(abs(grey - ndimage.uniform_filter(grey, size // 6)), 4)
        batch = data.batch([position])
        metrics.update(
            contrast.max(keepdims=True)[0], batch["labels"], contrast[None], batch["mask_labels"],
            [data.categories[position]], batch["mask_label_valid"],
        )  # fmt: skip
    return metrics.compute()["mean"]


def generated_set(folder: Path, categories: tuple[str, ...], normal: int, anomalous: int, seed: int):
    root = folder / f"generated-{'-'.join(categories)}-{seed}"
    if not root.exists():
        write_dataset(root, categories, num_normal=normal, num_anomalous=anomalous, size=256, seed=seed)
    return load_folder(root)


# What is chosen: on sets other than the one that is reported.
GENERATED_TRAIN = ("stripes", "grains", "weave", "waves", "materials", "objects", "prints")
GENERATED_HELD_OUT = ("brushed", "dots")
# Photos shown as examples, of hazelnut_toy: nothing is trained on them.
EXAMPLES = (
    "hazelnut/test/colour/02.jpg",
    "hazelnut/test/colour/14.jpg",
    "hazelnut/test/good/23.jpg",
    "hazelnut/test/good/13.jpg",
)
CANDIDATES = [
    {"variant": variant, "image_size": size, "rates": rates, "layers": layers}
    for variant, size, rates, layers in (
        ("release", 320, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("paper", 320, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("release", 320, (1e-3, 1e-5), STUDENT_BLOCKS),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[1:]),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[2:]),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[:3]),
    )
]
EPOCHS = (1, 2, 4)
PER_SET = 120
SEEDS = (111, 112, 113)
FIGURES = ("image_auroc", "image_f1", "pixel_auroc", "pixel_aupro", "pixel_f1")


class Study:
    """Towers, data sets and their embeddings."""

    def __init__(self, options: argparse.Namespace):
        self.folder = Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tower, _ = load_clip(options.tower)
        self.teacher = None if options.teacher is None else load_clip(options.teacher)[0]
        self.real = {}
        for root in options.data or []:
            dataset = load_folder(root)
            kept = [n for n, name in enumerate(dataset["image_id"]) if not name.endswith(tuple(options.hold_out))]
            self.real[Path(root).name] = dataset.select(kept)
        self.generated = generated_set(self.folder, GENERATED_TRAIN, 12, 8, 0)
        self.held_out = generated_set(self.folder, GENERATED_HELD_OUT, 12, 8, 1)
        made_from = {
            "tower": backbone_checksum(self.tower.state_dict(), torch.float32),
            "data": {name: len(dataset) for name, dataset in self.real.items()},
            "choices": [CANDIDATES, EPOCHS, PER_SET, SEEDS, GENERATED_TRAIN, GENERATED_HELD_OUT],
        }
        made_from = json.loads(json.dumps(made_from))
        if self.remembered("study", lambda: made_from) != made_from:
            raise ValueError(f"{str(self.folder)!r} holds another study; choose another --output.")

    def model(self, tower: str, candidate: dict, seed: int) -> ViP2ClipForAnomalyDetection:
        set_seed(seed)
        clip, blocks = self.tower, candidate["layers"]
        if tower == "teacher":
            clip = self.teacher
            blocks = tuple(TEACHER_BLOCKS[STUDENT_BLOCKS.index(block)] for block in candidate["layers"])
        size = candidate["image_size"]
        top_k = max(1, round(15 * (size / 320) ** 2))
        # The paper's smoothing of eight pixels at 518: the same share of the image.
        options = {"variant": candidate["variant"], "top_k": top_k, "smoothing_sigma": 8.0 * size / 518}
        return wrap(clip, blocks, size, **options)

    def data(self, tower: str, candidate: dict) -> dict[str, Cached]:
        model = self.model(tower, candidate, 0)
        sets = {**self.real, "generated": self.generated, "held-out generated": self.held_out}
        return {name: Cached(model, dataset, self.folder / "cache", name) for name, dataset in sets.items()}

    def remembered(self, name: str, compute):
        """The result of a step of the study, computed once."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(compute(), indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def label_of(candidate: dict) -> str:
    slow, fast = candidate["rates"][1], candidate["rates"][0]
    layers = ", ".join(map(str, candidate["layers"]))
    return f"{candidate['variant']}, {candidate['image_size']} px, layers {layers}, rates {fast:g} and {slow:g}"


def search(study: Study) -> dict[str, dict]:
    """For every candidate and pair of real sets: trained on generated pictures and the first, tried on the second."""
    found = {}
    for number, candidate in enumerate(CANDIDATES):

        def pairs(candidate=candidate):
            data, results = study.data("tower", candidate), {}
            for trained in study.real:
                model = study.model("tower", candidate, 111)
                sets = [data["generated"], data[trained]]
                for epoch in train_adapters(model, sets, PER_SET, max(EPOCHS), candidate["rates"], 111):
                    if epoch in EPOCHS:
                        for tried in study.real:
                            if tried != trained:
                                figures = evaluate_cached(model, data[tried].thinned())
                                key = f"{trained} -> {tried}, {epoch}"
                                results[key] = {name: figures[name] for name in FIGURES}
                                shown = " ".join(f"{name} {figures[name]:.3f}" for name in FIGURES)
                                print(f"{label_of(candidate)}: {key}: {shown}", flush=True)
            return results

        found[number] = study.remembered(f"search-{number}", pairs)
    return found


def choose(study: Study, found: dict[str, dict], held_out: str) -> tuple[dict, int, float]:
    """The candidate and epochs that are best without a look at one set: mean of image and pixel AUROC and AUPRO over
    the pairs of the others."""
    scores = {}
    for number, results in found.items():
        for epoch in EPOCHS:
            values = [
                (figures["image_auroc"] + figures["pixel_auroc"] + figures["pixel_aupro"]) / 3
                for key, figures in results.items()
                if key.endswith(f", {epoch}") and held_out not in key
            ]
            scores[number, epoch] = float(np.mean(values))
    number, epoch = max(scores, key=scores.get)
    return CANDIDATES[number], epoch, scores[number, epoch]


def evaluate_study(options: argparse.Namespace):
    """Leave one real set out: chosen on the others, trained on the others and generated pictures, three seeds."""
    study = Study(options)
    found = search(study)
    table = {}
    for held_out in study.real:
        candidate, epochs, _ = choose(study, found, held_out)

        def figures(held_out=held_out, candidate=candidate, epochs=epochs):
            results = {"chosen": f"{label_of(candidate)}, {epochs} epochs"}
            for tower in ("tower", "teacher") if study.teacher is not None else ("tower",):
                data = study.data(tower, candidate)
                sets = [data["generated"], *(data[name] for name in study.real if name != held_out)]
                for what in (held_out, "held-out generated"):
                    results[f"{tower}, untrained, {what}"] = [
                        evaluate_cached(study.model(tower, candidate, seed).eval(), data[what]) for seed in SEEDS
                    ]
                    results[f"{tower}, {what}"] = []
                for seed in SEEDS:
                    model = study.model(tower, candidate, seed)
                    for _ in train_adapters(model, sets, PER_SET, epochs, candidate["rates"], seed):
                        pass
                    for what in (held_out, "held-out generated"):
                        results[f"{tower}, {what}"].append(evaluate_cached(model, data[what]))
                if tower == "tower":
                    for what in (held_out, "held-out generated"):
                        results[f"local contrast, {what}"] = [local_contrast(data[what], candidate["image_size"])]
            return results

        table[held_out] = study.remembered(f"held-out-{held_out}", figures)
    for held_out, results in table.items():
        print(f"{held_out}: {results['chosen']}")
        for what, seeds in results.items():
            if what != "chosen":
                means = {name: np.mean([one[name] for one in seeds]) for name in FIGURES}
                print(f"  {what:40s} " + " ".join(f"{name} {value:.3f}" for name, value in means.items()))


def figures_table(study: Study) -> str:
    """The study as a Markdown table: mean of the seeds, in percent."""
    headers = ("held out", "detector", "image AUROC", "image F1", "pixel AUROC", "AUPRO", "pixel F1")
    lines = [f"| {' | '.join(headers)} |", "|---|---|---|---|---|---|---|"]
    names = {
        "tower, {}": "**this tower, trained adapters**", "teacher, {}": "the same on the teacher",
        "tower, untrained, {}": "this tower, untrained adapters", "local contrast, {}": "local contrast",
    }  # fmt: skip
    for held_out in study.real:
        path = study.folder / f"held-out-{held_out}.json"
        results = json.loads(path.read_text(encoding="utf-8"))
        for what in (held_out, "held-out generated"):
            title = what if what == held_out else f"{', '.join(GENERATED_HELD_OUT)} (generated; without {held_out})"
            for key, name in names.items():
                seeds = results.get(key.format(what))
                if seeds:
                    values = [f"{100 * np.mean([one[figure] for one in seeds]):.1f}" for figure in FIGURES]
                    lines.append(f"| {title} | {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def choices(study: Study) -> str:
    """What was chosen for every set held out."""
    lines = []
    for held_out in study.real:
        results = json.loads((study.folder / f"held-out-{held_out}.json").read_text(encoding="utf-8"))
        lines.append(f"- {held_out} held out: {results['chosen']}")
    return "\n".join(lines)


# Its text on teacher, data and licences is that of the checkpoint in the package: change it for another.
CARD = Path(__file__).with_name("vip2clip_tiny_card.md")


def set_thresholds(model, sets: list[Cached]):
    """Thresholds of the best F1 on what the adapters were trained on, the sets with equal weight."""
    metrics = AnomalyMetrics()
    with torch.inference_mode():
        for data in (one.thinned() for one in sets):
            for start in range(0, data.count, 16):
                batch = data.batch(range(start, min(start + 16, data.count)))
                outputs = model(image_embeds=batch["image_embeds"], patch_embeds=batch["patch_embeds"])
                metrics.update(
                    outputs.scores, batch["labels"], outputs.anomaly_maps, batch["mask_labels"],
                    has_mask=batch["mask_label_valid"],
                )  # fmt: skip
    found = metrics.compute()["categories"]["all"]
    # Positive is what is greater than the threshold, in the metrics what is greater or equal.
    model.config.image_threshold = round(float(found["image_f1_threshold"]) - 1e-4, 4)
    model.config.pixel_threshold = round(float(found["pixel_f1_threshold"]) - 1e-4, 4)


def build_adapters(options: argparse.Namespace):
    """The checkpoint: adapters on generated pictures and all real sets, with what the study has chosen."""
    study = Study(options)
    candidate = {
        "variant": options.variant, "image_size": options.image_size, "rates": tuple(options.rates),
        "layers": tuple(options.layers),
    }  # fmt: skip
    data = study.data("tower", candidate)
    model = study.model("tower", candidate, options.seed)
    sets = [data["generated"], *(data[name] for name in study.real)]
    for _ in train_adapters(model, sets, PER_SET, options.epochs, candidate["rates"], options.seed):
        pass
    set_thresholds(model, sets)
    trained_on = [("generated pictures", study.generated), *study.real.items()]
    model.config.training_sets = [describe_training_set(dataset, name) for name, dataset in trained_on]
    log = json.loads(Path(options.tower, "log.json").read_text(encoding="utf-8"))
    what = f"{label_of(candidate)}, {options.epochs} epochs, seed {options.seed}."
    described = [
        f"- {entry['name']}: {entry['num_images']} images, {entry['num_anomalous_images']} of them anomalous"
        for entry in model.config.training_sets
    ]
    card = CARD.read_text(encoding="utf-8").format(
        what=f"Adapters: {what}", crops=options.crops, steps=log[-1]["step"], cosine=log[-1]["cosine_held_out"],
        data="\n".join(described), table=figures_table(study), chosen=choices(study),
    )  # fmt: skip
    with new_folder(options.checkpoint) as target:
        model.save_pretrained(target)
        ViP2ClipImageProcessor(size=candidate["image_size"]).save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")
        for path in target.iterdir():  # some writers make files that only their owner can read
            path.chmod(0o666 & ~umask())
    size = Path(options.checkpoint, "model.safetensors").stat().st_size
    print(f"Checkpoint in {options.checkpoint}: {size / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tower = commands.add_parser("tower", help="distil the vision tower")
    tower.add_argument("--teacher", required=True, help="folder or Hub id of a CLIP")
    tower.add_argument("--output", required=True)
    tower.add_argument("--data", nargs="*", help="folders of photos to cut crops from, besides generated pictures")
    tower.add_argument("--steps", type=int, default=3000)
    tower.add_argument("--batch_size", type=int, default=24)
    tower.add_argument("--crops", type=int, default=6000)
    tower.add_argument("--learning_rate", type=float, default=1e-3)
    tower.add_argument("--bf16", action="store_true", help="faster on processors with bfloat16 instructions")
    tower.add_argument("--seed", type=int, default=0)
    tower.set_defaults(run=build_tower)
    for name, run, text in (
        ("evaluate", evaluate_study, "choose on some sets, report on another"),
        ("adapters", build_adapters, "train what is shipped"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--tower", required=True, help="what the command tower has written")
        command.add_argument("--teacher", help="to compare with")
        command.add_argument("--data", nargs="*", help="real data sets with masks")
        command.add_argument("--output", required=True, help="folder of the study: embeddings, figures")
        command.add_argument("--hold_out", nargs="*", default=list(EXAMPLES), help="ends of image ids to leave out")
        if name == "adapters":
            command.add_argument("--checkpoint", required=True, help="folder to write")
            command.add_argument("--variant", default="release")
            command.add_argument("--image_size", type=int, default=320)
            command.add_argument("--rates", type=float, nargs=2, default=[1e-3, 1e-3])
            command.add_argument("--layers", type=int, nargs="+", default=STUDENT_BLOCKS, help="blocks to align")
            command.add_argument("--epochs", type=int, default=2)
            command.add_argument("--seed", type=int, default=111)
            command.add_argument("--crops", type=int, default=6000, help="as given to tower, for the card")
        command.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"Error: {error}")
