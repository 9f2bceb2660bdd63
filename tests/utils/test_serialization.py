"""JSON of results."""

import json
import math

import pytest

from vip2clip_hf.utils.serialization import to_json, without_nan


def test_to_json():
    text = to_json({"name": "ViP²", "values": [1, None]})
    assert text.endswith("}\n")
    assert "ViP²" in text
    assert json.loads(text) == {"name": "ViP²", "values": [1, None]}
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"value": value})


def test_without_nan():
    content = {"a": math.nan, "b": [1.5, (math.nan, "nan")], "c": {"d": math.inf, "e": None, "f": True}}
    assert without_nan(content) == {"a": None, "b": [1.5, [None, "nan"]], "c": {"d": math.inf, "e": None, "f": True}}
    assert math.isnan(content["a"])  # the original is unchanged
