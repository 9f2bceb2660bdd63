"""Everything in one run, without network or data: generate pictures, train a tiny model, find a defect.

CLIP was trained on photos from the web. Here, so that nothing has to be downloaded, a vision tower of three small
blocks is first taught on generated pictures to tell damaged patches from others. Then it is frozen and the adapters
are trained, as they would be on a real CLIP, and both are tried on a kind of surface neither has seen.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, PrinterCallback, set_seed

from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import load_folder
from vip2clip_hf.data.synthetic import DEFECTS, generate_image, write_dataset
from vip2clip_hf.evaluation.evaluator import evaluate_model
from vip2clip_hf.hub import save_checkpoint
from vip2clip_hf.trainer import ViP2ClipTrainer, ViP2ClipTrainingArguments


IMAGE_SIZE, PATCH_SIZE = 128, 8
TRAIN_CATEGORIES, HELD_OUT = ("stripes", "grains", "weave"), "waves"


def build_clip() -> CLIPModel:
    text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 3}
    vision.update(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    return CLIPModel(CLIPConfig(projection_dim=128, text_config=text, vision_config=vision))


def pretrain_vision_tower(
    clip: CLIPModel, image_processor: ViP2ClipImageProcessor, seed: int, num_pictures: int = 240, steps: int = 300
):
    """Teach the vision tower to tell damaged patches from others, with a linear layer that is thrown away."""
    rng = np.random.default_rng(seed)
    kinds = (None, *DEFECTS)
    pictures, masks = zip(
        *(
            generate_image(rng.choice(TRAIN_CATEGORIES), kinds[rng.integers(len(kinds))], IMAGE_SIZE, 10**6 + index)
            for index in range(num_pictures)
        )
    )
    inputs = image_processor(list(pictures), segmentation_maps=list(masks), return_tensors="pt")
    pixels = inputs["pixel_values"]
    damaged = (F.avg_pool2d(inputs["mask_labels"].float(), PATCH_SIZE) > 0.2).float()  # (pictures, grid, grid)

    head = nn.Linear(clip.config.projection_dim, 1)
    tower = clip.vision_model
    parameters = [*tower.parameters(), *clip.visual_projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(num_pictures, size=8))
        flips = [axis for axis in (-2, -1) if rng.random() < 0.5]
        hidden = tower(pixel_values=pixels[chosen].flip(flips)).last_hidden_state[:, 1:]
        logits = head(clip.visual_projection(tower.post_layernorm(hidden)))[..., 0]
        targets = damaged[chosen].flip(flips).flatten(1)
        loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor(10.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="where the pictures go")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        train_root = write_dataset(Path(folder, "train"), TRAIN_CATEGORIES, 24, 16, IMAGE_SIZE, options.seed)
        eval_root = write_dataset(Path(folder, "eval"), (HELD_OUT,), 12, 8, IMAGE_SIZE, options.seed + 1)
        train_dataset, eval_dataset = load_folder(train_root), load_folder(eval_root)
        image_processor = ViP2ClipImageProcessor(size=IMAGE_SIZE)
        print(f"Teaching a small vision tower on generated {', '.join(TRAIN_CATEGORIES)} ...")
        set_seed(options.seed)
        clip = build_clip()
        pretrain_vision_tower(clip, image_processor, options.seed)

        model = ViP2ClipForAnomalyDetection.from_clip(
            clip, image_size=IMAGE_SIZE, feature_layers=(2, 3), top_k=8, smoothing_sigma=2.0
        )
        arguments = ViP2ClipTrainingArguments(
            output_dir=str(Path(folder, "run")),
            num_train_epochs=6,
            learning_rate=2e-3,
            perception_learning_rate=2e-3,
            seed=options.seed,
            disable_tqdm=not sys.stderr.isatty(),
            logging_strategy="no",
            save_strategy="no",
        )
        trainer = ViP2ClipTrainer(model, arguments, image_processor, train_dataset)
        trainer.remove_callback(PrinterCallback)
        before = evaluate_model(model, image_processor, eval_dataset)["mean"]
        print(f"Freezing it, training the adapters on {len(train_dataset)} pictures ...")
        trainer.train()
        after = evaluate_model(model, image_processor, eval_dataset)["mean"]
        print(f"On {len(eval_dataset)} pictures of {HELD_OUT}, a surface it has never seen:")
        titles = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}
        for name, title in titles.items():
            print(f"  {title} {before[name]:.3f} before, {after[name]:.3f} after training")
        checkpoint = save_checkpoint(model, image_processor, options.output / "checkpoint")

    detector = AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    pictures = []
    for name, defect in (("normal", None), ("damaged", "scratch")):
        picture, mask = generate_image(HELD_OUT, defect, IMAGE_SIZE, seed=options.seed + 100)
        result = detector(picture, heatmap=True)
        picture.save(options.output / f"{name}.png")
        result["heatmap"].save(options.output / f"{name}_heatmap.png")
        print(f"{name}.png: score {result['score']:.3f}, {result['label']}")
        pictures += [picture, result["heatmap"], mask]
    sheet = Image.new("RGB", (3 * IMAGE_SIZE, 2 * IMAGE_SIZE))
    for index, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (index % 3 * IMAGE_SIZE, index // 3 * IMAGE_SIZE))
    sheet.save(options.output / "sheet.png")
    print(f"Pictures in {options.output}; sheet.png shows photo, heatmap and true mask side by side.")
    print(f"Took {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"Error: {error}")
