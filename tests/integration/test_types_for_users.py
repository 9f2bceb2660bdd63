"""Type checkers accept the package and a script as users write it, and report mistakes in it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.tiny import ROOT
from integration import typed_user_script


# The script, one with mistakes, and the examples of the README.
NAMES = ("typed_user_script.py", "typed_user_mistakes.py", "readme.py")


def mypy(folder: Path) -> list[tuple[str, int, str]]:
    """Return file, line and message of each error. The package is installed for users: only its signatures matter."""
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {ROOT / 'src'}\nfollow_imports = silent\nignore_missing_imports = True\n"
        # Reading these takes minutes. What they define counts as Any.
        "[mypy-transformers.*,datasets.*,matplotlib.*,scipy.*,gradio.*]\nfollow_imports = skip\n"
    )
    options = ("--strict", "--config-file", str(config), "--cache-dir", str(folder / "cache"), "--no-error-summary")
    options += ("--python-version", "3.10", "--no-pretty", "--show-error-codes")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *NAMES],
        capture_output=True, text=True, timeout=900, cwd=folder, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    found = re.findall(r"^(.+?):(\d+): (error: .*)", done.stdout, re.MULTILINE)
    assert len(found) == done.stdout.count(": error: "), done.stdout
    return [(file, int(line), message) for file, line, message in found]


def pyright(folder: Path) -> list[tuple[str, int, str]]:
    config = {"include": ["."], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "strict"}
    # Methods of arrays have partly unknown types, and examples show values without using them.
    unused = ("reportMissingTypeStubs", "reportUnknownMemberType", "reportUnusedExpression", "reportUnusedImport")
    config |= dict.fromkeys(unused, False)
    config |= {"pythonVersion": "3.10", "reportMissingImports": True}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True, text=True, timeout=900, cwd=folder, check=False,
    )  # fmt: skip
    if not done.stdout.strip().startswith("{"):  # its first start downloads it
        pytest.skip(f"pyright does not run here: {(done.stdout + done.stderr)[-300:]}")
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(NAMES)
    errors = [one for one in found["generalDiagnostics"] if one["severity"] == "error"]
    return [(Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"]) for one in errors]


def examples_of_the_readme() -> str:
    """All Python blocks of the README, as one script."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(not os.environ.get("CHECK_TYPES"), reason="make test and make types check the types")
def test_types_of_the_package():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers(checker, tmp_path):
    for name in NAMES[:2]:
        shutil.copy(Path(__file__).with_name(name), tmp_path)
    # Without the strict mode of pyright: the classes of transformers have unknown types.
    (tmp_path / NAMES[2]).write_text("# pyright: basic\n" + examples_of_the_readme())
    found = checker(tmp_path)
    mistakes = [(line, message) for name, line, message in found if name == NAMES[1]]
    marked = (tmp_path / NAMES[1]).read_text().splitlines()
    expected = {number for number, line in enumerate(marked, 1) if line.endswith("# mistake")}
    assert len(expected) > 15
    assert {line for line, _ in mistakes} == expected, mistakes
    assert [one for one in found if one[0] != NAMES[1]] == []


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
