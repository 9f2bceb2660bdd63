"""Training, evaluation and prediction in two processes with real launchers. The results equal those of one process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.evaluations import (
    assert_same_files,
    assert_same_results,
    model_with_wide_maps,
    read_results,
    write_sources,
)
from helpers.files import files_in
from helpers.predictions import table_bytes, write_photos
from helpers.processes import LAUNCHERS, TORCHRUN, run_program
from helpers.tiny import ROOT, TINY, change_weights
from helpers.training import (
    assert_same_tensors,
    build_trainer,
    losses_of,
    with_sgd,
    write_train_and_eval_sets,
    write_training_set,
)
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data import ViP2ClipCollator, load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation import EVALUATE_MODULE
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.training.feature_cache import FeatureCache


TRAINING = ROOT / "training"


# Training


@pytest.mark.slow
def test_two_processes_equal_a_large_batch(clip, clip_folder, image_processor, tmp_path):
    """
    2 x 4 images per step equal 1 x 8. With 14 images, the second step has 4 and 2; with 9 images, 1 and none. The last
    case accumulates 2 x 2 in each process.
    """
    root = write_training_set(tmp_path / "set")
    (tmp_path / "run.py").write_text(
        f"""
import sys
import torch
from safetensors.torch import save_file
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer

for count, batch, accumulate in ((14, 4, 1), (9, 4, 1), (14, 2, 2)):
    torch.manual_seed(5)
    model = ViP2ClipForAnomalyDetection.from_clip({str(clip_folder)!r}, **{TINY!r})
    args = ViP2ClipTrainingArguments(output_dir={str(tmp_path / "two")!r}, disable_tqdm=True, use_cpu=True,
        num_train_epochs=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        save_strategy="no")
    dataset = load_folder({str(root)!r}).select(range(14 - count, 14))
    trainer = ViP2ClipTrainer(model, args, ViP2ClipImageProcessor(size=48), dataset)
    trainer.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(model.adapter_state_dict(), {str(tmp_path)!r} + f"/{{count}}-{{batch}}.safetensors")
        print("LOSSES", *[entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        print("PARTS", *[entry["loss_focal"] for entry in trainer.state.log_history if "loss" in entry])
"""
    )
    out = run_program(*TORCHRUN, tmp_path / "run.py").stdout
    lines = [line.split() for line in out.splitlines() if line.startswith(("LOSSES", "PARTS"))]
    dataset = load_folder(root)
    for number, (count, batch) in enumerate(((14, 4), (9, 4), (14, 2))):
        images = dataset.select(range(14 - count, 14))
        whole = with_sgd(build_trainer(clip, image_processor, tmp_path / "run", images, num_train_epochs=2))
        whole.train()
        weights = load_file(tmp_path / f"{count}-{batch}.safetensors")
        assert_same_tensors(whole.model.adapter_state_dict(), weights, 1e-5)
        assert [float(loss) for loss in lines[2 * number][1:]] == pytest.approx(losses_of(whole), abs=1e-4)
        focal = [entry["loss_focal"] for entry in whole.state.log_history if "loss" in entry]
        assert [float(loss) for loss in lines[2 * number + 1][1:]] == pytest.approx(focal, abs=1e-4)


@pytest.mark.slow
def test_two_processes_find_no_unused_parameter(tmp_path):
    """DistributedDataParallel raises in the second step if a parameter had no gradient in the first."""
    (tmp_path / "ddp.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
import torch.distributed as dist
from helpers.tiny import tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(ViP2ClipForAnomalyDetection(tiny_config()).train())
torch.manual_seed(dist.get_rank())
for step in range(3):
    masks = torch.zeros(2, 48, 48)
    masks[1, :9] = 1
    valid = torch.tensor([step != 1, step != 1])
    loss = model(torch.randn(2, 3, 48, 48), labels=torch.tensor([0, 1]), mask_labels=masks,
                 mask_valid=valid).loss
    loss.backward()
print("steps done")
dist.destroy_process_group()
"""
    )
    assert run_program(*TORCHRUN, tmp_path / "ddp.py", cwd=tmp_path).stdout.count("steps done") == 2


@pytest.mark.slow
def test_launch_from_the_command_line(tmp_path):
    """The command of the README, without a downloaded backbone."""
    roots = write_train_and_eval_sets(tmp_path)
    done = run_program(
        "-m", "accelerate.commands.launch", TRAINING / "train.py", "--recipe", "tiny", "--train_data",
        roots[0], "--eval_data", roots[1], "--output_dir", tmp_path / "out", "--num_train_epochs", "1",
        "--average_weights_from", "0", "--image_size", "64", "--top_k", "3", "--disable_tqdm", "true", cwd=tmp_path,
    )  # fmt: skip
    assert "pixel AUROC" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


# The feature cache


@pytest.fixture
def cached_set(tmp_path) -> Path:
    return write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)


@pytest.mark.slow
def test_two_processes_share_the_work(clip, image_processor, cached_set, tmp_path):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "run.py").write_text(
        f"""
import torch
import torch.distributed as dist
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.training.feature_cache import FeatureCache

dist.init_process_group("gloo")
model = ViP2ClipForAnomalyDetection.from_pretrained({str(tmp_path / "model")!r})
seen, original = [], model.get_image_features
def counting(pixel_values, **options):
    seen.append(len(pixel_values))
    return original(pixel_values, **options)
model.get_image_features = counting
processor = ViP2ClipImageProcessor(size={TINY["image_size"]})
cache = FeatureCache.build(model, processor, load_folder({str(cached_set)!r}).select(range(11)),
    {str(tmp_path / "cache")!r}, dtype="float32", batch_size=4)
with open({str(tmp_path)!r} + f"/seen{{dist.get_rank()}}", "w") as file:
    file.write(f"{{sum(seen)}} {{cache.folder}}")
dist.destroy_process_group()
"""
    )
    run_program(*TORCHRUN, tmp_path / "run.py")
    lines = [(tmp_path / f"seen{rank}").read_text().split() for rank in range(2)]
    assert [line[0] for line in lines] == ["6", "5"]
    cache = FeatureCache(Path(lines[0][1]), json.loads(Path(lines[0][1], "meta.json").read_text()))
    dataset, collator = load_folder(cached_set), ViP2ClipCollator(image_processor)
    for position in range(11):
        with torch.no_grad():
            expected = model.get_image_features(collator([dataset[position]])["pixel_values"]).patch_embeds[0]
        torch.testing.assert_close(cache.row(position)["patch_embeds"], expected, rtol=0, atol=1e-5)


def test_a_second_program_waits(clip, image_processor, cached_set, tmp_path, caplog):
    """A cache that another program builds is used only when it is finished."""
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY).eval()
    request = (model, image_processor, load_folder(cached_set), tmp_path / "cache")
    cache = FeatureCache.build(*request, dtype="float32", batch_size=4)
    script = f"""
import sys, time
from filelock import FileLock
with FileLock({f"{cache.folder}.lock"!r}):
    print("held", flush=True)
    time.sleep(1.5)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        FeatureCache.build(*request, dtype="float32", batch_size=4)
        assert other.wait(timeout=10) == 0
    assert "Another program is building" in caplog.text


# Evaluation


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_two_processes_equal_one(launcher, clip, image_processor, tmp_path):
    """Two gloo processes with 14 and 7 images in batches of 2, so the last batches are not full."""
    checkpoint = save_checkpoint(model_with_wide_maps(clip), image_processor, tmp_path / "checkpoint")
    sets = write_sources(tmp_path)
    command = [TRAINING / "evaluate.py", sets[0].root, f"named={sets[1].root}", "--model", checkpoint]
    command += ["--batch_size", "2", "--sheets", "2", "--maps", "--device", "cpu", "--output"]
    for arguments, output in (([], "one"), (LAUNCHERS[launcher], "two")):
        done = run_program(*arguments, *command, tmp_path / output)
        assert done.stdout.count("AVERAGE") == 2  # printed once, not by every process
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    for first, second in zip(read_results(tmp_path / "one"), read_results(tmp_path / "two")):
        assert_same_results(first, second, 1e-6)
        counts = [sum(c["num_images"] for c in result["categories"].values()) for result in (first, second)]
        assert counts[0] == counts[1]
    for name in ("parts", "named"):
        assert_same_files(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.slow
def test_evaluate_model_in_two_processes(clip, image_processor, tmp_path):
    """With a number of images that two processes cannot split evenly."""
    root = write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)
    dataset = load_folder(root).select(range(11))
    ViP2ClipForAnomalyDetection.from_clip(clip, **TINY).save_pretrained(tmp_path / "model")
    # The same weights, threads and batch size: the maps of this small model are so flat that different rounding would
    # change the order of pixels.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "model")
    whole = evaluate_model(model, image_processor, dataset, batch_size=1)
    torch.set_num_threads(threads)
    (tmp_path / "run.py").write_text(
        f"""
import json
import torch
import torch.distributed as dist
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.evaluation.model_evaluation import evaluate_model

dist.init_process_group("gloo")
torch.set_num_threads(1)
model = ViP2ClipForAnomalyDetection.from_pretrained({str(tmp_path / "model")!r})
dataset = load_folder({str(root)!r}).select(range(11))
result = evaluate_model(model, ViP2ClipImageProcessor(size={TINY["image_size"]}), dataset, batch_size=1)
with open({str(tmp_path)!r} + f"/result{{dist.get_rank()}}.json", "w") as file:
    json.dump(result, file)
dist.destroy_process_group()
"""
    )
    run_program(*TORCHRUN, tmp_path / "run.py")
    for rank in range(2):
        result = json.loads((tmp_path / f"result{rank}.json").read_text())
        assert sum(category["num_images"] for category in result["categories"].values()) == 11
        assert_same_results(result, whole, 1e-6)


@pytest.mark.slow
def test_evaluate_module_in_two_processes(tmp_path):
    """As defined by the evaluate library: the first process gets the result, the other None."""
    (tmp_path / "run.py").write_text(
        f"""
import sys
import evaluate
import numpy as np

rank = int(sys.argv[1])
module = evaluate.load({EVALUATE_MODULE!r}, num_process=2, process_id=rank, experiment_id="two",
    cache_dir={str(tmp_path / "cache")!r})
for number in range(rank, 5, 2):
    maps = np.random.default_rng(number).random((2, 32, 32))
    masks = np.zeros((2, 32, 32), dtype=int)
    masks[0, 3:9, number:9] = 1
    module.add_batch(predictions=maps.max(axis=(1, 2)), references=[1, 0], anomaly_maps=maps, masks=masks)
result = module.compute()
print("RESULT", None if result is None else (result["pixel_auroc"], result["categories"]["all"]["num_images"]))
"""
    )
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "run.py"), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    metrics = AnomalyMetrics()
    for number in range(5):
        maps = np.random.default_rng(number).random((2, 32, 32))
        masks = np.zeros((2, 32, 32), dtype=int)
        masks[0, 3:9, number:9] = 1
        metrics.update(maps.max(axis=(1, 2)), [1, 0], maps, masks)
    expected = metrics.compute()["mean"]["pixel_auroc"]
    first, second = (output.split("RESULT ")[1].strip() for output, _ in outputs)
    assert second == "None"
    auroc, count = first.strip("()").split(", ")
    assert (float(auroc), int(count)) == (pytest.approx(expected, abs=1e-9), 10)


# Prediction


@pytest.mark.slow
def test_prediction_in_two_processes(model, image_processor, tmp_path):
    """The table equals that of one process, and the result is printed once."""
    change_weights(model)
    checkpoint = save_checkpoint(model, image_processor, tmp_path / "checkpoint")
    photos = write_photos(tmp_path / "photos")
    for path in ("broken.jpg", "x/cut.png"):
        (photos / path).unlink()
    options = ["vip2clip_hf", "predict", photos, "--model", checkpoint, "--device", "cpu", "--output"]
    run_program("-m", *options, tmp_path / "one")
    for name, module in (("torchrun", "-m"), ("accelerate", "--module")):
        done = run_program(*LAUNCHERS[name], module, *options, tmp_path / name)
        assert table_bytes(tmp_path / name) == table_bytes(tmp_path / "one")
        assert (done.stdout + done.stderr).count("10 images:") == 1
