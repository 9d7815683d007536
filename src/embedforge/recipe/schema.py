"""The JSON schema of a recipe's file, for editors."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from embedforge.data.kinds import source_kinds
from embedforge.recipe import Recipe
from embedforge.recipe.base import Section
from embedforge.text.contract import Contract


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe's file, for editors.

    A file that `extends` another may leave out what that one says, and skip its stages.
    """
    schema = Recipe.model_json_schema()
    stage = schema["$defs"]["Stage"]
    schema["properties"]["extends"] = {
        "description": "The recipe file beside this one from which this one says the differences only.",
        "type": "string",
    }
    stage["properties"]["skip"] = {
        "const": True,
        "description": "Leave out this stage of the recipe that is extended; with `name` alone.",
    }
    # Without a kind, which has a default, the keys may fit more than one of them.
    for section, key in ((stage, "objective"), (schema["$defs"]["Model"], "pooling")):
        kinds = section["properties"][key]
        kinds["anyOf"] = kinds.pop("oneOf")
    objectives = {"anyOf": stage["properties"]["objective"]["anyOf"]}
    schema["$defs"]["Sum"]["properties"]["terms"]["items"] = objectives
    schema["$defs"]["Matryoshka"]["properties"]["objective"] = dict(objectives)
    merges = {"properties": {"objective": {"properties": {"kind": {"const": "merge"}}, "required": ["kind"]}}}
    trained = {"required": ["mix", "steps"], "properties": {"mix": {"required": ["sources"]}}}
    stages = {
        "items": {
            "required": stage.pop("required"),
            "if": {**merges, "required": ["objective"]},
            "else": trained,
        }
    }
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {"required": schema.pop("required"), "properties": {"stages": stages}}
    stage["required"] = ["name"]
    schema["$defs"]["Source"]["properties"]["kind"]["enum"] = list(source_kinds())
    _describe(schema)
    return schema


def _describe(schema: dict[str, Any]) -> None:
    """Put the string below each key in the source as its description."""
    waiting: list[type[BaseModel]] = [Contract, *Section.__subclasses__()]
    for section in waiting:
        waiting += section.__subclasses__()
        described = schema if section is Recipe else schema["$defs"].get(section.__name__, {})
        for key, text in _meanings(section).items():
            if key in described.get("properties", {}):
                described["properties"][key].setdefault("description", text)


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """Return what stands in the source below each key of a section, its own and inherited ones."""
    meanings: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if owner is section or (issubclass(owner, Section) and owner is not Section):
            try:
                body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            except OSError:  # a class that was typed in, as in a notebook
                continue
            for key, below in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
                if isinstance(key, ast.AnnAssign) and isinstance(below, ast.Expr):
                    meanings[ast.unparse(key.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return meanings
