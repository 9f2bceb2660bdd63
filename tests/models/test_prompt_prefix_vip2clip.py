"""The prompt prefix is computed once, and again after the weights change."""

import copy
import pickle
import threading

import pytest
import torch

from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection


@pytest.fixture
def image_embeds() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)


def expected_embeds(model, image_embeds: torch.Tensor) -> torch.Tensor:
    """Embeddings computed from complete prompts."""
    prompts = model.get_prompts(image_embeds[:1] if not model.config.use_image_conditioning else image_embeds)
    embeds = torch.nn.functional.normalize(model.encode_prompts(prompts), dim=-1)
    return embeds.expand(len(image_embeds), -1, -1)


def check(model, image_embeds):
    """Compare twice: first computed, then from the cache."""
    with torch.no_grad():
        expected = expected_embeds(model, image_embeds)
        for _ in range(2):
            torch.testing.assert_close(model.get_prompt_embeds(image_embeds), expected, rtol=1e-5, atol=1e-6)


def tokens_run(model, image_embeds) -> list[int]:
    """Number of tokens in each run of the first text block during a call."""
    seen = []
    block = model.clip.text_model.encoder.layers[0]
    hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        model.get_prompt_embeds(image_embeds)
    hook.remove()
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_equals_complete_prompts(variant, attention, image_embeds):
    model = ViP2ClipForAnomalyDetection(tiny_config(variant)).eval()
    change_weights(model)
    model.set_attn_implementation(attention)
    check(model, image_embeds)
    check(model, image_embeds[:1])


@pytest.mark.parametrize(
    "settings",
    [
        {"normal_word": None, "normal_token_ids": (5,), "anomalous_word": None, "anomalous_token_ids": (7, 8, 9)},
        {"normal_word": None, "normal_token_ids": (4, 5, 6), "anomalous_word": None, "anomalous_token_ids": (7,)},
        {"use_image_conditioning": False},
        {"num_context_tokens": 1, "num_image_tokens": 1},
    ],
)
def test_equals_complete_prompts_of_other_lengths(settings, image_embeds):
    model = ViP2ClipForAnomalyDetection(tiny_config(**settings)).eval()
    check(model, image_embeds)


def test_the_prefix_runs_once(model, image_embeds):
    assert tokens_run(model, image_embeds) == [9, 4]  # start, 7 context tokens and word; then 3 image tokens and end
    assert tokens_run(model, image_embeds) == [4]
    with torch.no_grad():
        prefix = model.get_prompt_prefix()
    assert prefix.length == 9
    assert [key.shape for key in prefix.keys] == [(2, 2, 9, 8)] * 2
    assert [value.shape for value in prefix.values] == [(2, 2, 9, 8)] * 2


def _replace(model):
    learner = model.prompt_learner
    learner.anomalous_context = torch.nn.Parameter(learner.anomalous_context * 2)


def _optimizer_step(model):
    optimizer = torch.optim.Adam(model.prompt_learner.parameters(), lr=0.1)
    model.prompt_learner.normal_context.square().sum().backward()
    optimizer.step()


def _load(model):
    model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items()}, strict=False)


CHANGES = {
    "write to a text weight": lambda model: model.clip.text_model.encoder.layers[1].mlp.fc1.weight.mul_(3),
    "write to a bias": lambda model: model.clip.text_model.encoder.layers[0].self_attn.v_proj.bias.add_(1),
    "write to the positions": lambda model: model.clip.text_model.embeddings.position_embedding.weight.mul_(2),
    "write that is not counted": lambda model: model.prompt_learner.normal_context.data.mul_(2),
    "new tensor": lambda model: setattr(
        model.clip.text_model.encoder.layers[0].layer_norm1.weight, "data", torch.full((16,), 2.0)
    ),
    "new parameter": _replace,
    "load": _load,
    "another word": lambda model: setattr(model.config, "normal_token_ids", (77,)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_dropped_when_something_changes(change, model, image_embeds):
    check(model, image_embeds)
    with torch.no_grad():
        before = model.get_prompt_embeds(image_embeds)
        change(model)
        assert (model.get_prompt_embeds(image_embeds) - before).abs().max() > 1e-4
    check(model, image_embeds)


def test_dropped_after_an_optimizer_step(model, image_embeds):
    check(model, image_embeds)
    _optimizer_step(model)
    check(model, image_embeds)


def test_not_used_in_training_and_with_gradients(model, image_embeds):
    check(model, image_embeds)
    assert model.get_prompt_prefix() is None
    model.train()
    with torch.no_grad():
        assert model.get_prompt_prefix() is None
    model.get_prompt_embeds(image_embeds).sum().backward()
    assert model.prompt_learner.normal_context.grad.abs().max() > 0


def test_other_dtypes_and_back(model, image_embeds):
    check(model, image_embeds)
    model.to(torch.float64)
    check(model, image_embeds.double())
    model.to(torch.float32)
    check(model, image_embeds)
    assert model._prefix_cache._entry[1][0][0].dtype == torch.float32


def test_mixed_precision_has_its_own_prefix(model, image_embeds):
    check(model, image_embeds)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = expected_embeds(model, image_embeds)
        torch.testing.assert_close(model.get_prompt_embeds(image_embeds), expected, rtol=0, atol=2e-2)
        assert model.get_prompt_prefix().keys[0].dtype == torch.bfloat16
    check(model, image_embeds)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_their_own_cache(duplicate, model, image_embeds):
    check(model, image_embeds)
    copied = duplicate(model)
    with torch.no_grad():
        copied.prompt_learner.normal_context.mul_(3)
    check(copied, image_embeds)
    check(model, image_embeds)
    assert (expected_embeds(copied, image_embeds) - expected_embeds(model, image_embeds)).abs().max() > 1e-4


def test_inference_mode_and_no_grad_mixed(model, image_embeds):
    with torch.inference_mode():
        inside = model.get_prompt_embeds(image_embeds)
    check(model, image_embeds)
    with torch.inference_mode():
        torch.testing.assert_close(model.get_prompt_embeds(image_embeds), inside)
    # PyTorch does not count writes to weights created in inference mode, so nothing is cached.
    with torch.inference_mode():
        other = ViP2ClipForAnomalyDetection(tiny_config()).eval()
        assert other.get_prompt_prefix() is None
        before = other.get_prompt_embeds(image_embeds)
        other.prompt_learner.normal_context.mul_(3)
        assert (other.get_prompt_embeds(image_embeds) - before).abs().max() > 1e-4


def test_several_threads(model, image_embeds):
    """Eight threads run two models while their caches are cleared repeatedly. Every result must be correct."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.prompt_learner.normal_context.mul_(3)
        expected = [expected_embeds(one, image_embeds) for one in (model, other)]
    wrong, stop = [], threading.Event()

    def compute(which: int):
        one = (model, other)[which]
        with torch.no_grad():
            while not stop.is_set():
                found = one.get_prompt_embeds(image_embeds)
                if not torch.allclose(found, expected[which], rtol=1e-5, atol=1e-6):
                    wrong.append(which)

    threads = [threading.Thread(target=compute, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        model._prefix_cache.clear()
        other._prefix_cache.clear()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_functional_call_uses_its_weights(model, image_embeds):
    check(model, image_embeds)
    weights = {name: value * 2 for name, value in model.state_dict().items() if name.startswith("prompt_learner")}
    inputs = {"image_embeds": image_embeds, "patch_embeds": torch.randn(3, 3, 36, 16)}
    changed = copy.deepcopy(model)
    changed.load_state_dict(weights, strict=False)
    with torch.no_grad():
        found = torch.func.functional_call(model, weights, kwargs=inputs)
        torch.testing.assert_close(found.scores, changed(**inputs).scores)
    check(model, image_embeds)


@pytest.mark.slow
def test_compiled_code_sees_changed_weights(model):
    pixel_values = torch.randn(2, 3, 48, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(pixel_values).scores, model(pixel_values).scores)
            model.prompt_learner.anomalous_context.mul_(3)
