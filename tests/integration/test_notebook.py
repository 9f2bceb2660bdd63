"""docs/notebooks/quickstart.ipynb is stored without outputs, and every cell runs."""

import re

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


def test_no_urls_and_no_local_paths(notebook):
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"https?://|/home/|/Users/|/tmp/|[A-Z]:\\", source)


def test_linked():
    assert "notebooks/quickstart.ipynb" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "docs/notebooks/quickstart.ipynb" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # The notebook needs no other file of the repository.
    folder = tmp_path / "notebooks"
    folder.mkdir()
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
    figures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    assert len(figures) == 4  # two results, attention, layers
    labels = dict(re.findall(r"^(hazelnut_\w+)\.jpg +[\d.]+ (\w+)", printed, re.MULTILINE))
    assert len(labels) == 4
    for name, label in labels.items():
        assert label == ("normal" if "normal" in name else "anomalous")
    before, after = map(float, re.search(r"pixel_auroc +([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after > before
    assert re.search(r"^normal: [\d.]+ normal, p-value", printed, re.MULTILINE)
    assert re.search(r"^cut_paste: [\d.]+ anomalous, p-value", printed, re.MULTILINE)
    assert "README.md, config.json, decision.json, model.safetensors, preprocessor_config.json" in printed
    assert re.search(r"^[\d.]+ anomalous, p-value 0\.0\d+$", printed, re.MULTILINE)
    assert float(re.search(r"^(\S+) from the score before saving", printed, re.MULTILINE).group(1)) < 1e-4
    assert not list(folder.iterdir())  # all files are in the temporary folder, which is deleted
    assert {path.name for path in tmp_path.iterdir()} <= {"notebooks", "jupyter"}
