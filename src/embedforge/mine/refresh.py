"""Mining again with the model just trained, between two stages (SimLM, arXiv 2207.02578, its step 2; E5).

A first stage trains on negatives of another teacher, or of BM25; what this model then finds, and should not,
is what the next stage has to teach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.mine.corpus import Corpus
from embedforge.mine.dense import DenseRanker
from embedforge.mine.documents import document_instruction, open_corpus
from embedforge.mine.keep import KeepRule
from embedforge.mine.pipeline import Progress, Selection, embed, mined_examples, query_blocks, silent
from embedforge.mine.teachers import ContractTeacher
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Stage


def refresh_stage(
    model: EmbeddingModel,
    stage: Stage,
    examples: Mapping[str, Sequence[Example]],
    work: Path,
    folder: Path | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, list[Example]]:
    """Mine again for all sources of a stage, as its `mine_again` says; what `train` calls between stages.

    Sources that forbid in-batch negatives keep theirs.

    Args:
        model: as the stage before has left it.
        stage: has `mine_again`.
        examples: by source.
        work: where corpus and vectors are kept; a call with the same model and Examples goes on from there.
        folder: where a relative path of `mine_again.corpus` starts.
        seed: of rules that draw.
        progress: see `Progress`.

    Raises:
        EmbedforgeError: see `refresh`; no source allows in-batch negatives.
    """
    settings = stage.mine_again
    if settings is None:
        raise EmbedforgeError(f"stage '{stage.name}' has no mine_again")
    open_sources = [name for name, rows in examples.items() if any(row.in_batch_negatives for row in rows)]
    if not open_sources:
        raise EmbedforgeError(
            f"stage '{stage.name}': mine_again has nothing to do, for all its sources have "
            "in_batch_negatives: false, where what is not listed may be a positive too; leave it out"
        )
    rule = KeepRule(settings.rule, settings.value, settings.sample_from)
    selection = Selection(stage.negatives, settings.candidates, rule, seed)
    corpus = Path(folder or "", settings.corpus) if settings.corpus else None
    return {
        name: refresh(
            model,
            rows,
            work / name,
            selection,
            corpus=corpus,
            memory_gb=settings.memory_gb,
            progress=progress,
        )
        if name in open_sources
        else list(rows)
        for name, rows in examples.items()
    }


def refresh(
    model: EmbeddingModel,
    examples: Sequence[Example],
    work: Path,
    selection: Selection,
    *,
    corpus: Path | None = None,
    memory_gb: float = 4.0,
    progress: Progress = silent,
) -> list[Example]:
    """Replace the negatives of Examples by those that the model itself finds.

    Only Examples that allow in-batch negatives are mined: in the others (labels, clusters) documents that
    nobody listed are positives as well. One for which nothing survives the rule keeps its negatives.

    Args:
        model: in any mode, with or without an adapter, on its device; it is left as it was.
        examples: of one source.
        work: kept between calls: the same model, Examples and selection give the same result from it at once,
            and a run that was killed goes on from it.
        selection: how many negatives, and the rule.
        corpus: a file of documents or a BEIR folder; by default all documents of the Examples, their old
            negatives among them.
        memory_gb: as for `run.mine`.
        progress: see `Progress`.

    Returns:
        One Example for each, in order.

    Raises:
        EmbedforgeError: nothing to mine for, or bad data.
    """
    numbers = [number for number, example in enumerate(examples) if example.in_batch_negatives]
    if not numbers:
        raise EmbedforgeError(
            "no Example to mine again for: all have in_batch_negatives: false, where documents that are not "
            "listed may be positives too; leave the refresh out for this source"
        )
    documents = open_corpus(
        corpus, [examples[number] for number in numbers], work, progress("documents read", 0)
    )
    bare = [replace(examples[number], negatives=(), negative_ids=()) for number in numbers]
    refreshed = list(examples)
    for number, example in zip(
        numbers, _mined(model, bare, documents, work, selection, memory_gb, progress), strict=True
    ):
        if example.negatives:
            refreshed[number] = example
    return refreshed


def _mined(
    model: EmbeddingModel,
    examples: Sequence[Example],
    corpus: Corpus,
    work: Path,
    selection: Selection,
    memory_gb: float,
    progress: Progress,
) -> Iterator[Example]:
    """Return the Examples, which have no negatives, with those that survive."""
    memory = int(memory_gb * 1e9)
    teacher = ContractTeacher("the model", model, document_instruction=document_instruction(examples))
    folder = embed(teacher, work, corpus, query_blocks(examples, memory), progress)
    ranker = DenseRanker(
        teacher.name,
        folder,
        corpus,
        selection.candidates,
        device=model.device,
        memory=memory,
        progress=progress("nearest by the model", len(examples) * len(corpus)),
    )
    return mined_examples(examples, corpus, [ranker], selection, work, memory)
