"""The command line with odd names, consoles, arguments, outputs and errors: a result or one sentence."""

import csv
import io
import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.odd_data import Case, parametrize, run
from helpers.processes import run as run_python
from helpers.tiny import EXAMPLES
from vip2clip_hf import AnomalyDetectionPipeline
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.cli import entry
from vip2clip_hf.cli.evaluate import problems_of
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.evaluation import runner
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.sheets import draw_sheet
from vip2clip_hf.reporting.csv_files import csv_text
from vip2clip_hf.reporting.predictions import Prediction
from vip2clip_hf.utils.csv_cells import safe_cell
from vip2clip_hf.utils.outputs import is_inside
from vip2clip_hf.utils.serialization import to_json
from vip2clip_hf.utils.text import encodable, shown


POSIX = os.name == "posix"


@dataclass
class Done:
    """Exit code and output of a command."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode("utf-8").splitlines()

    @property
    def records(self) -> list:
        return json.loads(self.out.decode("utf-8"))


def vip2clip(*arguments, stdin: bytes = b"", encoding: str = "utf-8", stdout=None) -> Done:
    """Run the entry point with streams of its own. Every error is one line."""
    kept = sys.argv, sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    try:
        sys.argv = ["vip2clip", *map(str, arguments)]
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding)
        sys.stdout = stdout or io.TextIOWrapper(out, encoding=encoding, write_through=True)
        sys.stderr = io.TextIOWrapper(err, encoding=encoding, write_through=True)
        if stdout == "closed":
            sys.stdout = None
        with pytest.raises(SystemExit) as stopped:
            entry.main()
        written, text = out.getvalue(), err.getvalue().decode(encoding)
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = kept
    assert "Traceback" not in text, text
    return Done(stopped.value.code or 0, written, text)


def predict(*arguments, **streams) -> Done:
    return vip2clip("predict", *arguments, "--model", "x", **streams)


@pytest.fixture(autouse=True)
def detector(monkeypatch, tmp_path):
    """A detector that only reads the photos, and a folder to run in."""

    def detect(photo, heatmap):
        mask = np.zeros((photo.height, photo.width), bool)
        found = {"score": 0.25, "label": "normal", "mask": mask, "p_value": None}
        return {**found, "heatmap": photo} if heatmap else found

    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", lambda model, **settings: detect)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    # The cache of Hugging Face, in which a notice is remembered, is not one of the folders that are compared.
    monkeypatch.setenv("HF_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))


def photos(folder: Path, *names: str | bytes) -> Path:
    for name in names or ("a.png", "b.png"):
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("RGB", (9, 8), "grey").save(file, format="PNG")
    return folder


def ends(code: int, out: str | None = None, err: str | None = None, rows: int | None = None) -> Callable:
    """Check exit code, texts in the output, and the number of rows."""

    def check(done: Done) -> None:
        assert done.code == code, done
        assert out is None or out in done.out.decode("utf-8", "replace"), done
        assert err is None or err in done.err, done
        assert rows is None or len(done.out.splitlines()) == rows, done
        if code == 1:
            assert [line[:7] for line in done.err.splitlines()].count("Error: ") == 1, done.err

    return check


def scored(*names: str, code: int = 0) -> Callable:
    """Check that these photos have a line, in this order."""

    def check(done: Done) -> None:
        assert done.code == code, done
        found = [line.partition(": ")[0].replace(os.sep, "/") for line in done.lines]
        assert found == list(names), done

    return check


# Names and consoles

CONSOLES = ("cp1252", "cp932", "cp936", "cp1251", "ascii", "latin-1", "utf-8", "utf-16")
ODD_NAMES = ("钢板.png", "²†ü.png", "🔩.png", "ガラス.png", "дефект.png")
names = [
    *(
        Case(
            f"text in {encoding}",
            lambda folder, encoding=encoding: (
                encoding,
                predict(photos(folder / "p", *ODD_NAMES, "z.png"), encoding=encoding),
            ),
            lambda found: (
                ends(0)(found[1]),
                _equal(len(found[1].out.decode(found[0]).splitlines()), len(ODD_NAMES) + 1),
            ),
        )
        for encoding in CONSOLES
    ),
    *(
        Case(
            f"JSON in {encoding}",
            lambda folder, encoding=encoding: predict(photos(folder / "p", *ODD_NAMES), "--json", encoding=encoding),
            lambda done: _equal({os.path.basename(row["image"]) for row in done.records}, set(ODD_NAMES)),
        )
        for encoding in CONSOLES
    ),
    *(
        Case(
            f"help of {command or 'the group'} in {encoding}",
            lambda folder, command=command, encoding=encoding: vip2clip(*command, "--help", encoding=encoding),
            ends(0),
        )
        for command in ((), ("predict",), ("evaluate",), ("train",))
        for encoding in ("cp932", "cp936", "ascii")
    ),
    Case(
        "an error that the console cannot show",
        lambda folder: predict(folder / "钢板.png", encoding="cp1252"),
        ends(1, err="\\u94a2\\u677f.png' not found"),
    ),
]
if POSIX and sys.platform != "darwin":
    names += [
        Case(
            "a byte that is not UTF-8",
            lambda folder: predict(photos(folder / "p", b"caf\xe9.png", "z.png")),
            ends(0, out="caf\\xe9.png: 0.250 normal", rows=2),
        ),
        Case(
            "a byte that is not UTF-8, as JSON",
            lambda folder: predict(photos(folder / "p", b"caf\xe9.png"), "--json"),
            lambda done: _equal(os.path.basename(os.fsencode(done.records[0]["image"])), b"caf\xe9.png"),
        ),
        Case(
            "a damaged photo whose name is not UTF-8",
            lambda folder: (
                photos(folder / "p"),
                Path(folder / "p" / os.fsdecode(b"\xff.png")).write_bytes(b"x"),
                predict("p"),
            )[-1],
            ends(3, out="p/\\xff.png: '", rows=3),
        ),
        Case(
            "a heatmap whose name is not UTF-8",
            lambda folder: (predict(photos(folder / "p", b"\xe9.png"), "--heatmap", "h"), os.listdir(b"h")),
            lambda found: _equal((found[0].code, found[1]), (0, [b"\xe9.png.png"])),
        ),
        Case(
            "a line break in a name",
            lambda folder: predict(photos(folder / "p", "a\nb.png")),
            ends(0, out="a\\nb.png: 0.250", rows=1),
        ),
        Case(
            "a terminal command in a name",
            lambda folder: predict(photos(folder / "p", "\x1b[2Ja.png")),
            ends(0, out="\\x1b[2Ja.png: 0.250", rows=1),
        ),
        Case(
            "a name that changes the direction of text",
            lambda folder: predict(photos(folder / "p", "a\u202egpj.png")),
            ends(0, out="a\\u202egpj.png: 0.250", rows=1),
        ),
    ]


def _equal(found, expected) -> None:
    assert found == expected


# Sources

sources = [
    Case("two photos", lambda f: predict("a.png", "b.png") if photos(f) else None, scored("a.png", "b.png")),
    Case("a photo and a folder", lambda f: predict("a.png", "p") if photos(f) and photos(f / "p", "c.png") else None,
         scored("a.png", "p/c.png")),
    Case("a photo named twice", lambda f: predict("a.png", "./a.png") if photos(f) else None,
         lambda done: (scored("a.png")(done), ends(0, err="1 photos are named twice and scored once")(done))),
    Case("one of two photos is absent", lambda f: predict("a.png", "x.png") if photos(f) else None,
         ends(3, out="x.png: 'x.png' not found", rows=2)),
    Case("the only photo is absent", lambda f: predict("x.png"), ends(1, err="Error: 'x.png' not found; expected")),
    Case("all photos are absent", lambda f: predict("x.png", "y.png"), ends(1, err="1 more paths are not found")),
    Case("an absent photo, as JSON", lambda f: predict("a.png", "x.png", "--json") if photos(f) else None,
         lambda done: _equal([sorted(row)[:1] for row in done.records], [["anomalous_pixels"], ["error"]])),
    Case("a pattern in quotes", lambda f: predict("*.png") if photos(f) else None, scored("a.png", "b.png")),
    Case("a pattern that matches nothing", lambda f: predict("*.bmp"), ends(1, err="'*.bmp' not found")),
    Case("a name with brackets", lambda f: predict("[a].png") if photos(f, "[a].png", "a.png") else None,
         scored("[a].png")),
    Case("a home folder in quotes", lambda f: predict("~/a.png") if photos(f) else None, ends(0, rows=1)),
    Case("a home folder after an option", lambda f: (photos(f), predict("a.png", "--heatmap=~/h.png"),
         Path(f / "h.png").exists(), Path("~").exists())[1:], lambda found: _equal(found[1:], (True, False))),
    Case("a file that is called ~", lambda f: predict("~") if photos(f, "~") else None, scored("~")),
    Case("a URL keeps its slashes", lambda f: predict("http://127.0.0.1:9/a//x.png"),
         ends(1, err="'http://127.0.0.1:9/a//x.png' could not be downloaded")),
    Case("a URL with another photo", lambda f: predict("a.png", "HTTP://127.0.0.1:9/x.png") if photos(f) else None,
         ends(3, out="HTTP://127.0.0.1:9/x.png: ", rows=2)),
    Case("an empty folder", lambda f: predict("p") if (f / "p").mkdir() is None else None, ends(1, err="no images")),
    Case("an empty folder and a photo", lambda f: predict("p", "a.png") if photos(f) and not (f / "p").mkdir() else 0,
         ends(3, out="no images", rows=2)),
    Case("an empty argument", lambda f: predict(""), ends(1, err="'' not found")),
    Case("a list of lines", lambda f: predict("-", stdin=b"a.png\nb.png\n") if photos(f) else None,
         scored("a.png", "b.png")),
    Case("a list of Windows", lambda f: predict("-", stdin=b"\xef\xbb\xbfa.png\r\n\r\nb.png") if photos(f) else None,
         scored("a.png", "b.png")),
    Case("a list separated by NUL", lambda f: predict("-", stdin=b"a.png\0b.png\0") if photos(f) else None,
         scored("a.png", "b.png")),
    Case("a list with one photo has the schema of a list", lambda f: predict("-", "--json", stdin=b"a.png")
         if photos(f) else None, lambda done: _equal(len(done.records), 1)),
    Case("a list with a folder", lambda f: predict("-", stdin=b"p\n") if photos(f / "p") else None,
         scored("p/a.png", "p/b.png")),
    Case("a list with an absent photo", lambda f: predict("-", stdin=b"a.png\nx.png\n") if photos(f) else None,
         ends(3, out="'x.png' not found", rows=2)),
    Case("a list with a home folder", lambda f: predict("-", stdin=b"~/a.png") if photos(f) else None,
         ends(0, rows=1)),
    Case("an empty list", lambda f: predict("-", stdin=b"\n \n"), ends(1, err="contains no paths; expected one")),
    Case("two lists", lambda f: predict("-", "-", stdin=b"a.png"), ends(2, err="twice")),
    Case("a list with --output", lambda f: predict("-", "--output", "out", stdin=b"a.png"), ends(2, err="a list")),
    Case("several sources with --output", lambda f: predict("a", "b", "--output", "out"), ends(2, err="2 sources")),
    Case("a list on a console of Windows", lambda f: predict("-", stdin="钢.png".encode(), encoding="cp1252")
         if photos(f, "钢.png") else None, ends(0, rows=1)),
    Case("nested folders", lambda f: predict("p") if photos(f / "p", "x/y/a.png", "b.png") else None,
         scored("p/b.png", "p/x/y/a.png")),
    Case("nested folders are left out on request", lambda f: predict("p", "--no-recursive")
         if photos(f / "p", "x/y/a.png", "b.png") else None, scored("p/b.png")),
    Case("one photo, as JSON", lambda f: predict("a.png", "--json") if photos(f) else None,
         lambda done: _equal([row["score"] for row in done.records], [0.25])),
    Case("one damaged photo, as JSON", lambda f: predict("x.png", "--json") if (f / "x.png").write_text("x") else None,
         lambda done: _equal((done.code, [set(row) for row in done.records]), (1, [{"image", "error"}]))),
    Case("only damaged photos", lambda f: predict("p") if not (f / "p").mkdir() and (f / "p/x.png").write_text("x")
         and (f / "p/y.png").write_text("x") else None, ends(1, err="None of the 2 photos could be read", rows=2)),
]  # fmt: skip

# Outputs


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(act: Callable[[Path], Done], code: int = 1, err: str = "") -> tuple[Callable, Callable]:
    """A command that is refused and leaves all files as they are, with `--overwrite` as well."""

    def acts(folder: Path):
        photos(folder / "p")
        photos(folder / "q")
        (folder / "used").mkdir()
        (folder / "used" / "sheet.png").write_text("mine")
        (folder / "used" / "config.json").write_text("{}")
        before = tree(folder)
        return act(folder), before, tree(folder)

    def check(found) -> None:
        done, before, after = found
        assert before == after
        ends(code, err=err)(done)

    return acts, check


NORMAL = ("calibrate", "p", "--false-alarm-rate", "0.5")
outputs = [
    Case("heatmap over the photo", *kept(lambda f: predict("p/a.png", "--heatmap", "p/a.png", "--overwrite"),
         err="would replace a photo")),
    Case("heatmap over another photo", *kept(lambda f: predict("p/a.png", "--heatmap", "p/b.png"), err="exists")),
    Case("heatmaps among the photos", *kept(lambda f: predict("p", "--heatmap", "p", "--overwrite"), err="is inside")),
    Case("heatmaps below the photos", *kept(lambda f: predict("p", "--heatmap", "p/x/y"), err="is inside")),
    Case("heatmaps beside single photos", *kept(lambda f: predict("p/a.png", "p/b.png", "--heatmap", "p"),
         err="is inside")),
    Case("heatmaps below the second folder", *kept(lambda f: predict("p", "q", "--heatmap", "q/h"), err="is inside")),
    Case("heatmaps of the same name", *kept(lambda f: predict("p", "q", "--heatmap", "h"), err="have the same name")),
    Case("heatmap of an unknown format", *kept(lambda f: predict("p/a.png", "--heatmap", "h.txt"), err="format")),
    Case("heatmaps of several photos in a file", *kept(lambda f: predict("p", "--heatmap", "p/a.png"), err="a file")),
    Case("table among the photos", *kept(lambda f: predict("p", "--output", "p", "--overwrite"), err="is inside")),
    Case("table below the photos", *kept(lambda f: predict("p", "--output", "p/out"), err="is inside")),
    Case("table below a dataset", *kept(lambda f: predict("x=p", "--output", "p/out"), err="is inside")),
    Case("table in a used folder", *kept(lambda f: vip2clip("predict", "p", "--output", "used", "--overwrite"),
         err="not empty")),
    Case("calibration among the images", *kept(lambda f: vip2clip(*NORMAL, "--output", "p/out"), err="is inside")),
    Case("calibration below labelled images", *kept(lambda f: vip2clip("calibrate", "x=p", "--f1", "--output",
         "p/out"), err="is inside")),
    Case("calibration inside its checkpoint", *kept(lambda f: vip2clip(*NORMAL, "--model", "q", "--output", "q/out"),
         err="is inside")),
    Case("calibration in a used folder", *kept(lambda f: vip2clip(*NORMAL, "--output", "used"), err="not empty")),
    Case("calibration of the bundled checkpoint", *kept(lambda f: vip2clip(*NORMAL), code=2, err="is not changed")),
    Case("checkpoint over its backbone", *kept(lambda f: vip2clip("convert", "x.pth", "--clip", "used",
         "--output", "used", "--overwrite"), err="is inside")),
    Case("checkpoint in a used folder", *kept(lambda f: vip2clip("convert", "x.pth", "--clip", "c",
         "--output", "used", "--overwrite"), err="does not contain a checkpoint of this model")),
    Case("backbone in a used folder", *kept(lambda f: vip2clip("build-backbone", "v", "--output", "used"),
         err="not empty")),
    Case("export to a used folder", *kept(lambda f: vip2clip("export", "--format", "torch", "--output", "used"),
         err="not empty")),
    Case("synthetic images in a used folder", *kept(lambda f: vip2clip("data", "used", "--synthetic"),
         err="not empty")),
    Case("thirds in a used folder", *kept(lambda f: vip2clip("data", "p", "--write-thirds", "used"))),
    Case("evaluation below its dataset", *kept(lambda f: vip2clip("evaluate", "p", "--model", "x", "--output", "p/out",
         "--overwrite"), err="is inside")),
    Case("demo over a file of the user", *kept(lambda f: vip2clip("demo", "--output", "used"), err="exists")),
    Case("heatmap of one photo in a folder", *kept(lambda f: predict("p/a.png", "--heatmap", "q"), err="is a folder")),
    Case("photos of subfolders keep their folders", lambda f: (photos(f / "p", "x/a.png", "y/a.png"),
         predict("p", "--heatmap", "h"), sorted(tree(f / "h")))[1:],
         lambda found: _equal(found[1], [os.path.join(n, "a.png.png") for n in "xy"])),
    Case("heatmap as JPEG", lambda f: (photos(f), predict("a.png", "--heatmap", "h.jpg"), Image.open("h.jpg").format),
         lambda found: _equal(found[2], "JPEG")),
]  # fmt: skip


# Errors, interruptions and closed outputs


def failing(error: BaseException, *arguments: str) -> Callable[[Path], Done]:
    def act(folder: Path) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entry, "app", lambda **_: (_ for _ in ()).throw(error))
            return vip2clip(*arguments)

    return act


def raising(error: BaseException) -> Callable[[Path], Done]:
    """An error inside of a command, which the library would handle in its own way."""

    def act(folder: Path) -> Done:
        def fail(*args, **kwargs):
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnomalyDetectionPipeline, "from_pretrained", fail)
            return predict(photos(folder / "p"))

    return act


def full_disk(*arguments: str) -> Callable[[Path], Done]:
    def act(folder: Path) -> Done:
        photos(folder / "p")
        with open("/dev/full", "w", encoding="utf-8") as stdout:
            return predict("p", *arguments, stdout=stdout)

    return act


def closed_pipe(*arguments: str) -> Callable[[Path], Done]:
    def act(folder: Path) -> Done:
        photos(folder / "p")
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w", encoding="utf-8") as stdout:
            return predict("p", *arguments, stdout=stdout)

    return act


def full_disk_of_heatmaps(folder: Path):
    photos(folder / "p")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", fail)
        return predict("p", "--heatmap", "h"), os.listdir("h")


def _decode_error() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


errors = [
    *(
        Case(f"{type(error).__name__} {number}", failing(error, "demo"), ends(1, err=text))
        for number, (error, text) in enumerate(
            [
                (KeyError("bug"), "Error: KeyError: 'bug'. This is not expected; set VIP2CLIP_TRACEBACK=1"),
                (AssertionError(), "Error: AssertionError. This is not expected"),
                (MemoryError(), "Error: Out of memory; use smaller images"),
                (RecursionError("depth"), "Error: The input is nested too deeply (depth)"),
                (zipfile.BadZipFile("not a zip file"), "Error: A file is damaged (not a zip file)"),
                (EOFError(), "Error: A file is damaged (EOFError)"),
                (_decode_error(), "Error: A file is not valid utf-8 text (invalid start byte at position 0)"),
                (OSError("a\n\n  b\n"), "Error: a b\n"),
                (ValueError(), "Error: ValueError\n"),
                (ImportError("a"), "Error: a\n"),
                (OSError("'\udcff' is missing"), "Error: '\\xff' is missing\n"),
            ]
        )
    ),
    Case("a file that ends too early", raising(EOFError("Ran out of input")), ends(1, err="ends too early (Ran out")),
    Case("Ctrl+C in a prediction", raising(KeyboardInterrupt()), ends(130, err="Interrupted. Run the command again")),
    *(
        Case(f"Ctrl+C in {arguments}", failing(KeyboardInterrupt(), *arguments), ends(130, err=text))
        for arguments, text in (
            (("evaluate", "x"), "Interrupted. To resume, run the same command again.\n"),
            (("predict", "p", "--output=o"), "Interrupted. To resume, run the same command again.\n"),
            (("predict", "p", "--output", "o"), "Interrupted. To resume, run the same command again.\n"),
            (("train", "--clip", "x"), "with --resume_from_checkpoint true.\n"),
            (("export",), "Interrupted. Run the command again to start over.\n"),
        )
    ),
    Case("closed output", lambda f: predict(photos(f / "p"), stdout="closed"), ends(1, err="output is closed")),
    Case("full disk of the heatmaps", full_disk_of_heatmaps,
         lambda found: (_equal(found[1], []), ends(1, err="could not be written: No space left")(found[0]))),
]  # fmt: skip
if POSIX:
    errors += [Case(f"closed pipe {words}", closed_pipe(*words), ends(141, rows=0)) for words in ((), ("--json",))]
    errors.append(
        Case("closed pipe says nothing", closed_pipe(), lambda done: _equal((done.code, done.err), (141, "")))
    )
if os.path.exists("/dev/full"):
    no_space = ends(1, err="could not be written to the standard output: No space")
    errors += [Case(f"full disk {words}", full_disk(*words), no_space) for words in ((), ("--json",))]

# Packages that are not installed


def without(package: str, *arguments: str) -> Callable[[Path], tuple[Done, dict]]:
    def act(folder: Path):
        photos(folder / "p")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            done = vip2clip(*arguments)
        return done, tree(folder)

    return act


def names_the_extra(extra: str) -> Callable:
    def check(found) -> None:
        ends(1, err=f"pip install 'vip2clip_hf[{extra}]'.")(found[0])
        files = {name for name in found[1] if not name.startswith(".")}  # libraries write to ~/.cache
        assert files == {os.path.join("p", "a.png"), os.path.join("p", "b.png")}, "work has begun"

    return check


EVALUATE = ("evaluate", "p", "--model", "absent", "--output", "out")
packages = [
    *(Case(f"evaluate without {one}", without(one, *EVALUATE), names_the_extra("train"))
      for one in ("accelerate", "datasets", "scipy", "tabulate", "matplotlib")),
    *(Case(f"predict --output without {one}", without(one, "predict", "p", "--output", "out"), names_the_extra("data"))
      for one in ("accelerate", "datasets", "pyarrow")),
    *(Case(f"calibrate --labelled without {one}", without(one, "calibrate", "p", "--f1", "--output", "out"),
           names_the_extra("data")) for one in ("datasets", "scipy")),
    Case("calibrate with regions without scipy", without("scipy", *NORMAL, "--min-region-area", "0.1",
         "--output", "out"), names_the_extra("data")),
    *(Case(f"train without {one}", without(one, "train", "--clip", "absent"), names_the_extra("train"))
      for one in ("accelerate", "scipy")),
    *(Case(f"demo without {one}", without(one, "demo", "--output", "out"), names_the_extra("train"))
      for one in ("accelerate", "datasets", "scipy")),
    *(Case(f"export without {one}", without(one, "export", "--output", "out"), names_the_extra("export"))
      for one in ("onnx", "onnxruntime", "onnxscript")),
    *(Case(f"app without {one}", without(one, "app", "--no-browser"), names_the_extra("app"))
      for one in ("gradio", "scipy")),
]  # fmt: skip

CASES = [*names, *sources, *outputs, *errors, *packages]


@parametrize(CASES)
def test_odd_command_line(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


# Text


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=cmd|'/c calc'!A1.png", "'=cmd|'/c calc'!A1.png"),
        ("+1.png", "'+1.png"),
        ("-1.png", "'-1.png"),
        ("@SUM.png", "'@SUM.png"),
        ("\t=1.png", "'\\t=1.png"),
        ("\r=1.png", "'\\r=1.png"),
        ("＝1.png", "'＝1.png"),
        ("'=1.png", "''=1.png"),
        ("a=1.png", "a=1.png"),
        ("'a.png", "'a.png"),
        ("", ""),
        ("\udce9.png", "\\xe9.png"),
    ],
)
def test_cells_are_not_formulas(name, cell):
    assert safe_cell(name) == cell


def test_csv_files_contain_no_formulas():
    """A photo =cmd.png in results.csv of the web app was run by spreadsheets."""
    (row,) = csv.DictReader(io.StringIO(csv_text([Prediction("=cmd.png", score=0.5, error="-x", p_value=0.5)])))
    assert (row["id"], row["error"], row["score"], row["p_value"]) == ("'=cmd.png", "'-x", "0.5", "0.5")


def test_json_of_undecodable_names_is_utf8_and_round_trips():
    content = {"caf\udce9": ["\udcff\udcfe", "ü²", "\\udcff"]}
    text = to_json(content)
    assert json.loads(text.encode("utf-8")) == content
    assert "ü²" in text
    assert os.fsencode(json.loads(text)["caf\udce9"][0]) == b"\xff\xfe"


def test_text_is_encodable():
    assert encodable("a\udcff\ud800\n²") == "a\\xff\\ud800\n²"
    assert shown("a\udcff\n\x00\x9b²") == "a\\xff\\n\\x00\\x9b²"


# Outputs inside of inputs


def test_is_inside(tmp_path):
    folder = tmp_path / "Photos"
    (folder / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    for inside in (folder, folder / "new" / "er", tmp_path / "link" / "new", folder / ".." / "Photos", folder / "x"):
        assert is_inside(inside, folder), inside
    for outside in (tmp_path, tmp_path / "Photos2", folder / ".." / "new", tmp_path / "photos.txt"):
        assert not is_inside(outside, folder), outside
    assert not is_inside(folder, "org/dataset")
    assert not is_inside(folder, "")


# Evaluation


def result(**undefined: str) -> dict:
    mean = {metric: math.nan if metric in undefined else 0.5 for metric in METRICS}
    return {"name": "set", "benchmark": None, "mean": {**mean, "undefined": undefined}}


IMAGE, PIXEL = ([metric for metric in METRICS if metric.startswith(level)] for level in ("image", "pixel"))


@pytest.mark.parametrize(
    ("changes", "undefined", "problems"),
    [
        ({}, [], []),
        ({}, IMAGE[:1], []),
        ({}, IMAGE, ["set: all image metrics are undefined: why."]),
        ({}, PIXEL, ["set: all pixel metrics are undefined: why."]),
        ({}, [*IMAGE, *PIXEL], ["set: all image metrics", "set: all pixel metrics"]),
        ({"benchmark": "br35h"}, PIXEL, []),
        ({"benchmark": "isic"}, IMAGE, []),
        ({"benchmark": "mvtec"}, IMAGE, ["set: all image metrics"]),
        ({"unreadable": {"a": "x"}}, [], ["set: 1 images could not be read."]),
    ],
)
def test_exit_code_of_an_evaluation(changes, undefined, problems, monkeypatch):
    """It was 0 where nothing could be measured."""
    found = {**result(**dict.fromkeys(undefined, "why")), **changes}
    assert len(problems_of(found)) == len(problems)
    assert all(line.startswith(start) for line, start in zip(problems_of(found), problems))
    monkeypatch.setattr(runner, "evaluate_checkpoint", lambda *args, **options: [found])
    done = vip2clip("evaluate", "x", "--model", "m", "--output", "out", "--json")
    assert done.code == (3 if problems else 0), done
    assert done.records[0]["name"] == "set"
    assert all(line in done.err for line in problems)


def test_another_model_is_refused_in_one_sentence(image_processor, tmp_path):
    """It was an AttributeError."""
    import torch

    for model, hint in (
        (torch.nn.Linear(1, 1), "Evaluate other models with evaluate_model"),
        (torch.nn.DataParallel(torch.nn.Linear(1, 1)), "Pass model.module"),
    ):
        with pytest.raises(ValueError, match=rf"expected a ViP2ClipForAnomalyDetection\. {hint}"):
            runner.evaluate_sets(model, image_processor, [], tmp_path / "out")


@pytest.mark.skipif(not POSIX or sys.platform == "darwin", reason="names are valid text there")
def test_a_dataset_with_undecodable_names(tmp_path, caplog):
    """It was a UnicodeEncodeError, after the listing."""
    for folder in (b"good", b"bad"):
        photos(tmp_path / "set", os.path.join(folder, b"caf\xe9.png"), os.path.join(folder, b"a.png"))
    dataset = load_folder(tmp_path / "set")
    assert sorted(dataset["image_id"]) == ["bad/a.png", "bad/caf\\xe9.png", "good/a.png", "good/caf\\xe9.png"]
    assert [row["image"].size for row in dataset] == [(9, 8)] * 4
    assert "2 file names in" in caplog.text
    assert "are not valid UTF-8, such as" in caplog.text
    done = vip2clip("data", tmp_path / "set", "--check", "--json")
    assert done.code == 0, done


def test_formulas_in_the_titles_of_sheets():
    """A name with $ ended an evaluation after all images had run: it was read as a formula."""
    picture, values = Image.new("RGB", (9, 8)), np.zeros((8, 9), np.float32)
    rows = [{"image": picture, "mask": None, "anomaly_map": values, "caption": "$\\frac$\nx"}]
    figure = draw_sheet(rows, "$_{$ caf\udce9")
    figure.savefig(io.BytesIO(), format="png")


# Processes


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="needs a shell")
def test_consoles_and_pipes(tmp_path):
    """With real streams, and a cache folder that cannot be written."""
    (tmp_path / "file").write_text("x")
    photo = photos(tmp_path / "p", "钢²🔩.png")
    environment = {"HF_HOME": str(tmp_path / "file" / "hf"), "PYTHONUTF8": "0"}
    command = ("-m", "vip2clip_hf", "predict", photo, "--device", "cpu", "--model", bundled_checkpoint())
    words = " ".join(f"'{word}'" for word in (sys.executable, *command))
    ends_with = {"": 0, "--help": 0, "| head -0": 141, ">/dev/full": 1, ">&-": 1}
    for encoding, end in (("cp1252", ""), ("ascii", ""), ("cp936", "--help"), *(("utf-8", end) for end in ends_with)):
        if end == ">/dev/full" and not os.path.exists("/dev/full"):
            continue
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {words} {end}"], capture_output=True, timeout=300, check=False,
            env={**os.environ, **environment, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert done.returncode == ends_with[end], (end, done.stderr)
        assert end or done.stdout.count(b"\n") == 1
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr


@pytest.mark.slow
def test_parquet_without_a_cache_folder(tmp_path):
    """The error did not name HF_HOME."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = (EXAMPLES / "hazelnut_normal_1.jpg").read_bytes()
    (tmp_path / "file").write_text("x")
    pq.write_table(
        pa.table({"image": [{"bytes": content, "path": "a.jpg"}] * 2, "label": [0, 1]}), tmp_path / "images.parquet"
    )
    done = run_python(
        "-m", "vip2clip_hf", "predict", tmp_path / "images.parquet", "--output", tmp_path / "out", "--device", "cpu",
        HF_HOME=str(tmp_path / "file" / "hf"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images: ")
    assert "set HF_HOME to a folder that can be written" in done.stderr
