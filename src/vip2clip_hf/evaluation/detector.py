"""The seam between methods and the harness: what evaluation, tables, sheets and measurements need of a detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image


@runtime_checkable
class Detector(Protocol):
    """
    A method that detects anomalies. Any object with these two attributes and two methods is one; no base class is
    needed.

    Attributes:
        name (`str`): name of the method in tables.
        image_size (`int`): side of the anomaly maps in pixels. Masks are resized to it and compared with the maps.

    Example:

    ```python
    >>> class Brightness:
    ...     name, image_size = "brightness", 64
    ...
    ...     def prepare(self, images):
    ...         small = [image.convert("L").resize((64, 64)) for image in images]
    ...         return torch.stack([torch.tensor(np.asarray(image) / 255) for image in small])
    ...
    ...     def score(self, batch):
    ...         return batch.flatten(1).amax(dim=1), batch

    >>> evaluate_detector(Brightness(), dataset)["mean"]["image_auroc"]
    ```
    """

    name: str
    image_size: int

    def prepare(self, images: Sequence["Image.Image"]) -> Any:
        """
        Turn photos into the inputs of a batch. With data loading workers, it runs in another process.

        Args:
            images (`Sequence[PIL.Image.Image]`): upright 8-bit photos of any size, in mode RGB.

        Returns:
            Any picklable object, such as a tensor on the CPU.
        """
        ...

    def score(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Score a batch. The harness turns off gradients.

        Args:
            batch: result of `prepare`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: image scores of shape `(batch_size,)`, and anomaly maps of
            shape `(batch_size, image_size, image_size)`, or `None` if the method has no maps. Finite numbers of any
            range, on any device; higher is more anomalous.
        """
        ...


@runtime_checkable
class TrainableDetector(Detector, Protocol):
    """A [`Detector`] that learns from a dataset."""

    def train(self, dataset: "Dataset", *, seed: int, folder: Path) -> None:
        """
        Fit the method. The same dataset and seed lead to the same result.

        Args:
            dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].
            seed (`int`): seed of all random numbers.
            folder (`pathlib.Path`): folder for checkpoints and caches. It exists.
        """
        ...


def check_detector(detector: Any, trainable: bool = False) -> None:
    """
    Check that an object is a [`Detector`].

    Args:
        detector: the object.
        trainable (`bool`, defaults to `False`): whether it must be a [`TrainableDetector`].

    Raises:
        ValueError: if an attribute or a method is missing or has another type. The message names it.
    """
    found = type(detector).__name__
    expected = "name, image_size, prepare(images) and score(batch)"
    if trainable:
        expected = "name, image_size, prepare(images), score(batch) and train(dataset, seed=, folder=)"
    if isinstance(detector, type):
        raise ValueError(f"The detector is the class {detector.__name__}; expected an object, {detector.__name__}().")
    for name in ("name", "image_size"):
        if not hasattr(detector, name):
            raise ValueError(f"The detector, a {found}, has no attribute {name}; expected {expected}.")
    for name in ("prepare", "score", *(("train",) if trainable else ())):
        if not callable(getattr(detector, name, None)):
            raise ValueError(f"The detector, a {found}, has no method {name}; expected {expected}.")
    if not isinstance(detector.name, str) or not detector.name:
        raise ValueError(f"name of the detector, a {found}, is {detector.name!r}; expected a text that is not empty.")
    size = detector.image_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
            f"image_size of the detector {detector.name!r} is {size!r}; expected an integer of at least 1."
        )


def check_detectors(detector: Any, categories: Sequence[str]) -> dict[str, Detector]:
    """
    Find the detector of every category.

    Args:
        detector ([`Detector`] or `Mapping[str, Detector]`): one detector, or one per category. If one detector has a
            method `for_category(name)`, it returns the detector of each category.
        categories (`Sequence[str]`): names of the categories.

    Returns:
        `dict[str, Detector]`: detector by category.

    Raises:
        ValueError: if one is not a [`Detector`], a category has none, or their maps differ in size.
    """
    names = list(dict.fromkeys(categories))
    if not isinstance(detector, Mapping):
        create = getattr(detector, "for_category", None)
        detector = {name: create(name) for name in names} if callable(create) else dict.fromkeys(names, detector)
    if missing := [name for name in names if name not in detector]:
        raise ValueError(
            f"There is no detector of the category {missing[0]!r}; expected one detector for each of {len(names)} "
            "categories."
        )
    found = {name: detector[name] for name in names}
    for one in {id(one): one for one in found.values()}.values():
        check_detector(one)
    sizes = sorted({one.image_size for one in found.values()})
    if len(sizes) > 1:
        raise ValueError(
            f"image_size of the detectors is {' and '.join(map(str, sizes))}; expected one size for all categories."
        )
    return found


def check_output(detector: Detector, output: Any, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Check the result of `score`: its types and shapes. [`AnomalyMetrics`] checks that the values are finite.

    Args:
        detector ([`Detector`]): the detector.
        output: result of its `score`.
        count (`int`): number of images of the batch.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: scores and maps, without gradients.

    Raises:
        ValueError: if the output is not a pair of scores and maps, a part is not a tensor of numbers, or has another
            shape.
    """
    what = f"score of the detector {detector.name!r} returns"
    if not isinstance(output, (tuple, list)) or len(output) != 2:
        found = f"{len(output)} values" if isinstance(output, (tuple, list)) else f"a {type(output).__name__}"
        raise ValueError(f"{what} {found}; expected scores and maps, or scores and None.")
    size = detector.image_size
    checked: list[Any] = []
    for name, values, shape in (("scores", output[0], (count,)), ("maps", output[1], (count, size, size))):
        if values is None and name == "maps":
            checked.append(None)
            continue
        if not isinstance(values, torch.Tensor) or values.is_complex():
            raise ValueError(f"{what} {name} of type {type(values).__name__}; expected a tensor of real numbers.")
        if tuple(values.shape) != shape:
            raise ValueError(
                f"{what} {name} of shape {tuple(values.shape)}; expected {shape}"
                f"{', one score per image' if name == 'scores' else ', one map per image with the side image_size'}."
            )
        checked.append(values.detach())
    return checked[0], checked[1]


__all__ = ["Detector", "TrainableDetector", "check_detector", "check_detectors", "check_output"]
