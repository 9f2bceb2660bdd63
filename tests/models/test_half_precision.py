"""Results in bfloat16 and float16 compared with float32."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig

from helpers.tiny import change_weights
from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.evaluation.model_evaluation import evaluate_model


DTYPES = [torch.bfloat16, torch.float16]


def deviations(model, pixel_values: torch.Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Largest difference of scores and maps from float32."""
    reduced = copy.deepcopy(model).to(dtype)
    with torch.inference_mode():
        expected, found = model(pixel_values), reduced(pixel_values.to(dtype))
    assert found.scores.dtype == found.anomaly_maps.dtype == torch.float32
    assert expected.anomaly_maps.std() > 0.02, "the maps are almost constant, which makes the comparison meaningless"
    return tuple(
        (getattr(found, name) - getattr(expected, name)).abs().max().item() for name in ("scores", "anomaly_maps")
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "sharpness"), [("paper", 50), ("release", 20)])
def test_width_of_vit_large(variant, sharpness, dtype):
    """Towers with the width of CLIP ViT-L/14 and four blocks."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 4}
    vision.update(patch_size=14, image_size=112)
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 2}
    clip_config = CLIPConfig(projection_dim=768, text_config=text, vision_config=vision)
    sizes = {"image_size": 112, "feature_layers": (1, 2, 3, 4), "top_k": 5, "smoothing_sigma": 1.0}
    model = ViP2ClipForAnomalyDetection(ViP2ClipConfig.from_variant(variant, clip_config=clip_config, **sizes)).eval()
    with torch.no_grad():  # like training: make the prompts differ, in values and attention
        model.prompt_learner.normal_context.mul_(20)
        model.prompt_learner.anomalous_context.mul_(20)
        perception = model.fine_grained_perception
        perception.q_proj.weight.mul_(sharpness)
        perception.k_proj.weight.mul_(sharpness)
        perception.v_proj.bias.zero_()
        perception.out_proj.bias.zero_()
    scores, maps = deviations(model, torch.randn(2, 3, 112, 112), dtype)
    assert scores <= 2e-2
    assert maps <= 2e-2


@pytest.fixture(scope="module")
def bundled() -> ViP2ClipForAnomalyDetection:
    return ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_bundled_checkpoint(bundled, dtype):
    processor = ViP2ClipImageProcessor.from_pretrained(bundled_checkpoint())
    images = [generate_image("dots", defect, 192, seed=3)[0] for defect in (None, "scratch", "blob", "missing")]
    images.append(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)))
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    scores, maps = deviations(bundled, pixel_values, dtype)
    assert scores <= 2e-2
    assert maps <= 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_metrics_are_equal(bundled, dtype, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots", "brushed"), num_normal=12, num_anomalous=4, size=192, seed=77)
    processor, dataset = ViP2ClipImageProcessor.from_pretrained(bundled_checkpoint()), load_folder(root)
    expected, found = (
        evaluate_model(model, processor, dataset)["mean"] for model in (bundled, copy.deepcopy(bundled).to(dtype))
    )
    for metric in ("image_auroc", "pixel_auroc"):
        assert found[metric] == pytest.approx(expected[metric], abs=2e-3), metric


@pytest.mark.slow
def test_the_vision_tower_compiles_once_without_graph_breaks(model):
    """fullgraph=True rules out graph breaks. More batches of the same size must not compile again."""
    change_weights(model)
    torch._dynamo.reset()  # graphs that other tests compiled of the same code count as compiled before
    compiled = torch.compile(model.get_image_features, fullgraph=True, backend="aot_eager")
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            pixel_values = torch.randn(2, 3, 48, 48)
            found, expected = compiled(pixel_values), model.get_image_features(pixel_values)
            torch.testing.assert_close(found.image_embeds, expected.image_embeds)
            torch.testing.assert_close(found.patch_embeds, expected.patch_embeds)


@pytest.mark.slow
def test_a_model_with_a_compiled_vision_tower(model):
    """The example of docs/performance.md."""
    expected_model = copy.deepcopy(model)
    model.get_image_features = torch.compile(model.get_image_features, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        pixel_values = torch.randn(2, 3, 48, 48)
        with torch.inference_mode():
            torch.testing.assert_close(model(pixel_values).anomaly_maps, expected_model(pixel_values).anomaly_maps)
