"""Registration with transformers when it is needed."""

import subprocess
import sys
import types

import pytest

import vip2clip_hf
from vip2clip_hf.baselines.registration import METHODS
from vip2clip_hf.models.vip2clip import ViP2ClipConfig
from vip2clip_hf.utils.lazy_registration import LazyEntries, after_import, register_on_use


def test_all_model_types_are_registered():
    assert set(vip2clip_hf._MODEL_TYPES) == {ViP2ClipConfig.model_type, *(config.model_type for config in METHODS)}


ORDERS = {
    "import vip2clip_hf first": """
import sys, vip2clip_hf
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
from transformers import AutoConfig, AutoModel, AutoImageProcessor, pipeline
""",
    "import transformers first": """
from transformers import AutoConfig, AutoModel, AutoImageProcessor, pipeline
import vip2clip_hf
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_and_pipeline(order):
    code = (
        ORDERS[order]
        + """
folder = vip2clip_hf.bundled_checkpoint()
assert type(AutoModel.from_pretrained(folder)).__module__.startswith("vip2clip_hf")
assert type(AutoImageProcessor.from_pretrained(folder)).__module__.startswith("vip2clip_hf")
assert type(pipeline("anomaly-detection", model=str(folder))).__module__.startswith("vip2clip_hf")
for name in vip2clip_hf._MODEL_TYPES:
    assert AutoConfig.for_model(name).model_type == name
print("registered")
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "registered", done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "from transformers import AutoImageProcessor as A; A.from_pretrained(folder)",
        "from transformers import pipeline; pipeline('anomaly-detection', model=str(folder))",
        "from transformers.pipelines import get_supported_tasks; assert 'anomaly-detection' in get_supported_tasks()",
        "from transformers import AutoConfig; assert AutoConfig.for_model('winclip').model_type == 'winclip'",
    ],
)
def test_each_alone(code):
    code = f"import vip2clip_hf; folder = vip2clip_hf.bundled_checkpoint(); {code}; print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that registers "mine" when it is imported."""
    (tmp_path / "registers_mine.py").write_text(
        "import registry_of_mine\nregistry_of_mine.owner.entries['mine'] = 1\n"
    )
    (tmp_path / "registry_of_mine.py").write_text(
        "import types\nowner = types.SimpleNamespace(entries={'other': 2})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "registers_mine"
    for name in ("registers_mine", "registry_of_mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "look_up",
    [lambda one: "mine" in one, lambda one: one["mine"], lambda one: one.get("mine"),
     lambda one: "mine" in set(one.keys()), lambda one: 1 in one.values(), lambda one: ("mine", 1) in one.items()],
)  # fmt: skip
def test_an_entry_is_imported_when_it_is_looked_up(look_up, module):
    import registry_of_mine

    registry_of_mine.owner.entries = entries = LazyEntries({"other": 2}, {"mine": module}, listed=True)
    assert entries["other"] == 2
    assert "absent" not in entries
    assert entries.get("absent", 3) == 3
    assert module not in sys.modules
    assert look_up(entries)
    assert module in sys.modules


def test_listing_does_not_import_if_it_is_too_early(module):
    entries = LazyEntries({"other": 2}, {"mine": module}, listed=False)
    assert list(entries.items()) == [("other", 2)]
    assert module not in sys.modules


def test_a_function_runs_after_an_import(module):
    names = []
    after_import(["registry_of_mine"], names.append)
    stop = after_import(["registers_mine"], names.append)
    stop()
    import registers_mine  # noqa: F401
    import registry_of_mine

    assert names == ["registry_of_mine"]
    assert registry_of_mine.__spec__.loader is registry_of_mine.__loader__
    assert type(registry_of_mine.__loader__).__module__.startswith(("importlib", "_frozen_importlib"))


def test_another_version_of_transformers_registers_now(module, monkeypatch):
    from vip2clip_hf.utils import lazy_registration

    other = types.ModuleType("other_registry")
    other.OWNER = types.SimpleNamespace(entries=[])  # no dict
    monkeypatch.setitem(sys.modules, "other_registry", other)
    place = ("other_registry", "OWNER", "entries")
    for name in ("CONFIGS", "PROCESSORS", "TASKS"):
        monkeypatch.setattr(lazy_registration, name, place)
    register_on_use({"mine": module}, module, {})
    assert module in sys.modules or register_on_use({"mine": module}, module, {"mine": module}) is None
