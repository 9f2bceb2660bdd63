"""Register models with transformers when it first looks for them, so that importing the package stays cheap."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any


# Where transformers looks for registered classes: module, object in it, and attribute with a dict.
CONFIGS = ("transformers.models.auto.configuration_auto", "CONFIG_MAPPING", "_extra_content")
PROCESSORS = ("transformers.models.auto.image_processing_auto", "IMAGE_PROCESSOR_MAPPING", "_extra_content")
TASKS = ("transformers.pipelines", "PIPELINE_REGISTRY", "supported_tasks")


class LazyEntries(dict[Any, Any]):
    """
    Dict of transformers that imports a module when an entry is looked up that this module registers.

    Args:
        entries (`Mapping`): the entries so far.
        modules (`Mapping[str, str]`): module by key. Importing it adds the entry.
        listed (`bool`): whether listing all entries imports the modules as well. A list of configurations is read
            while transformers itself is imported, which is too early.
    """

    def __init__(self, entries: Mapping[Any, Any], modules: Mapping[str, str], listed: bool) -> None:
        super().__init__(entries)
        self._modules = dict(modules)
        self._listed = listed

    def _import(self, keys: Iterable[Any]) -> None:
        for key in keys:
            # Keys can be classes, or not hashable.
            if isinstance(key, str) and (module := self._modules.get(key)) is not None:
                importlib.import_module(module)
                self._modules.pop(key, None)

    def __contains__(self, key: object) -> bool:
        self._import((key,))
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        self._import((key,))
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._import((key,))
        return super().get(key, default)

    def _list(self) -> None:
        if self._listed:
            self._import(list(self._modules))

    def keys(self) -> Any:
        self._list()
        return super().keys()

    def values(self) -> Any:
        self._list()
        return super().values()

    def items(self) -> Any:
        self._list()
        return super().items()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function after one of some modules is imported."""

    def __init__(self, names: Iterable[str], function: Any) -> None:
        self.names = set(names)
        self.function = function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.names:
            return None
        self.names.discard(fullname)  # the search below comes here again
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.function)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader, then calls a function."""

    def __init__(self, loader: Any, function: Any) -> None:
        self.loader = loader
        self.function = function

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.function(module.__name__)


def register_on_use(model_types: Mapping[str, str], processors: str, tasks: Mapping[str, str]) -> None:
    """
    Register classes with transformers when it first looks for them. Imports nothing.

    Args:
        model_types (`Mapping[str, str]`): module by model type. Importing the module registers the model type with
            `AutoConfig` and `AutoModel`.
        processors (`str`): module that registers image processors with `AutoImageProcessor`.
        tasks (`Mapping[str, str]`): module by the name of a task. Importing the module registers the pipeline.
    """
    entries = {
        CONFIGS[0]: (CONFIGS, model_types, False),
        PROCESSORS[0]: (PROCESSORS, {"image processors": processors}, True),
        TASKS[0]: (TASKS, tasks, True),
    }

    def prepare(name: str) -> None:
        (_, owner, attribute), modules, listed = entries[name]
        found = getattr(sys.modules[name], owner, None)
        present = getattr(found, attribute, None)
        if isinstance(present, dict):
            setattr(found, attribute, LazyEntries(present, modules, listed))
        else:  # another version of transformers: register now
            for module in dict.fromkeys(modules.values()):
                importlib.import_module(module)

    for name in entries:
        if name in sys.modules:
            prepare(name)
    after_import([name for name in entries if name not in sys.modules], prepare)


def after_import(names: Iterable[str], function: Callable[[str], Any]) -> Callable[[], None]:
    """
    Call a function after a module is imported for the first time.

    Args:
        names (`Iterable[str]`): full names of modules that are not imported yet.
        function (`Callable[[str], Any]`): called with the name of the module.

    Returns:
        `Callable[[], None]`: stops this.
    """
    finder = _AfterImport(names, function)
    sys.meta_path.insert(0, finder)
    return finder.names.clear


__all__ = ["LazyEntries", "after_import", "register_on_use"]
