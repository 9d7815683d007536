"""`embedforge synthesize`: ask, then harvest. Read this first."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from embedforge import stopping
from embedforge.console import add_row, progress_bar, say
from embedforge.documents import Chunk, Folder, read_folder
from embedforge.endpoint import Secret, key_from_environment
from embedforge.errors import EmbedforgeError
from embedforge.files import refuse_file
from embedforge.run_folder import Phases, hold
from embedforge.synthesize.ask import Asker, Patience, Stop
from embedforge.synthesize.budget import Budget
from embedforge.synthesize.client import Endpoint, normal_url
from embedforge.synthesize.corpus import CorpusPlan
from embedforge.synthesize.groups import choose_groups, choose_languages
from embedforge.synthesize.harvest import Harvest, lookup_in
from embedforge.synthesize.journal import Journal
from embedforge.synthesize.languages import Detector
from embedforge.synthesize.plan import Item, Lookup, NoTask, PaperPlan, Plan, Request, Sampling, Wanted
from embedforge.synthesize.report import report_of, write_report
from embedforge.synthesize.test_set import TestSet, check_purpose, write_test_set
from embedforge.synthesize.write import write_examples, write_passages

JOURNAL = "journal.jsonl"
NO_LIMITS = Budget()
MOST_EXAMPLES = 10_000_000
PATIENCE = Patience()
_ANY_TASKS = json.dumps({"tasks": [f"(task {number} of the first step's answer)" for number in range(1, 21)]})


@dataclass(frozen=True, slots=True)
class SynthesisSettings:
    """What to make, and from whom.

    Args:
        endpoint: address of an OpenAI-compatible endpoint.
        model: the name that it knows the model by.
        examples: how many to ask for; fewer are kept.
        groups: of E5-Mistral; () for all that make sense.
        languages: English names, or ("all",); () is English, or each passage's own with a corpus.
        seed: of everything that is drawn.
        temperature: of sampling, 1 in the paper.
        top_p: of sampling, 1 in the paper.
        max_answer_tokens: limit of one answer; what is cut off is dropped.
        concurrency: requests under way at a time.
        requests_per_minute: sent at most, spread evenly; None for no limit.
        timeout: seconds that one request may take.
        key_variable: environment variable with the key; None for OPENAI_API_KEY where it is set.
    """

    endpoint: str
    model: str
    examples: int = 1000
    groups: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_answer_tokens: int = 4096
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 300.0
    key_variable: str | None = None

    @property
    def sampling(self) -> Sampling:
        """Model and sampling settings, which make requests the same or not."""
        return Sampling(self.model, self.temperature, self.top_p, self.max_answer_tokens)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    report: dict[str, Any]
    """The content of report.json."""
    stopped: str
    """Why it ended before all was asked; "" if it did not."""
    interrupt: KeyboardInterrupt | None = None
    """What stopped it, were it Ctrl-C or SIGTERM."""
    is_budget: bool = False
    """A limit of the budget is reached."""
    failure: str = ""
    """Why the last request that was given up failed; "" if none was."""


def synthesize(
    out: Path | str,
    settings: SynthesisSettings,
    *,
    passages: Sequence[Chunk] | None = None,
    test: TestSet | None = None,
    budget: Budget = NO_LIMITS,
    patience: Patience = PATIENCE,
    console: Console | None = None,
) -> Result:
    """Have training data written, and keep what is good of it.

    Everything that was answered stands in `out`/journal.jsonl: a run that was killed, stopped or out of
    budget goes on where it was when it is started again, and so does one that is asked for more examples.

    >>> import embedforge
    >>> from embedforge.synthesize.run import SynthesisSettings
    >>> endpoint = "http://localhost:8000/v1"  # whatever speaks OpenAI's protocol
    >>> endpoint = stand_in.url  # here, one that writes nonsense
    >>> settings = SynthesisSettings(endpoint, "some-model", examples=4, groups=("sts",))
    >>> result = embedforge.synthesize("synthetic", settings)
    >>> result.report["spent"]["requests"], result.stopped
    (4, '')

    Args:
        out: folder of the journal, the Examples (examples.jsonl, groups/, mix.yaml) and the report.
        settings: what to make.
        passages: of the user's documents, to write queries for; None for the paper's groups.
        test: write a test set of these passages' queries instead of training data.
        budget: when to stop.
        patience: how to repeat requests that fail.
        console: where progress is shown; the standard error output by default.

    Raises:
        EmbedforgeError: settings that make no sense, an endpoint that is of no use (after what it did answer
            was written), a journal that another process has.
    """
    out = Path(out)
    plan = plan_of(settings, passages)
    url = normal_url(settings.endpoint)
    secret = key_from_environment(settings.key_variable)
    detector = Detector()  # before anything is paid for: a package may be missing
    refuse_file(out)
    check_purpose(out, is_test=test is not None)
    with hold(out), Journal(out / JOURNAL) as journal:
        phases = Phases(out)
        with phases.phase("asking"):
            stop = asyncio.run(_ask_all(plan, url, secret, settings, journal, budget, patience, console))
        harvest = Harvest(plan, journal, settings.sampling, detector, negatives=test is None)
        if test is None:
            tally = write_examples(out, harvest.outcomes())
            if passages is not None:
                write_passages(out, passages)
        else:
            tally = write_test_set(out, test, passages or (), harvest.outcomes())
        report = report_of(
            _shown(settings, url, budget, passages, test),
            tally,
            journal,
            budget,
            unused=len(journal) - len(harvest.used),
            stopped=stop.reason,
            phases=phases.seconds,
        )
        write_report(out, report)
    if stop.is_error:
        kept = f"{tally.kept.total():,} examples" if tally.kept else "nothing"
        raise EmbedforgeError(
            f"{stop.reason}\nKept so far: {kept}. The same command goes on from {out / JOURNAL}."
        )
    return Result(report, stop.reason, stop.interrupt, stop.is_budget, stop.failure)


def read_documents(
    folder: Path, *, seed: int, out: Path | None = None, console: Console | None = None
) -> Folder:
    """Return a folder's passages: `train` to write training data for, `held_out` for a test set.

    Args:
        folder: of documents.
        seed: decides what is held out.
        out: where the run writes.
        console: where progress is shown; the standard error output by default.

    Raises:
        EmbedforgeError: no such folder, nothing in it that can be read, or it holds `out`, whose report would
            be read as one of the documents.
    """
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise EmbedforgeError(f"--out {out} lies in --corpus {folder}, and would be read; name another --out")
    with progress_bar(console) as bar:
        task = add_row(bar, "reading")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return read_folder(folder, seed=seed, chunks_needed=1, max_pairs=0, progress=show)


def plan_of(settings: SynthesisSettings, passages: Sequence[Chunk] | None) -> Plan:
    """Return what is to be asked, after a check of the settings."""
    if not settings.model.strip():
        raise EmbedforgeError("--model must name the model as the endpoint knows it, found no name")
    for name in ("examples", "max_answer_tokens", "concurrency", "requests_per_minute", "timeout"):
        if not (getattr(settings, name) is None or getattr(settings, name) > 0):
            raise EmbedforgeError(
                f"--{name.replace('_', '-')} must be above 0, found {getattr(settings, name)}"
            )
    if settings.examples > MOST_EXAMPLES:
        raise EmbedforgeError(f"--examples is at most {MOST_EXAMPLES:,}, found {settings.examples:,}")
    if not 0 <= settings.temperature <= 2 or not 0 < settings.top_p <= 1:
        raise EmbedforgeError(
            f"--temperature goes from 0 to 2 and --top-p from above 0 to 1, found {settings.temperature} "
            f"and {settings.top_p}"
        )
    chosen = choose_languages(settings.languages)
    groups = choose_groups(settings.groups, languages=len(chosen), corpus=passages is not None)
    if passages is not None:
        return CorpusPlan(passages, groups[0], chosen, settings.examples, settings.seed)
    return PaperPlan(groups, chosen or choose_languages(("English",)), settings.examples, settings.seed)


def preview(plan: Plan) -> dict[str, list[str]]:
    """Return the first prompts of each group, of both steps where it has two; nothing is asked."""
    prompts: dict[str, dict[str, str]] = {}

    def any_answer(request: Request) -> str:
        prompts.setdefault(request.group, {}).setdefault(request.step, request.prompt)
        return _ANY_TASKS

    for index in range(len(plan)):
        step = plan.step(index, any_answer)
        if isinstance(step, Item):
            prompts.setdefault(step.group.name, {}).setdefault("generate", step.request.prompt)
        if all("generate" in prompts.get(group.name, {}) for group in plan.groups()):
            break
    return {name: list(steps.values()) for name, steps in prompts.items()}


async def _ask_all(
    plan: Plan,
    url: str,
    secret: Secret,
    settings: SynthesisSettings,
    journal: Journal,
    budget: Budget,
    patience: Patience,
    console: Console | None,
) -> Stop:
    """Ask for every example of the plan, `concurrency` at a time, until all is asked or it has to stop."""
    stop = Stop()
    sampling = settings.sampling
    lookup = lookup_in(journal, sampling)
    indices = iter(range(len(plan)))  # shared: each worker takes the next

    async def work(asker: Asker) -> None:
        for index in indices:
            is_answered = await _finish(plan, index, asker, lookup)
            bar.update(task, advance=is_answered, note=_note(journal, budget))
            if stop.reason:
                return

    def tell(line: str) -> None:
        say(line, bar.console)

    async with Endpoint(url, secret, settings.timeout) as endpoint:
        pause = 60 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        asker = Asker(endpoint, journal, sampling, budget, patience, stop, pause, tell)
        with progress_bar(console) as bar, _stopped_by_signals(stop, tell):
            task = add_row(bar, "asking", len(plan))
            await asyncio.gather(*(work(asker) for _ in range(min(settings.concurrency, len(plan)))))
            if not stop.reason:
                asker.confirm()
    return stop


async def _finish(plan: Plan, index: int, asker: Asker, lookup: Lookup) -> bool:
    """Have everything asked that one example needs; say whether it is answered."""
    while not isinstance(step := plan.step(index, lookup), NoTask):
        is_answered = await asker.ask(step.request)
        if not is_answered or not isinstance(step, Wanted):
            return is_answered
    return True


@contextlib.contextmanager
def _stopped_by_signals(stop: Stop, tell: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets requests under way finish; a second one ends the process."""
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def handle(number: int) -> None:
        stop.set("by Ctrl-C or a signal", interrupt=stopping.interrupt(number))
        tell("Waiting for the requests under way; Ctrl-C again ends at once, and their answers are lost.")
        remove()

    def remove() -> None:
        while before:
            number, handler = before.popitem()
            loop.remove_signal_handler(number)
            stopping.restore({number: handler})

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
        for number in stopping.SIGNALS:
            known = signal.getsignal(number)
            loop.add_signal_handler(number, handle, number)
            before[int(number)] = known
    try:
        yield
    finally:
        remove()


def _note(journal: Journal, budget: Budget) -> str:
    spent = journal.spent
    cost = budget.cost(spent)
    tokens = f"{spent.requests:,} requests, {spent.tokens_in + spent.tokens_out:,} tokens"
    return tokens if cost is None else f"{tokens}, cost {cost:.2f}"


def _shown(
    settings: SynthesisSettings,
    url: str,
    budget: Budget,
    passages: Sequence[Chunk] | None,
    test: TestSet | None,
) -> dict[str, Any]:
    """The settings as the report tells them; never the key."""
    values: dict[str, Any] = {
        "model": settings.model,
        "endpoint": url,
        "examples": settings.examples,
        "groups": ", ".join(settings.groups) or ("corpus" if passages is not None else "all that make sense"),
        "languages": ", ".join(settings.languages)
        or ("each passage's own" if passages is not None else "English"),
        "seed": settings.seed,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_answer_tokens": settings.max_answer_tokens,
    }
    if passages is not None:
        values["passages"] = len(passages)
    if test is not None:
        values |= {"test set": test.folder, "passages without a query": len(test.distractors)}
    limits = ("max_requests", "max_tokens", "max_cost", "price_in", "price_out")
    return values | {name: getattr(budget, name) for name in limits if getattr(budget, name) is not None}
