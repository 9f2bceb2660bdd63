"""Read the code blocks of a Markdown page and run them: Python in one namespace, commands one by one."""

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import yaml
from typer.testing import CliRunner

from helpers.servers import serving
from helpers.tiny import ROOT
from vip2clip_hf.cli import app


# Modules of this repository to run with `python -m`.
MODULES = ("benchmarks", "training.build_tiny")
SHELL = ("bash", "sh", "console")
# Languages of blocks that are not run.
SHOWN = ("bibtex", "ini")
_FENCE = re.compile(r"^( *)(```+|~~~+) *([\w+-]*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@dataclass
class Block:
    """A fenced block: language, text, line number of its first line, and the output shown directly after it."""

    language: str
    text: str
    line: int
    output: str | None = None


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page. A block without a language is the output of the block directly before it, if that
    block is run. Otherwise it is text, such as a folder tree or a diagram."""
    text, blocks, end = page.read_text(encoding="utf-8"), [], None
    for found in _FENCE.finditer(text):
        language, content = found[3], textwrap.dedent(found[4])
        if language:
            blocks.append(Block(language, content, text.count("\n", 0, found.start()) + 2))
            end = found.end()
        elif end is not None and not text[end : found.start()].strip() and blocks[-1].language not in SHOWN:
            blocks[-1].output = content
            end = None
    return blocks


def read_commands(block: Block) -> list[str]:
    """Return the commands of a block. Continued lines are joined; comments and prompts are removed."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    commands = [" ".join(shlex.split(line.removeprefix("$ "), comments=True)) for line in lines]
    return [command for command in commands if command]


def same_output(shown: str, real: str):
    """Compare outputs: words exactly, numbers to within 0.01 or 1 %. A line `...` matches any lines."""
    expected, found = (text.strip().splitlines() for text in (shown, real))
    if "..." in expected:
        cut = expected.index("...")
        rest = len(expected) - cut - 1
        found = [*found[:cut], "...", *found[len(found) - rest :]]
    assert [_NUMBER.sub("#", line).split() for line in expected] == [_NUMBER.sub("#", line).split() for line in found]
    for line, other in zip(expected, found):
        for one, two in zip(_NUMBER.findall(line), _NUMBER.findall(other)):
            one, two = (float(number.replace(",", "")) for number in (one, two))
            assert abs(one - two) <= max(0.01, 0.01 * abs(one)), f"the page says {line!r}, found {other!r}"


def run_python(block: Block, page: str, namespace: dict) -> str:
    source = "\n" * (block.line - 1) + block.text
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(source, page, "exec"), namespace)
    return out.getvalue()


def parse_data(block: Block):
    return json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)


def _script(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the name and the arguments of a script in `training/` or a module of this repository that is started with
    Python, accelerate or torchrun."""
    if words[:2] == ["python", "-m"] and words[2] in MODULES:
        return words[2], words[3:]
    for place, word in enumerate(words):
        if word.endswith(".py") and words[0] in ("python", "torchrun", "accelerate"):
            assert (ROOT / word).is_file(), f"{word} does not exist"
            if "--config_file" in words[:place]:
                config = ROOT / words[words.index("--config_file") + 1]
                assert "compute_environment" in yaml.safe_load(config.read_text())
            return Path(word).stem, words[place + 1 :]
    return None


def help_text(words: list[str]) -> str:
    """Return the help of a command that is not run, to check its options."""
    script = _script(words)
    if script is not None and script[0] in MODULES:
        parser = importlib.import_module(f"{script[0]}.__main__").make_parser()
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            parser.parse_args([script[1][0], "--help"])
        return out.getvalue()
    command = script[0] if script is not None else words[1] if words[0] == "vip2clip" else None
    if command is None:
        raise AssertionError(f"{' '.join(words)}: the options of this command are unknown")
    option = "--help-all" if command == "train" else "--help"
    return CliRunner().invoke(app, [command, option], env={"COLUMNS": "200"}, terminal_width=200).output


def check_options(command: str):
    """Check that the help of a command contains all its options."""
    words = command.split()
    script = _script(words)
    given = words[2:] if script is None else script[1]
    known = set(re.findall(r"--[\w-]+", help_text(words).replace("_", "-")))
    for option in given:
        if option.startswith("--"):
            name = option.partition("=")[0].replace("_", "-")
            assert name in known, f"{command}: unknown option {option}"


class Servers:
    """
    Servers that a page starts with `vip2clip serve`, and the `curl` commands for them.

    They run beside the other blocks of the page until it ends, each on a free port in place of the one on the page.
    """

    def __init__(self):
        self._stack, self._ports = contextlib.ExitStack(), {}

    def start(self, command: str) -> str:
        """Start the server of a command and wait until it is ready. Returns the first line of its output."""
        arguments = shlex.split(command)[2:]
        shown = arguments[arguments.index("--port") + 1] if "--port" in arguments else "8000"
        if "--port" in arguments:
            del arguments[arguments.index("--port") : arguments.index("--port") + 2]
        server = self._stack.enter_context(serving(arguments, Path.cwd()))
        self._ports[shown] = str(server.ready()[1])
        return self.as_shown(server.out.read_text(encoding="utf-8").splitlines()[0])

    def as_run(self, text: str) -> str:
        """Replace the ports on the page by those in use."""
        for shown, real in self._ports.items():
            text = text.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{real}")
        return text

    def as_shown(self, text: str) -> str:
        """Replace the ports in use by those on the page."""
        for shown, real in self._ports.items():
            text = text.replace(f"127.0.0.1:{real}", f"127.0.0.1:{shown}")
        return text

    def curl(self, command: str) -> str:
        done = subprocess.run(
            [*shlex.split(self.as_run(command)), "--fail"], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr}"
        return done.stdout

    def close(self):
        self._stack.close()


def run_command(command: str) -> str:
    """Run a command in this process, because starting a new one takes longer than most commands."""
    command = re.sub(r"^accelerate launch .*--module vip2clip_hf ", "vip2clip ", command)
    words = shlex.split(command)
    script = _script(words)
    if words[0] == "vip2clip" or (script is not None and script[0] in ("evaluate", "train")):
        result = CliRunner().invoke(app, words[1:] if script is None else [script[0], *script[1]])
        assert result.exit_code == 0, f"{command}: exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result.stdout
    raise AssertionError(f"{command}: cannot be run by this test; add it to NOT_RUN with a reason")
