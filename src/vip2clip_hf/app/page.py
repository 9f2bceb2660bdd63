"""Layout and events of the web app. [`vip2clip_hf.app.results`] computes the results."""

import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..models.vip2clip.arguments_vip2clip import label_names
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.extras import extra
from .drawing import draw_mask
from .references import read_references, references_note
from .results import PhotoInspector, PhotoResult
from .texts import SHOWN_REGIONS, describe_photo, describe_status as _status, introduction


with extra("app", "The web app"):
    import gradio as gr
    import scipy  # noqa: F401 - used later to find regions; fail now if it is missing


# How long uploads and results are kept, and the maximum number of sessions.
KEPT_SECONDS, KEPT_SESSIONS = 3600, 100
_EXPIRED = f"These results have expired: results are kept for {KEPT_SECONDS // 60} minutes. Add the photos again."
ALL_LAYERS = "all layers"
# System fonts: the page must not load anything from other servers.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1400px !important; margin: auto; width: 100%; }
#summary { font-size: 1.15rem; }
#summary .anomalous, #summary .normal { border-radius: 6px; color: white; font-weight: 600; padding: 2px 10px; }
#summary .anomalous { background: #b3261e; }
#summary .normal { background: #2e7d32; }
#status ul { margin: 0.3rem 0 0 1.2rem; list-style: disc; }
#status .problem { border-left: 4px solid #b3261e; padding: 2px 0 2px 10px; }
"""


@dataclass
class Session:
    """
    State of one visitor's session.

    Args:
        results (`list[PhotoResult]`): one result per photo, in upload order.
        problems (`list[tuple[str, str]]`): name and error of each upload without a result.
        selected (`int`, defaults to 0): index of the displayed photo in `results`.
        references ([`ReferenceBank`], *optional*, defaults to `"auto"`): photos of good parts to compare with, `None`,
            or `"auto"` for those of the checkpoint.
    """

    results: list[PhotoResult] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    selected: int = 0
    references: ReferenceBank | str | None = "auto"


class Page:
    """
    Layout and event handlers of the web app. Handlers are named `on_...` and return the new component values.

    Args:
        inspector ([`PhotoInspector`]): computes the results.
        model_name (`str`): name of the model, for the introduction and the download.
    """

    def __init__(self, inspector: PhotoInspector, model_name: str) -> None:
        self.inspector, self.model_name = inspector, model_name

    def build(self, bundled: bool) -> gr.Blocks:
        """
        Build the page.

        Args:
            bundled (`bool`): whether the model is the bundled checkpoint; adds a note on larger checkpoints.

        Returns:
            `gradio.Blocks`: the page, ready to be launched or mounted.
        """
        inspector = self.inspector
        image_threshold, pixel_threshold = inspector.thresholds
        with gr.Blocks(
            title="vip2clip", analytics_enabled=False, fill_width=True, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.HTML(introduction(self.model_name, bundled), elem_id="introduction")
            session = gr.State(Session(), time_to_live=KEPT_SECONDS)
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=340):
                    files = gr.File(
                        label=f"Photos (up to {inspector.max_images}, {inspector.max_file_size:g} MB each)",
                        file_count="multiple",
                        height=220,
                        elem_id="files",
                    )
                    good = gr.File(
                        label="Good photos to compare with (optional)", file_count="multiple", height=120,
                        elem_id="good",
                    )  # fmt: skip
                    note = gr.HTML(references_note(inspector.detector, "auto"), elem_id="references")
                    remove = gr.Button("Compare without good photos", size="sm", elem_id="remove")
                    with gr.Group():
                        image_slider = gr.Slider(
                            0, 1, image_threshold, step=0.001, label="Image threshold",
                            info="A photo is anomalous if its score is greater.", elem_id="image_threshold",
                        )  # fmt: skip
                        pixel_slider = gr.Slider(
                            0, 1, pixel_threshold, step=0.001, label="Pixel threshold",
                            info="A pixel is marked if its value in the anomaly map is greater.",
                            elem_id="pixel_threshold",
                        )  # fmt: skip
                        layer = gr.Dropdown(
                            [ALL_LAYERS, *(f"layer {index}" for index in inspector.layers)],
                            value=ALL_LAYERS, label="Heatmap layer",
                            info="Score, decision and mask always use all layers. A single layer is shown without "
                            "comparison to good photos.",
                            elem_id="layer",
                        )  # fmt: skip
                    reset = gr.Button("Reset thresholds", size="sm", elem_id="reset")
                    pack = gr.Button("Prepare download", size="sm", elem_id="pack", interactive=False)
                    download = gr.File(
                        label="Results (JSON, CSV, heatmaps, masks)", visible=False, interactive=False, height=90,
                        elem_id="download",
                    )  # fmt: skip
                with gr.Column(scale=3):
                    status = gr.HTML(_status(Session()), elem_id="status")
                    with gr.Column(visible=False) as shown:
                        table = gr.Dataframe(
                            headers=self._headers(), interactive=False, max_height=240, elem_id="results",
                            label="Results (select a row to view the photo)", show_label=True, type="array",
                        )  # fmt: skip
                        summary = gr.HTML(elem_id="summary")
                        with gr.Row():
                            pictures = [
                                gr.Image(
                                    label=label, format="jpeg", interactive=False, buttons=["download", "fullscreen"],
                                    min_width=220, height=380, elem_id=label.lower(),
                                )
                                for label in ("Photo", "Heatmap", "Mask")
                            ]  # fmt: skip
                        regions = gr.Dataframe(
                            headers=["left", "top", "right", "bottom", "area", "mean", "peak"], interactive=False,
                            label="Regions of the mask (in pixels)", show_label=True, max_height=240,
                            elem_id="regions", type="array",
                        )  # fmt: skip
            photo_view, heatmap_view, mask_view = pictures
            thresholds = [image_slider, pixel_slider]
            decided = [status, table, summary, mask_view, regions, pack, download]
            files.change(
                self.on_files,
                [files, session, *thresholds, layer],
                [session, shown, photo_view, heatmap_view, *decided],
                show_progress_on=status,
                api_visibility="private",
            )
            computed = [session, shown, photo_view, heatmap_view, *decided]
            gr.on(
                # Not `change`, which the button below also triggers.
                [good.upload, good.delete, good.clear],
                self.on_references,
                [good, files, session, *thresholds, layer],
                [note, *computed],
                show_progress_on=status,
                api_visibility="private",
            )
            remove.click(
                self.on_remove,
                [files, session, *thresholds, layer],
                [good, note, *computed],
                show_progress_on=status,
                api_visibility="private",
            )
            table.select(
                self.on_select,
                [session, *thresholds, layer],
                [session, photo_view, heatmap_view, *decided],
                show_progress="hidden",
                api_visibility="private",
            )
            gr.on(
                [slider.change for slider in thresholds],
                self.on_thresholds,
                [session, *thresholds],
                decided,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
            layer.change(
                self.on_layer,
                [session, layer],
                [status, heatmap_view],
                trigger_mode="always_last",
                api_visibility="private",
            )
            reset.click(lambda: inspector.thresholds, None, thresholds, api_visibility="private")
            pack.click(
                self.on_pack,
                [session, *thresholds],
                [status, download],
                show_progress_on=status,
                api_visibility="private",
            )
        return page

    def _headers(self) -> list[str]:
        return ["#", "file", "score", "decision", *(["p-value"] if self.inspector.calibrated else [])]

    def on_files(
        self,
        paths: list[str] | None,
        session: Session,
        image_threshold: float,
        pixel_threshold: float,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> list[Any]:
        """Analyse the uploads and show the first photo."""
        paths = [str(path) for path in paths or []]
        count = min(len(paths), self.inspector.max_images)
        results, problems = self.inspector.analyse(
            paths,
            session.results,
            lambda position, name: progress((position, count), desc=name, unit="photos"),
            session.references,
        )
        session = Session(results, problems, references=session.references)
        return [
            session,
            gr.update(visible=bool(results)),
            *self._show(session, image_threshold, pixel_threshold, layer),
        ]

    def on_references(
        self,
        good: list[str] | None,
        paths: list[str] | None,
        session: Session,
        image_threshold: float,
        pixel_threshold: float,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> list[Any]:
        """Compare with the uploaded photos of good parts. Without any, with those of the checkpoint."""
        found, problems = read_references(self.inspector, [str(path) for path in good or []])
        if found is not None or not good:  # otherwise, keep the references
            session = replace(session, references="auto" if found is None else found)
        return [
            references_note(self.inspector.detector, session.references, problems),
            *self.on_files(paths, session, image_threshold, pixel_threshold, layer, progress),
        ]

    def on_remove(
        self,
        paths: list[str] | None,
        session: Session,
        image_threshold: float,
        pixel_threshold: float,
        layer: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio detects this default
    ) -> list[Any]:
        """Compare without photos of good parts, also without those of the checkpoint."""
        session = replace(session, references=None)
        return [
            None,
            references_note(self.inspector.detector, None),
            *self.on_files(paths, session, image_threshold, pixel_threshold, layer, progress),
        ]

    def on_select(
        self, session: Session, image_threshold: float, pixel_threshold: float, layer: str, event: gr.SelectData
    ) -> list[Any]:
        """Show the photo of the selected row."""
        # Read the number from the first column: the row index changes when the table is sorted.
        number = int(event.row_value[0])
        if not 1 <= number <= len(session.results):
            return [session, gr.skip(), gr.skip(), _status(session, _EXPIRED), *[gr.skip()] * 6]
        session = replace(session, selected=number - 1)
        return [session, *self._show(session, image_threshold, pixel_threshold, layer)]

    def _show(self, session: Session, image_threshold: float, pixel_threshold: float, layer: str) -> list[Any]:
        """Return the photo, the heatmap and the values of [`Page._decided`]."""
        if not session.results:
            return [None, None, *self._decided(session, (image_threshold, pixel_threshold))]
        result = session.results[session.selected]
        try:
            photo = self.inspector.read(result.path, result.name)
            decided = self._decided(session, (image_threshold, pixel_threshold), photo)
            return [photo, self._heatmap(result, photo, layer), *decided]
        except (OSError, ValueError) as error:
            return [None, None, *self._failed(session, error)]

    def _heatmap(self, result: PhotoResult, photo: Image.Image, layer: str) -> Image.Image:
        return self.inspector.heatmap(result, photo, None if layer == ALL_LAYERS else int(layer.rpartition(" ")[2]))

    def _decided(
        self, session: Session, thresholds: tuple[float, float], photo: Image.Image | None = None
    ) -> list[Any]:
        """Return the values of the components that depend on the thresholds: status, table, summary, mask, regions,
        pack, download."""
        if not session.results:
            return [_status(session), None, "", None, None, gr.update(interactive=False), gr.update(visible=False)]
        result = session.results[session.selected]
        photo = self.inspector.read(result.path, result.name) if photo is None else photo
        rows = []
        for number, other in enumerate(session.results, start=1):
            found = self.inspector.decide(other, thresholds)
            row = [number, other.name, f"{found['score']:.3f}", found["label"]]
            if "p_value" in found:
                row.append("" if found["p_value"] is None else f"{found['p_value']:.4f}")
            rows.append(row)
        found = self.inspector.inspect(result, thresholds)
        regions = [
            [*region["box"], region["area"], f"{region['mean_score']:.3f}", f"{region['peak_score']:.3f}"]
            for region in found["regions"][:SHOWN_REGIONS]
        ]
        return [
            _status(session),
            rows,
            describe_photo(result, found, label_names(self.inspector.detector.model.config.id2label)[0]),
            draw_mask(photo, found["mask"]),
            regions,
            gr.update(interactive=True),
            # An earlier download was made with other thresholds.
            gr.update(visible=False, value=None),
        ]

    def _failed(self, session: Session, error: Exception) -> list[Any]:
        """Show an error and leave the other components of [`Page._decided`] unchanged."""
        return [_status(session, str(error)), *[gr.skip()] * 6]

    def on_thresholds(self, session: Session, image_threshold: float, pixel_threshold: float) -> list[Any]:
        """Apply new thresholds to the stored results."""
        if not session.results:
            return [gr.skip()] * 7
        try:
            return self._decided(session, (image_threshold, pixel_threshold))
        except (OSError, ValueError) as error:
            return self._failed(session, error)

    def on_layer(self, session: Session, layer: str) -> list[Any]:
        """Draw the heatmap of another layer."""
        if not session.results:
            return [gr.skip()] * 2
        result = session.results[session.selected]
        try:
            photo = self.inspector.read(result.path, result.name)
            return [_status(session), self._heatmap(result, photo, layer)]
        except (OSError, ValueError) as error:
            return [_status(session, str(error)), gr.skip()]

    def on_pack(self, session: Session, image_threshold: float, pixel_threshold: float) -> list[Any]:
        """Write the ZIP file and show its link."""
        if not session.results:
            return [_status(session, _EXPIRED), gr.skip()]
        # Gradio deletes expired files in its upload folder.
        folder = gr.utils.get_upload_folder()
        os.makedirs(folder, exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=folder)) / "vip2clip_results.zip"
        try:
            self.inspector.write_zip(
                target, self.model_name, session.results, session.problems, (image_threshold, pixel_threshold)
            )
        except (OSError, ValueError) as error:
            shutil.rmtree(target.parent, ignore_errors=True)
            return [_status(session, str(error)), gr.skip()]
        return [_status(session), gr.update(value=str(target), visible=True)]


__all__ = ["CSS", "KEPT_SESSIONS", "THEME", "Page", "Session"]
