"""Events of the web app. Each handler returns the new values of the components that change, by name."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.bundled import example_photos
from ..models.vip2clip.arguments_vip2clip import label_names, threshold_pair
from ..reporting.csv_files import csv_text
from ..utils.extras import extra
from .downloads import predictions, write_detector, write_html, write_zip
from .drawing import draw_mask
from .good_photos import COMPARE, GoodPhotos, use_good_photos
from .results import PhotoInspector, PhotoResult
from .session import Session, SessionMemory
from .table import results_table
from .texts import SHOWN_REGIONS, describe_photo, describe_references, describe_status


with extra("app", "The web app"):
    import gradio as gr


# How long uploads and results are kept, and the maximum number of sessions.
KEPT_SECONDS, KEPT_SESSIONS = 3600, 100
EXPIRED = f"These results have expired: results are kept for {KEPT_SECONDS // 60} minutes. Add the photos again."
ALL_LAYERS = "all layers"
AUTOMATIC = "automatic"
Values = dict[str, Any]
Content = tuple[PhotoInspector, str, list[PhotoResult], list[tuple[str, str]], tuple[float, float]]


class Handlers:
    """
    Event handlers of the web app. They are named `on_...` and return the new component values by component name.

    Args:
        inspector ([`PhotoInspector`]): computes the results.
        model_name (`str`): name of the model, for the introduction and the download.
    """

    def __init__(self, inspector: PhotoInspector, model_name: str) -> None:
        self.inspector, self.model_name = inspector, model_name
        self.memory = SessionMemory()
        self._example: GoodPhotos | None = None
        self._copied: Path | None = None

    def configured(self, session: Session) -> PhotoInspector:
        """Return the inspector with the references and thresholds of a session."""
        return self.inspector.configured(session.references, session.decision)

    def thresholds(self, session: Session) -> tuple[float, float]:
        """Return image and pixel threshold of a session: those set by hand, else those of its settings."""
        return self.configured(session).thresholds if session.thresholds is None else session.thresholds

    # Uploads

    def on_files(
        self,
        paths: list[str] | None,
        session: Session,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> Values:
        """Analyse the uploads. Show the new photo with the largest score, or the one that was shown before."""
        paths = [str(path) for path in paths or []]
        count = min(len(paths), self.inspector.max_images)
        known = {result.path for result in session.results}
        shown = session.results[session.selected].path if session.results else None
        results, problems = self.configured(session).analyse(
            paths,
            session.results,
            lambda position, name: progress((position, count), desc=name, unit="photos"),
            session.references,
        )
        fresh = [index for index, result in enumerate(results) if result.path not in known]
        before = [index for index, result in enumerate(results) if result.path == shown]
        selected = max(fresh, key=lambda index: results[index].score) if fresh else next(iter(before), 0)
        session = replace(session, results=results, problems=problems, selected=selected)
        return self._show(session, layer)

    def on_camera(self, taken: str | None, paths: list[str] | None) -> Values:
        """Add a photo from the camera to the uploads."""
        added = [str(path) for path in paths or []]
        return {"files": [*added, str(taken)] if taken else added}

    def on_good(
        self,
        good: list[str] | None,
        use: str,
        rate: str,
        session: Session,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> Values:
        """Choose references and thresholds from the uploaded good photos. Without any, use those of the checkpoint."""
        paths = [str(path) for path in good or []]
        problems: list[tuple[str, str]] = []
        found: GoodPhotos | None = None
        if paths:
            progress(None, desc=f"Learning from {len(paths)} good photos")
            found, problems = use_good_photos(
                self.inspector, paths, use, None if rate == AUTOMATIC else float(rate.split()[0]) / 100
            )
        if found is None and paths:  # keep what was used before
            return {"note": self._note(session, problems)}
        references = "auto" if found is None else found.references
        session = replace(session, references=references, good=found)
        return self._with_settings(session, layer, progress, problems)

    def on_remove(
        self,
        session: Session,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> Values:
        """Compare without photos of good parts, also without those of the checkpoint."""
        session = replace(session, references=None, good=None)
        return {**self._with_settings(session, layer, progress), "good": None}

    def on_example(
        self,
        session: Session,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> Values:
        """Compare with the good example photos, and upload the example photos to check."""
        folder = self._example_folder()
        good = [str(path) for path in sorted((folder / "good").glob("*.jpg"))][: self.inspector.max_images]
        photos = [str(path) for path in sorted((folder / "test").glob("*.jpg"))][: self.inspector.max_images]
        if self._example is None:  # the same for everybody
            progress(None, desc=f"Learning from {len(good)} good photos")
            self._example, problems = use_good_photos(self.inspector, good)
            if self._example is None:
                return {"note": self._note(session, problems)}
        if [result.name for result in session.results] != [os.path.basename(path) for path in photos]:
            # The upload of the photos below starts their analysis.
            session = replace(session, results=[], problems=[], selected=0)
        session = replace(session, references=self._example.references, good=self._example)
        values = self._with_settings(session, layer, progress)
        return {**values, "good": good, "files": photos, "use": COMPARE, "rate": AUTOMATIC}

    def _example_folder(self) -> Path:
        """Copy the example photos to the upload folder: gradio serves no other files."""
        if self._copied is None or not self._copied.is_dir():
            folder = gr.utils.get_upload_folder()
            os.makedirs(folder, exist_ok=True)
            self._copied = Path(tempfile.mkdtemp(dir=folder)) / "toys"
            shutil.copytree(example_photos() / "toys", self._copied)
        return self._copied

    def _with_settings(
        self, session: Session, layer: str, progress: gr.Progress, problems: list[tuple[str, str]] | None = None
    ) -> Values:
        """Analyse the photos again with the new settings of the session."""
        session = replace(session, thresholds=None, forgotten=False)
        paths = [result.path for result in session.results]
        shown = self.on_files(paths, session, layer, progress) if paths else {"session": session}
        return {
            **shown,
            **self._sliders(session),
            "note": self._note(session, problems or ()),
            "save": gr.update(interactive=session.decision is not None),
            "detector": gr.update(visible=False, value=None),
        }

    def _note(self, session: Session, problems: Any = ()) -> str:
        detector = self.configured(session).detector
        return describe_references(detector, session.references, session.good, problems, session.forgotten)

    # Results

    def on_select(self, session: Session, layer: str, event: gr.EventData) -> Values:
        """Show the photo of the selected row."""
        number = event._data.get("number") if isinstance(event._data, dict) else None
        if not isinstance(number, int) or not 1 <= number <= len(session.results):
            return {"status": describe_status(session, problem=EXPIRED)}
        return self._show(replace(session, selected=number - 1), layer)

    def step(self, by: int) -> Callable[..., Values]:
        """
        Create the handler of the buttons "Previous" and "Next".

        Args:
            by (`int`): -1 or 1.

        Returns:
            `Callable`: the handler.
        """

        def on_step(session: Session, layer: str) -> Values:
            if not session.results:
                return {"status": describe_status(session, problem=EXPIRED)}
            order = self._order(session)
            selected = order[(order.index(session.selected) + by) % len(order)]
            return self._show(replace(session, selected=selected), layer)

        return on_step

    def _order(self, session: Session) -> list[int]:
        """Return the indices of the results, with the largest score first."""
        return sorted(range(len(session.results)), key=lambda index: (-session.results[index].score, index))

    def _show(self, session: Session, layer: str) -> Values:
        """Return the photo, the heatmap and what depends on the thresholds."""
        values: Values = {"session": session, "shown": gr.update(visible=bool(session.results))}
        values["start"] = gr.update(visible=not session.results and not session.problems)
        if session.forgotten:
            values["note"] = self._note(session)
        if not session.results:
            return {**values, "photo": None, "heatmap": None, **self._decided(session)}
        result = session.results[session.selected]
        try:
            photo = self.inspector.read(result.path, result.name)
            decided = self._decided(session, photo)
            return {**values, "photo": photo, "heatmap": self._heatmap(session, result, photo, layer), **decided}
        except (OSError, ValueError) as error:
            return {**values, "photo": None, "heatmap": None, "status": describe_status(session, problem=str(error))}

    def _heatmap(self, session: Session, result: PhotoResult, photo: Image.Image, layer: str) -> Image.Image:
        number = None if layer == ALL_LAYERS else int(layer.rpartition(" ")[2])
        return self.configured(session).heatmap(result, photo, number)

    def _decided(self, session: Session, photo: Image.Image | None = None) -> Values:
        """Return the values of the components that depend on the thresholds."""
        files = ("report", "csv", "pack")
        if not session.results:
            return {
                "status": describe_status(session), "table": "", "summary": "", "mask": None, "regions": None,
                "download": gr.update(visible=False), "steps": gr.update(visible=False),
                **{name: gr.update(interactive=False) for name in files},
            }  # fmt: skip
        inspector, thresholds = self.configured(session), self.thresholds(session)
        result = session.results[session.selected]
        photo = self.inspector.read(result.path, result.name) if photo is None else photo
        normal_label = label_names(inspector.detector.model.config.id2label)[0]
        decided = [inspector.decide(other, thresholds) for other in session.results]
        found, order = inspector.inspect(result, thresholds), self._order(session)
        moved = inspector.calibrated and thresholds != inspector.thresholds
        regions = [
            [*region["box"], region["area"], f"{region['mean_score']:.3f}", f"{region['peak_score']:.3f}"]
            for region in found["regions"][:SHOWN_REGIONS]
        ]
        position = (order.index(session.selected) + 1, len(order))
        return {
            "status": describe_status(session, sum(one["label"] != normal_label for one in decided)),
            "table": results_table(
                session.results, decided, session.problems, order, session.selected, normal_label
            ),
            "summary": describe_photo(result, found, normal_label, thresholds[0], position, moved),
            "mask": draw_mask(photo, found["mask"]),
            "regions": regions,
            "steps": gr.update(visible=len(order) > 1),
            # An earlier download was made with other thresholds.
            "download": gr.update(visible=False, value=None),
            **{name: gr.update(interactive=True) for name in files},
        }  # fmt: skip

    def on_thresholds(self, session: Session, image_threshold: float, pixel_threshold: float) -> Values:
        """Apply thresholds that were set by hand to the stored results."""
        try:
            pair = threshold_pair((image_threshold, pixel_threshold), (0.5, 0.5))
        except ValueError as error:
            return {"status": describe_status(session, problem=str(error))}
        return self._with_thresholds(replace(session, thresholds=pair))

    def on_reset(self, session: Session) -> Values:
        """Return to the thresholds of the good photos, or of the checkpoint."""
        session = replace(session, thresholds=None)
        return {**self._with_thresholds(session), **self._sliders(session)}

    def _with_thresholds(self, session: Session) -> Values:
        if not session.results:
            return {"session": session}
        try:
            return {"session": session, **self._decided(session)}
        except (OSError, ValueError) as error:
            return {"status": describe_status(session, problem=str(error))}

    def _sliders(self, session: Session) -> Values:
        image_threshold, pixel_threshold = self.thresholds(session)
        return {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}

    def on_layer(self, session: Session, layer: str) -> Values:
        """Draw the heatmap of another layer."""
        if not session.results:
            return {}
        result = session.results[session.selected]
        try:
            photo = self.inspector.read(result.path, result.name)
            return {"heatmap": self._heatmap(session, result, photo, layer)}
        except (OSError, ValueError) as error:
            return {"status": describe_status(session, problem=str(error))}

    # Downloads

    def on_csv(self, session: Session) -> Values:
        """Write the table as CSV and show its link."""

        def write(target: Path) -> None:
            found = predictions(*self._content(session))
            # Excel reads a file as UTF-8 only with a byte order mark.
            target.write_text(csv_text(found.rows), encoding="utf-8-sig")

        return self._offer(session, "vip2clip_results.csv", write)

    def on_report(self, session: Session) -> Values:
        """Write the report and show its link."""
        return self._offer(session, "vip2clip_report.html", lambda target: write_html(target, *self._content(session)))

    def _content(self, session: Session) -> Content:
        """Return what downloads are made of."""
        inspector, thresholds = self.configured(session), self.thresholds(session)
        return inspector, self.model_name, session.results, session.problems, thresholds

    def on_pack(self, session: Session) -> Values:
        """Write the ZIP file and show its link."""
        return self._offer(
            session,
            "vip2clip_results.zip",
            lambda target: write_zip(target, *self._content(session), good=session.good),
        )

    def on_save(self, session: Session) -> Values:
        """Write the detector of the session and show its link."""
        good = session.good
        if good is None:
            return {"note": self._note(session, [("detector", "There are no good photos any more. Add them again.")])}
        try:
            path = _write_download(
                "vip2clip_detector.zip",
                lambda target: write_detector(target, self.configured(session), self.model_name, good),
            )
        except (OSError, ValueError) as error:
            return {"note": self._note(session, [("detector", str(error))])}
        return {"detector": gr.update(value=path, visible=True)}

    def _offer(self, session: Session, name: str, write: Callable[[Path], None]) -> Values:
        if not session.results:
            return {"status": describe_status(session, problem=EXPIRED)}
        try:
            return {"download": gr.update(value=_write_download(name, write), visible=True)}
        except (OSError, ValueError) as error:
            return {"status": describe_status(session, problem=str(error))}


def _write_download(name: str, write: Callable[[Path], None]) -> str:
    """Write a file in a new folder in the upload folder, where gradio deletes expired files."""
    folder = gr.utils.get_upload_folder()
    os.makedirs(folder, exist_ok=True)
    target = Path(tempfile.mkdtemp(dir=folder)) / name
    try:
        write(target)
    except BaseException:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise
    return str(target)


__all__ = ["ALL_LAYERS", "AUTOMATIC", "EXPIRED", "KEPT_SECONDS", "KEPT_SESSIONS", "Handlers"]
