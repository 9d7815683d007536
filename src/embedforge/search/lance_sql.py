"""Metadata and filters in LanceDB's terms: a column a field, and SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from embedforge.errors import EmbedforgeError
from embedforge.search.filters import Filter, number_of


def column_of(field: str) -> str:
    """Return the column of a field of metadata; a column's name cannot hold a dot."""
    return "meta:" + quote(field, safe=" ").replace(".", "%2E")


def known_fields(columns: Iterable[str]) -> list[str]:
    """Return the fields of metadata that a table has columns for."""
    return [unquote(column.removeprefix("meta:")) for column in columns if column.startswith("meta:")]


def sql_of(condition: Filter, columns: Mapping[str, Any]) -> str:
    """Return a filter as LanceDB takes it; `columns` are the table's, with their types."""
    column = f"`{column_of(condition.field)}`"
    is_text = str(columns[column_of(condition.field)]) == "string"
    if condition.sign not in ("=", "!="):
        wanted = condition.values[0]
        return (
            f"{column} {condition.sign} {text_of(wanted) if is_text else _number(wanted, columns, condition)}"
        )
    if is_text:
        parts = [_like(column, value) for value in condition.values]
    else:
        parts = [f"{column} = {_number(value, columns, condition)}" for value in condition.values]
    together = f"({' OR '.join(parts)})"
    return together if condition.sign == "=" else f"({column} IS NOT NULL AND NOT {together})"


def _like(column: str, value: str) -> str:
    if "*" not in value and "?" not in value:
        return f"{column} = {text_of(value)}"
    pattern = re.escape(value).replace(r"\*", ".*").replace(r"\?", ".")
    return f"regexp_like({column}, {text_of(f'^(?s:{pattern})$')})"


def _number(text: str, columns: Mapping[str, Any], condition: Filter) -> str:
    number = number_of(text)
    if number is None:
        raise EmbedforgeError(
            f"filter '{condition.field}{condition.sign}{text}': its values are numbers or true and false"
        )
    if str(columns[column_of(condition.field)]) == "bool":
        return "true" if number else "false"
    return repr(number)


def text_of(value: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"
