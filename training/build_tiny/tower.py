"""Stage 1: distil a small vision tower from the vision tower of a teacher."""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip.backbone_vip2clip import load_clip
from vip2clip_hf.utils.files import write_atomically

from .common import CROP, PATCH, STUDENT_BLOCKS, TEACHER_BLOCKS, wrap
from .crops import make_crops, pixel_values


def student_config() -> CLIPConfig:
    """Configure a CLIP with 3 million weights: six vision blocks of width 192, two text blocks, four tokens."""
    text = {
        "vocab_size": 4, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2,
        "num_hidden_layers": 2, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 6,
        "image_size": CROP, "patch_size": PATCH, "hidden_act": "gelu",
    }  # fmt: skip
    return CLIPConfig(projection_dim=192, text_config=text, vision_config=vision)


def teacher_features(
    teacher: ViP2ClipForAnomalyDetection, crops: np.ndarray, processor: ViP2ClipImageProcessor, batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the image and patch embeddings of all crops with the teacher, in half precision."""
    images, patches = [], []
    with torch.inference_mode():
        for start in tqdm(range(0, len(crops), batch_size), desc="Running the teacher"):
            pixels = pixel_values(crops[start : start + batch_size], processor)
            # At this size, teacher and student have the same grid of patches.
            side = teacher.config.image_size
            if side != CROP:
                pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            found = teacher.get_image_features(pixels)
            images.append(found.image_embeds.half())
            patches.append(found.patch_embeds.half())
    return torch.cat(images).clone(), torch.cat(patches).clone()


def build_tower(options: argparse.Namespace) -> None:
    """Train the tower, or resume if the output folder contains the state of an interrupted run."""
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
        print(f"Resuming at step {first}.")

    def loss_of(positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            images = student.get_image_features(pixel_values(crops[positions], processor))
            image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
        of_patches = F.cosine_similarity(patch_embeds.float(), patch_targets[positions].float(), dim=-1)
        of_images = F.cosine_similarity(image_embeds.float(), image_targets[positions].float(), dim=-1)
        return (1 - of_patches.mean()) + 0.1 * (1 - of_images.mean()), of_patches.mean().detach()

    def save(step: int) -> None:
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
    bar = tqdm(range(first, total), initial=first, total=total, desc="Training the tower")
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
                cosine_held_out = float(
                    np.mean([loss_of(np.arange(i, i + 32))[1].item() for i in range(0, held_out - 31, 32)])
                )
            log.append(
                {"step": step + 1, "cosine_held_out": cosine_held_out, "seconds": round(time.perf_counter() - start)}
            )
            save(step + 1)
    student.clip.requires_grad_(False)
    student.clip.eval().save_pretrained(output)
    print(f"Wrote the tower to {output}. Cosine to the teacher on held-out crops: {log[-1]['cosine_held_out']:.3f}")
