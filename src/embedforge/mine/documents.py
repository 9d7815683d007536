"""Where the documents to mine from come from: a file, a BEIR folder, or the Examples themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from embedforge.data.beir import beir_file, document_text
from embedforge.data.example import Example
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, hash_of
from embedforge.mine.corpus import Corpus, Passage, build_corpus, text_key


def read_documents(path: Path) -> Iterator[Passage]:
    """Yield the documents of a file, or of the corpus of a BEIR folder, also those without a text ("").

    A record has `text`, and may have `title`, which is put before it, and `_id` or `id`, a text or a whole
    number; further keys are not read.

    Raises:
        EmbedforgeError: a bad record; names file and line.
    """
    for record in read_records(corpus_file(path)):
        key = "_id" if "_id" in record.values else "id"
        name = "" if record.values.get(key) is None else record.identifier(key)
        yield Passage(name, document_text(record))


def corpus_file(path: Path) -> Path:
    """Return the file that holds the documents: `path`, or a BEIR folder's corpus."""
    return beir_file(path, "corpus") if path.is_dir() else path


def file_fingerprint(path: Path) -> str:
    """Return the hash of a file's bytes; a missing file is left to the reader to complain about."""
    return file_hash(path) if path.is_file() else ""


def own_documents(examples: Sequence[Example]) -> list[Passage]:
    """Return the positives and negatives of Examples, each text once and each id once."""
    seen: set[tuple[str, int]] = set()
    documents = []
    for example in examples:
        for texts, ids in (
            (example.positives, example.positive_ids),
            (example.negatives, example.negative_ids),
        ):
            for position, text in enumerate(texts):
                document = Passage(ids[position] if ids else "", text)
                mark = (document.id, 0) if document.id else ("", text_key(text))
                if mark not in seen:
                    seen.add(mark)
                    documents.append(document)
    return documents


def positives_of(examples: Sequence[Example]) -> list[Passage]:
    """Return the positives of Examples, each once."""
    return list(
        dict.fromkeys(
            Passage(example.positive_ids[position] if example.positive_ids else "", text)
            for example in examples
            for position, text in enumerate(example.positives)
        )
    )


def open_corpus(
    path: Path | None,
    examples: Sequence[Example],
    work: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Write the documents to mine from to the work folder, or find them there.

    Args:
        path: a file or a BEIR folder; None for the Examples' own positives and negatives.
        examples: their positives are added where the file lacks them.
        work: a folder in it is named by the content's fingerprint.
        progress: called with the number of documents written since the last call.

    Raises:
        EmbedforgeError: see `read_documents` and `build_corpus`.
    """
    if path is None:
        own = own_documents(examples)
        fingerprint = hash_of([list(document) for document in own])
        return build_corpus(work / f"corpus-{fingerprint}", lambda: own, fingerprint, progress=progress)
    positives = positives_of(examples)
    fingerprint = file_fingerprint(corpus_file(path))
    folder = work / f"corpus-{hash_of([fingerprint, [list(item) for item in positives]])}"
    return build_corpus(
        folder, lambda: read_documents(path), fingerprint, positives=positives, progress=progress
    )


def document_instruction(examples: Sequence[Example]) -> str:
    """Return the instruction that documents carry: that of a symmetric source, else none.

    Raises:
        EmbedforgeError: a symmetric source with several.
    """
    if not any(example.symmetric for example in examples):
        return ""
    instructions = {example.instruction for example in examples}
    if len(instructions) > 1:
        raise EmbedforgeError(
            f"a symmetric source, whose documents carry the instruction, has {len(instructions)} of them; "
            "mine the records of each by themselves"
        )
    return instructions.pop()
