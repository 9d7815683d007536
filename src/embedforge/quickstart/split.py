"""Splitting units into train, dev and test so that nothing the test asks about was seen in training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from embedforge.documents.draw import keyed_hash
from embedforge.errors import EmbedforgeError
from embedforge.quickstart.unit import Unit
from embedforge.text.near import near_duplicates
from embedforge.text.same import word_key

TEST_FRACTION = 0.15
DEV_FRACTION = 0.05
TEST_UNITS = 1000
DEV_UNITS = 300
PACKAGES_ENOUGH = 20
"""With fewer packages than this, a file counts as a package."""
GROUPS_NEEDED = 5
REPEATS_OF_BOILERPLATE = 4
"""A query that so many units share ("Initialize self.") asks for none of them in particular."""


def drop_repeats(units: Sequence[Unit]) -> tuple[list[Unit], Counter[str]]:
    """Drop units whose query is boilerplate or that repeat another unit's query and document."""
    queries = [word_key(unit.query) for unit in units]
    asked = Counter(queries)
    seen: set[tuple[str, str]] = set()
    kept: list[Unit] = []
    counts = Counter(exact_duplicates=0, queries_repeated=0)
    for unit, query in zip(units, queries, strict=True):
        both = (query, word_key(unit.document))
        if both in seen:
            counts["exact_duplicates"] += 1
        elif asked[query] >= REPEATS_OF_BOILERPLATE:
            counts["queries_repeated"] += 1
        else:
            kept.append(unit)
        seen.add(both)
    return kept, counts


def label(units: Sequence[Unit]) -> list[Unit]:
    """Keep the packages as labels if there are enough of them; else every file is its own package."""
    if len({unit.package for unit in units}) >= PACKAGES_ENOUGH:
        return list(units)
    return [replace(unit, package=unit.file) for unit in units]


def split(units: Sequence[Unit], seed: int) -> tuple[list[Unit], list[Unit], list[Unit], Counter[str]]:
    """Split by package (see `label`), and drop what nearly repeats held-out text.

    Packages come in an order drawn by the seed and fill test, then dev, as far as they fit: about 15 %
    and 5 % of the units, at most 1000 and 300. A package larger than what is left to fill goes to train.

    Returns:
        Train, dev and test units, and counts: the groups kept whole, whether they are packages (1) or files
        (0), and the units dropped from train (or dev) as near-duplicates of held-out ones.

    Raises:
        EmbedforgeError: too few packages to hold any out.
    """
    groups: defaultdict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        groups[unit.package].append(unit)
    if len(groups) < GROUPS_NEEDED:
        raise EmbedforgeError(
            f"{len(units)} usable texts lie in only {len(groups)} files; whole files are held out for "
            f"testing, so at least {GROUPS_NEEDED} are needed. Split the text into more files."
        )
    waiting = sorted(groups, key=lambda name: keyed_hash(seed, name))
    test, waiting = _fill(waiting, groups, min(TEST_UNITS, TEST_FRACTION * len(units)))
    dev, waiting = _fill(waiting, groups, min(DEV_UNITS, DEV_FRACTION * len(units)))
    train = [unit for name in waiting for unit in groups[name]]
    clean_dev = without_leaks(dev, test)
    clean_train = without_leaks(train, [*clean_dev, *test])
    counts = Counter(
        groups=len(groups),
        groups_are_packages=int(any(unit.package != unit.file for unit in units)),
        near_duplicates_of_held_out=len(train) - len(clean_train) + len(dev) - len(clean_dev),
    )
    return clean_train, clean_dev, test, counts


def _fill(
    waiting: Sequence[str], groups: dict[str, list[Unit]], target: float
) -> tuple[list[Unit], list[str]]:
    """Take groups in order while they fit below `target` units; the smallest one if none does."""
    taken: list[str] = []
    size = 0
    for name in waiting:
        if size + len(groups[name]) <= target:
            taken.append(name)
            size += len(groups[name])
    if not taken:
        taken = [min(waiting, key=lambda name: len(groups[name]))]
    chosen = set(taken)
    return [unit for name in taken for unit in groups[name]], [name for name in waiting if name not in chosen]


def without_leaks(units: Sequence[Unit], held_out: Sequence[Unit]) -> list[Unit]:
    """Drop units whose query or document equals or nearly repeats a held-out one."""
    queries = near_duplicates([unit.query for unit in units], [unit.query for unit in held_out])
    documents = near_duplicates([unit.document for unit in units], [unit.document for unit in held_out])
    return [
        unit
        for unit, query, document in zip(units, queries, documents, strict=True)
        if not (query or document)
    ]
