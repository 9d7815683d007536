"""The catalogue of public datasets: where each lies, what its columns are, and which paper trained on it.

`catalog.yaml` holds the facts, this module their types. A recipe names an entry as `path: catalog:NAME`; its
kind, split, instruction and whether it is symmetric then come from the entry, unless the recipe says them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from embedforge.data.names import CATALOG_PREFIX
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.validation import explain

Paper = Literal["nv-embed-v1", "nv-embed-v2", "e5-mistral"]
PAPERS: tuple[Paper, ...] = ("nv-embed-v1", "nv-embed-v2", "e5-mistral")
Family = Literal["nv-embed", "e5-mistral"]
RECALLED: tuple[Family, ...] = ("nv-embed",)
"""Whose training instructions are recalled from an appendix; E5-Mistral's are read in its tables."""
Kind = Literal["examples", "labels", "clusters", "scored_pairs", "nli"]
Columns = Mapping[str, str | tuple[str, ...]]
_KEYS: dict[str, frozenset[str]] = {
    "examples": frozenset({"query", "positive", "negative"}),
    "labels": frozenset({"text", "label"}),
    "clusters": frozenset({"text", "label"}),
    "scored_pairs": frozenset({"sentence1", "sentence2", "score"}),
    "nli": frozenset({"premise", "hypothesis", "label"}),
}
_OPTIONAL = {"negative"}
_OWN_COLUMNS = {"columns", "files", "titles"}
"""Layouts whose columns an entry has to name; the others have theirs fixed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Use(_Part):
    """How one paper used a dataset."""

    examples: Annotated[int, Field(ge=1)] | None = None
    """How many Examples were trained on; None where that is not said."""
    mark: Literal["paper", "memory"]
    """Where the number comes from: read in the paper, or only recalled from its appendix, unverified."""
    about: str = ""


class Entry(_Part):
    """One dataset: where it lies, how its rows are read, and who used it."""

    title: str
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Id on the Hugging Face hub; None for data that has to be brought by hand."""
    configs: tuple[str, ...] = ()
    """Configurations, read one after the other; the only one when empty."""
    split: str = "train"
    layout: Literal["columns", "beir", "sets", "files", "titles", "by_hand"]
    """How the rows are published (docs/catalog.md)."""
    columns: Columns = {}
    """Our key -> the published column, or several to join with a space; `texts.0` is a list's first item."""
    files: tuple[str, ...] = ()
    """Layout `files`: the files of the dataset, each named after the label of its rows."""
    corpus: str = ""
    """Layout `titles`: the BEIR dataset of the hub that has the documents, by title."""
    first_word_of_label: bool = False
    """The label column lists several, apart by spaces; the first one counts."""
    label_names: Mapping[str, str] = {}
    """Texts for labels that are published as numbers."""
    kind: Kind = "examples"
    """The converter that turns the rows, with our keys, into Examples (docs/data.md)."""
    symmetric: bool = False
    """Queries and documents are of one kind, so that both get the instruction."""
    instructions: Mapping[Family, tuple[str, ...]]
    """What each paper tells the model to do; the first one is the default."""
    licence: str
    used_by: Mapping[Paper, Use] = Field(min_length=1)
    unverified: tuple[Literal["hub", "config", "split", "columns", "licence", "labels", "files"], ...] = ()
    """What of this entry nobody has checked against a published loader or card."""
    note: str = ""

    @property
    def instruction(self) -> str:
        """The default instruction: the first one, NV-Embed's where both papers have one; "" for none."""
        return next((texts[0] for texts in self.instructions.values() if texts), "")

    @model_validator(mode="after")
    def _fits_its_layout(self) -> Entry:
        if (self.hub is None) != (self.layout == "by_hand"):
            raise ValueError("layout 'by_hand' is for data without a hub id, every other one needs a hub id")
        if self.layout in _OWN_COLUMNS:
            known = _KEYS[self.kind] - ({"label"} if self.layout == "files" else set())
            missing = sorted(known - _OPTIONAL - self.columns.keys())
            if missing or not self.columns.keys() <= known:
                raise ValueError(f"columns must name {sorted(known)}, they name {sorted(self.columns)}")
        elif self.columns:
            raise ValueError(f"layout '{self.layout}' has its own columns, leave them out")
        for key, layout in (("files", "files"), ("corpus", "titles")):
            if bool(getattr(self, key)) != (self.layout == layout):
                raise ValueError(f"'{key}' belongs to layout '{layout}', and only to it")
        if self.layout == "beir" and self.kind != "examples":
            raise ValueError("layout 'beir' gives examples")
        return self


class _Catalog(RootModel[dict[str, Entry]]):
    pass


@functools.cache
def load_catalog() -> dict[str, Entry]:
    """Return all entries of the package's catalogue by name."""
    path = Path(str(resources.files("embedforge.data") / "catalog.yaml"))
    return read_catalog(path)


def read_catalog(path: Path) -> dict[str, Entry]:
    """Read a catalogue's file; see `Entry` for the keys.

    Raises:
        EmbedforgeError: unknown keys, wrong values, or settings that do not fit together; names the entry.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, which not every build of PyYAML has
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    if not isinstance(values, dict):
        raise EmbedforgeError(f"{path}: a catalogue maps names to entries, this file holds {values!r:.60}")
    entries = {}
    for name, fields in values.items():
        try:
            entries[str(name)] = Entry.model_validate(fields)
        except ValidationError as error:
            raise EmbedforgeError(f"{path}, entry '{name}':\n{explain(error, Entry)}") from None
    return entries


def find_entry(name: str) -> Entry:
    """Return an entry by its name, with or without the prefix `catalog:`.

    Raises:
        EmbedforgeError: there is none; names the nearest one.
    """
    name, catalog = name.removeprefix(CATALOG_PREFIX), load_catalog()
    if name not in catalog:
        near = did_you_mean(name, catalog)
        raise EmbedforgeError(f"there is no '{name}' in the catalogue (embedforge catalog lists it).{near}")
    return catalog[name]


def with_catalog_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill a recipe source's values from the catalogue entry that its path names; given keys win.

    >>> filled = with_catalog_defaults({"path": "catalog:nli", "instruction": "Find what follows"})
    >>> filled["symmetric"], filled["instruction"]
    (True, 'Find what follows')

    Raises:
        EmbedforgeError: there is no such entry.
    """
    path = values.get("path")
    if not isinstance(path, str) or not path.startswith(CATALOG_PREFIX):
        return values
    entry = find_entry(path)
    defaults: dict[str, Any] = {
        "kind": entry.kind,
        "split": entry.split,
        "instruction": entry.instruction,
    }
    if entry.symmetric:
        defaults["symmetric"] = True
    return {**defaults, **values}
