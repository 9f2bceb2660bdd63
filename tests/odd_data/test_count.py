"""The tables of odd inputs are large, and no input is counted twice."""

import importlib
from pathlib import Path

import pytest


SECTIONS = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
# Sections A to D of the faults: output folders, masks, folders, images and inputs.
INPUTS = ("test_run_folders", "test_masks", "test_folders", "test_images")


def cases_of(section: str) -> list:
    return getattr(importlib.import_module(f"odd_data.{section}"), "CASES", [])


def test_at_least_300_odd_inputs():
    names = [(section, case.name) for section in INPUTS for case in cases_of(section)]
    assert len(names) == len(set(names)) >= 300
    print(f"{len(names)} odd inputs")


@pytest.mark.parametrize("section", [name for name in SECTIONS if cases_of(name)])
def test_cases_of_a_section(section):
    """Each case has a name of its own, and ends in a check or in the message of a refusal."""
    cases = cases_of(section)
    assert len({case.name for case in cases}) == len(cases) >= 25
    assert all(callable(case.expected) or len(case.expected) > 4 for case in cases)
