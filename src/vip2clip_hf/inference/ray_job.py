"""What the process that starts a prediction on Ray and its actors send to each other."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.extras import extra
from ..utils.remote import StoreError
from .earlier import RESULTS, STATE
from .images import Images


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa


# Column with the number of the chunk, and columns with why it could not be predicted.
CHUNK, POSITION, NAME, FAILURE, KIND = "chunk", "position", "name", "failure", "kind"
# Prefix of the columns that tell where the images are.
AT = "at "
# Numbers as they are computed: the table of the driver rounds them, as it does with its own.
RESULT = pa.schema(
    [
        (CHUNK, pa.int64()),
        (POSITION, pa.int64()),
        *((field.name, pa.float64() if field.type == pa.float32() else field.type) for field in RESULTS),
        *STATE,
        (FAILURE, pa.string()),
        (KIND, pa.string()),
    ]
)
# Errors that keep their type on the way to the driver.
KINDS: dict[str, type[Exception]] = {"ValueError": ValueError, "OSError": OSError, "StoreError": StoreError}


@dataclass
class Job:
    """
    What an actor needs besides its model.

    Args:
        images ([`Images`]): all images of the prediction.
        num_images (`int`): their number.
        arguments (`dict[str, Any]`): arguments of [`AnomalyDetectionPipeline`] without model and device.
        batch_size (`int`): number of images per batch.
        num_threads (`int`): number of threads that read images.
        threshold (`float` or `tuple`, *optional*): see [`predict_to_folder`].
        heatmaps, maps (`bool`): whether to write heatmaps and maps.
        folder (`pathlib.Path`): folder for them.
        max_pixels (`int`, *optional*): limit of Pillow.
    """

    images: Images
    num_images: int
    arguments: dict[str, Any]
    batch_size: int
    num_threads: int
    threshold: Any
    heatmaps: bool
    maps: bool
    folder: Path
    max_pixels: int | None


class Attempts:
    """
    Count how often each chunk was started. Runs in an actor of its own, which outlives those that predict.

    Args:
        most (`int`): number of attempts that are allowed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: Counter[int] = Counter()

    def start(self, chunk: int) -> int:
        """
        Count an attempt.

        Args:
            chunk (`int`): number of the chunk.

        Returns:
            `int`: number of attempts before this one; 0 while they are allowed.
        """
        self._counts[chunk] += 1
        return self._counts[chunk] - 1 if self._counts[chunk] > self.most else 0


def failure_of(result: "pa.Table") -> Exception | None:
    """
    Return why a chunk could not be predicted.

    Args:
        result (`pyarrow.Table`): result of a [`ChunkPredictor`].

    Returns:
        `Exception | None`: the error; None if the chunk is complete.
    """
    if not len(result) or result[FAILURE][0].as_py() is None:
        return None
    return KINDS[result[KIND][0].as_py()](result[FAILURE][0].as_py())


__all__ = [
    "AT", "CHUNK", "FAILURE", "KIND", "KINDS", "NAME", "POSITION", "RESULT", "Attempts", "Job", "failure_of",
]  # fmt: skip
