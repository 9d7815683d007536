"""Give every verb hundreds of bad inputs, and count how each is answered; see `bad_input_cases` for them.

    python scripts/bad_inputs.py                 all of them; exit code 1 if one is not answered well
    python scripts/bad_inputs.py --verb mine     of one verb
    python scripts/bad_inputs.py --show          the answers too

| answer | meaning |
| --- | --- |
| clear | exit code 1 or 2 and a message |
| traceback | an error that nobody meant for the user |
| hang | no end within the limit of time |
| memory | more memory than the limit, or killed for it |
| accepted | exit code 0; each of these has its reason in `bad_input_cases`, or counts as a fault |
| late | clear, but only after torch had been imported, where no model is needed to see it |

Each input is a forked process of its own, so that imports cost nothing, under limits of processor time, wall
time, memory and file size. Those that need no model are run before this process has imported torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", COLUMNS="200")
os.environ["EMBEDFORGE_HOME"] = "/nonexistent"  # no base has been fetched
os.environ.pop("OPENAI_API_KEY", None)

from bad_input_cases import Case, cases_of, write_materials
from bad_input_odd_cases import odd_cases
from bad_input_use_cases import use_cases

SECONDS = 20
WALL_SECONDS = 120.0
GIGABYTES = 3.0
"""Of address space, on top of what this process has when it forks."""
FILE_MEGABYTES = 200
ANSWERS = ("clear", "late", "traceback", "hang", "memory", "accepted")
FAULTS = ("late", "traceback", "hang", "memory")
_OUT_OF_MEMORY = ("MemoryError", "Cannot allocate", "not enough memory", "out of memory", "can't allocate")


def main() -> int:
    """Run the cases, print the table and what is wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", help="only this verb's inputs")
    parser.add_argument("--show", action="store_true", help="print every answer")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as name:
        folder = Path(name)
        write_materials(folder)
        every = [*cases_of(folder), *use_cases(folder), *odd_cases(folder)]
        cases = [case for case in every if asked.verb in (None, case.verb)]
        import_light()
        answers = run_all([case for case in cases if not case.needs_model], folder, show=asked.show)
        if heavy := [case for case in cases if case.needs_model]:
            import_heavy()
            answers += run_all(heavy, folder, show=asked.show)
    return report(answers)


def import_light() -> None:
    """Import what every verb does before torch."""
    import embedforge.cli
    import embedforge.curate.evaluation_texts
    import embedforge.curate.run
    import embedforge.data.catalog_show
    import embedforge.mine.run
    import embedforge.search.index
    import embedforge.show
    import embedforge.synthesize.run
    import embedforge.train.mixtures

    assert embedforge
    if "torch" in sys.modules:
        raise SystemExit("a module that needs no model has imported torch")


def import_heavy() -> None:
    """Import what needs torch, once, for all that need a model."""
    import embedforge.mine.teachers
    import embedforge.model.export
    import embedforge.model.prune
    import embedforge.search.run
    import embedforge.train.merge
    import embedforge.train.run

    assert embedforge


Answer = tuple[Case, str, str]


def run_all(cases: Sequence[Case], folder: Path, *, show: bool) -> list[Answer]:
    """Return each case with its answer and what was printed."""
    answers = []
    for number, case in enumerate(cases):
        answer, said = run_case(case, folder, folder / f"said-{number}.txt")
        answers.append((case, answer, said))
        if show:
            print(f"{answer:9} {case.verb} {case.name}: {' '.join(said.split())[-300:]}", flush=True)
    return answers


def run_case(case: Case, folder: Path, said: Path) -> tuple[str, str]:
    """Run one input in a process of its own."""
    sys.stdout.flush()
    has_torch = "torch" in sys.modules
    child = os.fork()
    if not child:
        in_child(case, folder, said)
    code = wait(child)
    text = said.read_text(encoding="utf-8", errors="replace")
    said.unlink()
    imported = text.endswith("\n[torch]\n")
    return answer_of(code, text, late=imported and not has_torch and not case.needs_model), text


def in_child(case: Case, folder: Path, said: Path) -> None:
    """Call the command line under limits; never returns."""
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        target = os.open(said, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(target, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + int(GIGABYTES * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MEGABYTES * 10**6,) * 2)
        from embedforge import cli

        sys.argv = ["embedforge", *map(str, case.arguments)]
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, b"\n[torch]\n" if "torch" in sys.modules else b"\n")
        os._exit(code)


def wait(child: int) -> int | None:
    """Return the exit code, negative for a signal; None where the time is over."""
    end = time.monotonic() + WALL_SECONDS
    while time.monotonic() < end:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def answer_of(code: int | None, text: str, *, late: bool) -> str:
    """Name the answer."""
    if code is None or code == -signal.SIGXCPU:
        return "hang"
    if code < 0 or (code and any(word in text for word in _OUT_OF_MEMORY)):
        return (
            "memory"
            if code in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT) or code > 0
            else "traceback"
        )
    if code == 0:
        return "accepted"
    told = [line for line in text.splitlines() if line.strip() and line != "[torch]"]
    if code not in (1, 2) or not told or "Traceback (most recent call last)" in text:
        return "traceback"
    return "late" if late else "clear"


def report(answers: Sequence[Answer]) -> int:
    """Print the table by verb, then each input that was not answered as it should be."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case, answer, _ in answers:
        table[case.verb][answer] += 1
    print(f"{'verb':12}{'inputs':>8}" + "".join(f"{name:>11}" for name in ANSWERS))
    for verb in [*sorted(table), "all"]:
        counts = sum(table.values(), Counter()) if verb == "all" else table[verb]
        print(f"{verb:12}{counts.total():>8}" + "".join(f"{counts[name]:>11}" for name in ANSWERS))
    wrong = [
        item for item in answers if item[1] in FAULTS or (item[1] == "accepted") != bool(item[0].accepted)
    ]
    for case, answer, said in wrong:
        asked = " ".join(json.dumps(str(word))[1:81] for word in case.arguments)
        print(f"\n{answer}: {case.verb}, {case.name}: embedforge {asked}\n{said.strip()[-1500:]}")
    print(f"\n{len(answers)} inputs, {len(wrong)} not answered as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
