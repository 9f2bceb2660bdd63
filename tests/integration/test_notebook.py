"""docs/notebooks/quickstart.ipynb: clean in git, and every cell runs."""

import re
import shutil

import pytest

from helpers.tiny import ROOT


nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_neither_network_nor_paths_of_a_machine(notebook):
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"https?://|/home/|/Users/|/tmp/|[A-Z]:\\", source)


def test_linked():
    assert "notebooks/quickstart.ipynb" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "docs/notebooks/quickstart.ipynb" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # The notebook's place in a copy of the repository that holds nothing else than what it may use.
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "training" / "examples", tmp_path / "training" / "examples")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()

    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
    )
    pictures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    assert len(pictures) == 4  # two results, attention, layers
    labels = dict(re.findall(r"^(hazelnut_\w+)\.jpg +[\d.]+ (\w+)", printed, re.MULTILINE))
    assert len(labels) == 4
    for name, label in labels.items():
        assert label == ("normal" if "normal" in name else "anomalous")
    before, after = map(float, re.search(r"pixel_auroc +([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after > before
    assert re.search(r"^normal: [\d.]+ normal, p-value", printed, re.MULTILINE)
    assert re.search(r"^cut_paste: [\d.]+ anomalous, p-value", printed, re.MULTILINE)
    assert "README.md, config.json, model.safetensors, preprocessor_config.json" in printed
    assert re.search(r"^[\d.]+ anomalous, p-value 0\.0\d+$", printed, re.MULTILINE)
    assert float(re.search(r"^(\S+) from the score before publishing", printed, re.MULTILINE).group(1)) < 1e-4
    assert not list(folder.iterdir())  # it writes to its temporary folder only, and removes that
    assert {path.name for path in tmp_path.iterdir()} <= {"docs", "training", "jupyter"}
