"""Public endpoints of the web app (`vip2clip app --api`), for `gradio_client`."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..reporting.predictions import COLUMNS
from ..utils.extras import extra
from .downloads import predictions
from .good_photos import COMPARE, THRESHOLDS, use_good_photos
from .handlers import Handlers
from .session import Session


with extra("app", "The web app"):
    import gradio as gr


class Endpoints:
    """
    Functions of the endpoints. References and thresholds belong to the session of a client.

    Args:
        handlers ([`Handlers`]): the handlers of the page.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.inspector = handlers, handlers.inspector

    def predict(self, photo: str, mask: str, heatmap: bool, session: Session) -> dict[str, Any]:
        """Score a photo. Returns the JSON form of a result of the pipeline, with its regions."""
        forms: dict[str, Any] = {"rle": "rle", "png": "png", "none": None}
        if mask not in forms:
            raise gr.Error(f"mask is {mask!r}; expected one of {list(forms)}.", print_exception=False)
        results, problems = self._analyse([photo], session)
        if problems:
            raise gr.Error(problems[0][1], print_exception=False)
        inspector, result = self.handlers.configured(session), results[0]
        opened = self.inspector.read(result.path, result.name) if heatmap else None
        found = inspector.inspect(result, self.handlers.thresholds(session), opened)
        return found.to_dict(mask=forms[mask], heatmap="png" if heatmap else None)

    def predict_table(self, photos: list[str], session: Session) -> dict[str, Any]:
        """Score photos. Returns `rows` with the columns of `vip2clip predict`."""
        results, problems = self._analyse(photos or [], session)
        inspector, thresholds = self.handlers.configured(session), self.handlers.thresholds(session)
        found = predictions(inspector, self.handlers.model_name, results, problems, thresholds)
        return {"rows": [{name: getattr(row, name) for name in COLUMNS} for row in found.rows]}

    def good_photos(self, photos: list[str], false_alarm_rate: float, use: str, session: Session) -> dict[str, Any]:
        """Compare all later photos of this client with photos of good parts, and choose thresholds from them.

        A rate of 0 stands for 5 %, or the smallest rate that the number of photos allows."""
        try:
            found, problems = use_good_photos(self.inspector, photos or [], use, false_alarm_rate or None)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if found is None:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in problems)
            raise gr.Error(f"The photos cannot be used. {reasons or 'There are none.'}", print_exception=False)
        session.take(replace(session, references=found.references, good=found, thresholds=None, forgotten=False))
        self.handlers.memory.keep(session)
        unusable = [{"id": name, "error": reason} for name, reason in problems]
        return {**found.to_dict(), "unusable": unusable}

    def reset(self, session: Session) -> dict[str, Any]:
        """Return to the references and thresholds of the checkpoint."""
        session.take(Session())
        image_threshold, pixel_threshold = self.inspector.thresholds
        return {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}

    def _analyse(self, photos: list[str], session: Session) -> Any:
        if session.forgotten:
            raise gr.Error(
                "The good photos of this session were removed to free memory. Call /good_photos or /reset.",
                print_exception=False,
            )
        inspector = self.handlers.configured(session)
        return inspector.analyse([str(path) for path in photos], references=session.references)


def add_endpoints(handlers: Handlers, session: gr.State) -> None:
    """
    Add the endpoints to the page that is being built.

    Args:
        handlers ([`Handlers`]): the handlers of the page.
        session (`gradio.State`): the state of a session. It is not an argument of the endpoints.
    """
    found = Endpoints(handlers)
    with gr.Row(visible=False):
        photo, photos, good = gr.File(), gr.File(file_count="multiple"), gr.File(file_count="multiple")
        mask = gr.Dropdown(["rle", "png", "none"], value="rle")
        heatmap = gr.Checkbox(False)
        rate = gr.Number(0, minimum=0, maximum=1)
        use = gr.Radio([COMPARE, THRESHOLDS], value=COMPARE)
        for function, inputs in (
            (found.predict, [photo, mask, heatmap]),
            (found.predict_table, [photos]),
            (found.good_photos, [good, rate, use]),
            (found.reset, []),
        ):
            name = function.__name__
            gr.Button(name).click(
                _endpoint(function), [*inputs, session], [session, gr.JSON(label="result")], api_name=name,
                api_description=function.__doc__, api_visibility="public",
            )  # fmt: skip


def _endpoint(function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Serve the calls of a session one after the other."""

    @functools.wraps(function)
    def run(*args: Any) -> tuple[Session, dict[str, Any]]:
        session = args[-1]
        with session.lock:
            return session, function(*args)

    return run


__all__ = ["Endpoints", "add_endpoints"]
