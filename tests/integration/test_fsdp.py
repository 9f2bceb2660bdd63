"""Training with FSDP2 in two processes gives the losses of one process."""

import json

import pytest

from helpers.processes import TORCHRUN, run_program
from helpers.tiny import ROOT


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, {tests!r})
from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection

folder, kind = sys.argv[1:]
torch.manual_seed(0)
model = ViP2ClipForAnomalyDetection(tiny_config("release")).train()
change_weights(model)
rank, world = 0, 1
if kind != "single":
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for tower in (model.clip.vision_model, model.clip.text_model):
        for block in tower.encoder.layers:
            fully_shard(block, mesh=mesh)
    if kind == "root":
        for adapter in (model.prompt_learner, model.image_conditioned_adapter, model.fine_grained_perception):
            fully_shard(adapter, mesh=mesh)
        # fully_shard does not support scalars, such as this parameter of CLIP, which is not used.
        fully_shard(model, mesh=mesh, ignored_params={{model.clip.logit_scale}})
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
pixel_values, labels = torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 0, 1])
masks = torch.zeros(4, 48, 48)
masks[1::2, 10:30, 10:30] = 1
losses = []
for _ in range(3):
    optimizer.zero_grad()
    share = slice(rank, None, world)
    loss = model(pixel_values[share], labels=labels[share], mask_labels=masks[share]).loss
    loss.backward()
    if kind == "layers":  # the adapters are replicated
        for parameter in model.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
                parameter.grad /= world
    optimizer.step()
    value = loss.detach().clone()
    if world > 1:
        dist.all_reduce(value)
    losses.append(value.item() / world)
if rank == 0:
    with open(f"{{folder}}/{{kind}}.json", "w") as file:
        json.dump(losses, file)
if world > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_training_equals_one_process(tmp_path):
    """`layers`: the blocks of CLIP are sharded. `root`: also the adapters, and the model itself."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests")))
    run_program(script, tmp_path, "single")
    for kind in ("layers", "root"):
        run_program(*TORCHRUN, script, tmp_path, kind)
    expected = json.loads((tmp_path / "single.json").read_text())
    assert expected[2] < expected[0]
    for kind in ("layers", "root"):
        assert json.loads((tmp_path / f"{kind}.json").read_text()) == pytest.approx(expected, abs=1e-5), kind
