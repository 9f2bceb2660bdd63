import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps


@pytest.mark.parametrize("size", [518, 7, 5, 1, (40, 93), (3, 11)])
def test_resize_equals_bilinear_interpolation(size):
    maps = torch.rand(2, 3, 7, 9)
    shape = (size, size) if isinstance(size, int) else size
    expected = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_maps(maps, size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [8.0, 4, 0.6, 0.1])
@pytest.mark.parametrize("size", [518, (60, 200), 20])
def test_smoothing_equals_scipy(size, sigma):
    """Includes kernels (radius 4 sigma) longer than the map, which are reflected more than once."""
    maps = torch.rand(2, 37, 37)
    resized = resize_maps(maps, size).numpy()
    expected = np.stack([gaussian_filter(one, sigma=sigma) for one in resized])
    assert np.abs(resize_maps(maps, size, sigma).numpy() - expected).max() < 1e-5


def test_smoothing_without_resize_in_float64():
    maps = torch.rand(1, 30, 50, dtype=torch.float64)
    expected = gaussian_filter(maps[0].numpy(), sigma=3.0)
    assert np.abs(resize_maps(maps, (30, 50), 3.0)[0].numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
def test_integers_become_floats(dtype):
    maps = (torch.rand(8, 8) > 0.5).to(dtype)
    assert torch.equal(resize_maps(maps, 20, 1.0), resize_maps(maps.float(), 20, 1.0))


def test_autocast_does_not_lower_the_precision():
    maps = torch.rand(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = resize_maps(maps, 31, 1.5)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, resize_maps(maps, 31, 1.5))


def test_constant_and_range_are_kept():
    assert torch.allclose(resize_maps(torch.full((5, 5), 0.3), 64, 5.0), torch.tensor(0.3), atol=1e-6)
    maps = resize_maps((torch.rand(4, 9, 9) > 0.5).float(), 100, 3.0)
    assert maps.min() > -1e-6
    assert maps.max() < 1 + 1e-6


def test_gradient_after_inference_mode():
    """Matrices created in inference mode must not be cached as inference tensors."""
    with torch.inference_mode():
        resize_maps(torch.rand(6, 6), 31, 1.5)
    maps = torch.rand(6, 6, requires_grad=True)
    resize_maps(maps, 31, 1.5).sum().backward()
    assert maps.grad is not None


class Twice(torch.nn.Module):
    """Without and with smoothing in one graph, as in training."""

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return resize_maps(maps, (20, 11)), resize_maps(maps, 20, 2.0)


@pytest.mark.parametrize("strict", [False, True])
def test_matrices_are_constants_of_an_exported_graph(strict):
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(Twice(), (torch.rand(3, 6, 6),), dynamic_shapes=shapes, strict=strict)
    operations = {str(node.target) for part in program.graph_module.modules() for node in part.graph.nodes}
    assert not {name for name in operations if any(word in name for word in ("arange", "exp", "abs"))}
    maps = torch.rand(5, 6, 6)
    torch.testing.assert_close(program.module()(maps), Twice()(maps), rtol=0, atol=0)


@pytest.mark.slow
def test_matrices_in_a_compiled_graph():
    torch._dynamo.reset()
    compiled = torch.compile(Twice(), fullgraph=True, backend="aot_eager")
    for side in (6, 7, 9):  # from the second call on, sizes are symbolic
        maps = torch.rand(2, side, side)
        torch.testing.assert_close(compiled(maps), Twice()(maps), rtol=0, atol=0)
    with torch.inference_mode():
        compiled(maps)
    maps.requires_grad_()
    compiled(maps)[1].sum().backward()
    assert maps.grad is not None
