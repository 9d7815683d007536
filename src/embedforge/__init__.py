"""embedforge turns a decoder-only language model into a text-embedding model.

The public names; each loads its module on first use, so `import embedforge` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Contract", "EmbedforgeError", "Example", "Recipe", "__version__", "load", "load_recipe"]

if TYPE_CHECKING:
    from embedforge.data.example import Example
    from embedforge.errors import EmbedforgeError
    from embedforge.model.encoder import load
    from embedforge.recipe import Recipe, load_recipe
    from embedforge.text.contract import Contract

_HOMES = {
    "Contract": "embedforge.text.contract",
    "EmbedforgeError": "embedforge.errors",
    "Example": "embedforge.data.example",
    "Recipe": "embedforge.recipe",
    "load": "embedforge.model.encoder",
    "load_recipe": "embedforge.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedforge' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
