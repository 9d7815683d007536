"""The JSON schema of a recipe's file, for editors."""

from __future__ import annotations

from typing import Any

from embedforge.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe's file, for editors.

    A file that `extends` another may leave out what that one says, and skip its stages.
    """
    schema = Recipe.model_json_schema()
    stage, mix = schema["$defs"]["Stage"], schema["$defs"]["Mix"]
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
    inside = {"mix": {"required": mix.pop("required")}}
    stages = {"items": {"required": stage.pop("required"), "properties": inside}}
    schema["if"] = {"required": ["extends"]}
    schema["else"] = {"required": schema.pop("required"), "properties": {"stages": stages}}
    stage["required"] = ["name"]
    return schema
