"""Figures 5 and 6: numbers, bars and lines, tables, files."""

import csv
import io
import math
import statistics

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from vip2clip_hf.reproduction.chart_data import F1Gain, TopKResult, f1_gains, top_k_results
from vip2clip_hf.reproduction.chart_tables import gain_text, gains_csv, gains_markdown, top_k_csv, top_k_markdown
from vip2clip_hf.reproduction.charts import COLORS, draw_gains, draw_top_k, write_gains, write_top_k
from vip2clip_hf.reproduction.figure_files import write_figure
from vip2clip_hf.reproduction.measured import CellKey, Measured
from vip2clip_hf.utils.figures import new_figure


NAN = math.nan


def measured(*f1, seeds=(), note=None, **options) -> Measured:
    return Measured(tuple((80.0, 70.0, one) for one in f1), note, seeds or tuple(range(len(f1))), **options)


@pytest.fixture
def gains() -> list[F1Gain]:
    results = {
        CellKey("full", "one", "image"): measured(52, 54, 56),
        CellKey("utpa", "one", "image"): measured(50, 51, 52),  # +2, +3, +4
        CellKey("full", "one", "pixel"): measured(10, 20, 30),
        CellKey("utpa", "one", "pixel"): measured(13, 18, 29),  # -3, +2, +1
        CellKey("full", "two", "image"): measured(50),
        CellKey("utpa", "two", "image"): measured(54),
        CellKey("full", "two", "pixel"): Measured(note="data not found: data/two"),
        CellKey("utpa", "two", "pixel"): Measured(note="data not found: data/two"),
    }
    return f1_gains(results, ["one", "two"])


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def notes(figure) -> list[str]:
    return figure.get_supxlabel().split("\n")


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Gains


def test_gains_are_paired_by_seed():
    results = {
        CellKey("full", "one", "image"): measured(60, 50, 40, seeds=(3, 1, 2)),
        CellKey("utpa", "one", "image"): measured(41, 33, seeds=(1, 3)),
    }
    image, pixel = f1_gains(results, ["one"])
    assert (image.dataset, image.level, image.differences) == ("one", "image", (27, 9))
    assert image.note == "without results of both: seed 2"
    assert image.spread.mean == 18
    assert image.spread.deviation == pytest.approx(statistics.stdev([27, 9]))
    assert (pixel.differences, pixel.note) == ((), "not measured")
    assert math.isnan(pixel.spread.mean)


def test_only_f1_counts():
    results = {
        CellKey("full", "one", "pixel"): Measured(((90.0, 80.0, 7.0),)),
        CellKey("utpa", "one", "pixel"): Measured(((10.0, 20.0, 5.0),)),
    }
    assert f1_gains(results, ["one"])[1].differences == (2.0,)


def test_notes_of_gains():
    results = {
        CellKey("full", "one", "image"): measured(60),
        CellKey("utpa", "one", "image"): Measured(note="out of memory"),
        CellKey("full", "one", "pixel"): measured(60, NAN),
        CellKey("utpa", "one", "pixel"): measured(50, 40),
    }
    image, pixel = f1_gains(results, ["one"])
    assert image.note == "static prompts: out of memory"
    assert pixel.note == "F1 is undefined"
    assert math.isnan(pixel.spread.mean)  # no seed is left out silently
    assert not pixel.exceeds_spread


@pytest.mark.parametrize(
    ("differences", "exceeds", "text"),
    [
        ((2, 3, 4), True, "+3.0 ± 1.0"),
        ((-4, -3), True, "-3.5 ± 0.7"),
        ((-1, 1, 3), False, "+1.0 ± 2.0 ~"),
        ((2, 4, 0), False, "+2.0 ± 2.0 ~"),  # equal to the spread
        ((0, 0), False, "+0.0 ± 0.0 ~"),
        ((5,), False, "+5.0 ~"),
        ((), False, "–"),
        ((1, NAN), False, "–"),
    ],
)
def test_a_gain_is_compared_with_its_spread(differences, exceeds, text):
    gain = F1Gain("one", "image", differences)
    assert gain.exceeds_spread is exceeds
    assert gain_text(gain) == text


def test_published_gains():
    keys = [CellKey(setting, "one", "image") for setting in ("full", "utpa")]
    published = dict(zip(keys, [(91.2, 96.0, 92.0), (85.0, 93.3, 88.8)]))
    results = dict.fromkeys(keys, measured(50))
    image, pixel = f1_gains(results, ["one"], published=published)
    assert image.published == pytest.approx(3.2)
    assert pixel.published is None
    (mark,) = (line for line in draw_gains([image, pixel]).axes[0].lines if line.get_marker() == "D")
    assert mark.get_ydata()[0] == image.published
    assert "paper" in legend(draw_gains([image]))
    row = [cell.strip() for cell in gains_markdown([image, pixel]).splitlines()[4].strip("|").split("|")]
    assert row == ["one", "+0.0 ~", "+3.2", "–", "–"]
    assert f1_gains({keys[0]: measured(50)}, ["one"], published={keys[0]: (1, 2, 3)})[0].published is None
    results = dict.fromkeys(keys, measured(50, not_compared="there are 3 images"))
    assert f1_gains(results, ["one"], published=published)[0].published is None


def test_bars(gains):
    figure = draw_gains(gains, {"one": "The $one"})
    (axis,) = figure.axes
    bars = {container.get_label(): container for container in axis.containers if hasattr(container, "patches")}
    assert list(bars) == ["one, image", "one, pixel", "two, image"]  # none for missing data
    image, pixel, single = (container.patches[0] for container in bars.values())
    assert [bar.get_height() for bar in (image, pixel, single)] == [3, 0, -4]
    assert image.get_center()[0] < 0 < pixel.get_center()[0]  # beside the tick of the dataset
    assert single.get_center()[0] == pytest.approx(image.get_center()[0] + 1)
    assert image.get_facecolor() == to_rgba(COLORS["image"])
    assert image.get_hatch() is None
    for bar, level in ((pixel, "pixel"), (single, "image")):
        assert bar.get_hatch() == "////"
        assert bar.get_facecolor()[3] < 0.5
        assert bar.get_facecolor()[:3] == to_rgba(COLORS[level])[:3]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["The $one", "two"]
    assert texts(axis) == ["+3.0", "+0.0", "-4.0", "no result"]
    assert legend(figure) == ["image level", "pixel level", "not larger than the spread, or unknown"]
    assert " ".join(notes(figure)) == (
        "Mean of the paired differences, n = 1 to 3 seeds. Error bars: standard deviation of the differences. One "
        "seed: no error bar, the spread is unknown. two (pixel level): data not found: data/two"
    )


def error_bars(axis) -> list[tuple[float, float]]:
    """Lower and upper ends of the error bars of bars."""
    found = []
    for container in axis.containers:
        if getattr(container, "errorbar", None) is not None:
            (segments,) = container.errorbar.lines[2][0].get_segments()
            found.append((segments[0][1], segments[1][1]))
    return found


def test_error_bars_are_standard_deviations(gains):
    (axis,) = draw_gains(gains).axes
    deviation = statistics.stdev([-3, 2, 1])
    np.testing.assert_allclose(error_bars(axis), [(2, 4), (-deviation, deviation)])  # none for the single seed
    low, high = axis.get_ylim()
    assert low < -4
    assert high > 4


def test_one_seed():
    gains = [F1Gain("one", "image", (2.0,)), F1Gain("one", "pixel", (1.0,))]
    figure = draw_gains(gains)
    assert not error_bars(figure.axes[0])
    assert notes(figure) == [
        "Mean of the paired differences, n = 1 seed. One seed: no error bar, the spread is unknown."
    ]


def test_no_gains_at_all():
    figure = draw_gains(f1_gains({}, ["one"]))
    assert texts(figure.axes[0]) == ["no result", "no result"]
    assert not figure.axes[0].patches
    assert len(figure.axes[0].get_yticks()) == 0
    assert notes(figure) == ["No results.", "one: not measured"]
    with pytest.raises(ValueError, match="gains is empty"):
        draw_gains([])
    with pytest.raises(ValueError, match="gains has 2 entries for one, image level; expected one"):
        draw_gains([F1Gain("one", "image"), F1Gain("one", "image")])


def test_tables_of_gains(gains):
    rows = list(csv.DictReader(io.StringIO(gains_csv(gains))))
    assert [(row["dataset"], row["level"], row["seeds"]) for row in rows] == [
        ("one", "image", "3"), ("one", "pixel", "3"), ("two", "image", "1"), ("two", "pixel", "0"),
    ]  # fmt: skip
    assert float(rows[0]["mean"]) == 3
    assert float(rows[0]["deviation"]) == 1
    assert [row["exceeds_spread"] for row in rows] == ["true", "false", "", ""]
    assert rows[0]["differences"] == "2.0 3.0 4.0"
    assert (rows[2]["mean"], rows[2]["deviation"]) == ("-4.0", "")
    assert (rows[3]["mean"], rows[3]["note"]) == ("", "data not found: data/two")
    page = gains_markdown(gains, {"two": "Two"})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    assert cells[0] == ["dataset", "image level", "pixel level"]
    assert cells[2:] == [["one", "+3.0 ± 1.0", "+0.0 ± 2.6 ~"], ["Two", "-4.0 ~", "–"]]
    assert "n = 1 to 3 seeds" in page
    assert page.endswith("\n- Two (pixel level): data not found: data/two\n")
    assert gains_csv([F1Gain("one", "image", note="=1+1")]).endswith(",'=1+1\n")
    assert gains_csv([F1Gain("=1+1", "image")]).splitlines()[1].startswith("'=1+1,")


# K


@pytest.fixture
def by_k() -> list[TopKResult]:
    results = {
        CellKey("full", "one", "image"): Measured(((80.0, 60.0, 50.0), (84.0, 60.0, 50.0))),
        CellKey("top_k=1", "one", "image"): Measured(((70.0, 61.0, NAN), (70.0, 63.0, 50.0))),
        CellKey("top_k=20", "one", "image"): Measured(((75.0, 62.0, 52.0), (77.0, 62.0, 52.0))),
        CellKey("full", "two", "image"): Measured(((NAN, 90.0, 80.0),)),
        CellKey("top_k=1", "two", "image"): Measured(((NAN, 91.0, 81.0),)),
        CellKey("top_k=20", "two", "image"): Measured(note="the image has 16 patches"),
        CellKey("full", "three", "image"): Measured(note="data not found: data/three"),
        CellKey("top_k=1", "three", "image"): Measured(note="data not found: data/three"),
        CellKey("top_k=20", "three", "image"): Measured(note="data not found: data/three"),
        CellKey("top_k=5", "one", "image"): measured(99),  # neither in the figure nor the setting of the chosen K
    }
    return top_k_results(results, ["one", "two", "three"], chosen=5, top_k=(20, 1))


def lines(axis) -> dict[str, np.ndarray]:
    found = {}
    for container in axis.containers:
        found[container.get_label()] = np.asarray(container.lines[0].get_ydata(), dtype=float)
    return found


def test_results_by_k(by_k):
    assert [(one.dataset, one.top_k) for one in by_k][:4] == [("one", 1), ("one", 5), ("one", 20), ("two", 1)]
    assert by_k[1].measured.triples == ((80.0, 60.0, 50.0), (84.0, 60.0, 50.0))  # the setting "full"
    assert by_k[1].spread("AUROC").mean == 82
    assert by_k[2].spread("F1").mean == 52
    assert math.isnan(by_k[0].spread("F1").mean)


def test_the_k_of_the_paper():
    assert [one.top_k for one in top_k_results({}, ["one"], 50)] == [1, 10, 20, 50, 100, 200]
    assert [one.top_k for one in top_k_results({}, ["one"], 15)] == [1, 10, 15, 20, 50, 100, 200]
    assert {one.measured.note for one in top_k_results({}, ["one"], 50)} == {"not measured"}


def test_lines_by_k(by_k):
    figure = draw_top_k(by_k, 5, {"one": "First"})
    auroc, ap, f1 = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [f"{name} (image level, %)" for name in ("AUROC", "AP", "F1")]
    np.testing.assert_array_equal(lines(auroc)["First"], [70, 82, 76])
    assert list(lines(auroc)) == ["First"]  # undefined for two, not measured for three
    np.testing.assert_array_equal(lines(ap)["two"], [91, 90, NAN])  # a gap, not 0
    np.testing.assert_array_equal(lines(f1)["First"], [NAN, 50, 52])
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "5", "20"]
        assert axis.get_xticks().tolist() == [0, 1, 2]  # equally spaced
        (mark,) = (line for line in axis.lines if line.get_linestyle() == "--")
        assert mark.get_xdata() == [1, 1]
    assert legend(figure) == ["chosen K = 5", "First", "two"]
    assert notes(figure) == [
        "Mean, n = 1 to 2 seeds. Error bars: standard deviation. One seed: no error bar, the spread is unknown.",
        "First (K = 1): undefined: F1",
        "two (K = 1, 5): undefined: AUROC",
        "two (K = 20): the image has 16 patches",
        "three: data not found: data/three",
    ]


def test_error_bars_by_k(by_k):
    (line,) = (one for one in draw_top_k(by_k, 5).axes[0].containers if one.get_label() == "one")
    ends = [segment[:, 1] for segment in line.lines[2][0].get_segments()]
    deviation = statistics.stdev([80, 84])
    np.testing.assert_allclose(ends[0], (70, 70))
    np.testing.assert_allclose(ends[1], (82 - deviation, 82 + deviation))
    (single,) = (one for one in draw_top_k(by_k, 5).axes[1].containers if one.get_label() == "two")
    assert not any(len(one) > 1 and np.isfinite(one).all() for one in single.lines[2][0].get_segments())


def test_lines_are_close_to_their_k():
    results = [TopKResult(f"set {number}", k, measured(50)) for number in range(15) for k in (1, 2)]
    figure = draw_top_k(results, 1)
    for container in figure.axes[0].containers:
        assert np.abs(np.asarray(container.lines[0].get_xdata()) - [0, 1]).max() <= 0.1 + 1e-9
    styles = {(one.lines[0].get_color(), one.lines[0].get_marker()) for one in figure.axes[0].containers}
    assert len(styles) == 15


def test_no_results_by_k():
    figure = draw_top_k(top_k_results({}, ["one"], 50), 50)
    (axis,) = figure.axes  # AUROC alone
    assert texts(axis) == ["no results"]
    assert legend(figure) == ["chosen K = 50"]
    assert notes(figure) == ["No results.", "one: not measured"]
    with pytest.raises(ValueError, match="results is empty"):
        draw_top_k([], 50)
    with pytest.raises(ValueError, match="chosen is 7; expected one of the K of the results: 1, 10"):
        draw_top_k(top_k_results({}, ["one"], 50), 7)
    with pytest.raises(ValueError, match="results has 2 entries for one, K = 1; expected one"):
        draw_top_k([TopKResult("one", 1, measured(50))] * 2, 1)


def test_tables_by_k(by_k):
    rows = list(csv.DictReader(io.StringIO(top_k_csv(by_k))))
    assert len(rows) == 27
    found = {(row["dataset"], row["top_k"], row["metric"]): row for row in rows}
    assert float(found["one", "5", "AUROC"]["mean"]) == 82
    assert float(found["one", "5", "AUROC"]["deviation"]) == pytest.approx(statistics.stdev([80, 84]))
    assert found["two", "1", "AUROC"]["mean"] == ""
    assert (found["two", "1", "AP"]["mean"], found["two", "1", "AP"]["deviation"]) == ("91.0", "")
    assert found["three", "1", "F1"]["note"] == "data not found: data/three"
    page = top_k_markdown(by_k, 5, {"one": "First"})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    assert cells[0] == ["AUROC", "K = 1", "K = 5 (chosen)", "K = 20"]
    assert cells[2] == ["First", "70.0 ± 0.0", "82.0 ± 2.8", "76.0 ± 1.4"]
    assert cells[8] == ["two", "91.0", "90.0", "–"]
    assert "- three: data not found: data/three\n" in page


# Files


def test_files(gains, by_k, tmp_path):
    folder = tmp_path / "new"
    paths = [*write_gains(gains, folder), *write_top_k(by_k, 5, folder)]
    assert [path.name for path in paths] == [
        f"figure{number}.{extension}" for number in (5, 6) for extension in ("png", "pdf", "csv", "md")
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert paths[2].read_text() == gains_csv(gains)
    assert paths[7].read_text() == top_k_markdown(by_k, 5)
    before = {path: path.read_bytes() for path in paths}
    assert before[paths[0]].startswith(b"\x89PNG")
    assert before[paths[1]].startswith(b"%PDF")
    assert b"CreationDate" not in before[paths[1]]
    write_gains(gains, folder)
    write_top_k(by_k, 5, folder)
    assert {path: path.read_bytes() for path in paths} == before


def test_an_error_leaves_the_old_files(tmp_path):
    path = tmp_path / "figure9.pdf"
    path.write_bytes(b"before")

    class Broken:
        def savefig(self, *args, **kwargs):
            raise ValueError("cannot be drawn")

    with pytest.raises(ValueError, match="cannot be drawn"):
        write_figure(Broken(), tmp_path, 9)
    assert [one.name for one in tmp_path.iterdir()] == ["figure9.pdf"]
    assert path.read_bytes() == b"before"
    assert [one.name for one in write_figure(new_figure(1, 1), tmp_path, 9)] == ["figure9.png", "figure9.pdf"]


def test_nothing_is_cut_or_covered(gains, by_k):
    """Text lies inside the figure, and legend, title and notes do not overlap."""
    many = [TopKResult(f"dataset {number}", k, measured(50)) for number in range(15) for k in (1, 2)]
    for figure in (draw_gains(gains), draw_top_k(by_k, 5), draw_top_k(many, 1)):
        figure.draw_without_rendering()
        legend_box = figure.legends[0].get_window_extent()
        notes_box = figure._supxlabel.get_window_extent()
        for box in (legend_box, notes_box):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        for axis in figure.axes:
            assert axis.title.get_window_extent().y1 <= legend_box.y0
            assert axis.get_tightbbox().y0 >= notes_box.y1
