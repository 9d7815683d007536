"""What a mining is asked to do, and what of that makes no sense: found before a text is read or paid for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedforge.data.convert import source_file
from embedforge.endpoint import KEY_VARIABLE, is_address, key_from_environment
from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra
from embedforge.mine.embedder import Prompts
from embedforge.mine.endpoint import split_name
from embedforge.mine.lexical_ranker import NAMES
from embedforge.mine.pipeline import Selection
from embedforge.mine.run_file import PREFIX
from embedforge.model.folder import require_model
from embedforge.recipe import Source
from embedforge.run_folder import contents

FACTS, EXAMPLES, SCORES, AUDIT = "mine.json", "examples.jsonl", "scores.jsonl", "audit.html"
UNRANKED, RECALL = "queries that it lacks", "recall of the index"
"""What `mine.json` says of a run file, and of an index."""
EXACT = "exact"
LEAST_MEMORY, MOST_MEMORY = 1.0, 1e6
MOST_CANDIDATES = 100_000
"""Of a query; arrays of all of them are made for a block of queries."""


@dataclass(frozen=True, slots=True)
class Teachers:
    """Who ranks, and how their models are run."""

    names: tuple[str, ...]
    """See `embedforge.mine.embedder`; several are fused by reciprocal rank."""
    prompts: Prompts = field(default=Prompts())
    """For models without a contract and for endpoints."""
    max_tokens: int | None = None
    dtype: str | None = None
    key_variable: str = KEY_VARIABLE
    index: str = EXACT
    """`exact`, or what faiss is to build: `IVF4096,SQ8`."""


def check(source: Source, out: Path, teachers: Teachers, selection: Selection, memory_gb: float) -> None:
    """Refuse settings that contradict each other, have no effect, or would only fail hours later.

    Raises:
        EmbedforgeError: it names the option and the way out.
    """
    _check_source(source, out)
    _check_names(teachers)
    _check_options(teachers)
    _check_selection(selection, len(teachers.names))
    if not LEAST_MEMORY <= memory_gb <= MOST_MEMORY:
        raise EmbedforgeError(
            f"--memory-gb {memory_gb:g}: a number from {LEAST_MEMORY:g} on is needed, to {MOST_MEMORY:,.0f}"
        )
    if out.exists() and (not out.is_dir() or (contents(out) and not (out / FACTS).exists())):
        raise EmbedforgeError(f"{out}: holds something else, there is no {FACTS} in it; name another --out")


def _check_source(source: Source, out: Path) -> None:
    if not source.in_batch_negatives:
        raise EmbedforgeError(
            f"{source.path}: in_batch_negatives is false, as for labels and clusters: a document may answer "
            "queries that do not list it, so that mined negatives would often be positives. Give such a "
            "source to a recipe as it is; labels and clusters bring negatives of other classes"
        )
    read = source_file(source)
    if read is not None and read.resolve() in ((out / EXAMPLES).resolve(), (out / SCORES).resolve()):
        raise EmbedforgeError(f"{read}: would be overwritten by what is mined for it; name another --out")


def _check_names(teachers: Teachers) -> None:
    if not teachers.names:
        raise EmbedforgeError("name at least one --teacher: a model, bm25, run:FILE or http://HOST/v1#MODEL")
    if len(set(teachers.names)) < len(teachers.names):
        raise EmbedforgeError(f"a --teacher is named twice: {', '.join(teachers.names)}")
    for name in teachers.names:
        _check_name(name)


def _check_name(name: str) -> None:
    if name in NAMES:
        return
    if name.startswith(PREFIX):
        if not Path(name.removeprefix(PREFIX)).is_file():
            raise EmbedforgeError(f"--teacher {name}: there is no such file")
    elif is_address(name):
        split_name(name)
    elif Path(name).exists():
        require_model(name)
    else:
        hint = did_you_mean(name.lower(), NAMES) if "/" not in name else ""
        if hint or name.startswith("bm25"):
            raise EmbedforgeError(f"--teacher {name}: there are {', '.join(NAMES)}.{hint}")
        decoder, _, pooling = name.rpartition("@")
        if decoder and _is_pooling(pooling):
            raise EmbedforgeError(
                f"--teacher {name}: a decoder that nothing has trained to embed is no teacher; "
                "name a trained model, or bm25"
            )
        require_model(name)


def _is_pooling(name: str) -> bool:
    from embedforge.model.pooling import STATELESS  # torch, for a name with "@" only

    return name in STATELESS


def _check_options(teachers: Teachers) -> None:
    endpoints = [name for name in teachers.names if is_address(name)]
    models = [name for name in teachers.names if name not in NAMES and not name.startswith(PREFIX)]
    for option, value in _given(teachers):
        if not (endpoints if option == "--key-variable" else models):
            what = "an endpoint" if option == "--key-variable" else "a model"
            raise EmbedforgeError(f"{option} {value} has no effect: no --teacher is {what}; leave it out")
    for option, value in (("--max-tokens", teachers.max_tokens), ("--dtype", teachers.dtype)):
        if value is not None and endpoints:
            raise EmbedforgeError(f"{option} {value}: {endpoints[0]} decides that itself; leave it out")
    if endpoints:
        key_from_environment(None if teachers.key_variable == KEY_VARIABLE else teachers.key_variable)
    teachers.prompts.check()
    if teachers.index != EXACT and importlib.util.find_spec("faiss") is None:
        raise missing_extra("faiss-cpu", "faiss", f"--index {teachers.index}")


def _given(teachers: Teachers) -> Iterator[tuple[str, Any]]:
    """Yield the options that were given and are of use to models only."""
    for option, value, default in (
        ("--index", teachers.index, EXACT),
        ("--query-prompt", teachers.prompts.query, None),
        ("--document-prompt", teachers.prompts.document, None),
        ("--max-tokens", teachers.max_tokens, None),
        ("--dtype", teachers.dtype, None),
        ("--key-variable", teachers.key_variable, KEY_VARIABLE),
    ):
        if value != default:
            yield option, value


def _check_selection(selection: Selection, teachers: int) -> None:
    rule, wanted, most = selection.rule, selection.n_negatives, selection.candidates * teachers
    if selection.candidates > MOST_CANDIDATES:
        raise EmbedforgeError(
            f"--candidates {selection.candidates:,}: at most {MOST_CANDIDATES:,}; negatives are the first few"
        )
    if most < wanted:
        raise EmbedforgeError(
            f"--negatives {wanted}: of {most} candidates at most; raise --candidates, or ask for fewer"
        )
    if rule.sample_from is not None and rule.sample_from < wanted:
        raise EmbedforgeError(
            f"--sample-from {rule.sample_from}: fewer than --negatives {wanted}; raise it, or ask for fewer"
        )
    if rule.sample_from is not None and rule.sample_from > most:
        raise EmbedforgeError(
            f"--sample-from {rule.sample_from:,}: of {most:,} candidates at most; raise --candidates"
        )
    if rule.kind == "shifted" and rule.threshold >= most:
        raise EmbedforgeError(
            f"--rule shifted --value {rule.threshold:g}: passes over all of the {most} candidates at most; "
            "raise --candidates"
        )
