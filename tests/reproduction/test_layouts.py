"""The layouts are those of the paper. `paper_tables.txt` is the text of its Tables 1 to 6, with tabs between cells."""

import re
from pathlib import Path

import pytest

from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.evaluation.published import METHODS, PUBLISHED, published
from vip2clip_hf.evaluation.published_ablations import (
    ABLATIONS,
    EFFICIENCY,
    EFFICIENCY_TITLES,
    TICKS_NOTE,
    published_ablation,
)
from vip2clip_hf.reproduction.layouts import TableSet, state_word_setting, table_layout
from vip2clip_hf.reproduction.measured import CellKey


def paper_tables():
    """Caption and rows of cells by number of the table."""
    tables = {}
    for block in (Path(__file__).parent / "paper_tables.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        caption, *lines = block.split("\n")
        number, caption = re.fullmatch(r"Table (\d)\. (.*)", caption).groups()
        tables[int(number)] = caption, [line.split("\t") for line in lines]
    return tables


PAPER = paper_tables()
ALL_SETS = [
    TableSet(name, one.title, name, one.domain, one.normal > 0, one.has_masks, len(one.categories))
    for name, one in reversed(BENCHMARKS.items())
]
ABLATION_SETS = [next(one for one in ALL_SETS if one.name == name) for name in ("mvtec", "visa")]
OWN = TableSet("strips", "Strips", None, "own", num_categories=3)
SETTINGS = {
    4: ["none", "ica", "fgp", "ica+fgp", "utpa+ica", "utpa+fgp", "full"],
    5: ["dual", "utpa"],
    6: ["full", "normal/abnormal", "perfect/flawed", "flawless/imperfect"],
}


def cell(triple, star=False):
    return f"({', '.join(f'{value:.1f}' for value in triple)})" + "*" * star


def layout_of(number):
    return table_layout(number, ALL_SETS, ablation_sets=ABLATION_SETS)


def test_the_text_of_the_paper_is_complete():
    assert {number: len(rows) for number, (_, rows) in PAPER.items()} == {1: 18, 2: 12, 3: 4, 4: 9, 5: 4, 6: 6}
    assert PAPER[4][1][4] == [
        "", "", "✓", "(90.0, 85.5, 42.7)", "(66.1, 82.6, 86.6)", "(95.3, 91.5, 33.4)", "(60.1, 66.4, 73.2)",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
def test_comparison_with_methods(number):
    """Titles, rows, columns and published values of Tables 1 and 2, whatever the order of the datasets in the plan."""
    caption, (first, second, *rows) = PAPER[number]
    layout = layout_of(number)
    assert layout.caption == caption
    titles = [*layout.label_titles, *layout.column_titles]
    assert [title for title, _ in titles] == first
    assert [title for _, title in titles] == second
    found = [
        [
            *row.labels,
            *(cell(value, keys[0] in layout.taken_over and not row.average)
              for value, keys in zip(row.published, row.keys)),
        ]
        for row in layout.rows
    ]  # fmt: skip
    assert found == rows
    assert not layout.notes


@pytest.mark.parametrize("number", [4, 5, 6])
def test_ablations(number):
    """Titles, rows, columns and published values of Tables 4 to 6. The ticks of the last rows of Table 4 are read."""
    caption, (first, second, *rows) = PAPER[number]
    layout = layout_of(number)
    assert layout.caption == caption
    count = len(layout.label_titles)
    if number == 4:
        assert first[:count] == ["UTPA", "ViP-Prompt ICA", "FGP"]
        assert layout.label_titles == (("UTPA", ""), ("ViP-Prompt", "ICA"), ("ViP-Prompt", "FGP"))
        ticks = [row.labels for row in layout.rows]
        assert [list(row) for row in ticks[:3]] == [row[:3] for row in rows[:3]]
        assert ticks[3:] == [("", "✓", "✓"), ("✓", "✓", ""), ("✓", "", "✓"), ("✓", "✓", "✓")]
        assert layout.notes == (TICKS_NOTE,)
    else:
        assert [title for title, _ in layout.label_titles] == first[:count]
        assert [list(row.labels) for row in layout.rows] == [row[:count] for row in rows]
        assert layout.notes == ()
    datasets = [first[count], first[count], first[count + 2], first[count + 2]]
    assert list(layout.column_titles) == list(zip(datasets, second[count:]))
    assert [[cell(value) for value in row.published] for row in layout.rows] == [row[count:] for row in rows]
    columns = [("mvtec", "pixel"), ("mvtec", "image"), ("visa", "pixel"), ("visa", "image")]
    assert [row.keys for row in layout.rows] == [
        tuple((CellKey(setting, *column),) for column in columns) for setting in SETTINGS[number]
    ]


def test_efficiency():
    _, (titles, *rows) = PAPER[3]
    assert list(EFFICIENCY_TITLES) == titles[1:]
    found = [
        [name, f"{row.training_hours:.2f}", f"{row.inference_ms:.2f} ± {row.inference_ms_spread:.2f}",
         f"{row.gpu_gb:.2f}", f"{row.trainable_millions:.2f}"]
        for name, row in EFFICIENCY.items()
    ]  # fmt: skip
    assert found == rows


def test_the_full_model_is_that_of_table_1():
    for table in (4, 6):
        for name in ("mvtec", "visa"):
            for level in PUBLISHED:
                assert published_ablation(table, "full", name, level) == published(name, level)


def test_published_ablation():
    assert published_ablation(5, "dual", "mvtec", "pixel").ranking == 24.6
    assert published_ablation(5, "dual", "btad", "pixel") is None
    assert published_ablation(6, "fine/broken", "mvtec", "pixel") is None
    assert published_ablation(4, "none", None, "pixel") is None
    assert {len(row) for rows in ABLATIONS.values() for row in rows.values()} == {4}
    with pytest.raises(ValueError, match="table is 3; expected 4, 5, 6"):
        published_ablation(3, "full", "mvtec", "pixel")
    with pytest.raises(ValueError, match="level is 'patch'"):
        published_ablation(4, "full", "mvtec", "patch")


def test_keys_of_the_comparison():
    layout = layout_of(1)
    average = layout.rows[7]
    assert average.average
    assert average.labels == ("", "AVERAGE", "-")
    order = ["mvtec", "visa", "mpdd", "ksdd", "btad", "dagm", "dtd"]
    assert average.keys[-1] == tuple(CellKey("full", name, "image") for name in order)
    assert average.keys[1] == tuple(CellKey("WinCLIP", name, "image") for name in order)
    assert layout.rows[9].keys[-1] == (CellKey("full", "visa", "pixel"),)
    assert len(layout.cell_keys()) == len(set(layout.cell_keys())) == 14 * len(METHODS)


def test_other_data_and_partial_benchmarks_have_no_published_results():
    partial = TableSet("two", "VisA", "visa", "industrial", num_categories=2)
    photos = TableSet("photos", "Photos", None, "own", has_masks=False, num_categories=1)
    layout = table_layout(1, [OWN, partial, photos, ABLATION_SETS[0]])
    labels = [row.labels for row in layout.rows]
    assert [label[1:] for label in labels] == [
        ("MVTec AD", "15"), ("AVERAGE", "-"), ("Strips", "3"), ("VisA", "2 of 12"), ("Photos", "1"), ("AVERAGE", "-"),
        ("MVTec AD", "15"), ("AVERAGE", "-"), ("Strips", "3"), ("VisA", "2 of 12"), ("AVERAGE", "-"),
    ]  # fmt: skip
    assert [bool(label[0]) for label in labels] == [place in (0, 6) for place in range(11)]
    for place in (2, 3, 4, 5, 8, 9, 10):
        assert layout.rows[place].published == (None,) * 6
    assert len(layout.rows[5].keys[0]) == 3
    assert len(layout.rows[1].keys[0]) == 1
    assert layout.notes[-1] == "VisA: 2 of 12 categories are evaluated, so published results are not shown."
    assert "1 of 7 datasets" in layout.notes[0]
    assert layout.rows[1].published[-1] == published("mvtec", "image")
    assert table_layout(2, [OWN, partial]).rows == ()


def test_sets_without_masks_or_normal_images_in_ablations():
    photos = TableSet("photos", "Photos", None, "own", has_masks=False)
    defects = TableSet("defects", "Defects", None, "own", has_normal=False)
    layout = table_layout(5, [], ablation_sets=[photos, defects])
    assert layout.column_titles == (("Photos", "Image-level"), ("Defects", "Pixel-level"))
    assert layout.rows[1].published == (None, None)
    assert table_layout(4, [], ablation_sets=[photos]).notes == ()  # no published values, so no doubt about them


def test_equal_titles_are_told_apart():
    twins = [TableSet(name, "Screws", None, "own") for name in ("a", "b")]
    assert [row.labels[1] for row in table_layout(1, twins).rows[:2]] == ["Screws (a)", "Screws (b)"]


def test_state_words():
    layout = table_layout(6, [], ablation_sets=ABLATION_SETS, state_words=["Perfect/Flawed", "fine/broken"])
    assert [row.labels for row in layout.rows] == [("Perfect/Flawed",), ("Fine/Broken",)]
    assert layout.rows[0].published[0] == (90.4, 87.2, 43.7)
    assert layout.rows[1].published == (None,) * 4
    assert layout.rows[1].keys[0] == (CellKey("fine/broken", "mvtec", "pixel"),)
    assert state_word_setting("Good/Damaged") == state_word_setting("good/damage") == "full"
    with pytest.raises(ValueError, match="'good'; expected two words"):
        state_word_setting("good")
    with pytest.raises(ValueError, match="state words 'full' is given 2 times"):
        table_layout(6, [], state_words=["good/damage", "good/damaged"])


def test_further_detectors():
    layout = table_layout(1, ABLATION_SETS, methods=[*METHODS, "Mine"])
    assert layout.column_titles[-2:] == (("ViP²-CLIP", "-"), ("Mine", ""))
    assert layout.rows[0].published[-1] is None
    assert layout.rows[0].keys[-1] == (CellKey("Mine", "mvtec", "image"),)
    for methods, message in ((["Mine", "Mine"], "'Mine' is given 2 times"), (["ica"], "'ica', as a setting")):
        with pytest.raises(ValueError, match=message):
            table_layout(1, ABLATION_SETS, methods=methods)


def test_bad_sets():
    with pytest.raises(ValueError, match="number is 3; expected 1, 2, 4, 5, 6"):
        table_layout(3, [])
    with pytest.raises(ValueError, match="dataset 'strips' is given 2 times"):
        table_layout(1, [OWN, OWN])
    again = TableSet("again", "", "visa", "industrial")
    with pytest.raises(ValueError, match="benchmark 'visa' is given 2 times"):
        table_layout(1, [*ABLATION_SETS, again])
    for arguments, message in (
        (("x", "X", "nope", "industrial"), "benchmark is 'nope'"),
        (("x", "X", "visa", "medical"), "domain of 'visa' is 'medical'; expected 'industrial'"),
        (("x", "X", None, "food"), "domain is 'food'"),
    ):
        with pytest.raises(ValueError, match=message):
            TableSet(*arguments)
