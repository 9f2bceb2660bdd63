"""Distances to the nearest reference patch: exact, in bounded memory, and covering subsets."""

import subprocess
import sys

import pytest
import torch

from helpers.references import brute_distances, unit_features
from vip2clip_hf.models.vip2clip import reference_distances_vip2clip as distances, reference_search_vip2clip as search
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import (
    covering_rows,
    nearest_distances,
    self_distances,
    subspace,
)
from vip2clip_hf.models.vip2clip.reference_search_vip2clip import PatchSearch, ReferenceRows, left_out_distances


@pytest.mark.parametrize("block", [1, 7, 50, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nearest_distances_are_exact(monkeypatch, block, dtype):
    monkeypatch.setattr(distances, "CPU_BLOCK", block)
    monkeypatch.setattr(distances, "QUERIES", 16)
    queries = unit_features(3, 41, 24, seed=1)
    rows = torch.nn.functional.normalize(unit_features(3, 57, 24, seed=2).to(dtype), dim=-1)
    found = nearest_distances(queries, rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), brute_distances(queries, rows), atol=1e-6, rtol=0)
    queries = queries.double()
    double = nearest_distances(queries, rows)
    torch.testing.assert_close(double, brute_distances(queries, rows), atol=1e-14, rtol=0)


def test_no_matrix_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr(distances, "CPU_BLOCK", 1000)
    monkeypatch.setattr(distances, "QUERIES", 50)
    sizes = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "mm" in function.__name__:
                sizes.append(result.numel())
            return result

    with Recorded():
        nearest_distances(unit_features(2, 333, 8), unit_features(2, 777, 8))
    assert 500 < max(sizes) <= 1000


@pytest.mark.parametrize("spread", [1e-4, 0.3, 30.0])
@pytest.mark.parametrize("block", [64 * 3, 1 << 20])
def test_search_equals_comparing_all_rows(monkeypatch, spread, block):
    monkeypatch.setattr(search, "BLOCK", block)
    monkeypatch.setattr(search, "QUERIES", 50)
    rows = unit_features(2, 1501, 64, seed=1, spread=spread)
    patches = PatchSearch(rows)
    assert all(0 < count < 64 for count in patches.dimensions)
    # Rows themselves, patches like them, and patches unlike them.
    others = torch.nn.functional.normalize(torch.randn(2, 40, 64), dim=-1)
    queries = torch.cat([rows[:, 5:20], unit_features(2, 60, 64, seed=2, spread=spread), others, -rows[:, :3]], dim=1)
    torch.testing.assert_close(patches.nearest(queries).double(), brute_distances(queries, rows), atol=1e-6, rtol=0)
    kept = torch.cat([rows[:, :100], rows[:, 777:]], dim=1)
    found = patches.nearest(queries, skip=(100, 777))
    torch.testing.assert_close(found.double(), brute_distances(queries, kept), atol=1e-6, rtol=0)
    assert patches.nearest(queries[:, :0]).shape == (2, 0)


def test_search_compares_few_rows_in_full(monkeypatch):
    rows, queries = unit_features(1, 4000, 64, seed=1), unit_features(1, 100, 64, seed=2)
    patches, sizes = PatchSearch(rows), []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "index_select" in str(function) and args[0].shape[0] == 4000:
                sizes.append(result.shape[0])
            return result

    with Recorded():
        patches.nearest(queries)
    assert 100 <= sum(sizes) < 0.01 * 100 * 4000


def test_search_reports_nan_and_finds_identical_rows():
    rows = torch.nn.functional.normalize(torch.ones(1, 1100, 16), dim=-1)
    patches = PatchSearch(rows)
    assert float(patches.nearest(rows[:, :3]).max()) < 1e-6
    queries = unit_features(1, 5, 16)
    queries[0, 2] = torch.nan
    assert torch.isnan(patches.nearest(queries)).tolist() == [[False, False, True, False, False]]
    assert torch.isnan(nearest_distances(queries, rows)).tolist() == [[False, False, True, False, False]]


def test_reference_rows_use_the_search_only_where_it_can_be_used(monkeypatch):
    features = unit_features(2, 1300, 32, seed=1).half()
    rows = ReferenceRows(features, torch.device("cpu"), torch.nn.Identity())
    embeds = unit_features(3, 10, 32, seed=2)[None]
    expected = brute_distances(embeds[0, :2], features).mean(dim=0)
    calls = []
    nearest = PatchSearch.nearest
    monkeypatch.setattr(PatchSearch, "nearest", lambda self, *args: calls.append(1) or nearest(self, *args))
    torch.testing.assert_close(rows.distances(embeds)[0].double(), expected, atol=1e-6, rtol=0)
    assert len(calls) == 1
    with_gradient = embeds.clone().requires_grad_()
    found = rows.distances(with_gradient)
    torch.testing.assert_close(found[0].detach().double(), expected, atol=1e-6, rtol=0)
    found.sum().backward()
    assert with_gradient.grad[0, :2].abs().sum() > 0
    torch.testing.assert_close(rows.distances(embeds.double())[0], expected, atol=1e-7, rtol=0)
    exported = torch.export.export(_Compare(rows), (embeds,))
    torch.testing.assert_close(exported.module()(embeds)[0].double(), expected, atol=1e-6, rtol=0)
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rows.distances(embeds)[0].double(), expected, atol=1e-6, rtol=0)


class _Compare(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, embeds):
        return self.rows.distances(embeds)


def test_large_features_stay_in_half_precision(monkeypatch):
    monkeypatch.setattr(search, "MAX_FLOAT32_VALUES", 100)
    features, projection = unit_features(2, 1300, 32, seed=1).half(), torch.nn.Linear(8, 32, bias=False)
    rows = ReferenceRows(features, torch.device("cpu"), projection)
    assert rows.rows.dtype == torch.float16
    assert rows.rows.shape == features.shape
    embeds = unit_features(2, 10, 32, seed=2)[None]
    expected = brute_distances(embeds[0], features).mean(dim=0)
    torch.testing.assert_close(rows.distances(embeds)[0].double(), expected, atol=1e-6, rtol=0)


def test_the_subspace_of_a_narrow_tower_keeps_cosines():
    projection = torch.nn.Linear(12, 40, bias=False)
    basis = subspace(projection)
    assert basis.shape == (40, 12)
    features = torch.nn.functional.normalize(projection(torch.randn(50, 12)), dim=-1)
    inside = features @ basis
    torch.testing.assert_close(inside @ inside.mT, features @ features.mT, atol=1e-6, rtol=0)
    rows = ReferenceRows(features[None].detach().half(), torch.device("cpu"), projection)
    assert rows.rows.shape == (1, 50, 12)
    queries = projection(torch.randn(9, 12)).detach()[None, None]
    expected = brute_distances(torch.nn.functional.normalize(queries[0], dim=-1), features[None].half())[0]
    torch.testing.assert_close(rows.distances(queries)[0].double(), expected, atol=1e-6, rtol=0)
    assert subspace(torch.nn.Linear(40, 40, bias=False)) is None
    assert subspace(torch.nn.Linear(12, 40, bias=False, device="meta")) is None
    assert subspace(torch.nn.Identity()) is None


def test_distances_in_a_photo_leave_out_adjacent_patches():
    features = unit_features(2, 16, 8)
    found = self_distances(features, 4)
    for layer in range(2):
        for y in range(4):
            for x in range(4):
                far = [row for row in range(16) if max(abs(row // 4 - y), abs(row % 4 - x)) > 1]
                expected = 1 - (features[layer, 4 * y + x] @ features[layer, far].T).max()
                assert abs(float(found[layer, 4 * y + x] - expected)) < 1e-6
    assert torch.isfinite(self_distances(unit_features(1, 4, 8), 2)).all()
    assert float(self_distances(unit_features(1, 1, 8), 1)) == 2.0


@pytest.mark.parametrize("least", [1, 1 << 30])
def test_left_out_distances_skip_the_own_photo(monkeypatch, least):
    monkeypatch.setattr(search, "LEAST_ROWS", least)
    features, row_photo = unit_features(2, 36, 16), torch.arange(36, dtype=torch.int32) // 9
    views = features.unflatten(1, (4, 9)).transpose(0, 1)
    found = left_out_distances(views, torch.arange(4, dtype=torch.int32), features, row_photo)
    for number in range(4):
        others = features[:, row_photo != number]
        expected = brute_distances(views[number], others).mean(dim=0).view(3, 3)
        torch.testing.assert_close(found[number].double(), expected, atol=1e-6, rtol=0)
    alone = left_out_distances(views[:1], torch.zeros(1, dtype=torch.int32), features[:, :9], row_photo[:9])
    torch.testing.assert_close(alone[0], self_distances(views[0], 3).mean(dim=0).view(3, 3))


# Covering subsets


def radius(features: torch.Tensor, chosen: torch.Tensor) -> float:
    """Largest distance of a row to the nearest chosen row, over all layers together."""
    joined = features.transpose(0, 1).flatten(1)
    return float(torch.cdist(joined, joined[chosen]).amin(dim=1).max())


@pytest.mark.parametrize(("total", "count"), [(2000, 200), (3000, 1200)])
def test_a_subset_covers_better_than_a_random_one(total, count):
    features = unit_features(2, total, 32, spread=1.0)
    features[:, :20] = unit_features(2, 20, 32, seed=5, spread=3.0)  # few unusual patches
    chosen = covering_rows(features, count)
    assert chosen.shape == (count,)
    assert bool((chosen.diff() > 0).all())
    assert torch.equal(chosen, covering_rows(features, count))
    random = [radius(features, torch.randperm(total)[:count]) for _ in range(5)]
    assert radius(features, chosen) < min(random)


def test_a_subset_does_not_depend_on_blocks(monkeypatch):
    features = unit_features(2, 500, 32)
    expected = covering_rows(features, 100)
    monkeypatch.setattr(distances, "COVERING_BLOCK", 17)
    assert torch.equal(covering_rows(features, 100), expected)
    assert covering_rows(features, 500).tolist() == list(range(500))
    assert covering_rows(features, 1).shape == (1,)
    same = torch.ones(1, 40, 8) / 8**0.5
    assert len(set(covering_rows(same, 10).tolist())) == 10


MEASURE = """
import sys, torch
sys.path[:0] = {paths!r}
from benchmarks.memory import ProcessMemory
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import nearest_distances, covering_rows
from vip2clip_hf.models.vip2clip.reference_search_vip2clip import PatchSearch
rows = torch.nn.functional.normalize(torch.randn(1, 60_000, 64), dim=-1)
queries = torch.nn.functional.normalize(torch.randn(1, 5_000, 64), dim=-1)
patches = PatchSearch(rows)
memory = ProcessMemory()
nearest_distances(queries, rows)
patches.nearest(queries[:, :600])
covering_rows(rows[:, :20_000], 2_000)
print(memory.peak() / 2**20)
"""


@pytest.mark.slow
def test_memory_is_bounded():
    root = __file__.rsplit("tests", 1)[0]
    code = MEASURE.format(paths=[root, f"{root}src"])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # All pairs at once would take 1,144 MB.
    assert float(found.stdout) < 100
