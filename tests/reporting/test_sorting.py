"""Photos sorted into folders: nothing is moved, lost, or written elsewhere."""

import os
from pathlib import Path

import pytest

from helpers.reports import EVIL, write_results
from vip2clip_hf.reporting import read_predictions, sort_photos
from vip2clip_hf.reporting.photo_files import PhotoFiles
from vip2clip_hf.reporting.predictions import Prediction, Predictions
from vip2clip_hf.reporting.sorting import MANIFEST
from vip2clip_hf.reporting.unsure import UnsureRule, folders_of


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def found(tmp_path) -> Predictions:
    return read_predictions(write_results(tmp_path, 8, names=EVIL[:5], maps=False))


def test_copies(found, tmp_path):
    before = tree(tmp_path / "photos")
    done = sort_photos(found, tmp_path / "sorted", folders_of(found, None))
    assert done.counts == {"normal": 4, "anomalous": 4, "unreadable": 1}
    assert (done.num_new, done.missing) == (9, {})
    assert list(done.counts) == ["normal", "anomalous", "unreadable"]
    after = tree(tmp_path / "sorted")
    assert {name.partition("/")[2]: content for name, content in after.items()} == before
    assert tree(tmp_path / "photos") == before
    assert after["normal/sub/Ünï ✓ <b>.png" if found.rows[4].label == "normal" else "anomalous/sub/Ünï ✓ <b>.png"]


def test_resume_and_changes(found, tmp_path):
    output, folders = tmp_path / "sorted", folders_of(found, None)
    sort_photos(found, output, folders)
    before = tree(output)
    assert sort_photos(found, output, folders).num_new == 0
    # One file was lost, one is incomplete, and one was left by an interruption.
    (output / "normal" / EVIL[0]).unlink()
    (output / "normal" / EVIL[2]).write_bytes(b"half")
    (output / "normal" / ".x.vip2clip-tmp").write_bytes(b"half")
    assert sort_photos(found, output, folders).num_new == 2
    assert tree(output) == before
    # Another decision: the file is in one folder only.
    done = sort_photos(found, output, {**folders, 0: "anomalous"})
    assert done.counts == {"normal": 3, "anomalous": 5, "unreadable": 1}
    assert sorted(name.partition("/")[2] for name in tree(output)) == sorted(name.partition("/")[2] for name in before)
    assert f"anomalous/{EVIL[0]}" in tree(output)


def test_the_copy_of_a_photo_that_is_gone_is_kept(found, tmp_path):
    output, folders = tmp_path / "sorted", folders_of(found, None)
    sort_photos(found, output, folders)
    before = tree(output)
    (tmp_path / "photos" / EVIL[0]).unlink()
    for more in ({}, {0: "anomalous"}):
        done = sort_photos(found, output, {**folders, **more})
        assert done.counts == {"normal": 4, "anomalous": 4, "unreadable": 1}
        assert done.missing == {}
        assert tree(output) == before


def test_other_files_are_never_touched(found, tmp_path):
    output, folders = tmp_path / "sorted", folders_of(found, None)
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="is not empty and was not written by sorting"):
        sort_photos(found, output, folders)
    (output / "mine.txt").unlink()
    sort_photos(found, output, {1: "normal"})
    foreign = output / "normal" / EVIL[0]
    foreign.write_text("mine")
    with pytest.raises(OSError, match="exists and was not written by sorting"):
        sort_photos(found, output, folders)
    assert foreign.read_text() == "mine"
    with pytest.raises(OSError, match="is inside"):
        sort_photos(found, tmp_path / "photos" / "sorted", folders)
    with pytest.raises(OSError, match="is a file"):
        sort_photos(found, tmp_path / "results.csv", folders)


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
def test_nothing_is_written_outside(name, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "outside.png").write_bytes(b"x")
    found = Predictions([Prediction(name, 0.9, "anomalous")], photos=PhotoFiles(str(photos), [name]))
    done = sort_photos(found, tmp_path / "sorted", {0: "anomalous"})
    assert "leads out of the folder" in done.missing[name]
    assert tree(tmp_path / "sorted") == {}


@pytest.mark.skipif(os.name == "nt", reason="links need a permission")
def test_links_in_the_output_are_not_followed(found, tmp_path):
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "sorted"
    elsewhere.mkdir()
    sort_photos(found, output, {1: "normal"})
    (output / "anomalous").symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a link out of"):
        sort_photos(found, output, folders_of(found, None))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a permission")
@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_links(link, found, tmp_path):
    output, folders = tmp_path / "sorted", folders_of(found, None)
    sort_photos(found, output, folders)  # copies are replaced
    before = tree(output)
    for count in (9, 0):
        assert sort_photos(found, output, folders, link=link).num_new == count
    for name in before:
        photo = tmp_path / "photos" / name.partition("/")[2]
        assert os.path.samefile(output / name, photo)
        assert (output / name).is_symlink() == (link == "symbolic")
    assert tree(output) == before
    assert sort_photos(found, output, folders).num_new == 9  # copies again
    assert not any(os.path.samefile(output / name, tmp_path / "photos" / name.partition("/")[2]) for name in before)
    with pytest.raises(ValueError, match="link is 'soft'"):
        sort_photos(found, output, folders, link="soft")


def test_equal_names_get_a_number(tmp_path):
    photos = [{"bytes": bytes([number]), "path": f"{number}.png"} for number in range(3)]
    rows = [Prediction(name, 0.1, "normal") for name in ("a.png", "A.PNG", "0")]
    files = PhotoFiles(None, [row.id for row in rows], images=[lambda one=one: one for one in photos])
    sort_photos(Predictions(rows, photos=files), tmp_path / "sorted", dict.fromkeys(range(3), "good"))
    assert tree(tmp_path / "sorted") == {"good/a.png": b"\0", "good/A-2.PNG": b"\1", "good/0.png": b"\2"}


# What is unsure


def rows_with(*values: tuple[float, float | None]) -> list[Prediction]:
    return [
        Prediction(str(n), score, "anomalous" if score > 0.5 else "normal", p) for n, (score, p) in enumerate(values)
    ]


def settings(rate: float, count: int) -> dict:
    return {"image_threshold": 0.5, "calibrated_with": {"false_alarm_rate": rate, "num_images": count}}


def folders(rows, content, margin=None) -> list[str]:
    found = Predictions([*rows, Prediction("x", error="no")], content)
    return list(folders_of(found, UnsureRule.of(found, margin)).values())


def test_unsure_by_the_false_alarm_rate():
    """Half or twice the rate of 10 % would change the decision."""
    rows = rows_with((0.9, 0.01), (0.6, 0.05), (0.55, 0.06), (0.5, 0.1 + 1e-5), (0.4, 0.2), (0.3, 0.21))
    assert folders(rows, settings(0.1, 99)) == ["defect", "defect", "unsure", "unsure", "unsure", "good", "unsure"]
    found = Predictions(rows, settings(0.1, 99))
    assert "half or twice the false-alarm rate of 10 %" in str(UnsureRule.of(found))


def test_a_score_above_all_good_photos_is_sure():
    """With 19 photos, no p-value is below 5 %, which is half of the rate of 10 % and more than half of 5 %."""
    rows = rows_with((0.9, 0.05), (0.4, 0.1), (0.3, 0.15))
    assert folders(rows, settings(0.05, 19)) == ["defect", "unsure", "good", "unsure"]


def test_unsure_by_the_distance():
    rows = rows_with((0.9, None), (0.54, None), (0.46, None), (0.1, None))
    assert folders(rows, {"image_threshold": 0.5}) == ["defect", "unsure", "unsure", "good", "unsure"]
    assert folders(rows, {"image_threshold": 0.5}, margin=0.0) == ["defect", "defect", "good", "good", "unsure"]
    assert folders(rows, {"image_threshold": 0.5}, margin=1.0) == ["unsure"] * 5
    # Another threshold than that of the calibration: its rate does not apply.
    rows = rows_with((0.9, 0.3), (0.54, 0.35), (0.1, 0.9))
    assert folders(rows, settings(0.1, 99)) == ["defect", "unsure", "good", "unsure"]
    with pytest.raises(ValueError, match="is not known, so no decision"):
        folders(rows, {})
    with pytest.raises(ValueError, match="The margin is 2"):
        folders(rows, settings(0.1, 99), margin=2)
