import math

import pytest

from vip2clip_hf.reproduction.measured import CellKey, Measured, paired, spread


def test_spread():
    found = spread([90.0, 92.0, 97.0])
    assert (found.mean, found.number, found.undefined) == (93.0, 3, 0)
    assert found.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert spread([5.0]).mean == 5
    assert math.isnan(spread([5.0]).deviation)
    assert math.isnan(spread([]).mean)
    assert spread([]).number == 0


def test_no_seed_is_left_out():
    found = Measured(((90, 95, 1), (92, math.nan, 2))).spreads()
    assert found[0].mean == 91
    assert math.isnan(found[1].mean)
    assert math.isnan(found[1].deviation)
    assert (found[1].number, found[1].undefined) == (2, 1)
    assert Measured(note="data not found").spreads() == ()


def test_paired():
    ours = Measured(((1, 1, 1), (2, 2, 2), (3, 3, 3)), seeds=(0, 1, 2))
    base = Measured(((20, 20, 20), (30, 30, 30)), seeds=(2, 0))
    assert paired(ours, base) == (
        [((1, 1, 1), (30, 30, 30)), ((3, 3, 3), (20, 20, 20))],
        "without results of both: seed 1",
    )
    plain = Measured(((1, 1, 1),))
    assert paired(plain, plain) == ([((1, 1, 1), (1, 1, 1))], None)
    assert paired(plain, Measured(plain.triples * 2)) == ([], "1 and 2 results without recorded seeds")
    assert paired(plain, base)[0] == []
    assert "not recorded" in paired(plain, base)[1]


def test_bad_values():
    with pytest.raises(ValueError, match="level is 'patch'"):
        CellKey("full", "mvtec", "patch")
    for triples in (((1, 2),), ((1, 2, 101),), ((1, -2, 3),), ((1, 2, math.inf),)):
        with pytest.raises(ValueError, match="expected three metrics in percent"):
            Measured(triples)
    with pytest.raises(ValueError, match="one for each of the 1 results"):
        Measured(((1, 2, 3),), seeds=(0, 1))
    with pytest.raises(ValueError, match="each seed once"):
        Measured(((1, 2, 3),) * 2, seeds=(1, 1))
