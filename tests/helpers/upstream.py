"""Import the common tests of transformers, which are part of its source distribution but not of its wheel.

The source is the folder in the environment variable `UPSTREAM` (a checkout of transformers), else the source
distribution of the installed version, downloaded from the package index into a cache outside the repository. Nothing
of it is copied into the repository. The modules are imported as `transformers_tests.<name>`.

The source distribution lacks some modules that the common tests import. Small stand-ins replace what is needed of
them.
"""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers


PACKAGE = "transformers_tests"
# Modules that the source distribution does not contain, and the names that the common tests import from them.
STAND_INS: dict[str, dict[str, Any]] = {
    f"{PACKAGE}.exporters": {},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation": {},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils": {},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
    # The tests that open these images are not for this model.
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def upstream_folder() -> Path:
    """
    Find the source of the installed version of transformers.

    Returns:
        `pathlib.Path`: folder that contains `tests` and `src`.

    Raises:
        OSError: if the source is not found and cannot be downloaded, or has another version.
    """
    given = os.environ.get("UPSTREAM")
    folder = Path(given) if given else _downloaded()
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        raise OSError(f"{str(folder)!r} has no tests/test_modeling_common.py; expected the source of transformers.")
    found = next(
        line.split('"')[1]
        for line in (folder / "src/transformers/__init__.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    )
    if found != transformers.__version__:
        raise OSError(f"{str(folder)!r} is transformers {found}; expected {transformers.__version__}, as installed.")
    return folder


def _downloaded() -> Path:
    """Return the unpacked source distribution of the installed version. Downloads it once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "vip2clip_hf-tests")
    name = f"transformers-{transformers.__version__}"
    if not (cache / name).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            command += ["--no-binary", ":all:", "--dest", temporary, name.replace("-", "==", 1)]
            # pip prepares the metadata after the download, which fails without the build tools. The file is there.
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            archive = Path(temporary, f"{name}.tar.gz")
            if not archive.is_file():
                raise OSError(
                    f"The source of transformers {transformers.__version__} could not be downloaded; set UPSTREAM to "
                    f"a checkout of this version. {result.stderr.strip()}"
                )
            with tarfile.open(archive) as file:
                file.extractall(temporary, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            Path(temporary, name, "tests", "__init__.py").touch()  # opened by the configuration tests
            # Another process can finish first.
            if not (cache / name).is_dir():
                os.rename(Path(temporary, name), cache / name)
    return cache / name


def import_upstream(name: str) -> ModuleType:
    """
    Import a module of the tests of transformers.

    Args:
        name (`str`): name of the module, for example `"test_modeling_common"`.

    Returns:
        `ModuleType`: the module.
    """
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(upstream_folder() / "tests")]
        sys.modules[PACKAGE] = package
        for module_name, names in STAND_INS.items():
            if not _exists(module_name):
                module = ModuleType(module_name)
                module.__path__ = []
                vars(module).update(names)
                sys.modules[module_name] = module
    return importlib.import_module(f"{PACKAGE}.{name}")


def _exists(module_name: str) -> bool:
    """Whether a checkout contains the module."""
    parts = module_name.split(".")
    folder = Path(sys.modules[PACKAGE].__path__[0])
    path = folder.joinpath(*parts[1:]) if parts[0] == PACKAGE else folder.parent / "utils" / parts[0]
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def write_tiny_models(folder: Path, model: Any, image_processor: Any) -> None:
    """
    Write a model where the pipeline tests look for it, instead of the tiny models on the Hub.

    Args:
        folder (`pathlib.Path`): value of `TRANSFORMERS_TINY_MODEL_PATH`.
        model: the model.
        image_processor: its image processor.
    """
    name = type(model).__name__
    for processor in (model, image_processor):
        processor.save_pretrained(folder / model.config.model_type / name)
    summary = {name: {"tokenizer_classes": [], "processor_classes": [type(image_processor).__name__]}}
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")


def import_pipeline_tests(folder: Path, image_processor_class: type) -> ModuleType:
    """
    Import the common pipeline tests.

    Args:
        folder (`pathlib.Path`): folder with the models of the tests, see [`write_tiny_models`].
        image_processor_class (`type`): class of their image processors.

    Returns:
        `ModuleType`: the module `test_pipeline_mixin`.
    """
    # The module reads the variable, and replaces transformers in sys.modules by a copy.
    before, installed = os.environ.get("TRANSFORMERS_TINY_MODEL_PATH"), sys.modules["transformers"]
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(folder)
    try:
        module = import_upstream("test_pipeline_mixin")
    finally:
        sys.modules["transformers"] = installed
        del os.environ["TRANSFORMERS_TINY_MODEL_PATH"]
        if before is not None:
            os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = before
    # The tests look for the class in transformers.
    setattr(module.transformers_module, image_processor_class.__name__, image_processor_class)
    return module
