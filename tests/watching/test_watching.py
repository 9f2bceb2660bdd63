"""`vip2clip watch` without processes: a clock that the tests set, and one step at a time."""

import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import TINY, tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, watch_folder
from vip2clip_hf.cli.entry import app
from vip2clip_hf.cli.watch import StopSignals, log_to_stderr
from vip2clip_hf.inference.prediction import predict_to_folder
from vip2clip_hf.watching import events as events_module, running, systemd, watcher as watcher_module
from vip2clip_hf.watching.candidates import Candidates
from vip2clip_hf.watching.events import FolderEvents, remote_file_system
from vip2clip_hf.watching.folder import WatchFolder
from vip2clip_hf.watching.reading import is_partly_filled
from vip2clip_hf.watching.results import COLUMNS, HEADER, ResultsFile, Write, format_row
from vip2clip_hf.watching.scanning import WatchedImages
from vip2clip_hf.watching.scoring import ModelError, Scorer
from vip2clip_hf.watching.watcher import Watcher


pytestmark = pytest.mark.xdist_group("watching")


@pytest.fixture(scope="module")
def detector() -> AnomalyDetectionPipeline:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    processor = ViP2ClipImageProcessor(size=TINY["image_size"])
    return AnomalyDetectionPipeline(model=model, image_processor=processor, task="anomaly-detection", device="cpu")


def content(seed: int, kind: str = "PNG", size: int = 24) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


class Watching:
    """A watcher of `photos` whose clock stands still until a test moves it."""

    def __init__(self, detector, photos, output, *, new_only=False, heatmaps=False, events=None, recursive=True):
        self.now, self.output = 1000.0, output
        images = WatchedImages(str(photos), recursive)
        self.folder = WatchFolder(output, str(photos))
        try:
            self.folder.lock()
            scorer = Scorer(detector, None, heatmaps)
            skipped = (lambda: running._existing(images)) if new_only else (lambda: ())
            self.repaired = self.folder.open({"threshold": 0.5}, {}, skipped)
        except BaseException:
            self.folder.close()
            raise
        candidates = Candidates(settle=2, give_up=30)
        self.watcher = Watcher(scorer, images, self.folder, candidates, events, rescan=1, clock=lambda: self.now)

    def wait(self, seconds: float):
        """Let time pass in small steps."""
        end = self.now + seconds
        while self.now < end:
            while self.watcher.step() == 0:
                pass
            self.now += 0.25

    @property
    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.output)

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]


def read_rows(output) -> list[dict[str, str]]:
    with open(output / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def watching(detector, photos, tmp_path):
    """Create watchers that are closed at the end, one after the other."""
    opened = []

    def create(**options):
        while opened:
            opened.pop().folder.close()
        opened.append(Watching(detector, photos, tmp_path / "out", **options))
        return opened[0]

    yield create
    while opened:
        opened.pop().folder.close()


# Results


def test_rows_are_those_of_predict(watching, detector, photos, tmp_path):
    import pyarrow.parquet as pq

    names = ["b.png", "a.jpg", "sub/c.png", "=1+1.png", "é ü.png", "damaged.png"]
    for seed, name in enumerate(names):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(content(seed, "JPEG" if name.endswith("jpg") else "PNG"))
        os.utime(photos / name, (1000 - seed, 1000 - seed))  # the last one is the oldest
    (photos / "damaged.png").write_bytes(content(9)[:200])
    one = watching(heatmaps=True)
    one.wait(40)
    predict_to_folder(
        detector.model, detector.image_processor, photos, tmp_path / "predicted", batch_size=1, heatmaps=True
    )
    expected = {
        row.pop("id"): row for row in pq.read_table(tmp_path / "predicted" / "predictions.parquet").to_pylist()
    }
    assert one.ids == ["é ü.png", "'=1+1.png", "sub/c.png", "a.jpg", "b.png", "damaged.png"]
    for row in one.rows:
        wanted = expected[row["id"].removeprefix("'")]
        for column in ("score", "p_value", "anomalous_area"):
            found = None if row[column] == "" else torch.tensor(float(row[column])).item()
            assert found == wanted[column], (row["id"], column)  # also to the last digit
        assert row["label"] == (wanted["label"] or "")
        assert row["error"] == (wanted["error"] or "")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])
    heatmaps = {str(path.relative_to(one.output)): path.read_bytes() for path in one.output.rglob("*.png")}
    predicted = tmp_path / "predicted"
    assert heatmaps == {str(path.relative_to(predicted)): path.read_bytes() for path in predicted.rglob("*.png")}
    assert len(heatmaps) == 5
    assert one.watcher.counts == {one.rows[0]["label"]: 5, "error": 1}
    for row in one.rows[:2]:
        assert detector(str(photos / row["id"].removeprefix("'")))["score"] == float(row["score"])


# When a file is complete


def test_a_slow_upload_is_read_once_at_its_end(watching, photos):
    one, whole = watching(), content(1, "JPEG", 200)
    for part in range(1, 11):
        (photos / "slow.jpg").write_bytes(whole[: len(whole) * part // 10])
        one.wait(1.5)
        assert one.rows == []
    one.wait(2.5)
    assert [(row["id"], row["error"]) for row in one.rows] == [("slow.jpg", "")]
    one.wait(60)
    assert len(one.rows) == 1


def test_an_upload_that_stalls_is_continued(watching, photos):
    """Longer than it takes to settle, shorter than it takes to give up."""
    one, whole = watching(), content(1, "JPEG", 200)
    (photos / "stalls.jpg").write_bytes(whole[:500])
    one.wait(25)
    assert one.rows == []
    (photos / "stalls.jpg").write_bytes(whole)
    one.wait(4)
    assert [(row["id"], row["error"]) for row in one.rows] == [("stalls.jpg", "")]


def test_a_truncated_file_gets_an_error_and_later_a_result(watching, photos):
    one, whole = watching(), content(1, "JPEG", 200)
    (photos / "cut.jpg").write_bytes(whole[:500])
    one.wait(28)
    assert one.rows == []
    one.wait(5)
    assert len(one.rows) == 1
    assert "could not be decoded" in one.rows[0]["error"]
    assert (one.rows[0]["score"], one.rows[0]["label"]) == ("", "")
    one.wait(100)
    assert len(one.rows) == 1
    (photos / "cut.jpg").write_bytes(whole)
    one.wait(4)
    assert [row["error"] == "" for row in one.rows] == [False, True]


def test_reserved_space_is_not_a_photo(watching, photos):
    """Pillow decodes such a JPEG without an error: its lower half is gray."""
    one, whole = watching(), content(1, "JPEG", 200)
    half = whole[: len(whole) // 2]
    reserved = half + bytes(len(whole) - len(half))
    Image.open(io.BytesIO(reserved)).load()
    assert is_partly_filled(reserved)
    assert not is_partly_filled(whole + bytes(100))  # some cameras fill up blocks
    assert not is_partly_filled(content(1, "PNG") + bytes(16))
    assert is_partly_filled(content(1, "PNG")[:300] + bytes(16))
    (photos / "reserved.jpg").write_bytes(reserved)
    one.wait(10)
    assert one.rows == []
    (photos / "reserved.jpg").write_bytes(whole)
    one.wait(4)
    assert len(one.rows) == 1


def test_temporary_names_are_not_read(watching, photos):
    one = watching()
    for name in (".hidden.png", "photo.png.part", "photo.png.tmp", "notes.txt"):
        (photos / name).write_bytes(content(1))
    one.wait(5)
    assert one.rows == []
    (photos / "photo.png.part").rename(photos / "photo.png")
    one.wait(4)
    assert one.ids == ["photo.png"]


def test_a_file_that_is_removed_has_no_row(watching, photos, caplog):
    one = watching()
    (photos / "gone.png").write_bytes(content(1))
    one.wait(1)
    (photos / "gone.png").unlink()
    with caplog.at_level(logging.INFO, "vip2clip_hf"):
        one.wait(4)
    assert one.rows == []
    assert "gone.png: removed before it was read" in caplog.text
    assert len(one.watcher.candidates) == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can read any file")
def test_no_right_to_read(watching, photos):
    (photos / "locked.png").write_bytes(content(1))
    (photos / "locked.png").chmod(0)
    one = watching()
    one.wait(35)
    assert "Permission denied" in one.rows[0]["error"]


def test_a_file_that_cannot_be_opened(watching, photos, monkeypatch):
    """For a while, such as by a virus scanner, and for longer."""
    one, blocked, read = watching(), {"a.png", "b.png"}, watcher_module.read_contents

    def read_or_fail(path):
        if os.path.basename(path) in blocked:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(watcher_module, "read_contents", read_or_fail)
    for seed, name in enumerate(sorted(blocked)):
        (photos / name).write_bytes(content(seed))
    one.wait(10)
    blocked.discard("a.png")
    one.wait(3)
    assert one.ids == ["a.png"]
    one.wait(30)
    assert one.ids == ["a.png", "b.png"]
    assert one.rows[1]["error"].endswith("b.png' cannot be read (Permission denied).")
    one.wait(100)
    assert len(one.rows) == 2


# Which files get a row


def test_only_other_contents_get_another_row(watching, photos):
    (photos / "a.png").write_bytes(content(1))
    one = watching()
    one.wait(4)
    os.utime(photos / "a.png", (1, 1))
    one.wait(10)
    (photos / "a.png").unlink()
    one.wait(3)
    (photos / "a.png").write_bytes(content(1))
    one.wait(10)
    assert one.ids == ["a.png"]
    (photos / "a.png").write_bytes(content(2))
    one.wait(4)
    assert one.ids == ["a.png", "a.png"]
    assert one.rows[0]["score"] != one.rows[1]["score"]
    (photos / "new.bmp").write_bytes(content(3, "BMP"))  # renamed into place: same size and time
    one.wait(4)
    (photos / "new.tmp").write_bytes(content(4, "BMP"))
    found = os.stat(photos / "new.bmp")
    os.utime(photos / "new.tmp", ns=(found.st_atime_ns, found.st_mtime_ns))
    (photos / "new.tmp").replace(photos / "new.bmp")
    one.wait(4)
    assert one.ids == ["a.png", "a.png", "new.bmp", "new.bmp"]
    again = watching()  # a restart
    again.wait(10)
    assert len(again.rows) == 4
    (photos / "a.png").write_bytes(content(1))
    again.wait(4)
    assert len(again.rows) == 5


def test_changes_while_the_watcher_does_not_run(watching, photos):
    for name in ("same.png", "touched.png", "other.png"):
        (photos / name).write_bytes(content(1))
    watching().wait(4)
    os.utime(photos / "touched.png", (1, 1))
    (photos / "other.png").write_bytes(content(2))
    (photos / "new.png").write_bytes(content(3))
    one = watching()
    one.wait(5)
    assert sorted(one.ids[:3]) == ["other.png", "same.png", "touched.png"]
    assert sorted(one.ids[3:]) == ["new.png", "other.png"]


def test_new_only(watching, photos):
    (photos / "old.png").write_bytes(content(1))
    one = watching(new_only=True)
    (photos / "new.png").write_bytes(content(2))
    one.wait(5)
    assert one.ids == ["new.png"]
    (photos / "between.png").write_bytes(content(3))
    one = watching(new_only=True)  # a restart: what came in between is new
    one.wait(5)
    assert one.ids == ["new.png", "between.png"]
    (photos / "old.png").write_bytes(content(4))
    one.wait(5)
    assert one.ids == ["new.png", "between.png", "old.png"]


def test_subfolders(watching, photos, tmp_path):
    one = watching(recursive=False)
    (photos / "day" / "1").mkdir(parents=True)
    (photos / "day" / "1" / "a.png").write_bytes(content(1))
    (photos / "b.png").write_bytes(content(2))
    one.wait(5)
    assert one.ids == ["b.png"]
    one = watching()
    one.wait(5)
    assert one.ids == ["b.png", "day/1/a.png"]
    # Results of this package in the folder are not photos.
    own = photos / "results"
    own.mkdir()
    (own / ".vip2clip.json").write_text(json.dumps({"written_by": "vip2clip_hf", "kind": "prediction"}))
    (own / "heatmap.png").write_bytes(content(3))
    one.wait(5)
    assert len(one.rows) == 2
    images = WatchedImages(str(photos), True)
    accepted = ["b.png", "day/1/a.png", "results/heatmap.png", ".x/a.png", "notes.txt"]
    assert [name for name in accepted if images.accepts(name)] == ["b.png", "day/1/a.png"]
    assert not WatchedImages(str(photos), False).accepts("day/1/a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_any_name(watching, photos):
    names = [b"a\xff.png", b"new\nline.png", b"x" * 250 + b".png", "日本.png".encode()]
    for seed, name in enumerate(names):
        path = os.path.join(os.fsencode(photos), name)
        with open(path, "wb") as file:
            file.write(content(seed))
        os.utime(path, (seed, seed))
    one = watching(heatmaps=True)
    one.wait(5)
    assert one.ids == ["a\\xff.png", "new\\nline.png", "x" * 250 + ".png", "日本.png"]
    assert len((one.output / "results.csv").read_bytes().splitlines()) == 5
    assert len(list((one.output / "heatmaps").iterdir())) == 4
    assert watching().watcher.step() > 0
    one = watching()
    one.wait(5)
    assert len(one.rows) == 4


def test_a_folder_that_is_gone_for_a_while(watching, photos, caplog, tmp_path):
    (photos / "a.png").write_bytes(content(1))
    one = watching()
    one.wait(4)
    photos.rename(tmp_path / "away")
    one.wait(10)
    assert caplog.text.count("cannot be read (No such file or directory); trying again") == 1
    (tmp_path / "away").rename(photos)
    (photos / "b.png").write_bytes(content(2))
    one.wait(10)
    assert one.ids == ["a.png", "b.png"]


# Crashes


class Crash(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "recorded", "torn", "written", "confirmed"])
def test_a_crash_loses_and_doubles_nothing(watching, photos, monkeypatch, moment):
    for number in range(3):
        (photos / f"{number}.png").write_bytes(content(number))
        os.utime(photos / f"{number}.png", (number, number))
    one = watching()
    table, state = one.folder.table, one.folder.state
    append, calls = table.append, []

    def crash(write):
        calls.append(write)
        if len(calls) < 2:
            return append(write)
        if moment == "torn":
            append(Write(write.offset, write.content[:11]))
        elif moment == "written":
            append(write)
        raise Crash

    if moment in ("recorded", "torn", "written"):
        monkeypatch.setattr(table, "append", crash)
    elif moment == "before":
        monkeypatch.setattr(state, "record", lambda *args: (_ for _ in ()).throw(Crash))
    else:
        confirm = state.confirm
        monkeypatch.setattr(state, "confirm", lambda: (confirm(), (_ for _ in ()).throw(Crash))[1])
    with pytest.raises(Crash):
        one.wait(5)
    lines = (one.output / "results.csv").read_bytes().count(b"\n")
    assert lines == {"before": 1, "recorded": 2, "torn": 2, "written": 3, "confirmed": 4}[moment]
    one = watching()
    assert one.repaired == {"recorded": "missing", "torn": "torn", "written": "complete"}.get(moment, "")
    one.wait(5)
    assert one.ids == ["0.png", "1.png", "2.png"]
    assert (one.output / "results.csv").read_bytes().count(b"\n") == 4


def test_repair_of_a_table_that_people_changed(tmp_path):
    table = ResultsFile(tmp_path / "results.csv")
    first, second = (format_row({"id": name, "score": 0.5, "label": "normal"}) for name in ("a.png", "b.png"))
    assert table.plan(first) == Write(0, HEADER + first)
    table.append(table.plan(first))
    write = table.plan(second)
    assert table.repair(write) == "missing"
    assert table.path.read_bytes() == HEADER + first + second
    assert table.repair(write) == "complete"
    table.path.write_bytes(HEADER + first + bytes(len(second)))  # after a power failure
    assert table.repair(write) == "torn"
    table.path.write_bytes(HEADER + second)  # a row was deleted
    assert table.repair(write) == "complete"
    table.path.write_bytes(HEADER + b"c.png,1")  # another table, without a line break at its end
    assert table.repair(write) == "moved"
    assert table.path.read_bytes() == HEADER + b"c.png,1\n" + second
    table.path.unlink()  # moved away
    assert table.repair(write) == "moved"
    assert table.path.read_bytes() == HEADER + second
    table.path.write_bytes(HEADER[:7])
    table.append(table.plan(first))
    assert table.path.read_bytes() == HEADER + first
    table.check()
    table.path.write_bytes(b"\xef\xbb\xbf" + ",".join(f'"{name}"' for name in COLUMNS).encode() + b"\r\n")
    table.check()
    table.path.write_text("id;score;label\n")
    with pytest.raises(OSError, match=r"begins with b'id;score;label.*expected the columns id, score, .* Move the"):
        table.check()


def test_the_table_can_be_moved_away(watching, photos, tmp_path):
    one = watching()
    (photos / "a.png").write_bytes(content(1))
    one.wait(4)
    (one.output / "results.csv").rename(tmp_path / "november.csv")
    (photos / "b.png").write_bytes(content(2))
    one.wait(4)
    assert one.ids == ["b.png"]
    one = watching()
    one.wait(4)
    assert one.ids == ["b.png"]


def test_a_table_that_is_open_elsewhere(watching, photos, monkeypatch, caplog):
    """A spreadsheet on Windows refuses others."""
    monkeypatch.setattr(watcher_module, "WRITE_AGAIN", 0.001)
    one = watching()
    append, refused = one.folder.table.append, []

    def refuse(write):
        if len(refused) < 3:
            refused.append(write)
            raise PermissionError(13, "Permission denied")
        append(write)

    monkeypatch.setattr(one.folder.table, "append", refuse)
    (photos / "a.png").write_bytes(content(1))
    one.wait(4)
    assert one.ids == ["a.png"]
    assert caplog.text.count("cannot be written (Permission denied); waiting until it can") == 1


# Models that fail


def test_one_photo_that_the_model_cannot_score(watching, photos, monkeypatch, caplog):
    one = watching()
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(content(ord(name[0])))
        os.utime(photos / name, (ord(name[0]),) * 2)
    score, sizes = one.watcher.scorer.score, []

    def fail_once(image):
        sizes.append(image.size)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore text")
        return score(image)

    monkeypatch.setattr(one.watcher.scorer, "score", fail_once)
    one.wait(5)
    assert [row["error"] for row in one.rows] == ["The model failed: OutOfMemoryError: CUDA out of memory.", ""]
    assert "a.png: the model failed: OutOfMemoryError: CUDA out of memory." in caplog.text
    assert sizes == [(24, 24), (64, 64), (24, 24)]  # the second one is the check of the model


def test_a_broken_model_ends_the_watcher(watching, photos, monkeypatch):
    """The photo has no row, so it is scored after a restart."""
    one = watching()
    (photos / "a.png").write_bytes(content(1))
    with monkeypatch.context() as patch:
        patch.setattr(one.watcher.scorer, "score", lambda image: (_ for _ in ()).throw(RuntimeError("device lost")))
        with pytest.raises(ModelError, match=r"fails for a plain gray photo: RuntimeError: device lost"):
            one.wait(5)
    assert one.rows == []
    one = watching()
    one.wait(5)
    assert one.ids == ["a.png"]


def test_scores_that_are_not_finite(watching, photos, detector, monkeypatch):
    one = watching()
    (photos / "a.png").write_bytes(content(1))
    forward = detector.model.forward

    def broken(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.scores = found.scores * float("nan")
        return found

    monkeypatch.setattr(detector.model, "forward", broken)
    with pytest.raises(ModelError, match="not finite"):
        one.wait(5)
    assert one.rows == []


# The output folder


def test_other_settings_and_folders_are_refused(detector, photos, tmp_path):
    def run(source=photos, output=tmp_path / "out", **options):
        return watch_folder(detector, source, output, stopped=lambda: True, poll=1, **options)

    assert run() == {}
    assert run() == {}
    for options, message in (
        ({"threshold": 0.25}, r"a different image_threshold setting \(was 0.5, now 0.25\) and a different pixel_thr"),
        ({"heatmaps": True}, r"a different heatmaps setting \(was false, now true\)"),
        ({"new_only": True}, "a different new_only setting"),
    ):
        with pytest.raises(OSError, match=rf"out' contains results with {message}.*; use the same settings, or"):
            run(**options)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OSError, match="a different source"):
        run(source=other)
    with pytest.raises(OSError, match=r"The output .* is inside .*, which is watched"):
        run(output=photos / "out")
    with pytest.raises(OSError, match=r"The output .* is inside"):
        run(output=photos)
    with pytest.raises(OSError, match=r"The folder .* is inside the output"):
        run(output=tmp_path)
    with pytest.raises(OSError, match="is not a folder; expected a folder to watch"):
        run(source=tmp_path / "absent")
    (other / "mine.txt").write_text("kept")
    with pytest.raises(OSError, match="is not empty and does not contain the results of a watched folder"):
        run(output=other)
    for argument in ("settle", "give_up"):
        with pytest.raises(ValueError, match=rf"{argument} is nan; expected a number of seconds of at least 0\.1"):
            run(**{argument: float("nan")})
    predicted = tmp_path / "predicted"
    (photos / "a.png").write_bytes(content(1))
    predict_to_folder(detector.model, detector.image_processor, photos, predicted)
    with pytest.raises(OSError, match="contains a prediction, not the results of a watched folder"):
        run(output=predicted)
    with pytest.raises(OSError, match="contains the results of a watched folder, not a prediction"):
        predict_to_folder(detector.model, detector.image_processor, photos, tmp_path / "out")
    (tmp_path / "out" / ".progress" / "watch.sqlite").unlink()
    with pytest.raises(OSError, match=r"contains results\.csv, but not \.progress/watch\.sqlite"):
        run()


def test_one_watcher_at_a_time(watching, detector, photos, tmp_path):
    watching()
    with pytest.raises(OSError, match=r"Another program is watching a folder and writing into .*out'; wait until"):
        watch_folder(detector, photos, tmp_path / "out", poll=1)


def test_a_damaged_state(watching, photos, detector, tmp_path):
    one = watching()
    one.folder.close()
    (tmp_path / "out" / ".progress" / "watch.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match=r"watch\.sqlite' cannot be used \(file is not a database\)"):
        Watching(detector, photos, tmp_path / "out")


def test_the_state_waits_for_the_disk(watching):
    one = watching()
    read = sqlite3.connect(one.folder.state.path)
    assert read.execute("SELECT count(*) FROM files").fetchone() == (0,)
    read.close()
    assert one.folder.state._connection.execute("PRAGMA synchronous").fetchone() == (2,)


# Events, and the running command


def test_events(photos):
    events = FolderEvents(str(photos), True)
    events.start()
    try:
        assert events.is_alive()
        (photos / "a.tmp").write_bytes(content(1))
        (photos / "a.tmp").rename(photos / "a.png")
        (photos / "day").mkdir()
        names, rescan, deadline = set(), False, time.monotonic() + 20
        while not ({"a.png"} <= names and rescan) and time.monotonic() < deadline:
            events.wait(0.1)
            found, again = events.take()
            names, rescan = names | found, rescan or again
        assert "a.png" in names
        assert rescan
        assert events.take() == (set(), False)
    finally:
        events.stop()
    assert not events.is_alive()


def test_the_folder_is_replaced(watching, photos):
    """Its events have to be asked for again."""
    events = FolderEvents(str(photos), True)
    one = watching(events=events)
    events.start()
    try:
        one.wait(2)
        shutil.rmtree(photos)
        photos.mkdir()
        (photos / "a.png").write_bytes(content(1))
        one.wait(6)
        assert one.ids == ["a.png"]
        one.watcher.rescan, one.watcher._next_scan = 1e6, one.now + 1e6  # events only
        (photos / "b.png").write_bytes(content(2))
        deadline = time.monotonic() + 20
        while len(one.rows) < 2 and time.monotonic() < deadline:
            events.wait(0.1)
            one.wait(3)
        assert one.ids == ["a.png", "b.png"]
    finally:
        events.stop()


def test_a_file_that_changes_while_it_is_read(watching, photos, monkeypatch):
    one, read, changes = watching(), watcher_module.read_contents, []

    def read_and_change(path):
        with open(path, "rb") as file:
            before = file.read()
        if len(changes) < 2:
            changes.append(path)
            (photos / "a.png").write_bytes(content(len(changes) + 1))
            return read(path)._replace(data=before)
        return read(path)

    monkeypatch.setattr(watcher_module, "read_contents", read_and_change)
    (photos / "a.png").write_bytes(content(1))
    one.wait(10)
    assert len(one.rows) == 1
    monkeypatch.undo()
    one.wait(10)
    assert len(one.rows) == 1
    assert one.watcher.scorer.detector(str(photos / "a.png"))["score"] == float(one.rows[0]["score"])


def test_remote_file_systems(tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:20 / / rw shared:1 - ext4 /dev/sda rw\n"
        f"30 22 0:40 / {tmp_path!s} rw - ext4 /dev/sdb rw\n"
        f"31 30 0:41 / {tmp_path!s}/my\\040share rw shared:2 - cifs //server/photos rw\n"
        f"32 30 0:42 / {tmp_path!s}/usb rw - fuseblk /dev/sdc rw\n"
        f"33 30 0:43 / {tmp_path!s}/ssh rw - fuse.sshfs me@server:/ rw\n"
    )
    monkeypatch.setattr(events_module, "_MOUNTS", mounts)
    found = [remote_file_system(tmp_path / name) for name in ("my share/day", "usb", "ssh", ".", "my shares")]
    assert found == ["cifs", None, "fuse.sshfs", None, None]


@pytest.mark.parametrize("how", ["events", "poll", "refused"])
def test_watch_folder(how, detector, photos, tmp_path, monkeypatch, caplog):
    """With the real clock."""
    if how == "refused":

        def refuse(events):
            raise OSError(28, "inotify watch limit reached")

        monkeypatch.setattr(FolderEvents, "start", refuse)
        monkeypatch.setattr(watcher_module, "DEFAULT_POLL", 0.2)
        monkeypatch.setattr(running, "DEFAULT_POLL", 0.2)
    (photos / "a.png").write_bytes(content(1))
    stop, found, shown = threading.Event(), {}, []
    thread = threading.Thread(
        target=lambda: found.update(
            watch_folder(
                detector,
                photos,
                tmp_path / "out",
                settle=0.1,
                poll=0.1 if how == "poll" else None,
                stopped=stop.is_set,
                on_row=shown.append,
            )
        )
    )
    thread.start()
    try:
        for name in ("a.png", "b.png"):
            (photos / name).write_bytes(content(ord(name[0])))
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if (tmp_path / "out" / "results.csv").exists() and name in str(read_rows(tmp_path / "out")):
                    break
                time.sleep(0.02)
    finally:
        stop.set()
        thread.join(30)
    assert sorted({row["id"] for row in read_rows(tmp_path / "out")}) == ["a.png", "b.png"]
    assert sum(found.values()) >= 2
    assert [format_row(row) for row in shown] == (tmp_path / "out" / "results.csv").read_bytes().splitlines(True)[1:]
    assert ("No events from the system" in caplog.text) == (how == "refused")


def test_notify(monkeypatch, tmp_path):
    systemd.notify("READY=1")  # without a service manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1")
        assert server.recv(100) == b"READY=1"


def test_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopSignals()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` sends it twice
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGTERM
        stop._time -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_log_lines(monkeypatch, capsys):
    package = logging.getLogger("vip2clip_hf")
    before = (package.handlers, package.propagate)
    try:
        log_to_stderr()
        logging.getLogger("vip2clip_hf.watching.watcher").info("a\nb")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO a b\n", capsys.readouterr().err)
        monkeypatch.setattr("vip2clip_hf.cli.watch._is_journal", lambda: True)
        log_to_stderr()
        for level in ("info", "warning", "error"):
            getattr(logging.getLogger("vip2clip_hf.watching.watcher"), level)("text")
        assert capsys.readouterr().err == "<6>text\n<4>text\n<3>text\n"
    finally:
        package.handlers, package.propagate = before


def test_missing_watchdog(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchdog", None)
    monkeypatch.setitem(sys.modules, "watchdog.events", None)
    done = CliRunner().invoke(app, ["watch", str(photos), "--output", str(tmp_path / "out")])
    assert "needs watchdog, which is not installed: pip install 'vip2clip_hf[watch]'" in str(done.exception)
    with pytest.raises(ImportError, match=r"pip install 'vip2clip_hf\[watch\]'"):
        FolderEvents(str(photos), True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "--output", "out"], "'absent' is not a folder; expected a folder to watch"),
        (["IN", "--output", "out", "--references", "absent"], "--references 'absent' is not a folder"),
    ],
)
def test_wrong_arguments(photos, arguments, message):
    done = CliRunner().invoke(app, ["watch", *[str(photos) if one == "IN" else one for one in arguments]])
    assert message in str(done.exception)
