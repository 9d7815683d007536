"""`embedforge mine`: a source and a corpus in, Examples with hard negatives out.

examples.jsonl   the source's Examples with their negatives, best first, ready for a mix; beside it the mark
                 of decontamination that the source has, if it has one
scores.jsonl     the judge's score of each positive and negative, line by line as in examples.jsonl
audit.html       what to read before training on them
mine.json        settings, counts, times, versions, and fingerprints of all that went in
work/            the corpus in shards, vectors, finished blocks; a later run goes on from them
"""

from __future__ import annotations

import gc
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from embedforge.data.beir import is_beir
from embedforge.data.convert import read_source, source_file
from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.data.kinds import source_name
from embedforge.data.marks import carry_mark
from embedforge.endpoint import is_address
from embedforge.files import read_object, replace_file, write_json
from embedforge.mine.candidates import Ranker
from embedforge.mine.corpus import Corpus, hash_of_all
from embedforge.mine.decide import Decision
from embedforge.mine.dense import DenseRanker
from embedforge.mine.documents import document_instruction, open_corpus
from embedforge.mine.embedder import Embedder
from embedforge.mine.endpoint import EndpointTeacher
from embedforge.mine.faiss_index import FaissIndex
from embedforge.mine.lexical_ranker import NAMES, LexicalRanker
from embedforge.mine.pipeline import (
    Excluded,
    Mined,
    Progress,
    Selection,
    embed,
    judge_of,
    mine_blocks,
    query_blocks,
    silent,
    with_selected,
)
from embedforge.mine.run_file import PREFIX, RunRanker
from embedforge.mine.settings import (
    AUDIT,
    EXACT,
    EXAMPLES,
    FACTS,
    RECALL,
    SCORES,
    UNRANKED,
    Teachers,
    check,
)
from embedforge.mine.vectors import document_files, read_vectors
from embedforge.recipe import Source, source_of
from embedforge.run_folder import Phases, facts, hold


def mine(
    source: Source | str | Path,
    out: Path | str,
    teachers: Teachers | str,
    selection: Selection | None = None,
    *,
    corpus: Path | None = None,
    memory_gb: float = 4.0,
    device: str | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Mine hard negatives for a source; run again to go on where it stopped.

    >>> import embedforge
    >>> from embedforge.mine.keep import KeepRule
    >>> from embedforge.mine.pipeline import Selection
    >>> selection = Selection(n_negatives=2, rule=KeepRule("top_k"))
    >>> facts = embedforge.mine("pairs.jsonl", "mined", "model", selection, device="cpu")
    >>> facts["counts"]["pairs"]["examples"], facts["counts"]["pairs"]["without a negative"]
    (8, 0)

    Args:
        source: Examples, as a recipe reads them; a path stands for a file of Examples or a BEIR folder.
        out: a new folder, or that of an earlier run, whose results are replaced.
        teachers: who ranks; a name stands for that teacher with no settings.
        selection: how many negatives, and the rule.
        corpus: a file of documents or a BEIR folder; by default the source's own documents.
        memory_gb: what the process may take besides a teacher's model, whatever the corpus' size.
        device: for models and products; CUDA where there is one when None.
        work: for corpus and vectors; `out`/work when None. May be shared by runs.
        progress: see `Progress`.

    Returns:
        What `mine.json` holds.

    Raises:
        EmbedforgeError: bad data, an unknown teacher or option, a full disk.
    """
    out, selection = Path(out), selection or Selection()
    if not isinstance(source, Source):
        source = source_of(str(source), kind="retrieval" if is_beir(str(source)) else None)
    if isinstance(teachers, str):
        teachers = Teachers((teachers,))
    check(source, out, teachers, selection, memory_gb)
    examples = read_source(source, seed=selection.seed)  # before torch: a mistake in a file shows at once
    with hold(out):
        return _mine(
            source,
            out,
            teachers,
            selection,
            examples,
            corpus,
            memory_gb,
            device,
            work or out / "work",
            progress,
        )


def _mine(
    source: Source,
    out: Path,
    teachers: Teachers,
    selection: Selection,
    examples: Sequence[Example],
    corpus: Path | None,
    memory_gb: float,
    device: str | None,
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Mine in a folder that is this run's; arguments as of `mine`."""
    memory = int(memory_gb * 1e9)
    unfinished = _settings(source, corpus, teachers, selection, memory_gb, device) | {"finished": False}
    if not finished(out):  # else it goes on to speak of the results that are there
        write_json(out / FACTS, unfinished)
    if corpus is None and source.kind == "retrieval":
        corpus = Path(source.path)
    phases = Phases(out)
    with phases.phase("reading"):
        documents = open_corpus(corpus, examples, work, progress("documents read", 0))
    with phases.phase("ranking"):
        rankers, about = _rankers(teachers, selection, examples, documents, work, memory, device, progress)
    blocks, excluded = query_blocks(examples, memory), Excluded(examples, documents)

    def mined() -> Iterator[Mined]:
        return mine_blocks(blocks, rankers, documents, excluded, selection, work)

    with phases.phase("choosing"):
        counts = _write(out, mined(), documents, unfinished)
    result = unfinished | {
        "fingerprints": {
            "examples": hash_of_all(record_of(example) for example in examples),
            "corpus": documents.fingerprint,
            **about,
        },
        "judge": judge_of(rankers).name,
        "judge kind": judge_of(rankers).kind,
        "documents": len(documents),
        "positives added to the corpus": documents.added,
        "documents without a text": len(documents.empty),
        "counts": counts,
        "phases": phases.seconds,
        "finished": True,
    }
    from embedforge.mine.audit import write_audit  # matplotlib and jinja2, at the end only

    carry_mark(source_file(source), out / EXAMPLES)
    write_audit(out / AUDIT, source_name(source), mined, documents, selection, result)
    write_json(out / FACTS, result)
    return result


def _settings(
    source: Source,
    corpus: Path | None,
    teachers: Teachers,
    selection: Selection,
    memory_gb: float,
    device: str | None,
) -> dict[str, Any]:
    """Return the resolved settings, and where they ran."""
    return {
        "source": source.model_dump(mode="json"),
        "corpus": str(corpus) if corpus else "the source's own documents",
        "teachers": asdict(teachers),
        "choice": asdict(selection) | {"value": selection.rule.threshold},
        "memory_gb": memory_gb,
        **facts(device=device),
    }


def _rankers(
    teachers: Teachers,
    selection: Selection,
    examples: Sequence[Example],
    corpus: Corpus,
    work: Path,
    memory: int,
    device: str | None,
    progress: Progress,
) -> tuple[list[Ranker], dict[str, Any]]:
    """Return the rankers, and what is to be known of each teacher; models are gone when it returns."""
    rankers: list[Ranker] = []
    about: dict[str, Any] = {}
    k = selection.candidates
    for name in teachers.names:
        if name in NAMES:
            queries = [example.query for example in examples]
            report = progress(f"words of documents, {name}", len(corpus))
            rankers.append(LexicalRanker(name, work / "words", corpus, queries, k, report))
            about[name] = rankers[-1].key
        elif name.startswith(PREFIX):
            listed = RunRanker(name, corpus, examples, k)
            rankers.append(listed)
            about[name] = {"file": listed.key, UNRANKED: listed.missing}
        else:
            folder, identity = _embedded(name, teachers, examples, corpus, work, memory, device, progress)
            ranker, recall = _dense(
                name, teachers.index, folder, corpus, examples, k, memory, device, progress
            )
            rankers.append(ranker)
            about[name] = identity | recall
    return rankers, about


def _embedded(
    name: str,
    teachers: Teachers,
    examples: Sequence[Example],
    corpus: Corpus,
    work: Path,
    memory: int,
    device: str | None,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    embedder = _open(name, teachers, document_instruction(examples), device)
    try:
        folder = embed(embedder, work, corpus, query_blocks(examples, memory), progress)
        return folder, embedder.identity
    finally:
        del embedder
        gc.collect()


def _open(name: str, teachers: Teachers, document_instruction: str, device: str | None) -> Embedder:
    if not is_address(name):
        from embedforge.mine.teachers import open_model  # sentence-transformers, for a model only

        return open_model(
            name,
            prompts=teachers.prompts,
            document_instruction=document_instruction,
            device=device,
            dtype=teachers.dtype,
            max_tokens=teachers.max_tokens,
        )
    return EndpointTeacher(name, teachers.prompts, key_variable=teachers.key_variable)


def _dense(
    name: str,
    index: str,
    folder: Path,
    corpus: Corpus,
    examples: Sequence[Example],
    k: int,
    memory: int,
    device: str | None,
    progress: Progress,
) -> tuple[DenseRanker, dict[str, Any]]:
    files = document_files(folder, corpus)
    from embedforge.runtime import pick_device  # torch, once a teacher has vectors

    built = None if index == EXACT else FaissIndex(index, folder, files, memory // 2)
    ranker = DenseRanker(
        name,
        folder,
        corpus,
        k,
        device=pick_device(device),
        index=built,
        memory=memory,
        progress=progress(f"nearest by {name}", len(examples) * len(corpus)),
    )
    if built is None:
        return ranker, {}
    queries = read_vectors(ranker.query_file(query_blocks(examples, memory)[0]))
    return ranker, {RECALL: round(built.recall(queries, k), 4)}


def _write(
    out: Path, mined: Iterable[Mined], corpus: Corpus, unfinished: Mapping[str, Any]
) -> dict[str, Any]:
    """Write Examples and scores, both in one step, and count what became of the candidates."""
    decisions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    with replace_file(out / EXAMPLES) as examples, replace_file(out / SCORES) as scored:
        with examples.open("w", encoding="utf-8") as rows, scored.open("w", encoding="utf-8") as numbers:
            for block in mined:
                for example, scores in _finished(block, corpus):
                    rows.write(json.dumps(record_of(example), ensure_ascii=False) + "\n")
                    numbers.write(json.dumps(scores) + "\n")
                _count(block, decisions)
        write_json(out / FACTS, unfinished)
    return {source: dict(counts) for source, counts in decisions.items()}


def _finished(mined: Mined, corpus: Corpus) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Yield a block's Examples with their negatives, and the scores."""
    chosen = mined.decisions == Decision.CHOSEN
    for number, example in enumerate(with_selected(mined, corpus)):
        negatives = [_number(score) for score in mined.scores[number, chosen[number]]]
        given: list[float | None] = [None] * (len(example.negatives) - len(negatives))
        positives = [_number(score) for score in mined.positives[number]]
        yield example, {"positives": positives, "negatives": given + negatives}


def _number(score: Any) -> float | None:
    """A score as JSON has it, with the digits that float32 holds; None where it is not known."""
    return None if np.isnan(score) else round(float(score), 7)


def _count(mined: Mined, counts: defaultdict[str, Counter[str]]) -> None:
    sources = np.array([example.source for example in mined.block.examples])
    chosen = (mined.decisions == Decision.CHOSEN).sum(axis=1)
    for source in dict.fromkeys(sources.tolist()):
        here = sources == source
        own = counts[source]
        own["examples"] += int(here.sum())
        own["without a negative"] += int((chosen[here] == 0).sum())
        for decision in Decision:
            if decision != Decision.NOTHING:
                own[decision.name.lower()] += int((mined.decisions[here] == decision).sum())


def finished(out: Path) -> bool:
    """Say whether a folder holds the results of a run that came to its end."""
    return (out / FACTS).exists() and bool(read_object(out / FACTS).get("finished"))
