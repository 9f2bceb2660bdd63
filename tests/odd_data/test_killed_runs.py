"""Runs that replace results are killed at many points: inputs stay, and results are the old or the new ones."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.evaluations import read_results
from helpers.files import files_in
from helpers.predictions import rows_of
from odd_data.test_run_folders import evaluate, predict, write_image, write_set


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
RANDOM_KILLS = 20


def contents(folder: Path) -> dict[str, bytes]:
    names = (
        name for name in files_in(folder) if not name.startswith(".progress") and not name.endswith(".vip2clip-tmp")
    )
    return {name: (folder / name).read_bytes() for name in names}


def killed(work, after: float | None = None, at_call: int | None = None) -> bool:
    """Run `work` in a forked process. Kill it after some seconds, or before the n-th call that replaces or deletes."""
    process = os.fork()
    if process == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process ends without closing it
        if at_call is not None:
            calls = 0

            def counted(original):
                def call(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls == at_call:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)

                return call

            os.replace, os.unlink = counted(os.replace), counted(os.unlink)
        try:
            work()
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


class Replacing:
    """A folder with old results, a run that replaces them, and a new folder with what it writes."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.output = kind, folder, folder / "out"
        self.old, self.new = write_set(folder / "old"), write_set(folder / "new", 40)
        self.photos = folder / "photos"
        self.inputs = {}
        self.reset()
        start = time.monotonic()
        self.again()
        self.seconds = time.monotonic() - start
        self.expected = self.results()

    def reset(self) -> None:
        """Restore the old results."""
        for name in files_in(self.output):
            (self.output / name).unlink()
        for path in sorted(self.output.rglob("*"), reverse=True):
            path.rmdir()
        for number in range(4):
            write_image(self.photos / f"{number}.png", number)
        (self.photos / "new.png").unlink(missing_ok=True)
        if self.kind == "evaluate":
            evaluate(self.old, self.output, save_maps=True)
        else:
            predict(self.photos, self.output, heatmaps=True, chunk_size=2)
            write_image(self.photos / "1.png", 50)
            write_image(self.photos / "new.png", 51)
            (self.photos / "3.png").unlink()
        self.before = contents(self.output)
        self.inputs = {path: contents(path) for path in (self.old, self.new, self.photos)}

    def again(self) -> None:
        if self.kind == "evaluate":
            evaluate(self.new, self.output, save_maps=True, overwrite=True, fpr_limit=0.2)
        else:
            predict(self.photos, self.output, heatmaps=True, chunk_size=2)

    def results(self):
        if self.kind == "evaluate":
            (found,) = read_results(self.output)
            return found["root"], found["mean"]
        return {name: round(row["score"], 5) for name, row in rows_of(self.output).items()}

    def check(self) -> str:
        """Check the folder after a kill, finish the run, and return what was found."""
        for path, content in self.inputs.items():
            assert contents(path) == content
        moving = [self.output / ".progress" / name for name in (".moving.json", "moving.json")]
        if any(path.exists() for path in moving):
            found = "moving"  # the next run completes it
        else:
            now = contents(self.output)
            manifest = ".vip2clip.json"  # lists files before they are written
            same = {name for name in self.before if self.before[name] == now.get(name)} | {manifest}
            found = "old" if same == set(self.before) and set(now) == set(self.before) else "new"
            if found == "new":
                assert self.results() == self.expected
        self.again()
        assert self.results() == self.expected
        assert not (self.output / ".progress").exists()
        assert not [name for name in files_in(self.output) if name.endswith("tmp")]
        return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_killed_at_random_points(kind, tmp_path):
    run = Replacing(kind, tmp_path)
    chance = random.Random(0)
    found = []
    for _ in range(RANDOM_KILLS):
        run.reset()
        killed(run.again, after=chance.uniform(0, 1.2 * run.seconds))
        found.append(run.check())
    assert "old" in found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_killed_before_each_replacement(kind, tmp_path):
    """Every call that replaces or deletes a file is the last one of a run."""
    run = Replacing(kind, tmp_path)
    found, call = [], 0
    while True:
        call += 1
        run.reset()
        if not killed(run.again, at_call=call):
            break
        found.append(run.check())
    assert {"old", "moving"} <= set(found)
    assert len(found) >= 10
