"""`embedforge curate`: sources in, curated files, a report and a mark of decontamination out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from embedforge import __version__
from embedforge.console import add_row, progress_bar, stderr
from embedforge.curate.folder import PAGE, REPORT, check_folder
from embedforge.curate.outcome import Dropped, Outcome
from embedforge.curate.report import (
    CurationSummary,
    SourceSummary,
    StepSummary,
    page_of,
    print_summary,
    summary_of,
)
from embedforge.curate.rows import read_rows, write_rows
from embedforge.curate.sources import sources_of
from embedforge.curate.steps import Curation, check, planned
from embedforge.data.convert import source_file
from embedforge.data.example import Example
from embedforge.data.kinds import source_name
from embedforge.data.marks import CheckedTask, Mark, training_mark, write_mark
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, replace_folder, whole_or_nothing, write_json
from embedforge.recipe import Source
from embedforge.report.page import write_report
from embedforge.run_folder import Phases, facts


def curate(
    sources: Sequence[Source | str],
    out: Path | str,
    curation: Curation | None = None,
    *,
    folder: Path | None = None,
    console: Console | None = None,
) -> CurationSummary:
    """Read sources, run the steps on all of them together, and write a file for each.

    The sources are one dataset: of duplicates in two of them, the copy of the earlier source stays. All
    Examples are in memory at once. The folder appears whole, when everything is done, or not at all.

    >>> import embedforge
    >>> from embedforge.curate.steps import Curation
    >>> report = embedforge.curate(["pairs.jsonl"], "curated", Curation(near=0.8))
    >>> [(source.file, source.examples_in, source.examples_out) for source in report.sources]
    [('pairs.jsonl.gz', 8, 8)]

    Args:
        sources: as in a recipe's mix, or as a command line names them: `PATH` or `NAME=PATH`.
        out: folder of the result: `NAME.jsonl.gz` for each source, `report.json`, `report.html` and, after
            decontamination of the sources, now or earlier, `decontaminated.json`. An older curation of these
            sources there is replaced.
        curation: which steps, and how; exact duplicates alone when None.
        folder: where relative paths of the sources start.
        console: for progress and the summary; standard error when None.

    Raises:
        EmbedforgeError: bad data or settings, two sources of one name, a source of which nothing is left,
            or a folder that holds something else.
    """
    console, phases = console or stderr(), Phases()
    out, curation = Path(out), curation or Curation()
    check(curation)
    chosen = [source if isinstance(source, Source) else sources_of([source])[0] for source in sources]
    names = _names(chosen)
    check_folder(out, [_file_name(name) for name in names])
    known = training_mark([source_file(source, folder) for source in chosen]).tasks
    with progress_bar(console, transient=True) as bar:
        steps = planned(curation, bar)
        with phases.phase("reading"):
            examples, empty = _read(chosen, curation.seed, folder, bar)
        before = Counter(example.source for example in examples)
        before.update(item.example.source for item in empty if item.part == "example")
        done: list[StepSummary] = []
        if empty:
            outcome = Outcome(examples, empty)
            done.append(summary_of("empty texts", {}, before.total(), outcome, curation.seed))
        for step in steps:
            with phases.phase(step.name):
                outcome = step.run(examples)
            done.append(summary_of(step.name, step.settings, len(examples), outcome, curation.seed))
            examples = outcome.kept
            _check_that_something_is_left(names, Counter(example.source for example in examples), done)
    after = Counter(example.source for example in examples)
    summary = CurationSummary(
        made_by=f"embedforge {__version__}",
        seed=curation.seed,
        facts=facts(),
        phases=phases.seconds,
        sources=[
            SourceSummary(name, source.path, source.kind, _file_name(name), before[name], after[name])
            for name, source in zip(names, chosen, strict=True)
        ],
        steps=done,
    )
    _write(out, summary, examples, chosen, curation, known)
    print_summary(summary, console)
    return summary


def _read(
    sources: Sequence[Source], seed: int, folder: Path | None, bar: Progress
) -> tuple[list[Example], list[Dropped]]:
    examples: list[Example] = []
    empty: list[Dropped] = []
    row = add_row(bar, "reading", len(sources))
    for source in sources:
        bar.update(row, description=f"reading {source_name(source)}")
        outcome = read_rows(source, seed=seed, folder=folder)
        examples += outcome.kept
        empty += outcome.dropped
        bar.advance(row)
    return examples, empty


def _names(sources: Sequence[Source]) -> list[str]:
    names = [source_name(source) for source in sources]
    if not names:
        raise EmbedforgeError("name at least one source to curate")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise EmbedforgeError(
            f"two sources are named '{repeated[0]}', and each becomes the file {_file_name(repeated[0])}; "
            "name them: NAME=PATH"
        )
    return names


def _check_that_something_is_left(
    names: Sequence[str], left: Counter[str], done: Sequence[StepSummary]
) -> None:
    for name in names:
        if left[name]:
            continue
        story = "; ".join(
            f"{step.name} dropped {step.by_source.get(name, 0):,}"
            + (f" ({', '.join(step.dropped['example'])})" if step.by_source.get(name) else "")
            for step in done
        )
        raise EmbedforgeError(f"nothing is left of source '{name}': {story}. Nothing was written")


def _file_name(name: str) -> str:
    return f"{name}.jsonl.gz"


def _write(
    out: Path,
    summary: CurationSummary,
    examples: Sequence[Example],
    sources: Sequence[Source],
    curation: Curation,
    known: Mapping[str, CheckedTask],
) -> None:
    with whole_or_nothing(out), replace_folder(out, marker=REPORT) as folder:
        for source, made in zip(sources, summary.sources, strict=True):
            rows = [example for example in examples if example.source == made.name]
            write_rows(folder / made.file, rows, source.instruction)
        write_json(folder / REPORT, summary.as_json())
        write_report(folder / PAGE, page_of(summary))
        tasks = {**known, **_checked(curation)}
        if tasks:
            files = {source.file: file_hash(folder / source.file) for source in summary.sources}
            write_mark(folder, Mark(tasks=tasks, files=files))


def _checked(curation: Curation) -> dict[str, CheckedTask]:
    return {
        task.name: CheckedTask(
            fingerprint=task.fingerprint,
            documents=curation.documents,
            ngram=curation.ngram,
            bm25=curation.bm25,
        )
        for task in curation.tasks
    }
