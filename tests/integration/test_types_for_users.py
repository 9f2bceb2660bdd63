"""Type checkers accept a script as users write it, and report mistakes in it."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.tiny import ROOT
from integration import typed_user_script


SCRIPT, MISTAKES = (Path(__file__).with_name(f"typed_user_{name}.py") for name in ("script", "mistakes"))
MARKED = {number for number, line in enumerate(MISTAKES.read_text().splitlines(), 1) if line.endswith("# mistake")}


def mypy(path: Path, folder: Path) -> list[tuple[int, str]]:
    """Return line and message of each error. The package is installed for users, so only its signatures are read."""
    config = folder / "mypy.ini"
    config.write_text(f"[mypy]\nmypy_path = {ROOT / 'src'}\nfollow_imports = silent\nignore_missing_imports = True\n")
    options = ("--strict", "--config-file", str(config), "--cache-dir", str(folder / "cache"), "--no-error-summary")
    options += ("--python-version", "3.10", "--no-pretty", "--show-error-codes")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        capture_output=True, text=True, timeout=600, cwd=folder, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    found = re.findall(rf"{re.escape(path.name)}:(\d+): (error: .*)", done.stdout)
    assert len(found) == done.stdout.count(": error: "), done.stdout
    return [(int(line), message) for line, message in found]


def pyright(path: Path, folder: Path) -> list[tuple[int, str]]:
    config = {"include": [str(path)], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "strict"}
    # Of matplotlib, pandas and others, which have partly unknown types.
    config |= dict.fromkeys(("reportMissingTypeStubs", "reportUnknownMemberType"), False)
    config |= {"pythonVersion": "3.10", "reportMissingImports": True}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True, text=True, timeout=600, cwd=folder, check=False,
    )  # fmt: skip
    if not done.stdout.strip().startswith("{"):
        pytest.skip(f"pyright does not run here: {(done.stdout + done.stderr)[-300:]}")
    errors = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    assert {Path(one["file"]).name for one in errors} <= {path.name}
    return [(one["range"]["start"]["line"] + 1, one["message"]) for one in errors]


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers(checker, tmp_path):
    assert checker(SCRIPT, tmp_path) == []
    found = checker(MISTAKES, tmp_path)
    assert {line for line, _ in found} == MARKED, found


def test_the_script_runs():
    lines = typed_user_script.main()
    assert lines[0].startswith("anomalous: 0.785, ")
    assert lines[-1] == "label, regions, score, size"
    assert "0.0" in lines


@pytest.mark.slow
def test_the_wheel_says_that_it_has_types(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True, timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vip2clip_hf/py.typed" in names
