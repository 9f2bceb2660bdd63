"""`vip2clip reproduce all --plan small` from a wheel in a new environment; and killed, resumed, and shared runs."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.tiny import ROOT
from vip2clip_hf.reproduction.plan import plan_path


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small_plan")]
# The plan small with fewer rows, so that it can run several times.
FEWER = {
    "seeds": [111], "rows": {"4": ["none", "utpa+ica", "full"], "5": ["utpa"]}, "top_k": [1, 5],
    "state_words": [["good", "damaged"], ["perfect", "flawed"]],
    "training": {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3},
    "efficiency": {"images": 2, "batch_sizes": [1], "repeats": 2, "variants": ["float32"]}, "pictures": 1,
}  # fmt: skip
TIMEOUT = 1200


def python_of(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """
    A new environment with the wheel of the package. Its dependencies are those of this environment, which are not
    installed again; its editable install of the package is not visible there.
    """
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    found = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", found], check=True, timeout=300)
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run([python_of(found), *install], check=True, timeout=300, env=variables())
    (own,) = found.glob("[Ll]ib/**/site-packages")
    below = [path for path in sys.path if path.endswith("site-packages")]
    (own / "below.pth").write_text("".join(f"{path}\n" for path in below))
    code = "import vip2clip_hf; print(vip2clip_hf.__file__)"
    done = subprocess.run(
        [python_of(found), "-c", code], check=True, capture_output=True, text=True, env=variables(), cwd=folder
    )
    assert Path(done.stdout.strip()).is_relative_to(own)
    return found


def variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(environment: Path, folder: Path, plan: object, *options: object) -> subprocess.Popen:
    """Start the installed command in a folder of its own, with its messages in a file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [python_of(environment).with_name("vip2clip"), "reproduce", "all", "--plan", plan, "--output", folder]
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(
            [*map(str, command), "--device", "cpu", *map(str, options)],
            cwd=folder.parent, env=variables(), stdout=log, stderr=log,
        )  # fmt: skip


def finish(process: subprocess.Popen, folder: Path) -> None:
    code = process.wait(timeout=TIMEOUT)
    assert code == 0, Path(f"{folder}.log").read_text(errors="replace")[-3000:]


def compared(folder: Path) -> dict[str, str]:
    """Text of all tables and charts but Table 3, which is a measurement of time."""
    found = [path for path in folder.glob("table*.*") if path.suffix in (".md", ".csv", ".tex")]
    found = [path for path in found if path.stem != "table3"]
    found += [folder / f"figure{number}.{kind}" for number in (5, 6) for kind in ("csv", "md")]
    return {path.name: path.read_text(encoding="utf-8") for path in found}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Path:
    content = {**yaml.safe_load(plan_path("small").read_text(encoding="utf-8")), **FEWER}
    path = tmp_path_factory.mktemp("plan") / "fewer.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(environment, plan, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "output"
    finish(start(environment, folder, plan), folder)
    return folder


def test_the_plan_small(environment, tmp_path):
    """All tables and figures of the shipped plan."""
    folder, begin = tmp_path / "output", time.monotonic()
    finish(start(environment, folder, "small"), folder)
    print(f"plan small: {time.monotonic() - begin:.0f} s")
    found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    # 16 settings, 2 directions, 2 seeds; and the frozen CLIP with 2 seeds. Of the other methods, 3 are trained.
    assert len(found["rows"]) == 66 + 2 + 3 * 2 * 2
    assert {row["failure"] for row in found["rows"]} == {None}
    assert all(one["mean"] for row in found["rows"] for one in row["evaluations"])
    assert found["commit"] is None  # an installed package
    names = {path.name for path in folder.iterdir()}
    assert {f"table{number}.{kind}" for number in range(1, 7) for kind in ("md", "tex", "csv")} <= names
    assert {f"figure{number}.{kind}" for number in (4, 5, 6) for kind in ("png", "pdf")} <= names
    assert {f"figure{number}-{name}.png" for number in (3, 7) for name in ("surfaces", "things")} <= names
    assert "not computed" not in "".join(compared(folder).values())
    # The standard output of a finished run with --json is one document.
    command = [python_of(environment).with_name("vip2clip"), "reproduce", "table", "1", "--plan", "small", "--json"]
    done = subprocess.run(
        [*command, "--output", folder], capture_output=True, text=True, env=variables(), cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["problems"] == []


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_three_times_and_resumed(environment, plan, whole, tmp_path):
    """Set KILL_SEED to repeat the points of a failed test."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    rng = random.Random(seed)
    expected, folder = whole, tmp_path / "output"
    total = len(list(expected.glob("results/*.json")))
    # After this number of results, and some more seconds: in the middle of a training, an evaluation, or in between.
    points = [(count, rng.uniform(0, 2)) for count in sorted(rng.sample(range(1, total - 3), 3))]
    print(f"KILL_SEED={seed}: {', '.join(f'{count} of {total} results + {more:.2f} s' for count, more in points)}")
    finished = [0]
    for count, more in points:
        process = start(environment, folder, plan)
        deadline = time.monotonic() + TIMEOUT
        while len(list(folder.glob("results/*.json"))) < count and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.05)
        time.sleep(more)
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        process.wait()
        finished.append(len(list(folder.glob("results/*.json"))))
    print(f"results after each: {finished}")
    assert finished == sorted(finished)
    assert finished[-1] > 0
    finish(start(environment, folder, plan), folder)
    assert compared(folder) == compared(expected)
    assert not any((folder / "progress").iterdir())
    results = [{path.name for path in one.glob("results/*.json")} for one in (folder, expected)]
    assert results[0] == results[1]


def test_two_programs_in_one_folder(environment, plan, whole, tmp_path):
    folder = tmp_path / "output"
    processes = [start(environment, folder, plan) for _ in range(2)]
    for process in processes:
        finish(process, folder)
    assert compared(folder) == compared(whole)
