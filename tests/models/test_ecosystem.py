"""What the libraries around transformers do to a model: PEFT, accelerate, quantization, compilation, Trainer."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, bundled_checkpoint, generate_image
from vip2clip_hf.models.vip2clip.adapters_vip2clip import ViP2ClipFineGrainedPerception


FGP = ("q_proj", "k_proj", "v_proj", "out_proj")
DEFECTS = (None, "blob", "scratch", None)


@pytest.fixture
def model():
    model = ViP2ClipForAnomalyDetection(tiny_config("release"))
    change_weights(model)
    return model.eval()


def scores_of(model, pixel_values):
    with torch.no_grad():
        output = model(pixel_values=pixel_values)
    return output.scores, output.anomaly_maps


# Fine-grained perception: the folded form and the modules


def changed(output):
    """Neither a factor, which the final normalization removes, nor an offset, which the softmax removes."""
    return 2 * output + 0.3


class Wrapped(nn.Module):
    """A layer that wraps another, as LoRA and quantized layers do. `weight` is still there, but is not all of it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, inputs):
        return changed(self.layer(inputs))


@pytest.mark.parametrize("name", FGP)
@pytest.mark.parametrize("kind", ["wrapper", "hook", "subclass"])
def test_perception_calls_layers_that_are_not_plain(model, pixel_values, name, kind):
    """Changing the outputs of a layer and changing its weights must give the same."""
    perception = model.fine_grained_perception
    expected = copy.deepcopy(model)
    with torch.no_grad():
        layer = getattr(expected.fine_grained_perception, name)
        layer.weight.mul_(2)
        layer.bias.mul_(2).add_(0.3)
    layer = getattr(perception, name)
    if kind == "wrapper":
        setattr(perception, name, Wrapped(layer))
    elif kind == "hook":
        layer.register_forward_hook(lambda module, args, output: changed(output))
    else:
        layer.__class__ = type(
            "Changed", (nn.Linear,), {"forward": lambda self, x: changed(nn.Linear.forward(self, x))}
        )
    for found, wanted in zip(scores_of(model, pixel_values), scores_of(expected, pixel_values)):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


class Lora(nn.Module):
    """A layer of low rank beside another, which is kept."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.down, self.up = (nn.Parameter(torch.randn(shape)) for shape in ((2, 16), (16, 2)))

    def forward(self, inputs):
        return self.base(inputs) + inputs @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", FGP)
def test_low_rank_wrappers_work(model, batch, name):
    """They change the results, get gradients, and give the same as adding their product to the weight."""
    expected = copy.deepcopy(model)
    wrapper = Lora(getattr(model.fine_grained_perception, name))
    with torch.no_grad():
        getattr(expected.fine_grained_perception, name).weight.add_(wrapper.up @ wrapper.down)
    setattr(model.fine_grained_perception, name, wrapper)
    found, wanted = model(**batch), expected(**batch)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.anomaly_maps, wanted.anomaly_maps, rtol=1e-4, atol=1e-5)
    found.loss.backward()
    assert wrapper.down.grad.abs().max() > 0
    assert wrapper.up.grad.abs().max() > 0


def test_quantized_model(model, pixel_values):
    """All linear layers of CLIP and of the adapters in int8."""
    expected = scores_of(model, pixel_values)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    for found, wanted in zip(scores_of(quantized, pixel_values), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)
    half = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).half(), {nn.Linear})
    with pytest.raises(ValueError, match=r"quantized by torch, but .* torch\.float16; expected float32.*\.float\(\)"):
        half(pixel_values.half())


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("scaled", [True, False])
def test_both_forms_of_the_perception_agree(pixel_values, heads, scaled):
    model = ViP2ClipForAnomalyDetection(tiny_config(fgp_num_heads=heads, fgp_scaled=scaled))
    change_weights(model)
    folded = model(pixel_values, output_attentions=True)
    model.fine_grained_perception.q_proj.register_forward_hook(lambda *args: None)
    called = model(pixel_values, output_attentions=True)
    for name in ("scores", "anomaly_maps", "text_embeds"):
        torch.testing.assert_close(folded[name], called[name], rtol=1e-5, atol=1e-5)
    for one, two in zip(folded.cross_attentions, called.cross_attentions):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["call", "export", "functional", pytest.param("compile", marks=pytest.mark.slow)])
def test_plain_layers_are_always_folded(model, pixel_values, kind, monkeypatch):
    """Also where weights are not parameters: projecting all patches takes 19 times as long."""
    calls, original = [], ViP2ClipFineGrainedPerception._attend_folded

    def counted(*args):
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(ViP2ClipFineGrainedPerception, "_attend_folded", counted)
    if kind == "call":
        model(pixel_values)
    elif kind == "export":
        torch.export.export(model, (pixel_values,), strict=False)
    elif kind == "functional":
        torch.func.functional_call(model, dict(model.state_dict()), (pixel_values,))
    else:
        torch.compile(model, backend="eager")(pixel_values)
    assert calls == [1]


def test_quantized_perception(model, pixel_values):
    """A dynamically quantized layer has no usable `weight`."""
    perception = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model.fine_grained_perception), {nn.Linear})
    expected = scores_of(model, pixel_values)
    model.fine_grained_perception = perception
    for found, wanted in zip(scores_of(model, pixel_values), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_hooks_on_the_text_tower_take_effect_at_once(model, pixel_values):
    """No results of earlier calls are kept."""
    before = scores_of(model, pixel_values)
    layer = model.clip.text_model.encoder.layers[0].mlp.fc1
    handle = layer.register_forward_hook(lambda module, args, output: 3 * output)
    found = scores_of(model, pixel_values)[0]
    assert torch.equal(found, scores_of(copy.deepcopy(model), pixel_values)[0])  # a new model, without earlier calls
    assert (found - before[0]).abs().max() > 1e-6
    handle.remove()
    assert torch.equal(scores_of(model, pixel_values)[0], before[0])
    layer.weight.data.mul_(3)
    assert torch.equal(scores_of(model, pixel_values)[0], scores_of(copy.deepcopy(model), pixel_values)[0])


# PEFT


def lora(model, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


def test_lora_is_trained(model, batch):
    """LoRA on CLIP and on the perception gets gradients, and so do adapters in `modules_to_save`."""
    wrapped = lora(model, modules_to_save=["prompt_learner"])
    wrapped.train()
    wrapped(**batch).loss.backward()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert any("clip.vision_model" in name for name in trained)
    assert any("clip.text_model" in name for name in trained)
    assert any("fine_grained_perception" in name for name in trained)
    assert any("prompt_learner" in name for name in trained)
    # The last visual block only reaches the class token, and through it the prompts.
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    base = [p for name, p in wrapped.named_parameters() if "lora" not in name and "modules_to_save" not in name]
    assert not any(p.requires_grad for p in base)


def test_lora_changes_the_results(model, pixel_values):
    before = scores_of(model, pixel_values)[1]
    wrapped = lora(model).eval()
    with torch.no_grad():
        found = wrapped(pixel_values=pixel_values).anomaly_maps
        assert (found - before).abs().max() > 1e-6
        merged = wrapped.merge_and_unload()(pixel_values=pixel_values).anomaly_maps  # plain layers again: folded
    torch.testing.assert_close(merged, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_with_lora(model, batch, use_reentrant):
    wrapped = lora(model)
    wrapped.train()
    wrapped(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in wrapped.named_parameters() if p.requires_grad}
    wrapped.zero_grad()
    calls = []
    for block in model.clip.vision_model.encoder.layers:
        block.mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    wrapped.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    loss = wrapped(**batch).loss
    assert len(calls) == 4
    loss.backward()
    assert len(calls) == 8  # all blocks of the vision tower are computed again
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_from_clip_refuses_layers_of_peft(model):
    """Their weights have other names. The weights of CLIP would be random."""
    wrapped = lora(model).base_model.model
    with pytest.raises(RuntimeError, match=r"weights of the CLIP model are missing or unknown.*merge_and_unload"):
        ViP2ClipForAnomalyDetection.from_clip(wrapped, **tiny_overrides())


# accelerate


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offload(model, pixel_values, tmp_path, kind):
    accelerate = pytest.importorskip("accelerate")
    expected = scores_of(model, pixel_values)
    if kind == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert all(p.is_meta for p in model.fine_grained_perception.parameters())
    for found, wanted in zip(scores_of(model, pixel_values), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_device_map_with_disk(model, pixel_values, tmp_path):
    pytest.importorskip("accelerate")
    expected = scores_of(model, pixel_values)
    model.save_pretrained(tmp_path / "model")
    device_map = {"clip.text_model": "disk", "clip.vision_model": "cpu", "clip.visual_projection": "cpu"}
    device_map.update({"clip.text_projection": "disk", "clip.logit_scale": "cpu", "prompt_learner": "disk"})
    device_map.update({"image_conditioned_adapter": "disk", "fine_grained_perception": "disk"})
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    for found, wanted in zip(scores_of(loaded, pixel_values), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_stay_in_float32(model, tmp_path, clip, dtype):
    model.save_pretrained(tmp_path)
    models = {
        "to": copy.deepcopy(model).to(dtype),
        "half": copy.deepcopy(model).half() if dtype == torch.float16 else copy.deepcopy(model).bfloat16(),
        "from_pretrained": ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, dtype=dtype),
        "from_config": ViP2ClipForAnomalyDetection._from_config(model.config, dtype=dtype),
        "from_clip": ViP2ClipForAnomalyDetection.from_clip(clip, **tiny_overrides(), dtype=dtype),
    }
    for name, converted in models.items():
        assert {p.dtype for p in converted.clip.parameters()} == {dtype}, name
        assert {p.dtype for n, p in converted.named_parameters() if not n.startswith("clip.")} == {torch.float32}, name
    for name in ("to", "half", "from_pretrained"):
        for key, weight in models[name].adapter_state_dict().items():
            assert torch.equal(weight, model.adapter_state_dict()[key]), key  # not rounded
    assert {p.dtype for p in copy.deepcopy(model).double().parameters()} == {torch.float64}


def tiny_overrides():
    return {k: v for k, v in tiny_config().to_diff_dict().items() if k in ("image_size", "feature_layers", "top_k")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_adapters_train_in_half_precision(dtype):
    """Three Adam steps move nearly all weights of the perception, in the direction of float32."""
    images = [generate_image("brushed", defect, seed=number, size=128) for number, defect in enumerate(DEFECTS)]
    processor = ViP2ClipImageProcessor(size=160)
    inputs = dict(processor([image for image, _ in images], [mask for _, mask in images], return_tensors="pt"))
    inputs["labels"] = torch.tensor([int(defect is not None) for defect in DEFECTS])
    updates, losses = {}, {}
    for name in (torch.float32, dtype):
        model = ViP2ClipForAnomalyDetection.from_pretrained(
            bundled_checkpoint(), dtype=name, image_size=160, top_k=4, smoothing_sigma=4.0
        ).train()
        start = {k: v.clone() for k, v in model.fine_grained_perception.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(name)}).loss
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
        end = model.fine_grained_perception.state_dict()
        # The gradient of the key bias is zero.
        updates[name] = torch.cat([(end[k] - start[k]).flatten() for k in start if k != "k_proj.bias"])
    assert losses[dtype] == pytest.approx(losses[torch.float32], abs=0.005)
    assert (updates[dtype] != 0).float().mean() >= 0.99
    assert torch.cosine_similarity(updates[dtype], updates[torch.float32], dim=0) >= 0.99


# Trainer and compilation


class Rows(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.batch.items()}


def test_plain_trainer(model, batch, tmp_path):
    """The Trainer of transformers as it is: label names, evaluation loss, predictions."""
    rows = Rows(batch)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=3, per_device_eval_batch_size=3, use_cpu=True,
        learning_rate=1e-3, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.label_names == ["labels", "mask_labels"]
    before = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        assert before == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    predictions = trainer.predict(rows)
    assert predictions.predictions[1].shape == (3,)
    assert predictions.label_ids[0].tolist() == batch["labels"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled_model(model, dynamic):
    compiled = torch.compile(model, dynamic=dynamic, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for batch_size in (2, 3):
            pixel_values = torch.randn(batch_size, 3, 48, 48)
            for found, expected in zip(scores_of(compiled, pixel_values), scores_of(model, pixel_values)):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
