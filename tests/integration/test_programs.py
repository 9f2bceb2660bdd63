"""Run the programs of the repository like a user."""

import json
import re

import pytest
from typer.testing import CliRunner

from helpers.hub_stub import running_hub
from helpers.predictions import rows_of, write_photos
from helpers.processes import run, run_program
from helpers.tiny import EXAMPLES, ROOT, change_weights
from helpers.training import train_arguments, write_train_and_eval_sets
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.cli import app
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.inference.prediction import predict_to_folder


TRAINING = ROOT / "training"


@pytest.mark.slow
def test_demo(tmp_path):
    out = run_program(TRAINING / "demo.py", "--output", tmp_path / "demo", cwd=tmp_path).stdout
    found = re.findall(r"((?:hazelnut|toy)_\w+\.jpg) +(\d\.\d{3}) (normal|anomalous)", out)
    assert len(found) == 4 + 5 + 5
    # No false alarm, and with references each damaged toy is found.
    for name, _, label in [*found[:4], *found[-5:]]:
        assert label == ("anomalous" if "damaged" in name else "normal"), name
    assert out.splitlines()[-1].strip() == "vip2clip adapt good_photos --output my-part"
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 10_000
    assert {"model.safetensors", "references.json", "report.html"} <= {
        path.name for path in (tmp_path / "demo" / "checkpoint").iterdir()
    }
    again = run(TRAINING / "demo.py", "--output", tmp_path / "demo")
    assert again.returncode == 1
    assert "exists" in again.stderr
    done = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo"), "--overwrite", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {name for name in result["adapted"] if name.startswith("toy_damaged")} == {
        name for name, one in result["adapted"].items() if one["label"] == "anomalous"
    }
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["checkpoint", "sheet.png"]


@pytest.mark.slow
def test_publishing(clip_folder, tmp_path):
    """Training publishes to a stub of the Hub, and a new process loads the checkpoint by its id."""
    arguments = train_arguments(tmp_path, clip_folder, write_train_and_eval_sets(tmp_path))
    publish = ["--push_to_hub", "true", "--hub_model_id", "org/detector", "--hub_private_repo", "true"]
    command = [TRAINING / "train.py", *arguments, *publish]
    with running_hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        assert "Published as org/detector" in run_program(*command, cwd=tmp_path, **environment).stdout
        assert hub.private == {"org/detector": True}
        assert len(hub.commits) == 1
        published = hub.repositories["org/detector"]
        assert {"README.md", "config.json", "model.safetensors", "modeling_vip2clip.py"} <= set(published)
        assert not any(name.startswith("checkpoint-") or name == "results.json" for name in published)
        assert b"### eval" in published["README.md"]
        for name, content in published.items():
            assert (tmp_path / "out" / name).read_bytes() == content
        (tmp_path / "load.py").write_text(
            "import vip2clip_hf\nfrom transformers import AutoModel\n"
            "model = AutoModel.from_pretrained('org/detector')\n"
            "print('LOADED', model.provenance.training_sets[0]['name'])"
        )
        assert "LOADED train" in run_program(tmp_path / "load.py", cwd=tmp_path, **environment).stdout
        # Access is checked before the training, not after it.
        hub.refuse = True
        done = run(*command, **environment)
        assert done.returncode == 1
        assert "403" in done.stderr
        assert "Writing model" not in done.stderr
    done = CliRunner().invoke(app, ["train", *arguments, "--push_to_hub", "true"])
    assert done.exit_code == 2
    assert "--push_to_hub needs --hub_model_id" in done.stderr


@pytest.mark.slow
def test_predict_output_streams(tmp_path):
    """Called by another program: results on stdout, messages on stderr, no progress bars."""
    photo = EXAMPLES / "hazelnut_normal_1.jpg"
    # A new folder, because the notice is shown once.
    arguments = ("predict", photo, "--regions", "--device", "cpu")
    done = run_program("-m", "vip2clip_hf", *arguments, HF_HOME=str(tmp_path))
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("Using the small bundled checkpoint")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_predict_compiled(model, image_processor, tmp_path):
    change_weights(model)
    checkpoint = save_checkpoint(model, image_processor, tmp_path / "checkpoint")
    photos = write_photos(tmp_path / "photos") / "x" / "y"
    options = ["--model", checkpoint, "--output", tmp_path / "out", "--device", "cpu", "--compile"]
    run_program("-m", "vip2clip_hf", "predict", photos, *options)
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    predict_to_folder(model, processor, photos, tmp_path / "eager")
    compiled, eager = rows_of(tmp_path / "out"), rows_of(tmp_path / "eager")
    assert compiled["deep.PNG"]["score"] == pytest.approx(eager["deep.PNG"]["score"], abs=1e-5)
