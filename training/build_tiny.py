"""Build the checkpoint that comes with the package from nothing: a small CLIP, then ViP²-CLIP adapters on it.

python training/build_tiny.py tower --teacher CLIP --output tower
python training/build_tiny.py adapters --tower tower --output vip2clip-tiny
python training/build_tiny.py evaluate --tower tower --teacher CLIP --data A B C --output figures

`tower` distils the patch features of a teacher, any CLIP, on generated pictures and, with --data, on crops of real images.
It stops and resumes (--output keeps its state). `adapters` trains on generated anomalies and, with --data, on real ones.
docs/tiny.md has the choices and the figures.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.synthetic import ALL, DEFECTS, generate_image
from vip2clip_hf.files import write_atomically
from vip2clip_hf.image_processing_vip2clip import IMAGE_EXTENSIONS, load_image


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
            found = teacher.get_vision_features(pixel_values(crops[start : start + batch_size], processor))
            images.append(found[0].half())
            patches.append(found[1].half())
    return torch.cat(images).clone(), torch.cat(patches).clone()


def build_tower(options: argparse.Namespace):
    output = Path(options.output)
    state_file, log_file = output / "state.pt", output / "log.json"
    output.mkdir(parents=True, exist_ok=True)
    processor = ViP2ClipImageProcessor(size=CROP)
    teacher_clip = CLIPModel.from_pretrained(options.teacher)
    depth = teacher_clip.config.vision_config.num_hidden_layers
    blocks = tuple(max(1, round(block * depth / 12)) for block in TEACHER_BLOCKS)
    teacher = wrap(teacher_clip, blocks).eval()
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
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"Error: {error}")
