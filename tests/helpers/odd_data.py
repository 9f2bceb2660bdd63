"""Table-driven tests with odd data: each case ends in a correct result or in a refusal of one sentence."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging


@dataclass(frozen=True)
class Case:
    """
    One odd input.

    Args:
        name (`str`): name of the case, unique among all sections.
        act (`Callable`): builds the input in the folder it gets, runs the package on it and returns the result.
        expected (`Callable` or `str`): checks the result with `assert`, or the regular expression of a refusal.
        says (`str`, *optional*): regular expression of a log message that must be there, for what is guessed,
            converted or left out.
    """

    name: str
    act: Callable[[Path], Any]
    expected: Callable[[Any], None] | str
    says: str | None = None


def parametrize(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrize a test with cases, by name."""
    assert len({case.name for case in cases}) == len(cases), "two cases have the same name"
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def run(case: Case, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Run a case and check how it ends."""
    caplog.clear()
    logging.warning_once.cache_clear()
    if isinstance(case.expected, str):
        with pytest.raises((ValueError, OSError), match=case.expected) as raised:
            case.act(folder)
        message = str(raised.value)
        assert "\n" not in message.strip(), message
        assert len(message) < 700, message
        assert not isinstance(raised.value, UnicodeError), "expected a message of the package"
    else:
        case.expected(case.act(folder))
    if case.says is not None:
        assert re.search(case.says, caplog.text), f"{case.says!r} is not in the log: {caplog.text!r}"
