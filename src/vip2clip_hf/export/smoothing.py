"""Prepare linear layers for 8-bit integers: move outliers from their inputs to their weights.

Some channels of the inputs of a block have much larger values than the others, and would determine the step of all of
them. Dividing a channel by a factor, and multiplying the weights of this channel by it, does not change the result of
the layer (SmoothQuant, arXiv:2211.10438). The factor is folded into the layer norm before the layers.

Some layers have a few inputs that are much larger than all others (massive activations). No step fits both, so these
layers remain in float32.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..models.vip2clip.pipeline_steps_vip2clip import TILES_AT_ONCE


# Part of the range of a channel that is moved to the weights, as an exponent.
ALPHA = 0.5
LEAST = 1e-5
# Largest value divided by the 99.9th percentile, which is estimated from one in several values.
MASSIVE, SPARSE = 20, 13


def smooth_layers(path: Path, layers: Iterable[str], values: np.ndarray) -> int:
    """
    Change a graph so that the channels of the inputs of its linear layers have similar ranges.

    Args:
        path (`pathlib.Path`): the graph. It is replaced.
        layers (`Iterable[str]`): names of the products of values and a weight.
        values (`np.ndarray` of shape `(num_images, 3, image_size, image_size)`): photos to measure the ranges on.

    Returns:
        `int`: number of layer norms that were changed: those before linear layers in `layers` only.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path)
    weights = {weight.name: weight for weight in graph.graph.initializer}
    groups = _groups(graph.graph, set(layers), weights)
    if not groups:
        return 0
    largest: dict[str, np.ndarray] = {}
    for name, array in _values(graph, list(groups), values):
        top = np.abs(array).max(axis=tuple(range(array.ndim - 1)))
        largest[name] = np.maximum(largest.get(name, top), top)
    for name, (norm, products) in groups.items():
        arrays = {product.input[1]: numpy_helper.to_array(weights[product.input[1]]) for product in products}
        inside = np.maximum(np.max([np.abs(array).max(axis=1) for array in arrays.values()], axis=0), LEAST)
        factor = np.maximum(largest[name], LEAST) ** ALPHA / inside ** (1 - ALPHA)
        factor = np.maximum(factor, LEAST).astype(np.float32)
        changed = {key: array * factor[:, None] for key, array in arrays.items()}
        for key in norm.input[1:3]:  # scale and bias
            changed[key] = numpy_helper.to_array(weights[key]) / factor
        for key, array in changed.items():
            weights[key].CopyFrom(numpy_helper.from_array(array.astype(np.float32), key))
    onnx.save(graph, path)
    return len(groups)


def _groups(graph: Any, layers: set[str], weights: dict[str, Any]) -> dict[str, tuple[Any, list[Any]]]:
    """Layer norms of which all users are in `layers`, by the name of their output, with these users. No weight may
    have another user."""
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = {}
    for norm in graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) != 3:
            continue
        products = users.get(norm.output[0], [])
        if not products or any(product.name not in layers for product in products):
            continue
        own = [*norm.input[1:3], *(product.input[1] for product in products)]
        if all(name in weights and len(users[name]) == 1 for name in own):
            found[norm.output[0]] = (norm, products)
    return found


def layers_with_massive_inputs(path: Path, layers: Iterable[str], values: np.ndarray) -> list[str]:
    """
    Find the linear layers with a few inputs that are much larger than all others.

    Args:
        path (`pathlib.Path`): the graph.
        layers (`Iterable[str]`): names of the products of values and a weight.
        values (`np.ndarray` of shape `(num_images, 3, image_size, image_size)`): photos.

    Returns:
        `list[str]`: names of the layers of which the largest input is more than 20 times the 99.9th percentile.
    """
    import onnx

    graph = onnx.load(path)
    chosen = set(layers)
    inputs = {node.name: node.input[0] for node in graph.graph.node if node.name in chosen}
    found: set[str] = set()
    for name, array in _values(graph, list(dict.fromkeys(inputs.values())), values):
        sizes = np.abs(array).ravel()
        if sizes.max() > MASSIVE * max(LEAST, float(np.percentile(sizes[::SPARSE], 99.9))):
            found.add(name)
    return [layer for layer, name in inputs.items() if name in found]


def _values(graph: Any, names: list[str], values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Compute some values of the graph, batch by batch."""
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for start in range(0, len(values), TILES_AT_ONCE):
        batch = np.ascontiguousarray(values[start : start + TILES_AT_ONCE])
        yield from zip(names, session.run(names, {"pixel_values": batch}))


__all__ = ["layers_with_massive_inputs", "smooth_layers"]
