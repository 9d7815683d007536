"""embedforge turns a decoder-only language model into a text-embedding model, and proves that it got better.

The table of contents of the Python API. In the order of a project:

    curate, synthesize, mine      training data: cleaned, written by a language model, with hard negatives
    Recipe, load_recipe, train    what a run is, and running it
    evaluate                      models on tasks, with intervals and paired tests
    load, encode                  a saved model, and its vectors
    Index                         texts that can be searched
    build, save, probe            the same by hand: a decoder turned around, saved, and proven layer by layer
    Contract, Example             how a text becomes a vector; a query with its documents
    EmbedforgeError               whatever is the user's to mend

Each name loads its module on first use, so `import embedforge` costs nothing and imports no torch.

Some of these verbs are also names of packages: `embedforge.train` here is the function, and the package is
reached by `from embedforge.train.run import ...` or `from embedforge.train import run`, which look modules up
by their full names. After a plain `import embedforge.train.run`, dotted access finds the function; for that
reason `import embedforge.train.run as name` does not work.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Contract",
    "EmbedforgeError",
    "Example",
    "Index",
    "Recipe",
    "__version__",
    "build",
    "curate",
    "encode",
    "evaluate",
    "load",
    "load_recipe",
    "mine",
    "probe",
    "save",
    "synthesize",
    "train",
]

if TYPE_CHECKING:
    from embedforge.curate.run import curate
    from embedforge.data.example import Example
    from embedforge.encode import encode
    from embedforge.errors import EmbedforgeError
    from embedforge.evaluate.run import evaluate
    from embedforge.mine.run import mine
    from embedforge.model.encoder import build, load, save
    from embedforge.model.probe import probe
    from embedforge.recipe import Recipe, load_recipe
    from embedforge.search.index import Index
    from embedforge.synthesize.run import synthesize
    from embedforge.text.contract import Contract
    from embedforge.train.run import train

_HOMES = {
    "Contract": "embedforge.text.contract",
    "EmbedforgeError": "embedforge.errors",
    "Example": "embedforge.data.example",
    "Index": "embedforge.search.index",
    "Recipe": "embedforge.recipe",
    "build": "embedforge.model.encoder",
    "curate": "embedforge.curate.run",
    "encode": "embedforge.encode",
    "evaluate": "embedforge.evaluate.run",
    "load": "embedforge.model.encoder",
    "load_recipe": "embedforge.recipe",
    "mine": "embedforge.mine.run",
    "probe": "embedforge.model.probe",
    "save": "embedforge.model.encoder",
    "synthesize": "embedforge.synthesize.run",
    "train": "embedforge.train.run",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedforge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Front(ModuleType):
    """The class of this module, whose verbs no package of the same name can hide.

    Importing `embedforge.train.run`, from anywhere, ends with `embedforge.train = <the package>`: without
    this the name would mean the function before, and the package after.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
