"""The combination of distances and zero-shot results: order, bounds, limits of the weight, level."""

import math

import numpy as np
import pytest
import torch

from vip2clip_hf.models.vip2clip.reference_left_out_vip2clip import position_offset
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import (
    evidence_level,
    image_evidence,
    map_evidence,
    to_score,
    top_mean,
    zero_shot_weight,
)


def increases(values: torch.Tensor) -> bool:
    return bool((values.double().diff() > 0).all())


def test_scores_increase_with_distance_and_logit():
    distances, logits = torch.linspace(0.001, 2, 50), torch.linspace(-10, 10, 50)
    for weight in (0.05, 0.4):
        assert increases(image_evidence(distances, torch.zeros(50), weight))
        assert increases(image_evidence(torch.full((50,), 0.1), logits, weight))
    assert image_evidence(distances, logits, 0.0).equal(distances.log())
    probabilities = torch.linspace(0.01, 0.99, 50)
    assert increases(map_evidence(distances, torch.full((50,), 0.5)))
    assert increases(map_evidence(torch.full((50,), 0.1), probabilities))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_values_stay_finite(dtype):
    distances = torch.tensor([0.0, 1e-12, 0.1, 2.0], dtype=dtype)
    for evidence in (
        image_evidence(distances, torch.tensor([-50.0, 0, 50, 1e4], dtype=dtype), 0.4),
        map_evidence(distances, torch.tensor([0.0, 1.0, 0.5, 1.0], dtype=dtype)),
    ):
        assert torch.isfinite(evidence).all()
        scores = to_score(evidence, -2.0)
        assert scores.dtype == dtype
        assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_a_zero_shot_map_has_a_bounded_share():
    """A map that is certain cannot outweigh any distance."""
    low, high = (map_evidence(torch.full((1,), 0.1), torch.full((1,), value)) for value in (0.0, 1.0))
    assert float(high - low) < math.log(1000)


def test_the_score_keeps_the_order_and_is_half_at_the_level():
    evidence = torch.linspace(-4, 2, 100)
    scores = to_score(evidence, -1.5)
    assert increases(scores)
    assert float(to_score(torch.tensor(-1.5), -1.5)) == 0.5
    assert float(to_score(torch.tensor(-1.0), -1.5)) > 0.5


def test_the_weight_decreases_with_the_number_of_references():
    logits = np.random.default_rng(0).normal(size=50)
    weights = [zero_shot_weight(count, logits) for count in (1, 2, 3, 4, 8, 16, 40, 1000)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] <= 0.4
    assert weights[-1] > 0


def test_the_weight_is_small_if_zero_shot_hardly_differs():
    generator = np.random.default_rng(0)
    for count in (2, 16, 200):
        flat, varied = (zero_shot_weight(count, generator.normal(scale=scale, size=count)) for scale in (1e-4, 1.0))
        assert 0 < flat < varied <= 0.4
    spreads = [zero_shot_weight(20, scale * np.linspace(-1, 1, 20)) for scale in (0.001, 0.01, 0.1, 0.3, 1, 10)]
    assert spreads == sorted(spreads)
    assert spreads[-1] == zero_shot_weight(20, 100 * np.linspace(-1, 1, 20))
    assert zero_shot_weight(20, np.linspace(-1, 1, 20) + 5) == pytest.approx(spreads[4])  # whatever the mean


def test_one_reference_has_the_prior_weight():
    assert zero_shot_weight(1, [3.0]) == zero_shot_weight(1, [-2.0])
    assert 0 < zero_shot_weight(1, [3.0]) <= 0.4


def test_the_level_is_above_the_references():
    values = np.random.default_rng(0).normal(size=200)
    level = evidence_level(values)
    assert np.mean(values < level) > 0.99
    assert evidence_level(values + 7) == pytest.approx(level + 7)
    assert evidence_level([1.0]) > 1.0
    assert evidence_level([1.0] * 5) == evidence_level([1.0])


def test_a_defect_among_the_references_hardly_moves_the_level():
    values = np.random.default_rng(0).normal(scale=0.3, size=20)
    assert evidence_level([*values, 50.0]) - evidence_level(values) < 0.3


@pytest.mark.parametrize("side", [1, 6, 10, 37])
def test_top_mean(side):
    maps = torch.rand(3, side, side)
    count = max(1, math.ceil(side * side / 100))
    expected = maps.flatten(1).sort(dim=1, descending=True).values[:, :count].mean(dim=1)
    torch.testing.assert_close(top_mean(maps), expected)
    assert torch.equal(top_mean(torch.full((1, side, side), 0.25)), torch.tensor([0.25]))


def test_position_offset_makes_typical_distances_equal():
    distances = torch.rand(6, 4, 4) * torch.linspace(0.1, 3, 16).view(4, 4)
    offset = position_offset(distances)
    typical = (distances * offset).log().mean(dim=0)
    torch.testing.assert_close(typical, typical.mean().expand(4, 4))
    assert abs(float(offset.log().mean())) < 1e-5
    assert torch.isfinite(position_offset(torch.zeros(4, 3, 3))).all()
