"""`embedforge curate`: sources in, curated files, a report and a mark of decontamination out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embedforge import __version__
from embedforge.curate.report import Report, SourceReport, StepReport, print_report, render, report_of
from embedforge.curate.steps import Curation, planned
from embedforge.data.convert import read_source, source_file, source_name
from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.data.marks import CheckedTask, Mark, file_hash, training_mark, write_mark
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, replace_folder, write_json, write_text
from embedforge.recipe import Source

REPORT = "report.json"


def curate(
    sources: Sequence[Source],
    out: Path,
    curation: Curation,
    *,
    folder: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Read sources, run the steps on all of them together, and write a file for each.

    The sources are one dataset: of duplicates in two of them, the copy of the earlier source stays. All
    Examples are in memory at once. The folder appears whole, when everything is done, or not at all.

    Args:
        sources: as in a recipe's mix.
        out: folder of the result: `NAME.jsonl.gz` for each source, `report.json`, `report.html` and, after
            decontamination of the sources, now or earlier, `decontaminated.json`. An older curation of these
            sources there is replaced.
        curation: which steps, and how.
        folder: where relative paths of the sources start.
        console: for progress and the summary; standard error when None.

    Raises:
        EmbedforgeError: bad data or settings, two sources of one name, a source of which nothing is left,
            or a folder that holds something else.
    """
    console = console or Console(stderr=True)
    steps = planned(curation)
    names = _names(sources)
    _check_folder(out, names)
    known = training_mark([source_file(source, folder) for source in sources]).tasks
    examples = [
        example for source in sources for example in read_source(source, seed=curation.seed, folder=folder)
    ]
    before = Counter(example.source for example in examples)
    reports: list[StepReport] = []
    with _progress(console) as bar:
        for step in steps:
            outcome = step.run(examples, bar)
            reports.append(report_of(step, examples, outcome, curation.seed))
            examples = outcome.kept
            _check_that_something_is_left(names, Counter(example.source for example in examples), reports)
    after = Counter(example.source for example in examples)
    report = Report(
        made_by=f"embedforge {__version__}",
        seed=curation.seed,
        sources=[
            SourceReport(name, source.path, _file_name(name), before[name], after[name])
            for name, source in zip(names, sources, strict=True)
        ],
        steps=reports,
    )
    _write(out, report, examples, sources, curation, known)
    print_report(report, console)
    return report


def _names(sources: Sequence[Source]) -> list[str]:
    names = [source_name(source) for source in sources]
    if not names:
        raise EmbedforgeError("name at least one source to curate")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise EmbedforgeError(
            f"two sources are named '{repeated[0]}', and each becomes the file {_file_name(repeated[0])}; "
            "rename one, or curate them apart"
        )
    return names


def _check_folder(out: Path, names: Sequence[str]) -> None:
    """Refuse, before the work, to replace a curation of other sources."""
    if not (out / REPORT).is_file():
        return
    older = {str(source.get("name")) for source in read_object(out / REPORT).get("sources", [])}
    others = sorted(older - set(names))
    if others:
        raise EmbedforgeError(
            f"{out}: holds a curation of {', '.join(others)}, which would be deleted; name another folder"
        )


def _check_that_something_is_left(
    names: Sequence[str], left: Counter[str], reports: Sequence[StepReport]
) -> None:
    for name in names:
        if left[name]:
            continue
        story = "; ".join(
            f"{step.name} dropped {step.by_source.get(name, 0):,}"
            + (f" ({', '.join(step.dropped['example'])})" if step.by_source.get(name) else "")
            for step in reports
        )
        raise EmbedforgeError(f"nothing is left of source '{name}': {story}. Nothing was written")


def _file_name(name: str) -> str:
    return f"{name}.jsonl.gz"


def _write(
    out: Path,
    report: Report,
    examples: Sequence[Example],
    sources: Sequence[Source],
    curation: Curation,
    known: Mapping[str, CheckedTask],
) -> None:
    with replace_folder(out, marker=REPORT) as folder:
        for source, made in zip(sources, report.sources, strict=True):
            rows = [example for example in examples if example.source == made.name]
            _write_examples(folder / made.file, rows, source.instruction)
        write_json(folder / REPORT, report.as_json())
        write_text(folder / "report.html", render(report))
        tasks = {**known, **_checked(curation)}
        if tasks:
            files = {source.file: file_hash(folder / source.file) for source in report.sources}
            write_mark(folder, Mark(tasks=tasks, files=files))


def _write_examples(path: Path, examples: Sequence[Example], instruction: str) -> None:
    """Write Examples; the source's own instruction stays the recipe's, a row's own goes into the row."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(
            "", "wb", compresslevel=6, fileobj=raw, mtime=0
        ) as zipped,  # equal bytes for equal data
    ):
        for example in examples:
            own = replace(example, instruction="") if example.instruction == instruction else example
            zipped.write((json.dumps(record_of(own), ensure_ascii=False) + "\n").encode())


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


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
