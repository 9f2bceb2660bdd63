"""Layout of the web app. [`vip2clip_hf.app.handlers`] handles its events."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from ..checkpoints.bundled import example_photos
from ..utils.extras import extra
from .api import add_endpoints
from .good_photos import COMPARE, THRESHOLDS
from .guard import refuse_urls
from .handlers import ALL_LAYERS, AUTOMATIC, KEPT_SECONDS, KEPT_SESSIONS, Handlers
from .results import PhotoInspector
from .session import Session
from .styles import CSS, EXAMPLE, ON_LOAD, TABLE, THEME, TO_RESULT
from .texts import describe_references, describe_status, example_button, introduction


with extra("app", "The web app"):
    import gradio as gr
    import scipy  # noqa: F401 - used later to find regions; fail now if it is missing

FILES = ("report", "csv", "pack")
RATES = (AUTOMATIC, "1 %", "2 %", "5 %", "10 %", "20 %")


class Page:
    """
    Layout of the web app.

    Args:
        inspector ([`PhotoInspector`]): computes the results.
        model_name (`str`): name of the model, for the introduction and the download.
    """

    def __init__(self, inspector: PhotoInspector, model_name: str) -> None:
        self.inspector, self.handlers = inspector, Handlers(inspector, model_name)
        self.components: dict[str, Any] = {}

    def build(self, bundled: bool, api: bool = False) -> gr.Blocks:
        """
        Build the page.

        Args:
            bundled (`bool`): whether the model is the bundled checkpoint; adds a note on larger checkpoints.
            api (`bool`, defaults to `False`): whether to add the public endpoints of [`vip2clip_hf.app.api`].

        Returns:
            `gradio.Blocks`: the page, ready to be launched or mounted.
        """
        with gr.Blocks(
            title="vip2clip", analytics_enabled=False, fill_width=True, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.HTML(introduction(self.handlers.model_name, bundled), elem_id="introduction")
            self.components["session"] = gr.State(Session(), time_to_live=KEPT_SECONDS)
            with gr.Row(equal_height=False, elem_id="layout"):
                with gr.Column(elem_id="inputs"):
                    self._build_inputs()
                with gr.Column(elem_id="output"):
                    self._build_output()
                with gr.Column(elem_id="settings"):
                    self._build_settings()
            self._connect(page)
            if api:
                add_endpoints(self.handlers, self.components["session"])
        for block in page.blocks.values():
            refuse_urls(block)
        return page

    def _build_inputs(self) -> None:
        inspector, add = self.inspector, self.components.__setitem__
        add("files", gr.File(
            label=f"Photos to check (up to {inspector.max_images}, {inspector.max_file_size:g} MB each)",
            file_count="multiple", height=150, elem_id="files",
        ))  # fmt: skip
        add("camera", gr.UploadButton("Take a photo", variant="primary", elem_id="camera"))

    def _build_output(self) -> None:
        add = self.components.__setitem__
        add("status", gr.HTML(describe_status(Session()), elem_id="status"))
        with gr.Column(elem_id="start") as start:
            add("example", gr.HTML(example_button(example_photos() / "toys"), elem_id="example", js_on_load=EXAMPLE))
        add("start", start)
        with gr.Column(visible=False) as shown:
            add("summary", gr.HTML(elem_id="summary", apply_default_css=False))
            with gr.Row(elem_id="pictures"):
                for name in ("heatmap", "photo", "mask"):
                    add(name, gr.Image(
                        label=name.capitalize(), format="jpeg", interactive=False, buttons=["download", "fullscreen"],
                        min_width=220, height=300, elem_id=name,
                    ))  # fmt: skip
            with gr.Row(visible=False, elem_id="steps") as steps:
                add("previous", gr.Button("‹ Previous", size="sm", min_width=120, elem_id="previous"))
                add("next", gr.Button("Next ›", size="sm", min_width=120, elem_id="next"))
            add("table", gr.HTML(elem_id="results", js_on_load=TABLE, apply_default_css=False))
            with gr.Row(elem_id="downloads"):
                small: dict[str, Any] = {"size": "sm", "min_width": 100, "interactive": False}
                add("report", gr.Button("Report", elem_id="report", **small))
                add("csv", gr.Button("Table (CSV)", elem_id="csv", **small))
                add("pack", gr.Button("All results (ZIP)", elem_id="pack", **small))
            add("download", gr.File(
                label="Download", visible=False, interactive=False, height=80, elem_id="download",
            ))  # fmt: skip
            with gr.Accordion("Regions of the mask", open=False):
                add("regions", gr.Dataframe(
                    headers=["left", "top", "right", "bottom", "area", "mean", "peak"], interactive=False,
                    label="In pixels of the photo", show_label=True, max_height=240, elem_id="regions", type="array",
                ))  # fmt: skip
        add("shown", shown)
        add("steps", steps)

    def _build_settings(self) -> None:
        inspector, add = self.inspector, self.components.__setitem__
        image_threshold, pixel_threshold = inspector.thresholds
        with gr.Accordion("Good photos", open=True):
            add("note", gr.HTML(describe_references(inspector.detector, "auto"), elem_id="references"))
            add("good", gr.File(
                label="Photos of good parts", file_count="multiple", height=150, elem_id="good",
            ))  # fmt: skip
            add("use", gr.Radio(
                [("Compare, and set the threshold", COMPARE), ("Only set the threshold", THRESHOLDS)],
                value=COMPARE, label="Use good photos to", elem_id="use",
            ))  # fmt: skip
            add("rate", gr.Dropdown(
                list(RATES), value=AUTOMATIC, label="False alarms at most", filterable=False, elem_id="rate",
                info="Automatic: 5 %, or the smallest rate that the number of photos allows.",
            ))  # fmt: skip
            add("remove", gr.Button("Compare without good photos", size="sm", elem_id="remove"))
            add("save", gr.Button("Save this detector", size="sm", elem_id="save", interactive=False))
            add("detector", gr.File(
                label="Detector (ZIP)", visible=False, interactive=False, height=80, elem_id="detector",
            ))  # fmt: skip
        with gr.Accordion("Thresholds and heatmap", open=False):
            add("image_threshold", gr.Slider(
                0, 1, image_threshold, step=0.001, label="Image threshold",
                info="A photo is anomalous if its score is greater.", elem_id="image_threshold",
            ))  # fmt: skip
            add("pixel_threshold", gr.Slider(
                0, 1, pixel_threshold, step=0.001, label="Pixel threshold",
                info="A pixel is marked if its value in the anomaly map is greater.", elem_id="pixel_threshold",
            ))  # fmt: skip
            add("layer", gr.Dropdown(
                [ALL_LAYERS, *(f"layer {index}" for index in inspector.layers)], value=ALL_LAYERS,
                label="Heatmap layer", filterable=False, elem_id="layer",
                info="Score, decision and mask always use all layers. A single layer is shown without comparison to "
                "good photos.",
            ))  # fmt: skip
            add("reset", gr.Button("Reset thresholds", size="sm", elem_id="reset"))

    def bound(self, handler: Callable[..., dict[str, Any]]) -> Callable[..., dict[Any, Any]]:
        """
        Make a handler return its values by component, and change the state of a session by one event at a time.

        Args:
            handler (`Callable`): returns values by name.

        Returns:
            `Callable`: the function for gradio.
        """

        @functools.wraps(handler)
        def run(*args: Any, **kwargs: Any) -> dict[Any, Any]:
            session = next((value for value in args if isinstance(value, Session)), None)
            with contextlib.nullcontext() if session is None else session.lock:
                values = handler(*args, **kwargs)
                if session is not None and "session" in values:
                    session.take(values["session"])
                    self.handlers.memory.keep(session)
                    values = {**values, "session": session}
            return {self.components[name]: value for name, value in values.items()}

        return run

    def _connect(self, page: gr.Blocks) -> None:
        found, handlers = self.components, self.handlers
        decided = [
            "session",
            "status",
            "table",
            "summary",
            "mask",
            "regions",
            "report",
            "csv",
            "pack",
            "download",
            "steps",
        ]
        computed = [*decided, "shown", "start", "photo", "heatmap", "note"]
        learned = [*computed, "image_threshold", "pixel_threshold", "save", "detector"]
        viewed = ["session", "layer"]

        def on(trigger: Any, handler: Any, inputs: list[str], outputs: list[str], **options: Any) -> Any:
            return trigger(
                self.bound(handler), [found[name] for name in inputs], [found[name] for name in outputs],
                api_visibility="private", **options,
            )  # fmt: skip

        status, note = found["status"], found["note"]
        on(found["files"].change, handlers.on_files, ["files", *viewed], computed, show_progress_on=status).then(
            None, None, None, js=TO_RESULT, api_visibility="private"
        )
        on(found["camera"].upload, handlers.on_camera, ["camera", "files"], ["files"], show_progress="hidden")
        good = found["good"]
        learn = functools.partial(on, handler=handlers.on_good, outputs=learned, show_progress_on=[note, status])
        # Not `change` of the photos, which the buttons also trigger.
        for trigger in (good.upload, good.delete, good.clear, found["use"].input, found["rate"].input):
            learn(trigger, inputs=["good", "use", "rate", *viewed])
        on(found["remove"].click, handlers.on_remove, viewed, [*learned, "good"], show_progress_on=[note, status])
        example = [*learned, "good", "files", "use", "rate"]
        on(found["example"].click, handlers.on_example, viewed, example, show_progress_on=[note, status])
        quick: dict[str, Any] = {"show_progress": "hidden"}
        on(found["table"].select, handlers.on_select, viewed, computed, **quick)
        on(found["previous"].click, handlers.step(-1), viewed, computed, **quick)
        on(found["next"].click, handlers.step(1), viewed, computed, **quick)
        sliders = ["image_threshold", "pixel_threshold"]
        for name in sliders:
            on(
                found[name].input, handlers.on_thresholds, ["session", *sliders], decided,
                trigger_mode="always_last", **quick,
            )  # fmt: skip
        on(found["layer"].change, handlers.on_layer, viewed, ["status", "heatmap"], trigger_mode="always_last")
        on(found["reset"].click, handlers.on_reset, ["session"], [*decided, *sliders], **quick)
        for name, handler in (("report", handlers.on_report), ("csv", handlers.on_csv), ("pack", handlers.on_pack)):
            on(found[name].click, handler, ["session"], ["status", "download"], show_progress_on=status)
        on(found["save"].click, handlers.on_save, ["session"], ["note", "detector"], show_progress_on=note)
        page.load(None, None, None, js=ON_LOAD, api_visibility="private")


__all__ = ["CSS", "KEPT_SESSIONS", "THEME", "Page"]
