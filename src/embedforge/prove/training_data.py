"""A folder's pairs as training files: questions with hard negatives, and texts with others of their part.

OUT/data/retrieval.jsonl      each question with its answer, and negatives that BM25 finds
OUT/data/same-part.jsonl      each text with another of its part of the folder, and texts of other parts
OUT/data/questions.jsonl      for distillation: each question with its answer, nothing mined
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.documents import Pair
from embedforge.documents.draw import keyed_fraction
from embedforge.files import write_jsonl

RETRIEVAL_FILE, PARTS_FILE = "retrieval.jsonl", "same-part.jsonl"
QUESTIONS_FILE = "questions.jsonl"
TRAINING_FILES = (RETRIEVAL_FILE, PARTS_FILE)
PARTS_INSTRUCTION = "Identify the part of the collection that the text belongs to"
NEGATIVES = 4
CANDIDATES = 30
DEV_SHARE, DEV_PAIRS = 0.05, 300
PARTS_ENOUGH = 20
"""With fewer parts than this, every file is a part of its own."""


def parts_of(files: Sequence[str]) -> dict[str, str]:
    """Return the part of the folder that each file belongs to: its top-level folder or module, or itself.

    >>> many = [f"src/lib/{name}/{n}.py" for name in map(str, range(20)) for n in range(2)]
    >>> parts_of([*many, "src/lib/errors.py"])["src/lib/7/1.py"]
    '7'
    >>> parts_of(["a/x.md", "a/y.md", "b/z.md"])["a/y.md"]
    'a/y.md'
    """
    shared = 0
    for names in zip(*(PurePosixPath(file).parent.parts for file in files), strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    parts = {}
    for file in files:
        path = PurePosixPath(file)
        parts[file] = path.parts[shared] if len(path.parts) > shared + 1 else path.stem
    return parts if len(set(parts.values())) >= PARTS_ENOUGH else {file: file for file in files}


def split_dev(pairs: Sequence[Pair], instruction: str, seed: int) -> tuple[list[Pair], list[Example]]:
    """Keep the pairs of some files, drawn by the seed, to measure retrieval on while training goes on.

    Returns:
        The pairs to train on, and at most `DEV_PAIRS` of the others as Examples.
    """
    apart = {pair.file for pair in pairs if keyed_fraction(seed, f"dev {pair.file}") < DEV_SHARE}
    dev = [Example(pair.query, (pair.document,), (), instruction) for pair in pairs if pair.file in apart]
    return [pair for pair in pairs if pair.file not in apart], dev[:DEV_PAIRS]


def write_training_data(data: Path, pairs: Sequence[Pair], *, code: bool, seed: int) -> bool:
    """Write both files, unless they are there, and say whether there is more than one part.

    Args:
        data: OUT/data.
        pairs: of the training text.
        code: split identifiers for BM25, which is what makes it a strong ranker of code.
        seed: of what is drawn.
    """
    if not (data / RETRIEVAL_FILE).exists():
        write_jsonl(data / PARTS_FILE, map(record_of, part_examples(pairs, seed)))
        mined = with_hard_negatives(pairs, data / "mining", code=code, seed=seed)
        write_jsonl(data / RETRIEVAL_FILE, map(record_of, mined))
        shutil.rmtree(data / "mining")
    return (data / PARTS_FILE).stat().st_size > 0


def write_questions(data: Path, pairs: Sequence[Pair]) -> None:
    """Write the questions that a teacher is asked, with their answers."""
    examples = (Example(pair.query, (pair.document,), query_id=pair.id) for pair in pairs)
    write_jsonl(data / QUESTIONS_FILE, map(record_of, examples))


def with_hard_negatives(pairs: Sequence[Pair], work: Path, *, code: bool, seed: int) -> list[Example]:
    """Return an Example a pair, with the negatives that BM25 finds and NV-Retriever's rule keeps.

    A candidate must score below 95 % of the answer. BM25 is the teacher, for an untrained decoder finds next
    to nothing. A question that shares no word with its answer, and so keeps none, gets documents by chance.
    """
    from embedforge.mine.documents import open_corpus
    from embedforge.mine.lexical_ranker import LexicalRanker
    from embedforge.mine.pipeline import Selection, mined_examples

    examples = [
        Example(query=pair.query, positives=(pair.document,), query_id=pair.id, positive_ids=(pair.id,))
        for pair in pairs
    ]
    corpus = open_corpus(None, examples, work)
    name = "bm25:identifiers" if code else "bm25:words"
    ranker = LexicalRanker(name, work / "bm25", corpus, [pair.query for pair in pairs], CANDIDATES)
    selection = Selection(NEGATIVES, CANDIDATES, seed=seed)
    draw = random.Random(seed)
    return [
        example if example.negatives else _with_drawn_negatives(example, pairs, draw)
        for example in mined_examples(examples, corpus, [ranker], selection, work)
    ]


def _with_drawn_negatives(example: Example, pairs: Sequence[Pair], draw: random.Random) -> Example:
    others = [pair for pair in draw.sample(pairs, NEGATIVES + 1) if pair.id != example.query_id][:NEGATIVES]
    return replace(
        example,
        negatives=tuple(pair.document for pair in others),
        negative_ids=tuple(pair.id for pair in others),
    )


def part_examples(pairs: Sequence[Pair], seed: int, n_negatives: int = 3) -> list[Example]:
    """Return an Example a pair whose positive is of its part and whose negatives are of others.

    All texts of an Example are of one form, queries or documents, drawn by the seed, so that the form gives
    nothing away. Other rows of a batch may be of the query's part, hence no in-batch negatives. Pairs without
    a companion in their part are passed over.

    Returns:
        The Examples, symmetric; none where there is only one part. Fewer than `n_negatives` negatives where
        there are fewer other parts.
    """
    draw = random.Random(seed)
    part = parts_of([pair.file for pair in pairs])
    members: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        members[part[pair.file]].append(pair)
    names = sorted(members)
    examples = []
    for pair in pairs:
        own = part[pair.file]
        companions = [other for other in members[own] if other.id != pair.id]
        drawn = [name for name in draw.sample(names, min(n_negatives + 1, len(names))) if name != own]
        if not companions or not drawn:
            continue
        texts = [draw.choice(companions), *(draw.choice(members[name]) for name in drawn[:n_negatives])]
        of_query = draw.random() < 0.5
        query, positive, *negatives = (item.query if of_query else item.document for item in (pair, *texts))
        examples.append(
            Example(
                query=query,
                positives=(positive,),
                negatives=tuple(negatives),
                instruction=PARTS_INSTRUCTION,
                in_batch_negatives=False,
                symmetric=True,
            )
        )
    return examples
