"""Numbers in the text about the bundled checkpoint are those of its tables."""

import json
import re

import pytest

from helpers.tiny import ROOT
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint


CARD = (bundled_checkpoint() / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "tiny.md").read_text(encoding="utf-8")
COLUMNS = ("image AUROC", "image F1", "pixel AUROC", "AUPRO", "pixel F1")


def table_of(text: str) -> dict[tuple[str, str], dict[str, float]]:
    """Return the mean of each metric by dataset and detector."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if cells[0] in ("cookies", "hazelnut_toy", "magnetic_tile") and len(cells) == 7:
            values = [float(cell.partition("±")[0]) for cell in cells[2:]]
            found[cells[0], cells[1]] = dict(zip(COLUMNS, values))
    return found


def words(text: str) -> str:
    return " ".join(text.replace("*", "").split())


def test_the_card_and_the_page_have_the_same_results():
    card, page = table_of(CARD), table_of(PAGE)
    assert len(card) == 12
    for row, values in card.items():
        assert values == page[row], row


# A sentence, and the cell of the table that each of its numbers rounds.
CLAIMS = [
    (r"16 references give an image AUROC of (\d+) on cookies, (\d+) on hazelnuts, (\d+) on magnetic tiles",
     [("cookies", "16 references"), ("hazelnut_toy", "16 references"), ("magnetic_tile", "16 references")],
     "image AUROC"),
    (r"finds stains on hazelnuts \(image AUROC (\d+)\), but ranks cracked cookies \((\d+)\) and defects of magnetic "
     r"tiles \((\d+)\) poorly",
     [("hazelnut_toy", "zero-shot"), ("cookies", "zero-shot"), ("magnetic_tile", "zero-shot")], "image AUROC"),
    (r"AUPRO is (\d+) against (\d+) on cookies, and (\d+) against (\d+) for local contrast on magnetic tiles",
     [("cookies", "zero-shot"), ("cookies", "untrained adapters"), ("magnetic_tile", "zero-shot"),
      ("magnetic_tile", "local contrast, no training")], "AUPRO"),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "rows", "metric"), CLAIMS)
def test_the_text_has_the_numbers_of_the_table(sentence, rows, metric):
    found = re.search(sentence, words(PAGE))
    assert found is not None, "the sentence has changed: change the test as well"
    table = table_of(PAGE)
    for text, row in zip(found.groups(), rows, strict=True):
        assert abs(float(text) - table[row][metric]) <= 0.55, f"{row}: {text}, the table has {table[row][metric]}"


def test_the_mean_over_the_datasets():
    found = re.search(r"mean of the image AUROC over the three datasets is ([\d.]+)", words(PAGE))
    values = [values["image AUROC"] for (_, row), values in table_of(PAGE).items() if row == "zero-shot"]
    assert abs(float(found[1]) - sum(values) / 3) < 0.06


def test_differences_in_points():
    """A difference in points is that of two cells of a table."""
    text = words(PAGE)
    study = {}
    for line in PAGE.splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if len(cells) == 8 and "±" in cells[1]:
            study[cells[0]] = [float(cell.partition("±")[0]) for cell in cells[1:7]]
    found = re.search(r"without synthetic images, AUPRO is (\d+) points lower, and without hazelnuts, the image AUROC on "
                      r"cookies is (\d+) points lower", text)  # fmt: skip
    assert found is not None, "the sentence has changed: change the test as well"
    names = {name: row for name, row in study.items() if "without" in name}
    recipe = study["recipe"]
    synthetic = next(row for name, row in names.items() if "synthetic" in name)
    hazelnuts = next(row for name, row in names.items() if "hazelnut" in name)
    assert abs(float(found[1]) - (recipe[5] - synthetic[5])) <= 0.6
    assert abs(float(found[2]) - (recipe[0] - hazelnuts[0])) <= 0.6


def test_thresholds_of_the_card():
    decision = json.loads((bundled_checkpoint() / "decision.json").read_text())
    found = re.search(r"image and pixel thresholds, ([\d.]+) and ([\d.]+),", words(CARD))
    for text, name in zip(found.groups(), ("image_threshold", "pixel_threshold")):
        digits = len(text.partition(".")[2])
        assert float(text) == round(decision[name], digits)
