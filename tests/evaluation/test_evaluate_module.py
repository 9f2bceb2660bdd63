import evaluate
import numpy as np
import pytest

from vip2clip_hf.evaluation import EVALUATE_MODULE
from vip2clip_hf.evaluation.metrics import METRICS, AnomalyMetrics


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    batches = []
    for number in range(4):
        masks = np.zeros((5, 64, 64), dtype=np.uint8)
        masks[:2, 10:30, 5 : 20 + number] = 1
        maps = rng.random((5, 64, 64)) + 0.3 * masks
        labels = np.array([1, 1, 0, 0, 0])
        batch = {
            "predictions": rng.random(5) + 0.2 * labels,
            "references": labels,
            "anomaly_maps": maps,
            "masks": masks,
        }
        batches.append({**batch, "categories": ["a", "b", "a", "b", "b"]})
    return batches


def expected_of(batches, **options):
    metrics = AnomalyMetrics(**options)
    for batch in batches:
        others = {key: batch[key] for key in ("anomaly_maps", "masks", "categories")}
        metrics.update(batch["predictions"], batch["references"], **others)
    return metrics.compute()


def test_equals_anomaly_metrics(batches, tmp_path):
    module = evaluate.load(EVALUATE_MODULE, cache_dir=str(tmp_path))
    for _ in range(2):  # the module can be used again
        for batch in batches:
            module.add_batch(**batch)
        result, expected = module.compute(), expected_of(batches)
        for metric in METRICS:
            assert result[metric] == pytest.approx(expected["mean"][metric], abs=1e-9)
        assert result["categories"]["b"]["num_images"] == 12
        assert result["undefined"] == {}
    result = module.compute(**batches[0])
    assert result["pixel_aupro"] == pytest.approx(expected_of(batches[:1])["mean"]["pixel_aupro"])


def test_release_convention(batches, tmp_path):
    module = evaluate.load(EVALUATE_MODULE, config_name="release", cache_dir=str(tmp_path))
    for batch in batches:
        module.add_batch(**batch)
    expected = expected_of(batches, aupro_convention="release")["mean"]["pixel_aupro"]
    assert module.compute()["pixel_aupro"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="expected 'exact' or 'release'"):
        evaluate.load(EVALUATE_MODULE, config_name="paper", cache_dir=str(tmp_path)).add_batch(**batches[0])


def test_maps_are_not_stored(tmp_path):
    module = evaluate.load(EVALUATE_MODULE, cache_dir=str(tmp_path))
    rng, written = np.random.default_rng(0), []
    for _ in range(20):
        maps = rng.random((2, 256, 256), dtype=np.float32)
        masks = np.zeros((2, 256, 256), dtype=bool)
        masks[0, :9, :9] = True
        module.add_batch(predictions=maps.mean(axis=(1, 2)), references=[1, 0], anomaly_maps=maps, masks=masks)
        written.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
    assert max(written) == 0  # 10 MB of maps
    assert 0 <= module.compute()["pixel_auroc"] <= 1


def test_single_images_and_invalid_input(tmp_path):
    module = evaluate.load(EVALUATE_MODULE, cache_dir=str(tmp_path))
    mask = np.eye(4, dtype=int)
    module.add(prediction=0.9, reference=1, anomaly_map=mask * 0.5, mask=mask, category="x")
    module.add(prediction=0.1, reference=0, anomaly_map=mask * 0.0, mask=mask * 0, category="x")
    with pytest.raises(ValueError, match="Unknown arguments: map; expected predictions, references"):
        module.add_batch(predictions=[0.1], references=[0], map=None)
    with pytest.raises(ValueError, match="references is missing; expected predictions and references"):
        module.add_batch(predictions=[0.1])
    with pytest.raises(ValueError, match="labels"):
        module.add_batch(predictions=[0.1], references=[3])
    result = module.compute()
    assert (result["image_auroc"], result["pixel_auroc"], result["pixel_f1"]) == (1, 1, 1)
    assert result["categories"]["x"]["num_images"] == 2
    with pytest.raises(ValueError, match="Nothing to compute"):
        module.compute()
