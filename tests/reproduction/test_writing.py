import csv
import io
import math
import re

import pytest

from vip2clip_hf.evaluation.published_ablations import TICKS_NOTE
from vip2clip_hf.reproduction.cells import signed, table_cells
from vip2clip_hf.reproduction.layouts import TableSet, table_layout
from vip2clip_hf.reproduction.measured import CellKey, Measured
from vip2clip_hf.reproduction.writing import csv_table, latex_table, markdown_table, write_table


MVTEC = TableSet("mvtec", "MVTec AD", "mvtec", "industrial")
VISA = TableSet("visa", "VisA", "visa", "industrial")
OWN = TableSet("own", "=a_b|c & 5%", None, "own", num_categories=3)
IMAGE, PIXEL = CellKey("full", "mvtec", "image"), CellKey("full", "mvtec", "pixel")
MEASURED = {
    IMAGE: Measured(((90.0, 95.0, 91.0), (92.0, 96.0, 94.0)), seeds=(0, 1)),
    PIXEL: Measured(((90.0, math.nan, 40.0), (92.0, 80.0, 43.0)), seeds=(0, 1)),
    CellKey("full", "visa", "image"): Measured(((88.0, 90.0, 80.0),), seeds=(0,)),
    CellKey("none", "visa", "image"): Measured(note="data not found: data/VisA"),
}


def ablation():
    return table_layout(4, [], ablation_sets=[MVTEC, VISA])


def comparison():
    return table_layout(1, [MVTEC, VISA, OWN])


def rows_of(text):
    """Cells of the first table of a Markdown document, without the header."""
    table = [line for line in text.split("\n\n")[1].split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def test_markdown():
    text = markdown_table(ablation(), MEASURED, footer=["Commit abc."])
    rows = rows_of(text)
    assert len(rows) == 21
    assert [row[3] for row in rows[-3:]] == ["paper", "ours", "difference"]
    assert rows[-3] == [
        "✓", "✓", "✓", "paper", "(90.5, 87.1, 43.1)", "(91.2, 96.0, 92.0)", "(95.4, 92.2, 33.6)", "(88.5, 90.4, 84.8)",
    ]  # fmt: skip
    missing = "no result yet."
    numbers = {
        line.partition("] ")[2]: line[2:].partition("]")[0] + "]"
        for line in text.split("\n")
        if line.startswith("- [")
    }
    assert set(numbers) == {missing, "data not found: data/VisA.", "AUPRO is undefined for 1 of 2 seeds."}
    assert rows[-2][4:] == [
        f"(91.0 ± 1.4, -, 41.5 ± 2.1), n = 2 {numbers['AUPRO is undefined for 1 of 2 seeds.']}",
        "(91.0 ± 1.4, 95.5 ± 0.7, 92.5 ± 2.1), n = 2",
        f"- {numbers[missing]}",
        "(88.0, 90.0, 80.0), n = 1",
    ]
    assert rows[-1][4:] == ["(+0.5, -, -1.6)", "(-0.2, -0.5, +0.5)", "-", "(-0.5, -0.4, -4.8)"]
    assert rows[1][7] == f"- {numbers['data not found: data/VisA.']}"
    assert "With n = 1, the spread over seeds is unknown." in text
    assert TICKS_NOTE in text
    assert text.startswith("# Table 4. Module ablation.\n")
    assert text.endswith("\nCommit abc.\n")


def test_seeds_are_shown_once_if_they_are_equal():
    rows = rows_of(markdown_table(ablation(), {IMAGE: MEASURED[IMAGE]}))
    assert rows[-2][3] == "ours, n = 2"
    assert rows[-2][5] == "(91.0 ± 1.4, 95.5 ± 0.7, 92.5 ± 2.1)"
    assert "n = 1" not in markdown_table(ablation(), {IMAGE: MEASURED[IMAGE]})


def test_gains_are_below_ablations_with_results():
    assert "## Gains" not in markdown_table(ablation(), MEASURED)  # only the full model has results
    measured = {**MEASURED, CellKey("fgp", "mvtec", "image"): Measured(((80.0, 1, 1), (81.0, 1, 1)), seeds=(0, 1))}
    text = markdown_table(ablation(), measured)
    assert "+10.5 ± 0.7, n = 2: gain" in text
    assert "## Gains" not in markdown_table(comparison(), measured)


def test_comparison():
    text = markdown_table(comparison(), MEASURED)
    rows = rows_of(text)
    assert len(rows) == 2 * 4 * 3
    assert rows[0][:5] == ["Image-level (AUROC, AP, F1)", "MVTec AD", "15", "paper", "(66.5, 82.6, 86.7)"]
    assert rows[0][5] == "(91.8, 96.5, 92.7)*"
    assert r"- \* Published in the paper of the method" in text
    assert rows[9][1] == r"=a_b\|c & 5%"
    assert {cell for row in (rows[9], rows[11]) for cell in row[4:]} == {"-"}
    assert all(cell == "-" for row in rows[1::3] for cell in row[4:9])


def test_results_of_other_methods():
    measured = {CellKey("CLIP", "mvtec", "image"): Measured(((70.0, 80.0, 90.0),))}
    cells = table_cells(comparison(), measured)[0]
    assert cells[0].num_seeds == 1
    assert cells[0].difference == pytest.approx((3.5, -2.6, 3.3))
    assert cells[1].ours == ()
    assert cells[1].notes == ()
    assert cells[-1].notes == ("no result yet",)


def test_average():
    """Per seed, then over the seeds that both datasets have. The published average is that of the paper."""
    measured = {**MEASURED, CellKey("full", "visa", "image"): Measured(((80, 90, 85), (84, 92, 89)), seeds=(1, 2))}
    layout = comparison()
    cell = table_cells(layout, measured)[2][-1]
    assert [one.mean for one in cell.ours] == [86.0, 93.0, 89.5]  # seed 1 only
    assert cell.num_seeds == 1
    assert cell.notes == ("average over the seeds with results of all datasets: 1",)
    assert cell.difference == pytest.approx((86 - (91.2 + 88.5) / 2, 93 - (96 + 90.4) / 2, 89.5 - (92 + 84.8) / 2))


def test_average_of_several_seeds():
    measured = {IMAGE: MEASURED[IMAGE], CellKey("full", "visa", "image"): Measured(((80, 90, 85), (90, 92, 89)))}
    assert "the seeds of some datasets are not recorded" in table_cells(comparison(), measured)[2][-1].notes[0]
    measured[CellKey("full", "visa", "image")] = Measured(((80, 90, 85), (90, 92, 89)), seeds=(1, 0))
    auroc = table_cells(comparison(), measured)[2][-1].ours[0]
    assert (auroc.mean, auroc.number) == (88, 2)
    assert auroc.deviation == pytest.approx(math.sqrt(8))  # seeds 0 and 1: (90 + 90) / 2 and (92 + 80) / 2
    measured[IMAGE] = Measured(((1, 2, 3),), seeds=(7,))
    assert table_cells(comparison(), measured)[2][-1].notes == ("no average: no seed has results of all datasets",)


def test_average_without_some_datasets():
    """The difference is to the published results of the same datasets, not to the printed average."""
    cell = table_cells(comparison(), {IMAGE: MEASURED[IMAGE]})[2][-1]
    assert cell.difference == pytest.approx((91 - 91.2, 95.5 - 96.0, 92.5 - 92.0))
    assert cell.notes == (
        "average over 1 of 2 datasets, without VisA; the difference is to the published results of the same datasets",
    )
    cell = table_cells(comparison(), {PIXEL: MEASURED[PIXEL]})[6][-1]
    assert math.isnan(cell.ours[1].mean)
    assert math.isnan(cell.difference[1])
    assert "AUPRO: no average, undefined or missing for all datasets" in cell.notes
    assert cell.ours[2].mean == 41.5


def test_average_as_printed():
    """The paper's average for all of its datasets: that of WinCLIP is not the mean of its rows."""
    names = ["mvtec", "visa", "mpdd", "ksdd", "btad", "dagm", "dtd"]
    layout = table_layout(1, [TableSet(name, name, name, "industrial") for name in names])
    measured = {CellKey("WinCLIP", name, "image"): Measured(((80.0, 80.0, 80.0),)) for name in names}
    cell = table_cells(layout, measured)[7][1]
    assert cell.paper == (82.1, 82.1, 80.5)
    assert cell.notes == ()
    assert cell.difference == pytest.approx((-2.1, -2.1, -0.5))


def test_results_of_other_data_are_not_compared():
    reason = "there are 120 images (published: 1725)"
    measured = {IMAGE: Measured(MEASURED[IMAGE].triples, not_compared=reason)}
    cell = table_cells(comparison(), measured)[0][-1]
    assert cell.paper is not None
    assert cell.num_seeds == 2
    assert all(map(math.isnan, cell.difference))
    assert reason in cell.notes[0]
    assert table_cells(comparison(), measured)[2][-1].ours == ()


def test_signed():
    assert [signed(value) for value in (0.04, -0.04, 0.05001, -1.26, math.nan)] == ["0.0", "0.0", "+0.1", "-1.3", "-"]


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_all_digits():
    measured = {IMAGE: Measured(((90.123456789, 95.0, 91.0), (92.0, 96.0, 94.0)))}
    paper, ours, difference = read(csv_table(ablation(), measured))[-3:]
    mean = (90.123456789 + 92) / 2
    assert [row["source"] for row in (paper, ours, difference)] == ["paper", "ours", "difference"]
    assert float(paper["MVTec AD image AUROC"]) == 91.2
    assert float(paper["VisA pixel AUPRO"]) == 92.2
    assert float(ours["MVTec AD image AUROC"]) == pytest.approx(mean, abs=1e-12)
    assert float(ours["MVTec AD image AUROC sd"]) == pytest.approx((92 - 90.123456789) / math.sqrt(2), abs=1e-12)
    assert float(difference["MVTec AD image AUROC"]) == pytest.approx(mean - 91.2, abs=1e-12)
    assert ours["MVTec AD image n"] == "2"
    assert ours["VisA image n"] == "0"
    assert ours["VisA image F1"] == difference["VisA image F1"] == paper["MVTec AD image n"] == ""
    assert ours["notes"] == "no result yet"
    assert paper["notes"] == ""
    assert ours["UTPA"] == "✓"


def test_csv_of_all_layouts_has_the_published_values():
    for number in (1, 4, 5, 6):
        layout = table_layout(number, [MVTEC, VISA], ablation_sets=[MVTEC, VISA])
        rows = [row for row in read(csv_table(layout, {})) if row["source"] == "paper"]
        metrics = [name for name in rows[0] if name.endswith(("AUROC", "AP", "AUPRO", "F1"))]
        found = [[float(row[name]) for name in metrics] for row in rows]
        assert found == [[value for triple in row.published for value in triple] for row in layout.rows]


def test_csv_cells_are_no_formulas():
    rows = read(csv_table(comparison(), {}))
    assert rows[9]["Datasets"] == "'=a_b|c & 5%"
    assert rows[9]["Task"] == "Image-level (AUROC, AP, F1)"  # in each row
    note = {CellKey("full", "own", "image"): Measured(note="=1+1")}
    assert read(csv_table(comparison(), note))[10]["notes"] == "'=1+1"
    detector = table_layout(1, [MVTEC], methods=["@mine"])
    assert "'@mine AUROC" in read(csv_table(detector, {}))[0]


@pytest.mark.parametrize("layout", [ablation(), comparison(), table_layout(6, [], ablation_sets=[OWN])])
def test_latex_structure(layout):
    """Environments are closed, braces are balanced, and each row has as many cells as the table has columns."""
    text = latex_table(layout, MEASURED, footer=["100 % of a_b & c"])
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    plain = re.sub(r"\\[{}%&_#$]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    columns = len(re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1])
    assert columns == len(layout.label_titles) + 1 + len(layout.column_titles)
    lines = [line for line in plain.split("\n") if line.endswith(r"\\")]
    has_published = any(one is not None for row in layout.rows for one in row.published)
    assert len(lines) == (3 if has_published else 1) * len(layout.rows) + (
        2 if any(second for _, second in layout.column_titles) else 1
    )
    for line in lines:
        spans = [int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        assert line.count("&") + 1 + sum(spans) == columns
    assert not re.search(r"[✓±²]", text)
    assert r"100 \% of a\_b \& c" in text
    assert text.count(r"\midrule") == len(layout.rows)


def test_own_data_has_no_lines_for_the_paper():
    """Without published values, each row has one line, and the legend says why."""
    layout = table_layout(6, [], ablation_sets=[OWN])
    key = layout.cell_keys()[0]
    text = markdown_table(layout, {key: Measured(((50.0, 60.0, 70.0), (52.0, 60.0, 70.0)), seeds=(1, 2))})
    assert "ours, n = 2" in text
    assert "(51.0 ± 1.4, 60.0 ± 0.0, 70.0 ± 0.0)" in text
    assert "| paper" not in text
    assert "difference" not in text.split("##")[0]
    assert "There are no published results of these datasets" in text
    mixed = table_layout(6, [], ablation_sets=[MVTEC, OWN])
    assert "| paper" in markdown_table(mixed, {})


def test_latex_titles_and_numbers():
    text = latex_table(ablation(), MEASURED)
    assert r"UTPA & \multicolumn{2}{c}{ViP-Prompt} & source & \multicolumn{2}{c}{MVTec AD}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){5-6} \cmidrule(lr){7-8}" in text
    assert r"($-$0.2, $-$0.5, +0.5)" in text
    assert r"91.0 $\pm$ 1.4" in text
    assert r"$\checkmark$" in text
    assert r"ViP\textsuperscript{2}-CLIP" in latex_table(comparison(), {})
    bracket = latex_table(table_layout(6, [], ablation_sets=[OWN], state_words=["[ok/bad"]), {})
    assert re.search(r"^ \{\}\[ok/Bad", bracket, flags=re.MULTILINE)


def test_files(tmp_path):
    paths = write_table(ablation(), MEASURED, tmp_path / "new" / "tables", footer=["Commit abc."])
    assert [path.name for path in paths] == ["table4.md", "table4.tex", "table4.csv"]
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}  # nothing temporary
    assert [path.read_text(encoding="utf-8") for path in paths] == [
        markdown_table(ablation(), MEASURED, ["Commit abc."]),
        latex_table(ablation(), MEASURED, ["Commit abc."]),
        csv_table(ablation(), MEASURED),
    ]


def test_a_table_without_datasets(tmp_path):
    for number in (2, 4, 5, 6):
        layout = table_layout(number, [MVTEC])
        paths = write_table(layout, {}, tmp_path)
        for path in paths[:2]:
            assert "The plan contains no dataset of this table." in path.read_text(encoding="utf-8")
        assert r"\begin{tabular}" not in paths[1].read_text(encoding="utf-8")
        assert paths[2].read_text(encoding="utf-8").count("source") == 1
