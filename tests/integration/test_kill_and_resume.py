"""Training, evaluation and prediction are killed and resumed. The results equal those of an uninterrupted run."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from helpers.evaluations import assert_same_files, assert_same_results, model_with_wide_maps, read_results
from helpers.files import files_in
from helpers.predictions import rows_of, table_bytes, write_photos
from helpers.processes import LEAVE_PROCESS_ID, TORCHRUN, kill, run, run_program, start, wait_for_files
from helpers.tiny import TINY, change_weights
from helpers.training import assert_same_tensors, write_training_set
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.training.resuming import last_complete_checkpoint


pytestmark = pytest.mark.slow


def test_training_killed_and_resumed(clip_folder, tmp_path):
    """SIGKILL while a checkpoint is saved. The resumed run ends with the weights of an uninterrupted run."""
    root = write_training_set(tmp_path / "set")
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import os, signal, sys
import torch
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer

class Killed(ViP2ClipTrainer):
    def _save_optimizer_and_scheduler(self, output_dir):
        if sys.argv[2] == "kill" and output_dir.endswith("-6"):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_optimizer_and_scheduler(output_dir)

torch.manual_seed(5)
model = ViP2ClipForAnomalyDetection.from_clip({str(clip_folder)!r}, **{TINY!r})
args = ViP2ClipTrainingArguments(output_dir={str(tmp_path)!r} + "/" + sys.argv[1], disable_tqdm=True, use_cpu=True,
    num_train_epochs=4, cache_features={str(tmp_path / "cache")!r})
trainer = Killed(model, args, ViP2ClipImageProcessor(size=48), load_folder({str(root)!r}))
trainer.train(resume_from_checkpoint=True)
trainer.save_model()
print("STEPS", sum("loss" in entry for entry in trainer.state.log_history))
"""
    )
    run_program(script, "whole", "no")
    killed = run(script, "killed", "kill")
    assert killed.returncode == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-4")
    assert (tmp_path / "killed" / "checkpoint-6" / "model.safetensors").exists()
    done = run_program(script, "killed", "no")
    assert "Resuming from" in done.stderr
    assert "Removed checkpoint-6, which was not written completely" in done.stderr
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert_same_tensors(*weights, 0)


def test_evaluation_killed_and_resumed(clip, image_processor, tmp_path):
    """SIGKILL of two processes, then one process resumes."""
    checkpoint = save_checkpoint(model_with_wide_maps(clip), image_processor, tmp_path / "checkpoint")
    root = write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=30, num_anomalous=8, size=48)
    script = tmp_path / "run.py"
    script.write_text(
        f"""{LEAVE_PROCESS_ID}
import time
from vip2clip_hf.evaluation import runner
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation.runner import evaluate_checkpoint

class Slow(runner.EvaluationRecorder):
    def __init__(self, *arguments):
        super().__init__(*arguments[:3], 0.2)
    def add(self, *arguments):
        time.sleep(0.25)
        super().add(*arguments)

if sys.argv[2] == "slow":
    runner.EvaluationRecorder = Slow
evaluate_checkpoint({str(checkpoint)!r}, [DataSource.parse({str(root)!r})], sys.argv[1], device="cpu", batch_size=1,
    sheets=0, save_maps=True)
"""
    )
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run_program(script, whole, "fast")
    process = start(*TORCHRUN, script, output, "slow", ids=tmp_path / "ids")
    progress = output / ".progress" / "set"
    wait_for_files(progress, "part-0-*.npz", 2)
    time.sleep(1)
    kill(process, tmp_path / "ids")
    done = sum(len(np.load(part)["recorder.positions"]) for part in progress.glob("part-*.npz"))
    assert 2 <= done < 124
    assert not (output / "set" / "result.json").exists()
    run_program(script, output, "fast")
    (expected,), (found,) = read_results(whole), read_results(output)
    assert_same_results(expected, found, 1e-6)
    assert sum(category["num_images"] for category in found["categories"].values()) == 124
    assert_same_files(whole / "set", output / "set")
    assert not (output / ".progress").exists()


def test_prediction_killed_and_resumed(model, image_processor, tmp_path):
    """SIGKILL of two processes, then one resumes; SIGKILL of one process, then two resume."""
    change_weights(model)
    checkpoint = save_checkpoint(model, image_processor, tmp_path / "checkpoint")
    photos = write_photos(tmp_path / "photos")
    for number in range(60):
        Image.new("RGB", (48, 48), (4 * number, 0, 0)).save(photos / f"more-{number}.png")
    script = tmp_path / "run.py"
    script.write_text(
        f"""{LEAVE_PROCESS_ID}
import time
from vip2clip_hf.inference import prediction, writer

if sys.argv[2] == "slow":
    save = writer.heatmap_of
    def draw(*arguments):
        time.sleep(0.2)
        return save(*arguments)
    writer.heatmap_of = draw
prediction.predict_checkpoint({str(checkpoint)!r}, {str(photos)!r}, sys.argv[1], device="cpu", batch_size=2,
    chunk_size=3, num_workers=1, heatmaps=True)
"""
    )
    whole = tmp_path / "whole"
    run_program(script, whole, "fast")
    assert len(rows_of(whole)) == 72
    for number, (killed, resumed) in enumerate(([TORCHRUN, []], [[], TORCHRUN])):
        output = tmp_path / f"killed-{number}"
        ids = tmp_path / f"ids-{number}"
        process = start(*killed, script, output, "slow", ids=ids)
        wait_for_files(output / ".progress", "part-*", 3)
        kill(process, ids)
        assert 3 <= len(list(output.glob(".progress/part-*"))) < 24
        assert not (output / "predictions.parquet").exists()
        run_program(*resumed, script, output, "fast")
        assert table_bytes(output) == table_bytes(whole)
        assert files_in(output) == files_in(whole)
        for drawn in filter(Path.is_file, (output / "heatmaps").rglob("*.png")):
            assert drawn.read_bytes() == (whole / drawn.relative_to(output)).read_bytes()
