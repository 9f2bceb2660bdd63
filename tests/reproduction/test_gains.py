import math

import pytest

from vip2clip_hf.reproduction.gains import gains, gains_summary, gains_table
from vip2clip_hf.reproduction.layouts import TableSet, table_layout
from vip2clip_hf.reproduction.measured import CellKey, Measured


STRIPS = TableSet("strips", "Strips", None, "own")


def layout_of(number, **options):
    return table_layout(number, [], ablation_sets=[STRIPS], **options)


def results(level="image", **triples):
    """Results by setting: the AUROC of each seed; the other metrics are 50."""
    return {
        CellKey(setting.replace("_", "/"), "strips", level): Measured(
            tuple((value, 50.0, 50.0) for value in values), seeds=tuple(range(len(values)))
        )
        for setting, values in triples.items()
    }


def image_gain(number, measured, row=0):
    found = [one for one in gains(layout_of(number), measured) if one.metric == "image AUROC"]
    return found[row]


def test_differences_are_paired():
    """Seeds scatter by 40 points, but the gain is almost the same for each of them."""
    found = image_gain(5, results(dual=[50, 90, 70], utpa=[52, 93, 71]))
    assert (found.row, found.base, found.dataset) == ("CLIP_UTPA", "CLIP_DUAL", "Strips")
    assert (found.mean, found.deviation, found.number) == (2, 1, 3)
    assert found.verdict == "gain"
    assert found.sentence == (
        "Strips, image AUROC: CLIP_UTPA against CLIP_DUAL: +2.0 ± 1.0 percentage points over 3 seeds: a gain."
    )


@pytest.mark.parametrize(
    ("utpa", "verdict"),
    [
        ([52, 51], "gain"),  # 1.5 ± 0.7
        ([48, 49], "loss"),
        ([50, 53], "within the spread"),  # 1.5 ± 2.1
        ([50, 47], "within the spread"),
        ([50, 50], "within the spread"),  # 0 ± 0
        ([52], "spread unknown"),
        ([], "no result"),
        ([52, math.nan], "no result"),
    ],
)
def test_verdicts(utpa, verdict):
    found = image_gain(5, results(dual=[50] * len(utpa), utpa=utpa))
    assert found.verdict == verdict
    assert ("a gain." in found.sentence) == (verdict == "gain")


def test_a_mean_equal_to_the_spread_is_no_gain():
    """One seed of three gives the whole mean: 1 ± 1.7. Exactly equal, 1 ± 1, is within the spread too."""
    found = image_gain(5, results(dual=[50, 50, 50], utpa=[50, 50, 53]))
    assert found.mean == 1
    assert found.deviation == pytest.approx(math.sqrt(3))
    assert found.verdict == "within the spread"
    found = image_gain(5, results(dual=[50, 50, 50], utpa=[50, 51, 52]))
    assert (found.mean, found.deviation, found.verdict) == (1, 1, "within the spread")


def test_bases_of_the_tables():
    found = image_gain(4, results(full=[60, 60], none=[50, 50]))
    assert (found.row, found.base, found.mean) == ("all modules", "no module", 10)
    pairs = {(one.row, one.base) for one in gains(layout_of(4), {})}
    assert pairs == {
        ("all modules", base) for base in ("no module", "ICA", "FGP", "ICA + FGP", "UTPA + ICA", "UTPA + FGP")
    }
    found = image_gain(6, results(full=[60, 60], normal_abnormal=[50, 50]))
    assert (found.row, found.base, found.mean, found.verdict) == ("Normal/Abnormal", "Good/Damage", -10, "loss")
    assert gains(layout_of(6, state_words=["fine/broken"]), {}) == []
    with pytest.raises(ValueError, match="The table is 1; expected 4, 5, 6"):
        gains(table_layout(1, [STRIPS]), {})


def test_metrics():
    layout = layout_of(5)
    assert [one.metric for one in gains(layout, {})] == ["pixel AUROC", "AUPRO", "image AUROC"]
    measured = {
        CellKey("dual", "strips", "pixel"): Measured(((50, 10, 20), (50, 10, 20))),
        CellKey("utpa", "strips", "pixel"): Measured(((50, 15, 90), (50, 16, 90))),
    }
    assert [one.mean for one in gains(layout, measured)[:2]] == [0, 5.5]


def test_reasons():
    measured = results(dual=[50, 50, 50], utpa=[52, 52])
    found = image_gain(5, measured)
    assert found.number == 2
    assert found.verdict == "gain"
    assert "without results of both: seed 2" in found.sentence
    measured[CellKey("utpa", "strips", "image")] = Measured(note="out of memory")
    assert image_gain(5, measured).sentence.endswith(": no result (out of memory).")


def test_table_and_summary():
    found = gains(layout_of(5), results(dual=[50, 50], utpa=[52, 51]))
    table = gains_table(found)
    assert "| CLIP_UTPA against CLIP_DUAL" in table
    assert "+1.5 ± 0.7, n = 2: gain" in table
    assert gains_summary(found) == "Of 3 differences: 1 larger than the spread (gain); 2 without result."
