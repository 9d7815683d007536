"""An index in LanceDB: on a disk, in an object store (s3://, gs://, az://) or on its server (db://).

It needs the extra `lancedb`. From `APPROXIMATE_FROM` documents on, vectors are searched by an approximate
index, and the best of what it finds are scored exactly; below, every vector is looked at. Words are cut by
embedforge and counted by LanceDB's own BM25.

Every write makes new versions of the table. The tag `ready` stands on the last one that is complete, with its
indexes, and a reader opens that one and stays with it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.lexical import K1, words_and_identifiers
from embedforge.ranking import Floats
from embedforge.search.document import Document, Value
from embedforge.search.filters import Filter
from embedforge.search.folder_write import checked_vectors
from embedforge.search.lance_sql import column_of, known_fields, sql_of, text_of
from embedforge.search.store import Change, Facts, Identity, Key

TABLE, TAG, FACTS = "documents", "ready", b"embedforge"
_SCHEMES = ("", "lance", "s3", "s3+ddb", "gs", "az", "abfss", "db")
APPROXIMATE_FROM = 100_000
"""Documents from which an approximate index is worth its time; measured in docs/search.md."""
KEPT_FOR_READERS = timedelta(hours=1)
"""How long a version stays that is the newest no more: one that is open may be read so long."""
_LUCENE = K1 + 1
"""LanceDB leaves this factor in, which Lucene dropped since it changes no order."""
_PROBES, _REFINED = 40, 10
_ROWS_AT_ONCE = 20_000
_TEXT_COLUMNS = ("id", "text", "location", "metadata")


class LanceStore:
    """The version of a table that is marked as ready.

    Raises:
        EmbedforgeError: no index there, or the extra is not installed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._table = _open(uri)
        known = json.loads((self._table.schema.metadata or {}).get(FACTS, b"{}"))
        if not known:
            raise EmbedforgeError(f"{uri}: the table '{TABLE}' was not made by embedforge index")
        self._columns = {name: self._table.schema.field(name).type for name in self._table.schema.names}
        self.facts = Facts(
            **known,
            documents=self._table.count_rows(),
            fields=tuple(known_fields(self._columns)),
            store="lancedb",
            generation=str(self._table.version),
        )

    def nearest(self, vector: Floats, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest inner product; see `Store`."""
        query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
        query = query.nprobes(_PROBES).refine_factor(_REFINED)
        rows = self._limited(query, k, filters, "_distance")
        return [(row["_rowid"], 1.0 - row["_distance"]) for row in rows]

    def matching(self, query: str, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest BM25 score above 0; see `Store`."""
        from lancedb.query import MatchQuery

        words = words_and_identifiers(query)
        if not words:
            return []
        asked = self._table.search(MatchQuery(" ".join(words), "words"), query_type="fts")
        rows = self._limited(asked, k, filters, "_score")
        return [(row["_rowid"], row["_score"] / _LUCENE) for row in rows if row["_score"] > 0]

    def _limited(self, query: Any, k: int, filters: Sequence[Filter], score: str) -> list[dict[str, Any]]:
        if filters:
            conditions = [sql_of(condition, self._columns) for condition in filters]
            query = query.where(" AND ".join(conditions), prefilter=True)
        return query.limit(k).with_row_id(True).select([score]).to_list()

    def documents(self, keys: Sequence[Key]) -> list[Document]:
        """Read documents."""
        rows = self._taken(keys, _TEXT_COLUMNS)
        return [
            Document(row["id"], row["text"], row["location"], json.loads(row["metadata"])) for row in rows
        ]

    def dense_scores(self, vector: Floats, keys: Sequence[Key]) -> list[float]:
        """Return inner products."""
        rows = self._taken(keys, ("vector",))
        return [float(np.asarray(row["vector"], dtype=np.float32) @ vector) for row in rows]

    def lexical_scores(self, query: str, keys: Sequence[Key]) -> list[float | None]:
        """LanceDB scores what it finds only."""
        return [None] * len(keys)

    def ids(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each document's id and metadata."""
        for batch in self._table.search().select(["id", "metadata"]).to_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield row["id"], json.loads(row["metadata"])

    def newest(self) -> LanceStore | None:
        """Return the newest generation, None where it is this one."""
        version = _connect(self.uri).open_table(TABLE).tags.get_version(TAG)
        return None if str(version) == self.facts.generation else LanceStore(self.uri)

    def _taken(self, keys: Sequence[Key], columns: Sequence[str]) -> list[dict[str, Any]]:
        if not keys:
            return []
        rows = self._table.take_row_ids(list(keys)).select(list(columns)).with_row_id().to_list()
        by_key = {row["_rowid"]: row for row in rows}
        return [by_key[key] for key in keys]


def create(uri: str, identity: Identity, documents: Iterable[Document], vectors: NDArray[Any]) -> LanceStore:
    """Write an index to `uri`; one that is there is replaced once the new one is complete.

    Raises:
        EmbedforgeError: vectors and documents do not fit, metadata of two types under one key, or no extra.
    """
    rows = list(documents)
    checked_vectors(vectors, len(rows), identity.dimensions)
    schema = _schema(identity, column_types(rows))
    database = _connect(uri, to_write=True)
    table = database.create_table(TABLE, _batches(rows, vectors, schema), schema=schema, mode="overwrite")
    return _ready(table, uri)


def change(uri: str, changes: Change) -> LanceStore:
    """Write the next generation in one step, and return it.

    Raises:
        EmbedforgeError: as for `create`.
    """
    table = _connect(uri).open_table(TABLE)
    rows = list(changes.documents)
    gone = _gone(changes)
    if rows:
        _add_columns(table, column_types(rows))
        vectors = checked_vectors(changes.vectors, len(rows), table.schema.field("vector").type.list_size)
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if gone:
            merge = merge.when_not_matched_by_source_delete(gone)
        import pyarrow as pa

        merge.execute(pa.Table.from_batches(_batches(rows, vectors, table.schema)))
    elif gone:
        table.delete(gone)
    return _ready(table, uri)


def compact(uri: str) -> LanceStore:
    """Merge small files and drop versions that no reader needs any more."""
    table = _connect(uri).open_table(TABLE)
    store = _ready(table, uri)
    table.optimize(cleanup_older_than=KEPT_FOR_READERS)
    table.tags.update(TAG, table.version)
    return store.newest() or store


# --- parts -----------------------------------------------------------------------------------------------


def _connect(uri: str, *, to_write: bool = False) -> Any:
    """Connect to where an index is, or `to_write` may be; LanceDB makes folders of whatever it is given."""
    _check_address(uri)
    if not to_write and _is_missing(uri):
        raise EmbedforgeError(_no_index(uri, "there is no such folder"))
    try:
        import lancedb
    except ImportError:
        raise missing_extra("lancedb", "lancedb", f"An index at {uri}") from None
    try:
        return lancedb.connect(uri.removeprefix("lance://"))
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EmbedforgeError(f"{uri}: LanceDB cannot connect to it ({reason})") from None


def _check_address(uri: str) -> None:
    """Refuse what LanceDB would take for a folder's name, and secrets, which would be kept and printed."""
    scheme, _, place = uri.rpartition("://")
    if scheme.lower() not in _SCHEMES:
        raise EmbedforgeError(
            f"{uri}: LanceDB cannot connect to it; lance://FOLDER, s3://, gs://, az:// and db:// are known"
        )
    if scheme and scheme != "lance" and ("@" in place or "?" in place):
        raise EmbedforgeError(
            f"{scheme}://...: no user, password or query in the address; keys are read from the environment"
        )


def _is_missing(uri: str) -> bool:
    scheme, _, place = uri.rpartition("://")
    return scheme in ("", "lance") and not Path(place).is_dir()


def exists(uri: str) -> bool:
    """Tell whether there is an index."""
    _check_address(uri)
    if _is_missing(uri):
        return False
    database = _connect(uri)
    return TABLE in database.table_names(limit=10_000)


def _open(uri: str) -> Any:
    database = _connect(uri)
    try:
        table = database.open_table(TABLE)
        table.checkout(TAG)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).split(", /")[0][:200]
        raise EmbedforgeError(_no_index(uri, f"LanceDB says: {reason}")) from None
    return table


def _no_index(uri: str, reason: str) -> str:
    return (
        f"{uri}: there is no index here; make one with: embedforge index FOLDER --model MODEL --out {uri} "
        f"({reason})"
    )


def _ready(table: Any, uri: str) -> LanceStore:
    """Bring the indexes up to date, and mark this version as the one to read."""
    from lancedb.index import FTS, BTree, IvfSq

    there = {index.columns[0] for index in table.list_indices()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if "words" not in there:
            whole_words = FTS(
                base_tokenizer="whitespace",
                stem=False,
                lower_case=False,
                remove_stop_words=False,
                ascii_folding=False,
                max_token_length=None,
            )
            table.create_index("words", config=whole_words)
        if "id" not in there:
            table.create_index("id", config=BTree())
        if "vector" not in there and table.count_rows() >= APPROXIMATE_FROM:
            table.create_index("vector", config=IvfSq(distance_type="dot"))
    if there:
        table.optimize()
    if TAG in table.tags.list():
        table.tags.update(TAG, table.version)
    else:
        table.tags.create(TAG, table.version)
    return LanceStore(uri)


def column_types(documents: Sequence[Document]) -> dict[str, type]:
    """Return the type of each field of metadata: str, float or bool.

    Raises:
        EmbedforgeError: one of two types; a column has one.
    """
    types: dict[str, type] = {}
    for document in documents:
        for field, value in document.metadata.items():
            kind = _kind(value)
            if types.setdefault(field, kind) is not kind:
                raise EmbedforgeError(
                    f"document '{document.id}': metadata '{field}' is {value!r:.60}, others have "
                    f"{types[field].__name__}; in LanceDB a field is of one type"
                )
    return types


def _kind(value: Value) -> type:
    for kind in (str, bool):
        if isinstance(value, kind):
            return kind
    return float


def _arrow(kind: type) -> Any:
    import pyarrow as pa

    return {str: pa.string(), bool: pa.bool_(), float: pa.float64()}[kind]


def _schema(identity: Identity, types: Mapping[str, type]) -> Any:
    import pyarrow as pa

    known = asdict(identity)
    fields = [(name, pa.string()) for name in (*_TEXT_COLUMNS, "words")]
    fields += [("vector", pa.list_(pa.float32(), identity.dimensions))]
    fields += [(column_of(field), _arrow(kind)) for field, kind in types.items()]
    return pa.schema(fields, metadata={FACTS: json.dumps(known).encode()})


def _add_columns(table: Any, types: Mapping[str, type]) -> None:
    import pyarrow as pa

    new = []
    for field, kind in types.items():
        name = column_of(field)
        if name not in table.schema.names:
            new.append(pa.field(name, _arrow(kind)))
        elif table.schema.field(name).type != _arrow(kind):
            raise EmbedforgeError(
                f"metadata '{field}' is {kind.__name__}, in the index it is {table.schema.field(name).type}; "
                "in LanceDB a field is of one type"
            )
    if new:
        table.add_columns(new)


def _batches(documents: Sequence[Document], vectors: NDArray[Any], schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    fields = known_fields(schema.names)
    for start in range(0, len(documents), _ROWS_AT_ONCE):
        part = documents[start : start + _ROWS_AT_ONCE]
        block = np.ascontiguousarray(vectors[start : start + len(part)], dtype=np.float32)
        columns = {
            "id": [document.id for document in part],
            "text": [_clean(document.text) for document in part],
            "location": [_clean(document.location) for document in part],
            "metadata": [json.dumps(dict(document.metadata)) for document in part],
            "words": [" ".join(words_and_identifiers(document.text)) for document in part],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1]),
        }
        for field in fields:
            kind = schema.field(column_of(field)).type
            values = [document.metadata.get(field) for document in part]
            columns[column_of(field)] = pa.array(values, type=kind, from_pandas=False)
        yield pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _clean(text: str) -> str:
    """Arrow's text is UTF-8, which has no lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _gone(changes: Change) -> str:
    """Return the condition of what is removed, "" for nothing."""
    parts = []
    if changes.remove_ids:
        parts.append(f"id IN ({', '.join(map(text_of, changes.remove_ids))})")
    if changes.remove_files:
        parts.append(f"`{column_of('file')}` IN ({', '.join(map(text_of, changes.remove_files))})")
    return " OR ".join(parts)
