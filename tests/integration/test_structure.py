"""The structure of the package: layered imports without cycles, small modules, and self-contained remote code."""

import ast
import importlib
import statistics
from functools import cache
from pathlib import Path

import pytest

from helpers.tiny import ROOT


PACKAGE = ROOT / "src" / "vip2clip_hf"
# Layers from the bottom up. A package imports only from layers below its own.
LAYERS = (
    ("_version",),
    ("utils",),
    ("models",),
    ("data", "runtime"),
    ("inference",),
    ("evaluation",),
    ("checkpoints",),
    ("calibration", "training"),
    ("baselines",),
    ("reporting",),
    ("export", "hub", "plotting", "references", "watching"),
    ("comparison",),
    ("reproduction",),
    ("app", "demo", "serving"),
    ("cli",),
    ("__main__",),
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "anomaly_metrics")
# May be longer than 400 lines: the model, to keep all its steps in one module.
LONG = {"models/vip2clip/modeling_vip2clip.py"}
# Packages that remote code in checkpoints may import: torch, transformers and their dependencies.
REMOTE_CODE_IMPORTS = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "transformers", "typing_extensions"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


@cache
def imports_of(path: Path) -> tuple[tuple[str, bool], ...]:
    """Return the modules of the package that a module imports, and whether at top level (not in a function)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for statement in tree.body if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
           for node in ast.walk(statement)}  # fmt: skip
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    package = [part for part in package if part]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("vip2clip_hf")):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + [part for part in (node.module or "").removeprefix("vip2clip_hf").split(".") if part]
            for alias in node.names:
                candidates = (".".join([*base, alias.name]), ".".join(base))
                found.append((next(name for name in candidates if name in NAMES), id(node) in top))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("vip2clip_hf"), f"{path}: absolute import of the package"
    return tuple(dict.fromkeys(found))


def layer_of(name: str) -> int:
    head = name.split(".")[0]
    return next(number for number, packages in enumerate(LAYERS) if head in packages)


def test_every_package_has_a_layer():
    heads = {name.split(".")[0] for name in NAMES if name}
    assert heads == {package for layer in LAYERS for package in layer}


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_imports_point_down(name):
    for imported, _ in imports_of(NAMES[name]):
        same = imported.split(".")[0] == name.split(".")[0]
        assert same or (imported and layer_of(imported) < layer_of(name)), f"{name} imports {imported}"


# Modules that see a method only as a `Detector`, and what they must not reach.
HARNESS = (
    "detector", "evaluator", "sheets", "recorder", "map_writer", "metrics", "regions", "parts", "tables", "comparison",
    "reports", "reference_tables", "published", "category_metrics",
)  # fmt: skip
MODEL_CLASSES = ("modeling_vip2clip", "image_processing_vip2clip", "pipeline_anomaly_detection")


def reached(name: str, found: set[str]) -> set[str]:
    """Return a module and all modules it imports, directly or not. Lazy packages import nothing."""
    if name not in found:
        found.add(name)
        for imported, _ in imports_of(NAMES[name]) if NAMES[name].name != "__init__.py" else ():
            reached(imported, found)
    return found


@pytest.mark.parametrize("name", HARNESS)
def test_the_harness_imports_no_model_class(name):
    forbidden = {f"models.vip2clip.{module}" for module in MODEL_CLASSES} | {"inference.detector"}
    assert not reached(f"evaluation.{name}", set()) & forbidden


def test_other_modules_reach_the_model():
    """The test above can fail."""
    assert "models.vip2clip.modeling_vip2clip" in reached("evaluation.model_evaluation", set())


def test_no_circular_imports():
    """Includes imports in functions, and the `__init__` of a package, which is imported before its modules."""
    graph = {name: set() for name in NAMES}
    for name, path in NAMES.items():
        for imported, _ in imports_of(path):
            parents = [".".join(imported.split(".")[:count]) for count in range(1, imported.count(".") + 1)]
            # Lazy packages import their public names on first use, not with the package.
            graph[name] |= {imported} | {parent for parent in parents if not is_lazy(NAMES[parent])}
    graph = {name: {one for one in found if one != name and not is_lazy(NAMES[one])} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]):
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for imported in sorted(graph[name]):
                # If the __init__ of a package is not lazy, it runs first and imports its modules.
                if not (NAMES[imported].name == "__init__.py" and name.startswith(f"{imported}.")):
                    visit(imported, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def is_lazy(path: Path) -> bool:
    return path.name == "__init__.py" and "lazy_names(__name__)" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_packages_only_reexport(path):
    """An `__init__` contains no logic and no public name that is also a module. Such a name would refer to either the
    object or the module, depending on the order of imports."""
    package = name_of(path)
    module = importlib.import_module(f"vip2clip_hf.{package}" if package else "vip2clip_hf")
    inside = {name.rpartition(".")[2] for name in NAMES if name and name.rpartition(".")[0] == package}
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name)
        assert name not in inside, f"{name} is also a module of {package or 'vip2clip_hf'}"
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    functions = [one.name for one in statements if isinstance(one, ast.FunctionDef | ast.ClassDef)]
    assert functions == []


def test_modules_are_small():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    modules = {name: count for name, count in lines.items() if not name.endswith("__init__.py")}
    assert statistics.median(modules.values()) < 150
    assert {name for name, count in modules.items() if count > 400} <= LONG


def test_remote_code_imports():
    """Only `from .name import ...` for sibling modules, and packages that come with transformers and torch."""
    folder = PACKAGE / "models" / "vip2clip"
    standard = set(__import__("sys").stdlib_module_names)
    for path in folder.glob("*.py"):
        if path.name in ("__init__.py", "convert_vip2clip_to_hf.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name}: imports from a parent package"
                assert (folder / f"{node.module}.py").is_file(), f"{path.name}: {node.module}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in names:
                    assert name.split(".")[0] in standard | REMOTE_CODE_IMPORTS, f"{path.name}: {name}"


def test_the_launcher_is_thin():
    assert len((ROOT / "training" / "train.py").read_text(encoding="utf-8").splitlines()) < 40
