"""Run Python in new processes: alone, with a launcher of two processes, or to be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


# Free ports, so that tests can run in parallel.
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate": ACCELERATE}


def _environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run Python with arguments and environment variables. The exit code is not checked."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=_environment(**variables), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def run_program(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run Python like [`run`] and check that it succeeds."""
    done = run(*arguments, cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


# First lines of a script for `start`: each process writes its id.
LEAVE_PROCESS_ID = """
import os, sys
if "PROCESS_IDS" in os.environ:
    open(os.path.join(os.environ["PROCESS_IDS"], str(os.getpid())), "w").close()
"""


def start(*arguments: object, ids: Path) -> subprocess.Popen:
    """Start Python without waiting. `ids` is a new folder for the ids of its processes."""
    ids.mkdir()
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=_environment(PROCESS_IDS=str(ids)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill(process: subprocess.Popen, ids: Path):
    """Send SIGKILL to the launcher first, which would otherwise terminate its workers, then to the workers, which run
    in separate sessions."""
    process.kill()
    for path in ids.iterdir():
        if int(path.name) != process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
    process.wait()


def wait_for_files(folder: Path, pattern: str, count: int):
    """Wait until a folder contains `count` files that match a pattern, or for two minutes."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count and time.monotonic() < deadline:
        time.sleep(0.05)
