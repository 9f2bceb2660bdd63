"""The demo does not lose files of the user. The whole demo runs in tests/integration/test_programs.py."""

import pytest
from PIL import Image

from vip2clip_hf import demo


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "AnomalyDetectionPipeline", Detector)
    monkeypatch.setattr(demo, "adapt", lambda *args, **kwargs: pytest.fail("the demo starts"))
    return tmp_path / "demo"


class Detector:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()

    def __call__(self, path):
        with Image.open(path) as photo:
            assert photo.width
        return {"score": 0.5, "label": "normal"}


def test_invalid_arguments(output):
    with pytest.raises(ValueError, match="seed is -1; expected an integer of at least 0"):
        demo.run_demo(output, -1)
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(OSError, match="is a file; expected a folder"):
        demo.run_demo(output)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("name", ["sheet.png", "checkpoint"])
def test_other_files_are_kept(name, output):
    (output / name).mkdir(parents=True)
    (output / name / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="exists; choose another folder"):
        demo.run_demo(output)
    with pytest.raises(OSError, match=f"{name}' is not from a demo; move it"):
        demo.run_demo(output, overwrite=True)
    assert (output / name / "mine.txt").read_text() == "mine"


def test_an_interruption_keeps_the_earlier_checkpoint(output, monkeypatch):
    def interrupted(checkpoint, good, target, **kwargs):
        (target / "config.json").write_text("half")
        raise KeyboardInterrupt

    (output / "checkpoint").mkdir(parents=True)
    (output / "checkpoint" / "config.json").write_text("earlier")
    monkeypatch.setattr(demo, "adapt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(output, say=lambda line: None, overwrite=True)
    assert (output / "checkpoint" / "config.json").read_text() == "earlier"
    assert [path.name for path in output.iterdir()] == ["checkpoint"]
