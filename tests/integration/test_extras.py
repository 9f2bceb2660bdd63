"""Install each extra in a separate environment: its features work, and all others name the extra to install.

This is slow: it creates one environment with torch, and one per extra that uses it and adds the packages of the extra.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.tiny import EXAMPLES, ROOT
from vip2clip_hf.data.synthetic import write_dataset


pytestmark = pytest.mark.slow
EXTRAS = ("data", "train", "app", "export", "report", "serve", "watch", "heic", "runtime", "openvino")
# Commands, and the extras that enable them. The error message names the first one; an empty tuple means no extra.
COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "version": (["--version"], ()),
    "predict": (["predict", "PHOTO", "--device", "cpu"], ()),
    "regions": (["predict", "PHOTO", "--regions", "--threshold", "0.01", "--device", "cpu"], ()),
    "folder": (["predict", "PHOTOS", "--output", "predictions", "--device", "cpu"], ("data", "train")),
    "csv": (["predict", "PHOTO", "--csv", "small.csv", "--device", "cpu"], ()),
    "report": (["report", "small.csv", "--output", "report.html"], ()),  # torch installs Jinja2
    "xlsx": (["report", "small.csv", "--xlsx", "small.xlsx"], ("report",)),
    "data": (["data", "SET", "--check"], ()),
    "calibrate": (["calibrate", "NORMAL", "--false-alarm-rate", "0.2", "--output", "normal"], ()),
    "adapt": (["adapt", "NORMAL", "--output", "adapted", "--drop-outliers", "--device", "cpu"], ()),
    "labelled": (["calibrate", "SET", "--f1", "--output", "labelled"], ("data", "train")),
    "evaluate": (["evaluate", "SET", "--model", "CHECKPOINT", "--output", "results", "--device", "cpu"], ("train",)),
    "train": (["train", "--clip", "random-tiny", "--train_data", "SET", "--eval_data", "SET", "--use_cpu", "true",
               "--num_train_epochs", "1", "--image_size", "64", "--feature_layers", "3", "--top_k", "2"], ("train",)),
    "train help": (["train", "--help"], ()),
    "evaluate help": (["evaluate", "--help"], ()),
    "onnx": (["export", "--output", "onnx"], ("export",)),
    "runtime": (["predict", "PHOTO", "--runtime", "onnx", "--model", "EXPORTED"], ("runtime", "export")),
    "openvino": (["predict", "PHOTO", "--runtime", "openvino", "--model", "EXPORTED"], ("openvino",)),
    "heic": (["predict", "HEIC", "--device", "cpu"], ("heic",)),
    "serve": (["serve", "--port", "0", "--device", "cpu"], ("serve",)),
    "watch": (["watch", "NORMAL", "--output", "watched", "--settle", "0.1", "--device", "cpu"], ("watch",)),
    "watch by listing": (["watch", "NORMAL", "--output", "listed", "--poll", "1", "--device", "cpu"], ()),
    "torch": (["export", "--output", "torch", "--format", "torch"], ()),
}  # fmt: skip
# Run all commands in one process, then import every public name. The server and the watcher are stopped by a signal,
# again and again, because the first one may come before they listen to it. The app is built only, because its command
# would not return.
SCRIPT = """
import contextlib, io, json, os, signal, sys, threading
import vip2clip_hf
from vip2clip_hf.cli import main

def stop_soon(done):
    while not done.wait(5):
        os.kill(os.getpid(), signal.SIGTERM)

report = {}
for title, words in json.loads(sys.argv[1]).items():
    sys.argv, out, err, code = ["vip2clip", *words], io.StringIO(), io.StringIO(), 0
    done = threading.Event()
    if words[0] in ("serve", "watch"):
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=stop_soon, args=(done,), daemon=True).start()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    done.set()
    report[title] = [code, out.getvalue(), err.getvalue()]
found = {}
for name in vip2clip_hf.__all__:
    try:
        value = getattr(vip2clip_hf, name)
        if name == "build_app":
            value()
        found[name] = "found"
    except ImportError as error:
        found[name] = str(error)
print("REPORT", json.dumps([vip2clip_hf.__file__, report, found]))
"""


CLI = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from vip2clip_hf.cli import main; main()"


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    env.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="2", COLUMNS="200")
    return subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )


def make_environment(folder: Path, requirement: str, below: Path | None = None) -> Path:
    """Create an environment, install a requirement and return its Python. Packages in `below` are used from there."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = ["--disable-pip-version-check", "--quiet"]
    if below is None:
        packages.append(f"torch=={importlib.metadata.version('torch').partition('+')[0]}")
    else:
        (site,) = below.parents[1].glob("[Ll]ib/**/site-packages")
        (own,) = folder.glob("[Ll]ib/**/site-packages")
        (own / "below.pth").write_text(f"{site}\n")
    done = run(python, "-m", "pip", "install", *packages, requirement, cwd=folder)
    if "NewConnectionError" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory) -> Path:
    return make_environment(tmp_path_factory.mktemp("base") / "venv", str(wheel))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The bundled checkpoint in ONNX, exported here because most environments cannot."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    done = run(Path(sys.executable), "-c", CLI, "export", "--output", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def heic(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("heic") / "photo.heic"
    image = Image.open(EXAMPLES / "hazelnut_damaged_1.jpg").convert("RGB")
    pytest.importorskip("pillow_heif").from_pillow(image).save(path)
    return path


@pytest.mark.xdist_group("extras")
@pytest.mark.parametrize("name", ["", *EXTRAS])
def test_extra(name, base, wheel, exported, heic, tmp_path):
    python = base if not name else make_environment(tmp_path / "venv", f"{wheel}[{name}]", base)
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=6, num_anomalous=2, size=64)
    listed = run(python, "-c", "import vip2clip_hf; print(vip2clip_hf.bundled_checkpoint())", cwd=tmp_path)
    places = {
        "PHOTO": EXAMPLES / "hazelnut_damaged_1.jpg",
        "PHOTOS": root / "dots" / "test" / "blob",
        "NORMAL": root / "dots" / "test" / "good",
        "SET": root,
        "CHECKPOINT": listed.stdout.strip(),
        "EXPORTED": exported,
        "HEIC": heic,
    }
    commands = {title: [str(places.get(word, word)) for word in words] for title, (words, _) in COMMANDS.items()}
    done = run(python, "-c", SCRIPT, json.dumps(commands), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    imported, report, found = json.loads(line.removeprefix("REPORT "))
    assert not Path(imported).is_relative_to(ROOT / "src"), "imported from the clone instead of the wheel"
    for title, (code, out, err) in report.items():
        extras = COMMANDS[title][1]
        if not extras or name in extras:
            assert code == 0, f"{title}: {err[-3000:]}"
            continue
        assert code == 1, f"{title}: {out} {err}"
        last = err.strip().splitlines()[-1]
        assert last.startswith("Error: "), f"{title}: {err[-3000:]}"
        assert f"pip install 'vip2clip_hf[{extras[0]}]'" in last, f"{title}: {last}"
        assert "Traceback" not in err, title
    missing = {key: text for key, text in found.items() if text != "found"}
    for key, text in missing.items():
        assert "pip install 'vip2clip_hf[" in text, f"{key}: {text}"
    assert ("build_app" in missing) == (name != "app")
    assert "AnomalyDetectionPipeline" not in missing


def test_the_wheel_installs_the_command(base, tmp_path):
    """Run the installed script in an environment without extras."""
    for words in (["--version"], ["predict", EXAMPLES / "hazelnut_damaged_1.jpg", "--device", "cpu", "--json"]):
        done = run(base.with_name("vip2clip"), *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [row["label"] for row in json.loads(done.stdout)] == ["anomalous"]
