"""Texts of the web app, as HTML."""

import html
from typing import Any

from .results import PhotoResult
from .session import Session


# Maximum number of regions in the table. The download contains all of them.
SHOWN_REGIONS = 100


def introduction(model_name: str, bundled: bool) -> str:
    """
    Create the text above the page.

    Args:
        model_name (`str`): name of the model.
        bundled (`bool`): whether the model is the bundled checkpoint.

    Returns:
        `str`: HTML.
    """
    text = f"<h2>Visual anomaly detection</h2><p>Model: <b>{html.escape(model_name)}</b>"
    if bundled:
        text += (
            ", the small bundled checkpoint. It needs good photos to compare with; without them, it is for trying "
            "things out. To use a larger checkpoint: <code>vip2clip app --model CHECKPOINT</code>"
        )
    return f"{text}.</p>"


def describe_status(session: Session, problem: str | None = None) -> str:
    """
    Describe the number of photos and the problems. File names and messages are escaped.

    Args:
        session ([`Session`]): results and problems.
        problem (`str`, *optional*): another problem.

    Returns:
        `str`: HTML.
    """
    count, failed = len(session.results), list(session.problems)
    text = f"<p>{count} {'photo' if count == 1 else 'photos'} analysed.</p>" if count else ""
    if not count and not failed:
        text = "<p>Add one or more photos to begin.</p>"
    if problem is not None:
        text += f'<div class="problem">{html.escape(problem)}</div>'
    if failed:
        lines = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in failed)
        files = "1 file" if len(failed) == 1 else f"{len(failed)} files"
        text += f'<div class="problem">No result for {files}:<ul>{lines}</ul></div>'
    return text


def describe_photo(result: PhotoResult, found: dict[str, Any], normal_label: str) -> str:
    """
    Describe the displayed photo: name, label, score, marked pixels and number of regions.

    Args:
        result ([`PhotoResult`]): its result.
        found (`dict[str, Any]`): output of [`PhotoInspector.inspect`].
        normal_label (`str`): label of normal photos.

    Returns:
        `str`: HTML.
    """
    height, width = result.size
    marked, regions = int(found["mask"].sum()), len(found["regions"])
    parts = [f"score {found['score']:.3f}"]
    if found.get("p_value") is not None:
        parts.append(f"p-value {found['p_value']:.4f}")
    share = 100 * marked / (height * width)
    parts.append(f'<span id="marked">{marked:,}</span> of {height * width:,} pixels marked ({share:.1f}%)')
    parts.append(f"{regions} {'region' if regions == 1 else 'regions'}")
    if regions > SHOWN_REGIONS:
        parts[-1] += f" (first {SHOWN_REGIONS} listed below)"
    label = html.escape(found["label"])
    kind = "normal" if found["label"] == normal_label else "anomalous"
    return f'<b>{html.escape(result.name)}</b> <span class="{kind}">{label}</span> {", ".join(parts)}'


__all__ = ["SHOWN_REGIONS", "describe_photo", "describe_status", "introduction"]
