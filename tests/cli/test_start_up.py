"""What the commands and `import vip2clip_hf` import: modules that take long to import do not come back."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from helpers.tiny import ROOT
from vip2clip_hf import example_photos
from vip2clip_hf.cli import entry
from vip2clip_hf.training.help import described, stored_help
from vip2clip_hf.training.parsing import make_parser
from vip2clip_hf.utils.import_structure import ImportStructure


# Never needed to score photos.
OPTIONAL = {
    "accelerate", "datasets", "evaluate", "gradio", "matplotlib", "onnx", "onnxruntime", "pandas", "peft", "pyarrow",
    "scipy", "sklearn", "sympy", "tabulate", "torch._inductor", "torch.distributed.tensor", "torchvision",
}  # fmt: skip
HEAVY = OPTIONAL | {"huggingface_hub", "numpy", "PIL", "torch", "transformers"}


def python(code: str, cache, *arguments: str) -> str:
    """Run a program in a new process and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_help_of_all_commands_imports_nothing_heavy(tmp_path):
    code = """
    import contextlib, io, json, sys
    from vip2clip_hf.cli.entry import app
    texts = {}
    for name in json.loads(sys.argv[1]):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                app([*name.split(), "--help"], prog_name="vip2clip")
            except SystemExit as stop:
                assert not stop.code
        texts[name] = len(out.getvalue())
    for arguments in (["predict"], ["predict", "x", "--absent"], ["predict", "x", "--heatmaps"], ["adapt"]):
        with contextlib.redirect_stderr(io.StringIO()):  # usage errors
            try:
                app(arguments, prog_name="vip2clip")
            except SystemExit as stop:
                assert stop.code == 2
    import vip2clip_hf
    print(json.dumps([texts, sorted(sys.modules)]))
    """
    names = ["", *(name for group in entry.COMMANDS.values() for name in group)]
    texts, modules = json.loads(python(code, tmp_path, json.dumps(names)))
    assert set(texts) == set(names)
    assert min(texts.values()) > 200
    assert not HEAVY & set(modules)


PREDICT = """
import gc, json, sys
sys.argv = ["vip2clip", *sys.argv[1:]]
from vip2clip_hf.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
# Searching all modules for garbage takes a third of the time.
assert gc.isenabled() and (gc.get_freeze_count() or "torch" not in sys.modules)
print(json.dumps([name for name, module in sys.modules.items() if type(module).__name__ != "_StandIn"]))
"""


def test_one_photo_imports_only_what_it_needs(tmp_path):
    photo = example_photos() / "hazelnut_damaged_1.jpg"
    line, modules = python(PREDICT, tmp_path, "predict", photo, "--device", "cpu").splitlines()
    assert line.endswith("0.785 anomalous")
    modules = set(json.loads(modules))
    assert not (OPTIONAL | {"torch._dynamo", "torch.fx.experimental.symbolic_shapes"}) & modules
    assert "transformers" in modules  # the test can fail


def test_a_report_imports_no_model(tmp_path):
    from vip2clip_hf.reporting.csv_files import write_csv
    from vip2clip_hf.reporting.predictions import Prediction

    names = sorted(path.name for path in (example_photos() / "toys" / "test").iterdir())
    settings = {"kind": "prediction", "source": {"folder": str(example_photos() / "toys" / "test")}}
    write_csv([Prediction(name, 0.7, "anomalous") for name in names], tmp_path / "r.csv", settings)
    page, sorted_photos = tmp_path / "report.html", tmp_path / "sorted"
    out = python(PREDICT, tmp_path, "report", tmp_path / "r.csv", "--output", page, "--sort-into", sorted_photos)
    assert not {"accelerate", "datasets", "torch", "transformers"} & set(json.loads(out.splitlines()[-1]))
    assert f"{len(names)} with pictures" in out


@pytest.mark.slow
def test_the_other_commands_that_score_photos(tmp_path):
    good = example_photos() / "toys" / "good"
    out = python(PREDICT, tmp_path, "calibrate", good, "--output", tmp_path / "one", "--device", "cpu")
    assert not (OPTIONAL | {"torch._dynamo"}) & set(json.loads(out.splitlines()[-1]))
    out = python(PREDICT, tmp_path, "adapt", good, "--output", tmp_path / "two", "--device", "cpu")
    assert not (OPTIONAL | {"torch._dynamo"}) & set(json.loads(out.splitlines()[-1]))
    code = """
    import sys
    from vip2clip_hf import AnomalyDetectionPipeline, adapt, bundled_checkpoint
    found = adapt(bundled_checkpoint(), sys.argv[1], device="cpu")
    written = AnomalyDetectionPipeline.from_pretrained(sys.argv[2], device="cpu").decision
    assert written.image_threshold == found.image_threshold and written.pixel_threshold == found.pixel_threshold
    assert (written.image_scores == found.decision.image_scores).all()
    """
    python(code, tmp_path, good, tmp_path / "two")  # the usual imports compute the same


def test_the_stored_help_of_train_is_that_of_its_parser(monkeypatch):
    """If this fails, run `python -m vip2clip_hf.training.parsing`."""
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert stored_help() == make_parser().format_help()
    assert len(described(make_parser())) > 40


# Imports that are left out


FALLBACK = """
import sys
from vip2clip_hf.utils import light_imports
light_imports.STAND_INS[light_imports.COMPILER] = {}  # another version needs more of the compiler
if sys.argv[1] == "error":
    read = light_imports._patch
    light_imports._patch = lambda utils: utils.absent
light_imports.import_lightly("vip2clip_hf.models.vip2clip")
from vip2clip_hf import AnomalyDetectionPipeline, bundled_checkpoint, example_photos
detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
print(f"{detector(str(example_photos() / 'hazelnut_damaged_1.jpg'))['score']:.3f}")
import torch._dynamo
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.config
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["more", "error"])
def test_what_is_left_out_is_imported_if_it_is_needed(how, tmp_path):
    assert python(FALLBACK, tmp_path, how).strip() == "0.785"


@pytest.mark.slow
def test_what_was_left_out_can_be_imported_later(tmp_path):
    code = """
    import sys
    from vip2clip_hf.utils.light_imports import import_lightly
    import_lightly("vip2clip_hf.models.vip2clip", "transformers.models.clip.modeling_clip")
    assert "torch._inductor" not in sys.modules
    from transformers.utils import is_accelerate_available
    assert is_accelerate_available()
    import torch
    model = torch.nn.Linear(2, 2)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert torch._dynamo.utils and torch.fx.experimental.symbolic_shapes.ShapeEnv
    exported = torch.export.export(model, (torch.ones(1, 2),))
    assert exported.graph
    """
    python(code, tmp_path)


def test_the_list_of_models_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    content = {"clip": {frozenset({"torch"}): {"modeling_clip": {"CLIPModel", "CLIPOutput"}}, frozenset(): {}}}
    calls = []

    def read(path):
        calls.append(path)
        return content

    for _ in range(2):  # two processes
        structure = ImportStructure(read)
        for path in (tmp_path / "models", str(tmp_path / "models")):
            assert structure(path) == content
    assert len(calls) == 1
    (file,) = (tmp_path / "vip2clip_hf").iterdir()
    for damaged in ("{", '{"key": 1}', "[]", file.read_text().replace("modeling_clip", "modeling_other", 1)):
        file.write_text(damaged)
    assert ImportStructure(read)(tmp_path / "models") != {}
    file.write_text("{")
    assert ImportStructure(read)(tmp_path / "models") == content
    assert len(calls) == 2
    monkeypatch.setenv("HF_HOME", str(file))  # nothing can be written
    assert ImportStructure(read)(tmp_path / "models") == content
    assert ImportStructure(read)(tmp_path) == content  # other folders are not stored
