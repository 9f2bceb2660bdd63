"""Layouts of the paper's tables of results (1, 2, 4, 5 and 6): titles, rows, published values, keys of the cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.published import METHODS, TAKEN_OVER, Triple, published, published_average, published_sets
from ..evaluation.published_ablations import ABLATIONS, TICKS_NOTE, published_ablation
from ..evaluation.tables import LEVEL_TITLES
from .measured import CellKey
from .table_sets import TableSet, set_titles


# Settings of Table 4 with the modules of its columns UTPA, ICA and FGP.
MODULES = {
    "none": (),
    "ica": ("ICA",),
    "fgp": ("FGP",),
    "ica+fgp": ("ICA", "FGP"),
    "utpa+ica": ("UTPA", "ICA"),
    "utpa+fgp": ("UTPA", "FGP"),
    "full": ("UTPA", "ICA", "FGP"),
}
STATE_WORDS = ("good/damaged", *(words for words in ABLATIONS[6] if words != "full"))
CAPTIONS = {
    1: "ZSAD performance comparison on industrial domain.",
    2: "ZSAD performance comparison on medical domain.",
    4: "Module ablation.",
    5: "Ablation on the effectiveness of UTPA.",
    6: "Ablation on different state words in prompts.",
}
AVERAGE = "AVERAGE"
TICK = "✓"
# Second line of the titles of the methods.
VENUES = {
    "CLIP": "OpenCLIP",
    "WinCLIP": "CVPR 2023",
    "APRIL-GAN": "CVPRw 2023",
    "AnomalyCLIP": "ICLR 2024",
    "AdaCLIP": "ECCV 2024",
    "ViP²-CLIP": "-",
}
_DOMAINS = {1: "industrial", 2: "medical"}
_SETTINGS = {setting for rows in ABLATIONS.values() for setting in rows}
_LEVEL_NAMES = {"pixel": "Pixel-level", "image": "Image-level"}


@dataclass(frozen=True)
class TableRow:
    """
    Row of a table.

    Args:
        labels (`tuple[str, ...]`): cells of the label columns.
        keys (`tuple[tuple[CellKey, ...], ...]`): for each column of results, the cells that it shows: one, or all
            those averaged in a row AVERAGE.
        published (`tuple[Triple | None, ...]`): published result of each column. `None` if there is none.
        average (`bool`): whether this is a row AVERAGE.
    """

    labels: tuple[str, ...]
    keys: tuple[tuple[CellKey, ...], ...]
    published: tuple[Triple | None, ...]
    average: bool = False


@dataclass(frozen=True)
class TableLayout:
    """
    Layout of a table.

    Args:
        number (`int`): number of the table in the paper.
        caption (`str`): its caption.
        label_titles (`tuple[tuple[str, str], ...]`): two lines of titles for each label column.
        column_titles (`tuple[tuple[str, str], ...]`): two lines of titles for each column of results.
        rows (`tuple[TableRow, ...]`): the rows.
        taken_over (`frozenset[CellKey]`): cells whose published results are from another paper, marked with `*`.
        notes (`tuple[str, ...]`): remarks on the published values.
    """

    number: int
    caption: str
    label_titles: tuple[tuple[str, str], ...]
    column_titles: tuple[tuple[str, str], ...]
    rows: tuple[TableRow, ...]
    taken_over: frozenset[CellKey] = frozenset()
    notes: tuple[str, ...] = ()

    def cell_keys(self) -> list[CellKey]:
        """List the cells of the table once each, in reading order. Those of other methods are included."""
        return list(dict.fromkeys(key for row in self.rows for keys in row.keys for key in keys))


def setting_of(method: str) -> str:
    """
    Get the setting of a column of Tables 1 and 2.

    Args:
        method (`str`): name of a method or detector.

    Returns:
        `str`: `"full"` for ViP²-CLIP, otherwise the name of the method.
    """
    return "full" if method == "ViP²-CLIP" else method


def state_word_setting(words: str) -> str:
    """
    Get the setting of a row of Table 6.

    Args:
        words (`str`): the words for normal and anomalous, such as `"normal/abnormal"`. Case is ignored.

    Returns:
        `str`: `"full"` for the words of the paper's model, `"good/damaged"` (in Table 6 printed as Good/Damage);
        otherwise the words in lower case.

    Raises:
        ValueError: if these are not two words with a slash between them.
    """
    parts = [part.strip().lower() for part in words.split("/")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"A pair of state words is {words!r}; expected two words, such as 'normal/abnormal'.")
    return "full" if parts in (["good", "damaged"], ["good", "damage"]) else "/".join(parts)


def table_layout(
    number: int,
    sets: Sequence[TableSet],
    *,
    ablation_sets: Sequence[TableSet] = (),
    state_words: Sequence[str] = STATE_WORDS,
    methods: Sequence[str] = METHODS,
) -> TableLayout:
    """
    Create the layout of a table, as in the paper.

    Args:
        number (`int`): 1 (industrial), 2 (medical), 4 (modules), 5 (UTPA) or 6 (state words).
        sets (`Sequence[TableSet]`): datasets of the plan, for Tables 1 and 2. Benchmarks are sorted as in the paper.
            Other data, and benchmarks with only some of their categories, follow below without published results and
            with an average of their own.
        ablation_sets (`Sequence[TableSet]`): datasets of Tables 4 to 6, in the order of the columns.
        state_words (`Sequence[str]`): rows of Table 6, such as `"normal/abnormal"`, see `state_word_setting`.
        methods (`Sequence[str]`, defaults to those of the paper): columns of Tables 1 and 2. A detector that is not
            in the paper has no published results.

    Returns:
        `TableLayout`: the layout.

    Raises:
        ValueError: if the table has no such layout, or a dataset, method or pair of state words is given twice.
    """
    if number not in CAPTIONS:
        raise ValueError(f"number is {number!r}; expected {', '.join(map(str, CAPTIONS))}.")
    _check_unique("dataset", [one.name for one in (sets if number in _DOMAINS else ablation_sets)])
    if number in _DOMAINS:
        return _comparison(number, sets, methods)
    return _ablation(number, ablation_sets, state_words)


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The {what} {name!r} is given {names.count(name)} times; expected each {what} once.")


def _comparison(number: int, sets: Sequence[TableSet], methods: Sequence[str]) -> TableLayout:
    """Table 1 or 2: datasets in rows, methods in columns."""
    _check_unique("method", list(methods))
    for method in methods:
        if method in _SETTINGS:
            raise ValueError(f"A method is named {method!r}, as a setting of the tables; expected another name.")
    chosen = [one for one in sets if (one.domain == "medical") == (number == 2)]
    _check_unique("benchmark", [one.published_as for one in chosen if one.published_as])
    titles = set_titles(chosen)
    rows = []
    for level in LEVEL_TITLES:
        order = published_sets(_DOMAINS[number], level)
        known = sorted(
            (one for one in chosen if one.published_as in order), key=lambda one: order.index(one.published_as or "")
        )
        others = [one for one in chosen if one.published_as is None and one.has(level)]
        block = [*_set_rows(known, level, methods, titles), *_set_rows(others, level, methods, titles)]
        for place, row in enumerate(block):
            task = LEVEL_TITLES[level] if place == 0 else ""
            rows.append(TableRow((task, *row.labels), row.keys, row.published, row.average))
    taken_over = frozenset(
        CellKey(setting_of(method), one.name, level)
        for method in methods
        for one in chosen
        for level in LEVEL_TITLES
        if (method, one.published_as) in TAKEN_OVER
    )
    return TableLayout(
        number,
        CAPTIONS[number],
        (("Task", ""), ("Datasets", ""), ("C", "")),
        tuple((method, VENUES.get(method, "")) for method in methods),
        tuple(rows),
        taken_over,
        (*_average_notes(number, chosen), *_partial_notes(chosen)),
    )


def _average_notes(number: int, sets: Sequence[TableSet]) -> tuple[str, ...]:
    """Say if the published averages are not those printed in the paper."""
    names = {one.published_as for one in sets}
    notes = []
    for level in LEVEL_TITLES:
        order = published_sets(_DOMAINS[number], level)
        count = sum(name in names for name in order)
        if 0 < count < len(order):
            notes.append(
                f"{_LEVEL_NAMES[level]}: the published AVERAGE is the mean of the published results of the {count} of "
                f"{len(order)} datasets shown."
            )
    return tuple(notes)


def _set_rows(sets: Sequence[TableSet], level: str, methods: Sequence[str], titles: dict[str, str]) -> list[TableRow]:
    """Rows of datasets and their average, without the column Task. All of the datasets are published, or none is."""
    rows = []
    for one in sets:
        values = tuple(
            published(one.published_as, level, method) if one.published_as and method in METHODS else None
            for method in methods
        )
        keys: tuple[tuple[CellKey, ...], ...] = tuple(
            (CellKey(setting_of(method), one.name, level),) for method in methods
        )
        rows.append(TableRow((titles[one.name], one.shown_count), keys, values))
    names = [one.published_as for one in sets if one.published_as]
    if names or len(sets) > 1:
        keys = tuple(tuple(CellKey(setting_of(method), one.name, level) for one in sets) for method in methods)
        means = tuple(
            published_average(names, sets[0].domain, level, method) if names and method in METHODS else None
            for method in methods
        )
        rows.append(TableRow((AVERAGE, "-"), keys, means, average=True))
    return rows


def _ablation(number: int, sets: Sequence[TableSet], state_words: Sequence[str]) -> TableLayout:
    """Table 4, 5 or 6: settings in rows, datasets and levels in columns."""
    columns = [(one, level) for one in sets for level in _LEVEL_NAMES if one.has(level)]
    names = set_titles(sets)
    labelled: list[tuple[str, tuple[str, ...]]]
    titles: tuple[tuple[str, str], ...]
    if number == 4:
        titles = (("UTPA", ""), ("ViP-Prompt", "ICA"), ("ViP-Prompt", "FGP"))
        labelled = [
            (setting, tuple(TICK if module in modules else "" for module in ("UTPA", "ICA", "FGP")))
            for setting, modules in MODULES.items()
        ]
    elif number == 5:
        titles = (("Module", ""),)
        labelled = [("dual", ("CLIP_DUAL",)), ("utpa", ("CLIP_UTPA",))]
    else:
        titles = (("State words", ""),)
        settings = [state_word_setting(words) for words in state_words]
        _check_unique("pair of state words", settings)
        labelled = [
            (setting, ("Good/Damage" if setting == "full" else "/".join(map(str.capitalize, setting.split("/"))),))
            for setting in settings
        ]
    rows = tuple(
        TableRow(
            labels,
            tuple((CellKey(setting, one.name, level),) for one, level in columns),
            tuple(published_ablation(number, setting, one.published_as, level) for one, level in columns),
        )
        for setting, labels in labelled
    )
    notes = _partial_notes(sets)
    if number == 4 and any(value is not None for row in rows for value in row.published):
        notes = (TICKS_NOTE, *notes)
    return TableLayout(
        number,
        CAPTIONS[number],
        titles,
        tuple((names[one.name], _LEVEL_NAMES[level]) for one, level in columns),
        rows,
        notes=notes,
    )


def _partial_notes(sets: Sequence[TableSet]) -> tuple[str, ...]:
    titles = set_titles(sets)
    return tuple(
        f"{titles[one.name]}: {one.shown_count} categories are evaluated, so published results are not shown."
        for one in sets
        if one.benchmark is not None and one.published_as is None
    )


__all__ = [
    "AVERAGE",
    "CAPTIONS",
    "MODULES",
    "STATE_WORDS",
    "TICK",
    "VENUES",
    "TableLayout",
    "TableRow",
    "TableSet",
    "setting_of",
    "state_word_setting",
    "table_layout",
]
