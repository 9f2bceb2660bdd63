"""The steps of WinCLIP, and its switches."""

import pytest
import torch

from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf.baselines import ClipForAnomalyDetection, WinClipForAnomalyDetection, WinClipReferences, winclip
from vip2clip_hf.baselines.prompts import ENSEMBLES
from vip2clip_hf.baselines.winclip_steps import association, harmonic_aggregation, harmonic_mean, window_indices


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return tiny_text_clip()


@pytest.fixture
def model(clip):
    return WinClipForAnomalyDetection.from_clip(clip, clip_tokenizer())


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(("grid", "scale"), [(4, 1), (4, 2), (5, 3), (6, 6)])
def test_harmonic_aggregation(grid, scale):
    windows = window_indices(grid, scale)
    scores = torch.rand(3, len(windows), dtype=torch.float64)
    scores[2, 0] = 0
    expected = torch.zeros(3, grid * grid, dtype=torch.float64)
    for patch in range(grid * grid):
        covering = scores[:, (windows == patch).any(dim=1)]
        harmonic = covering.shape[1] / (1 / covering).sum(dim=1)
        expected[:, patch] = harmonic
    torch.testing.assert_close(harmonic_aggregation(scores, grid, scale).flatten(1), expected)


def test_values_that_are_not_finite_are_not_hidden():
    scores = torch.full((1, 9), float("nan"))
    assert harmonic_aggregation(scores, 4, 2).isnan().all()


def test_harmonic_mean():
    maps = torch.tensor([[0.5, 0.0], [0.25, 0.5], [1.0, 0.5]])
    torch.testing.assert_close(harmonic_mean(maps), torch.tensor([3 / 7, 0.0]))


def test_association():
    known, embeds = torch.randn(2, 5, 8), torch.randn(3, 5, 8)
    cosines = torch.cosine_similarity(embeds[:, :, None], known.flatten(0, 1), dim=-1)
    torch.testing.assert_close(association(embeds, known), ((1 - cosines) / 2).amin(dim=-1))
    assert association(known, known).abs().max() < 1e-6


@torch.no_grad()
def test_windows_in_batches(model, images, monkeypatch):
    expected = model.encode_images(images)
    for tokens in (1, 7, 50):
        monkeypatch.setattr(winclip, "WINDOW_TOKENS", tokens)
        found = model.encode_images(images)
        for scale in (2, 3):
            torch.testing.assert_close(found.window_embeds[scale], expected.window_embeds[scale])


@torch.no_grad()
def test_references(model, images):
    good = model.encode_images(images)
    outputs = model(images, class_name="nut", references=good)
    assert outputs.reference_grid_maps.abs().max() < 1e-5  # its own references
    torch.testing.assert_close(outputs.scores, outputs.zero_shot_scores / 2, atol=1e-5, rtol=0)
    joined = WinClipReferences.join([model.encode_images(images[:1]), model.encode_images(images[1:])])
    assert len(joined) == 3
    torch.testing.assert_close(joined.patch_embeds, good.patch_embeds)
    one = WinClipReferences.join([model.encode_images(images[:1])])
    assert (model(images, references=one).scores[1:] > outputs.scores[1:]).all()
    assert model(images).reference_grid_maps is None


@torch.no_grad()
def test_references_that_are_refused(model, clip, images):
    other = WinClipForAnomalyDetection.from_clip(clip, clip_tokenizer(), scales=(2,)).encode_images(images)
    with pytest.raises(ValueError, match="Encode the references with encode_images of the same model"):
        model(images, references=other)
    good = model.encode_images(images)
    empty = WinClipReferences(good.image_embeds[:0], good.window_embeds, good.patch_embeds[:0])
    with pytest.raises(ValueError, match="The references contain 0 images; expected at least one"):
        model(images, references=empty)


@torch.no_grad()
def test_switches(clip, images):
    def score(**settings):
        return WinClipForAnomalyDetection.from_clip(clip, clip_tokenizer(), **settings)(images).scores

    default = score()
    for settings in ({"temperature": 0.01}, {"normalize_prompts": True}, {"prompt_ensemble": "winclip_complete"}):
        assert (score(**settings) - default).abs().max() > 1e-7, settings
    assert torch.equal(score(scales=(2,)), default)  # the image score uses no windows


def test_templates():
    published, complete = ENSEMBLES["winclip"].templates, ENSEMBLES["winclip_complete"].templates
    assert (len(published), len(set(published)), len(complete), len(set(complete))) == (21, 20, 22, 22)
    assert set(complete) - set(published) == {"a cropped photo of a {}.", "a jpeg corrupted photo of a {}."}
    assert set(published) <= set(complete)


def test_names_of_categories(clip):
    """WinCLIP uses the name verbatim, as its code. CLIP uses blanks."""
    names = {
        method: method.from_clip(clip, clip_tokenizer()).config.name_of_category("metal_nut")
        for method in (WinClipForAnomalyDetection, ClipForAnomalyDetection)
    }
    assert names == {WinClipForAnomalyDetection: "metal_nut", ClipForAnomalyDetection: "metal nut"}
