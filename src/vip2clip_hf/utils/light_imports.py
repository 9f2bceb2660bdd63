"""
Import transformers in a fraction of the time, in processes of a command that only scores photos.

Most of the time before the first photo is spent on imports that scoring does not use: the compiler of torch, sharded
tensors, and optional packages such as scipy and accelerate. `import_lightly` leaves them out, and keeps the garbage
collector from searching what is imported. Scores do not change.
"""

import contextlib
import functools
import gc
import importlib
import importlib.util
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from .import_structure import ImportStructure
from .lazy_registration import after_import


# Optional packages that transformers imports if they are installed.
UNUSED = (
    "is_accelerate_available",
    "is_peft_available",
    "is_scipy_available",
    "is_sklearn_available",
    "is_torch_distributed_available",
)
COMPILER = "torch._dynamo"
# A module of the compiler with a class that transformers imports by name.
WRAPPED = f"{COMPILER}._trace_wrapped_higher_order_op"
SHAPES = "torch.fx.experimental.symbolic_shapes"
WRAPPED_CLASS = "TransformGetItemToIndex"
SHARDED = "torch.distributed.tensor"


def import_lightly(*names: str) -> None:
    """
    Import modules, and transformers with them, in the light way. For processes of a command that scores photos, in
    which nothing is compiled. Has no effect on what is already imported.

    Args:
        names (`str`): full names of modules. If another version of torch or transformers needs what is left out, they
            are imported as usual.
    """
    with _without_collections():
        before = set(sys.modules)
        try:
            with _light_imports():
                for name in names:
                    importlib.import_module(name)
        except (AttributeError, ImportError):
            heads = tuple(f"{name.partition('.')[0]}." for name in (__name__, "transformers", *names))
            for module in set(sys.modules) - before:
                if f"{module}.".startswith(heads):
                    del sys.modules[module]
            for name in names:
                importlib.import_module(name)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Do not search modules for garbage, now and at the end of the process: they stay until then."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _light_imports() -> Iterator[None]:
    if "transformers" in sys.modules or COMPILER in sys.modules:
        yield
        return
    _skip_meta_values()
    restore: list[Callable[[], None]] = []
    stop = after_import(["transformers.utils.import_utils"], lambda name: restore.extend(_patch(sys.modules[name])))
    _add_stand_ins()
    try:
        yield
    except BaseException:
        _remove_stand_ins()
        raise
    finally:
        stop()
        for function in restore:
            function()


def _patch(utils: types.ModuleType) -> list[Callable[[], None]]:
    """Replace functions of transformers, and return how to restore them."""

    def unavailable(*args: Any, **kwargs: Any) -> bool:
        return False

    restore: list[Callable[[], None]] = []
    functions: dict[str, Any] = dict.fromkeys(UNUSED, unavailable)
    read = getattr(utils, "create_import_structure_from_path", None)
    if read is not None:
        functions["create_import_structure_from_path"] = ImportStructure(read)
    for name, function in functions.items():
        original = getattr(utils, name, None)
        if original is not None:
            setattr(utils, name, function)
            restore.append(functools.partial(_restore, name, original))
    return restore


def _restore(name: str, original: Any) -> None:
    for module in ("transformers.utils.import_utils", "transformers.utils"):
        if hasattr(sys.modules.get(module), name):
            setattr(sys.modules[module], name, original)


def _skip_meta_values() -> None:
    """Do not draw values of weights without memory, which imports sympy. They get their values from the checkpoint."""
    from torch.nn import init

    draw = getattr(init, "_no_grad_normal_", None)
    if draw is not None:

        def skip(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

        setattr(init, "_no_grad_normal_", skip)  # noqa: B010  # no attribute that mypy knows


def _unchanged(function: Any) -> Any:
    return function


def _disable(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _unchanged if function is None else function


def _create_wrapped(*args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(WRAPPED), WRAPPED_CLASS)(*args, **kwargs)


def _is_nested_int(number: Any) -> bool:
    return False


# What stands in for modules of torch until something else of them is used. The compiler marks functions, which changes
# nothing without it. For a number that is known, a condition of symbolic shapes is its value.
STAND_INS: dict[str, dict[str, Any]] = {
    COMPILER: {"allow_in_graph": _unchanged, "assume_constant_result": _unchanged, "disable": _disable},
    WRAPPED: {WRAPPED_CLASS: _create_wrapped},
    SHAPES: {
        "is_nested_int": _is_nested_int,
        **dict.fromkeys(
            ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true"), bool
        ),
        "sym_eq": operator.eq,
    },
}


class _StandIn(types.ModuleType):
    """A module of torch that is imported when something else than `names` of it is used."""

    def __init__(self, name: str, origin: str | None, names: dict[str, Any]) -> None:
        super().__init__(name)
        vars(self).update(names, __file__=origin)  # `inspect` asks every module for its file

    def __getattr__(self, name: str) -> Any:
        # Packages are asked for __path__ to import their modules.
        is_package = self.__file__ is not None and os.path.basename(self.__file__) == "__init__.py"
        if name.startswith("__") and not (name == "__path__" and is_package):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _add_stand_ins() -> None:
    origins = {}
    for name in (COMPILER, SHAPES):
        found = importlib.util.find_spec(name)
        origins[name] = None if found is None else found.origin
    for name, names in STAND_INS.items():
        if name not in sys.modules:
            module = sys.modules[name] = _StandIn(name, origins.get(name), names)
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


def _remove_stand_ins() -> None:
    """Let others import the modules."""
    for name in STAND_INS:
        module = sys.modules.get(name)
        if isinstance(module, _StandIn):
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if vars(sys.modules.get(parent, module)).get(child) is module:
                vars(sys.modules[parent]).pop(child)


@contextlib.contextmanager
def without_sharded_tensors() -> Iterator[None]:
    """Save a checkpoint without an import of sharded tensors. huggingface_hub asks whether a weight is one, and no
    weight is after light imports. Has no effect without them."""
    if SHARDED in sys.modules or not isinstance(sys.modules.get(COMPILER), _StandIn):
        yield
        return
    modules: dict[str, types.ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules[SHARDED] = None  # an import raises an error, which huggingface_hub expects
    try:
        yield
    finally:
        if SHARDED in modules and modules[SHARDED] is None:
            del modules[SHARDED]


__all__ = ["import_lightly", "without_sharded_tensors"]
