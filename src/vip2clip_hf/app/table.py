"""The table of results in the web app, as HTML."""

import html
from collections.abc import Sequence
from typing import Any

from ..utils.text import counted
from .results import PhotoResult
from .texts import SIGNS, kind_of


def results_table(
    results: Sequence[PhotoResult],
    decided: Sequence[dict[str, Any]],
    problems: Sequence[tuple[str, str]],
    order: Sequence[int],
    selected: int,
    normal_label: str,
) -> str:
    """
    Draw the table: small picture, file, score, decision and p-value of each photo, then the files without a result.

    Args:
        results (`Sequence[PhotoResult]`): the results.
        decided (`Sequence[dict[str, Any]]`): output of [`PhotoInspector.decide`] for each of them.
        problems (`Sequence[tuple[str, str]]`): name and error of each upload without a result.
        order (`Sequence[int]`): indices of the results in the order to show.
        selected (`int`): index of the displayed photo.
        normal_label (`str`): label of normal photos.

    Returns:
        `str`: HTML.
    """
    with_p = any(found.get("p_value") is not None for found in decided)
    columns = ["Photo", "File", "Score", "Decision", *(["p-value"] if with_p else [])]
    kinds = ("", "text", "number", "text", "number")
    head = "".join(
        f'<th scope="col" class="{name}" aria-sort="none"><button type="button" data-sort="{kind}" '
        f'data-column="{number}">{name}</button></th>'
        if kind
        else f'<th scope="col" class="{name}">{name}</th>'
        for number, (name, kind) in enumerate(zip(columns, kinds))
    )
    rows = [_row(results[index], decided[index], index, index == selected, normal_label, with_p) for index in order]
    rows += [_problem_row(name, reason, len(columns)) for name, reason in problems]
    caption = f"{counted(len(results), 'photo')}, highest score first. Select one to see it."
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(
    result: PhotoResult, found: dict[str, Any], index: int, selected: bool, normal_label: str, with_p: bool
) -> str:
    kind = kind_of(found["label"], normal_label)
    name, score = html.escape(result.name), found["score"]
    cells = [
        f'<td class="thumb"><img src="{html.escape(result.thumbnail)}" alt="" loading="lazy"></td>',
        f'<th scope="row" data-value="{name}"><button type="button" class="open" data-number="{index + 1}"'
        f"{' aria-current=true' if selected else ''}>{name}</button></th>",
        f'<td class="number" data-value="{score!r}">{score:.3f}</td>',
        f'<td data-value="{html.escape(found["label"])}"><span class="label {kind}"><span aria-hidden="true">'
        f"{SIGNS[kind]}</span> {html.escape(found['label'])}</span></td>",
    ]
    if with_p:
        value = found.get("p_value")
        cells.append(
            f'<td class="number p-value" data-value="{2 if value is None else value!r}">'
            f"{'' if value is None else f'{value:.4f}'}</td>"
        )
    state = " selected" if selected else ""
    return f'<tr class="photo {kind}{state}" data-number="{index + 1}">{"".join(cells)}</tr>'


def _problem_row(name: str, reason: str, columns: int) -> str:
    return (
        f'<tr class="failed"><td class="thumb"><span aria-hidden="true">!</span></td><th scope="row">'
        f'{html.escape(name)}</th><td colspan="{columns - 2}">{html.escape(reason)}</td></tr>'
    )


__all__ = ["results_table"]
