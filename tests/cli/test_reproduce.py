import json

import pytest
import yaml
from typer.testing import CliRunner

from helpers.files import files_in
from helpers.reproduction import tiny_content
from vip2clip_hf.cli import app
from vip2clip_hf.cli.reproduce import duration
from vip2clip_hf.reproduction import method, running
from vip2clip_hf.reproduction.method import ViP2ClipMethod
from vip2clip_hf.reproduction.plan import PLANS, plan_path, read_plan


def reproduce(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


@pytest.fixture
def plan_file(tmp_path):
    """The tiny plan with one row: one training and one evaluation."""
    content = tiny_content(
        protocol=[{"train": ["one"], "evaluate": ["two"]}], ablations=["two"], rows={"5": ["utpa"], "4": ["full"]}
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Neither the backbone nor the Hub is needed."""

    def fail(*arguments, **options):
        raise AssertionError("the backbone was loaded")

    for name in ("load_backbone", "load_clip", "bundled_backbone"):
        monkeypatch.setattr(method, name, fail)
    monkeypatch.setattr(running, "checksum_of_backbone", fail)


def test_help():
    done = reproduce("--help")
    assert done.exit_code == 0
    for text in ("vip2clip reproduce all --plan small", "vip2clip reproduce --print-plan > plan.yaml", "TARGET...",
                 "--dry-run", "--list-plans", "Exit codes"):  # fmt: skip
        assert text in done.stdout


def test_list_plans():
    done = reproduce("--list-plans")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PLANS)
    assert all(text in done.stdout for text in PLANS.values())


@pytest.mark.parametrize("name", PLANS)
def test_print_plan(name, tmp_path):
    """What is printed is a plan."""
    done = reproduce("--print-plan", "--plan", name)
    assert done.exit_code == 0
    assert done.stdout == plan_path(name).read_text(encoding="utf-8")
    (tmp_path / "copy.yaml").write_text(done.stdout, encoding="utf-8")
    assert read_plan(tmp_path / "copy.yaml").to_dict() == read_plan(name).to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No table or figure is given; expected tables 1 2 3 4 5 6, figures 3 4 5 6 7, or all."),
        (["tables", "7"], "table 7 is not reproduced"),
        (["chart"], "'chart' is not a table or figure"),
        (["all", "--data", "parts=P"], "--data contains the unknown key 'parts'"),
        (["all", "--plan", "small", "--data", "parts=P"], "There is one dataset; expected at least two"),
        (["all", "--seed", "-1"], "greater than or equal to 0"),
        (["all", "--seed", "1", "--seed", "1"], "seeds is [1, 1]; expected different integers"),
        (["all", "--absent"], "--absent"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch, nothing_is_loaded):
    monkeypatch.chdir(tmp_path)
    done = reproduce(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert files_in(tmp_path) == set()


def test_wrong_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tiny_content(sedes=[1])))
    done = reproduce("all", "--plan", "plan.yaml")
    assert done.exit_code == 2
    assert "unknown key 'sedes'; did you mean 'seeds'?" in " ".join(done.stderr.replace("│", " ").split())
    done = reproduce("all", "--plan", "absent.yaml")
    assert isinstance(done.exception, OSError)
    assert "Plan 'absent.yaml' not found; expected paper, small or a YAML or JSON file." in str(done.exception)
    assert files_in(tmp_path) == {"plan.yaml"}


def test_paper_without_data(tmp_path, monkeypatch, nothing_is_loaded):
    """Exit code 3, and where to download what. The published results are in the tables."""
    monkeypatch.chdir(tmp_path)
    done = reproduce("tables", "1", "2", "4", "5", "6", "figures", "5", "6", "--device", "cpu")
    assert done.exit_code == 3, done.stderr
    downloads = [line for line in done.stderr.splitlines() if line.startswith("Download ")]
    assert len(downloads) == 15
    for name, root in read_plan("paper").datasets.items():
        assert f"{name}: data not found: {root}" in done.stderr
        assert any(f" to {root} from http" in line for line in downloads), name
    text = (tmp_path / "reproduction-paper" / "table4.md").read_text(encoding="utf-8")
    assert "data not found: data/VisA" in text
    assert "Written to reproduction-paper: table1.md" in done.stdout
    found = files_in(tmp_path / "reproduction-paper")
    assert "provenance.json" in found
    assert not [name for name in found if name.startswith(("trained", "results"))]


def test_dry_run_of_the_paper_without_data(tmp_path, monkeypatch, nothing_is_loaded):
    monkeypatch.chdir(tmp_path)
    done = reproduce("all", "--dry-run", "--json", "--device", "cpu")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert (found["num_trainings"], found["num_evaluations"], found["seconds"]) == (0, 0, 0)
    assert found["basis"] == "nothing to measure"
    assert len(found["downloads"]) == 15
    assert {row["status"].partition(":")[0] for row in found["rows"]} == {"data not found"}


def test_dry_run(plan_file, tmp_path, monkeypatch):
    """Rows with estimated times. Nothing is trained or written, except for the generated data."""
    trained = []
    train = ViP2ClipMethod.train
    monkeypatch.setattr(ViP2ClipMethod, "train", lambda *args, **options: trained.append(1) or train(*args, **options))
    options = ("tables", "4", "5", "figure", "6", "--plan", plan_file, "--output", tmp_path / "out", "--device", "cpu")
    done = reproduce(*options, "--dry-run", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert trained == []
    assert [(row["target"], row["setting"], row["shared_with"]) for row in found["rows"]] == [
        ("table 4", "full", ""), ("table 5", "utpa", ""), ("figure 6", "top_k=1", ""),
        ("figure 6", "full", "table 4"),
    ]  # fmt: skip
    assert {row["status"] for row in found["rows"]} == {"to do"}
    assert (found["num_trainings"], found["num_evaluations"]) == (3, 3)
    assert found["basis"] == "measured on a few steps and images"
    assert 0 < found["seconds"] < 60
    times = [row["seconds"] for row in found["rows"]]
    assert all(seconds > 0 for seconds in times[:3])
    assert times[3] == 0  # counted in Table 4
    assert sum(times) == pytest.approx(found["seconds"])
    written = files_in(tmp_path / "out")
    assert {name for name in written if not name.startswith("data/")} == {"reproduction.json", "known.json"}
    # After a run of one of the tables, its rows are finished, and the times are those of its rows.
    assert reproduce("table", "5", *options[5:]).exit_code == 0
    assert trained == [1]
    found = json.loads(reproduce(*options, "--dry-run", "--json").stdout)
    assert [row["status"] for row in found["rows"]] == ["to do", "finished", "to do", "to do"]
    assert found["rows"][1]["seconds"] is None
    assert (found["num_trainings"], found["basis"]) == (2, "from finished rows")
    done = reproduce(*options, "--dry-run")
    assert done.exit_code == 0
    assert "2 trainings and 2 evaluations are left, about " in done.stdout
    assert "Nothing was trained." in done.stdout
    assert trained == [1]


def test_a_run(plan_file, tmp_path):
    """Tables on the standard output; with --json, one document; then a change of the plan."""
    options = ("table5", "--plan", plan_file, "--output", tmp_path / "out", "--device", "cpu")
    done = reproduce(*options, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == {
        "files": ["table5.md", "table5.tex", "table5.csv", "provenance.json"], "tables": ["table5.md"],
        "problems": [], "downloads": [], "num_others": 0,
    }  # fmt: skip
    done = reproduce(*options)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "table5.md").read_text(encoding="utf-8") in done.stdout
    assert f"Written to {tmp_path / 'out'}: table5.md, table5.tex, table5.csv, provenance.json" in done.stdout
    assert "other rows or settings" not in done.stdout
    done = reproduce(*options, "--seed", 5)
    assert done.exit_code == 0, done.stderr
    assert "2 results of other rows or settings are kept in" in done.stdout
    row = json.loads((tmp_path / "out" / "provenance.json").read_text())["rows"][0]
    assert row["seed"] == 5


def test_own_data(plan_file, tmp_path):
    """With leave-one-out, --data replaces the datasets. One of them does not exist."""
    assert reproduce("table5", "--plan", plan_file, "--output", tmp_path / "out", "--device", "cpu").exit_code == 0
    root = next(path for path in (tmp_path / "out" / "data").glob("one-*") if path.is_dir())
    done = reproduce(
        "table5", "--plan", "small", "--data", f"parts={root}", "--data", tmp_path / "screws", "--output",
        tmp_path / "own", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.exit_code == 3
    assert json.loads(done.stdout)["problems"] == [f"screws: data not found: {tmp_path / 'screws'}"]
    assert f"screws: data not found: {tmp_path / 'screws'}" in done.stderr
    done = reproduce("table5", "--plan", plan_file, "--output", root, "--device", "cpu")
    assert isinstance(done.exception, OSError)
    assert "is not empty and does not contain a reproduction" in str(done.exception)


def test_durations():
    assert [duration(seconds) for seconds in (None, 0, 119, 120, 7199, 9000)] == [
        "-", "0 s", "119 s", "2 min", "120 min", "2.5 h",
    ]  # fmt: skip
