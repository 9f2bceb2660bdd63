"""Actor of Ray that holds the model and predicts one chunk per call."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.extras import extra
from ..utils.remote import StoreError
from .batches import Item, PredictionImages, collate_images
from .earlier import STATE
from .loop import BatchScorer
from .names import SomeNames, as_text
from .ray_job import AT, CHUNK, FAILURE, KIND, KINDS, NAME, POSITION, RESULT
from .single import as_row
from .writer import ImageWriter


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa


class ChunkPredictor:
    """
    Predict chunks with a model.

    Args:
        reference (`list` of one `ray.ObjectRef`): the model and the [`Job`].
        attempts (`ray.actor.ActorHandle`): handle of an [`Attempts`].
        device (`str`): device to use.
    """

    def __init__(self, reference: list[Any], attempts: Any, device: str) -> None:
        import ray

        self.attempts, self.get = attempts, ray.get
        model, self.job = ray.get(reference[0])
        Image.MAX_IMAGE_PIXELS = self.job.max_pixels
        detector = AnomalyDetectionPipeline(
            model=model.to(device), task="anomaly-detection", device=device, **self.job.arguments
        )
        self.scorer = BatchScorer(detector, self.job.threshold)
        self.pool = ThreadPoolExecutor(max(1, self.job.num_threads))
        self._checked = False

    def __call__(self, chunk: "pa.Table") -> "pa.Table":
        """
        Predict a chunk.

        Args:
            chunk (`pyarrow.Table`): one row per image to predict.

        Returns:
            `pyarrow.Table`: results and states in the same order. If it could not be predicted, one row with the
            reason.
        """
        number = chunk[CHUNK][0].as_py()
        try:
            if failed := self.get(self.attempts.start.remote(number)):
                first, last = (as_text(chunk[NAME][at].as_py()) for at in (0, -1))
                raise OSError(
                    f"The Ray worker died {failed} times while it predicted the images from {first!r} to {last!r}; "
                    "one of them may need too much memory or damage the process."
                )
            return self._predict(number, chunk)
        except (ValueError, OSError, StoreError) as error:
            kind = next((name for name, one in KINDS.items() if isinstance(error, one)), "OSError")
            return pa.Table.from_pylist([{CHUNK: number, FAILURE: str(error), KIND: kind}], schema=RESULT)

    def _predict(self, number: int, chunk: "pa.Table") -> "pa.Table":
        job = self.job
        if not self._checked:
            self._check_here()
        positions = chunk[POSITION].to_pylist()
        columns = [chunk[name].to_pylist() for name in chunk.column_names if name.startswith(AT)]
        locations = dict(zip(positions, zip(*columns))) if columns else {}
        names = SomeNames(dict(zip(positions, chunk[NAME].to_pylist())), locations)
        dataset = self.scorer.images(job.images, names)
        rows: dict[int, dict[str, Any]] = {}
        detector = self.scorer.detector
        with (
            torch.inference_mode(),
            ImageWriter(
                job.images, names, detector.image_processor, job.folder, job.heatmaps, job.maps,
                detector.reading_options(),
            ) as writer,
        ):  # fmt: skip
            for items in self._read(dataset, positions):
                found, batch, errors, states = collate_images(items)
                for position, reason, state in zip(found, errors, states):
                    rows[position] = {"error": reason, **state._asdict()}
                readable = [position for position, reason in zip(found, errors) if reason is None]
                if readable:
                    results = self.scorer(batch, [as_text(names[position]) for position in readable])
                    for position, result in zip(readable, results):
                        rows[position].update(as_row(result))
                        writer.add(position, result["anomaly_map"])
            for position, reason in writer.wait().items():
                kept = {name: rows[position][name] for name in STATE.names}
                rows[position] = {"error": reason, **kept}
        content = [{CHUNK: number, POSITION: position, **rows[position]} for position in positions]
        return pa.Table.from_pylist(content, schema=RESULT)

    def _read(self, dataset: PredictionImages, positions: Sequence[int]) -> Iterator[list[Item]]:
        """Batches of images. The next two are read while the model computes."""
        size = self.job.batch_size
        waiting: deque[list[Future[Item]]] = deque()
        for start in range(0, len(positions), size):
            waiting.append([self.pool.submit(dataset.__getitem__, one) for one in positions[start : start + size]])
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]

    def _check_here(self) -> None:
        job = self.job
        if not job.images.is_here(job.num_images):
            raise OSError(
                f"The images of {next(iter(job.images.description.values()))!r} are not visible to a Ray worker; "
                "expected a source in a store, or a folder that all machines share."
            )
        if (job.heatmaps or job.maps) and not job.folder.parent.is_dir():
            raise OSError(
                f"{str(job.folder.parent)!r} is not visible to a Ray worker, so heatmaps and maps cannot be written; "
                "expected an output folder that all machines share."
            )
        self._checked = True


__all__ = ["ChunkPredictor"]
