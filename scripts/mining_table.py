"""Compare the rules of hard-negative mining, in docs/results.md: NV-Retriever's table at small scale.

    python scripts/mining_table.py --data FOLDER --out runs/mining

FOLDER holds BEIR datasets (docs/data.md). Students are trained on the train parts of --tasks, alike but for
their negatives, and scored on the test parts of --tasks and --tests. The teacher, unless --teacher names
one, is the bundled decoder trained on the same queries with in-batch negatives alone; it ranks once.
Run again to go on where it stopped.

    OUT/data/         the Examples and documents of each task's train part
    OUT/teacher/      the run that made the teacher
    OUT/mined/        for each rule and task what `embedforge mine` writes; `work` holds the vectors
    OUT/RULE.json     the recipe of a rule's students, whose runs are OUT/students/RULE/seed-N
    OUT/evaluation/   all scores
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_results import machine
from mining_facts import Facts, facts_of, ranks_of
from sections import replace_section
from tables import Variant, difference, evaluated, link_tasks, scores, signed, table, unsigned

from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.evaluate.run import Results, versions
from embedforge.evaluate.tasks import find_tasks
from embedforge.files import read_json, write_json, write_text
from embedforge.mine.documents import own_documents
from embedforge.mine.keep import KeepRule
from embedforge.mine.lexical_ranker import NAMES
from embedforge.mine.pipeline import Selection, with_negatives
from embedforge.mine.run import Teachers, finished, mine
from embedforge.mine.run_file import PREFIX
from embedforge.recipe import Source, load_recipe
from embedforge.text.contract import Contract
from embedforge.text.same import layout_key
from embedforge.train.run import train

TASKS = ("squad", "medquad", "techdoc_titles", "ohsumed_titles")
TESTS = ("cranfield", "cisi")
NAIVE = "naive"
RULES = {
    NAIVE: KeepRule("top_k"),
    "shifted": KeepRule("shifted", 10),
    "absolute": KeepRule("absolute", 0.7),
    "margin": KeepRule("margin", 0.05),
    "percentage": KeepRule("percentage", 0.95),
    "sampled": KeepRule("percentage", 0.95, sample_from=10),
}
"""The paper's best value of each rule."""
TITLES = {
    "teacher": "the teacher",
    "in-batch": "in-batch only",
    "random": "random",
    NAIVE: "naive top-k",
    "shifted": "shifted by 10",
    "absolute": "absolute 0.7",
    "margin": "margin 0.05",
    "percentage": "percentage 95 %",
    "sampled": "percentage 95 %, 4 drawn of 10",
}
NEGATIVES = 4
BATCH = 20
"""Queries of a student's step, whose five documents each are about what is embedded in one go."""
CANDIDATES = 100
RANKED = 300
"""Queries of a task whose whole ranking is written, to look up at which ranks the rules' negatives stand."""
INSTRUCTION = Contract().default_instruction
"""Of all tasks: what the evaluation takes for a task that has none of its own."""
MAX_TOKENS = 128
"""Of a text for the teacher and in the evaluation."""
OWN_TEACHER = "teacher"
BASE = "embedforge:base"


def main() -> None:
    """Run what is missing in --out, then rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of BEIR datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="datasets to train and test on")
    parser.add_argument("--tests", nargs="*", default=list(TESTS), help="datasets to test on alone")
    parser.add_argument("--teacher", default=OWN_TEACHER, help="a model that ranks instead of the own one")
    parser.add_argument(
        "--base", default=BASE, help="where students start: a model, or `teacher`, the own one"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160, help="of a student")
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--cap", type=int, help="most training queries of a task")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="change students' recipe")
    parser.add_argument("--results", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()

    claim(args)
    tasks = link_tasks(args.out / "tasks", [args.data / task for task in (*args.tasks, *args.tests)])
    find_tasks(str(tasks), "test")  # what is wrong with them is said now, not after hours
    examples = {task: write_data(args, task) for task in args.tasks}
    own = own_teacher(args) if OWN_TEACHER in (args.teacher, args.base) else ""
    teacher = own if args.teacher == OWN_TEACHER else args.teacher
    facts = {rule: mined(args, rule, teacher, examples) for rule in RULES}
    write_random(args, examples)
    rows = students(args, own if args.base == OWN_TEACHER else args.base)
    if own:
        rows.insert(0, Variant(OWN_TEACHER, (own,)))
    results, rows = evaluated(rows, tasks, args.out / "evaluation")
    replace_section(args.results, "mining rules", page(args, results, rows, facts))


def claim(args: argparse.Namespace) -> None:
    """Refuse a teacher without cosines, and to mix runs of other settings; seeds and test sets may change."""
    if args.teacher in NAMES or args.teacher.startswith(PREFIX):
        raise SystemExit(
            f"--teacher {args.teacher}: its scores are no cosines, which the absolute rule needs"
        )
    keys = ("tasks", "teacher", "base", "steps", "teacher_steps", "cap", "changes")
    asked = {"data": str(args.data.resolve()), **{key: getattr(args, key) for key in keys}}
    path = args.out / "asked.json"
    earlier = read_json(path) if path.exists() else asked
    for key, value in asked.items():
        if earlier[key] != value:
            raise SystemExit(f"{path}: {key} was {earlier[key]}, now it is {value}; name another --out")
    write_json(path, asked)


def write_data(args: argparse.Namespace, task: str) -> list[Example]:
    """Write a train part's Examples, and its documents: those that answer some training query.

    Documents that only answer queries of the other parts are left out: nothing is to be learned of them,
    not even that they are negatives.
    """
    source = Source(
        path=str(args.data / task), kind="retrieval", name=task, instruction=INSTRUCTION, cap=args.cap
    )
    examples = read_source(source, seed=0)
    documents = [{"_id": document.id, "text": document.text} for document in own_documents(examples)]
    write_lines(args.out / "data" / f"{task}.documents.jsonl", documents)
    write_lines(args.out / "data" / f"{task}.jsonl", map(record_of, examples))
    return examples


def write_lines(path: Path, records: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def mined(
    args: argparse.Namespace, rule: str, teacher: str, examples: Mapping[str, Sequence[Example]]
) -> dict[str, Facts]:
    """Mine all tasks by a rule, where that is not done; return by task what its negatives are like."""
    whole = Selection(CANDIDATES, CANDIDATES, RULES[NAIVE])
    found = {}
    for task in args.tasks:
        ranking = mined_task(args, "ranking", task, teacher, whole, cap=RANKED)
        naive, folder = (
            mined_task(args, name, task, teacher, Selection(NEGATIVES, CANDIDATES, RULES[name]))
            for name in (NAIVE, rule)
        )
        found[task] = facts_of(folder, naive, ranks_of(ranking), examples[task])
    return found


def mined_task(
    args: argparse.Namespace, name: str, task: str, teacher: str, choice: Selection, cap: int | None = None
) -> Path:
    """Mine a task among the documents of its train part; return the folder."""
    out: Path = args.out
    data, folder = out / "data", out / "mined" / name / task
    if finished(folder):
        return folder
    print(f"mining {task}: {name}", flush=True)
    source = Source(path=str(data / f"{task}.jsonl"), name=task, cap=cap)
    documents, work = data / f"{task}.documents.jsonl", out / "mined" / "work"
    mine(source, folder, Teachers((teacher,)), choice, corpus=documents, work=work)
    return folder


def write_random(args: argparse.Namespace, examples: Mapping[str, Sequence[Example]]) -> None:
    """Write the Examples with negatives drawn at random from the task's own documents."""
    for task, own in examples.items():
        draw, documents = random.Random(f"random/{task}"), own_documents(own)
        answers: defaultdict[str, set[str]] = defaultdict(set)
        for example in own:
            answers[layout_key(example.query)].update(map(layout_key, example.positives))
        records = []
        for example in own:
            known = answers[layout_key(example.query)]
            drawn = draw.sample(documents, min(len(documents), NEGATIVES + len(known)))
            safe = [document for document in drawn if layout_key(document.text) not in known]
            records.append(record_of(with_negatives(example, safe[:NEGATIVES])))
        write_lines(args.out / "mined" / "random" / task / "examples.jsonl", records)


def students(args: argparse.Namespace, base: str) -> list[Variant]:
    """Train a model for each rule and seed, and the two without mining; those that are there stay."""
    rows = []
    for rule in ("in-batch", "random", *RULES):
        place = "data/{}.jsonl" if rule == "in-batch" else f"mined/{rule}/{{}}/examples.jsonl"
        write_json(
            args.out / f"{rule}.json",
            recipe_values(
                f"mining-{rule}",
                {task: place.format(task) for task in args.tasks},
                base=base,
                steps=args.steps,
                batch_queries=BATCH,
                negatives=0 if rule == "in-batch" else NEGATIVES,
            ),
        )
        models = []
        for seed in args.seeds:
            recipe = load_recipe(str(args.out / f"{rule}.json"), [f"seed={seed}", *args.changes])
            print(f"student of {rule}, seed {seed}", flush=True)
            out = args.out / "students" / rule / f"seed-{seed}"
            models.append(str(train(recipe, out, resume=True, source_folder=args.out, own_test=True)))
        rows.append(Variant(rule, tuple(models)))
    return rows


def own_teacher(args: argparse.Namespace) -> str:
    """Train the teacher, where it is not there: in-batch negatives alone, and many more pairs."""
    path = args.out / "teacher.json"
    sources = {task: f"data/{task}.jsonl" for task in args.tasks}
    write_json(
        path,
        recipe_values(
            "mining-teacher", sources, base=BASE, steps=args.teacher_steps, batch_queries=64, negatives=0
        ),
    )
    recipe = load_recipe(str(path))
    return str(train(recipe, args.out / "teacher", resume=True, source_folder=args.out, own_test=True))


def recipe_values(
    name: str, sources: Mapping[str, str], *, base: str, steps: int, batch_queries: int, negatives: int
) -> dict[str, Any]:
    """Return a recipe of one contrastive stage, as a recipe file has it."""
    return {
        "name": name,
        "model": {"base": base, "attention_implementation": "eager", "pooling": {"kind": "mean"}},
        "contract": {"max_tokens": MAX_TOKENS, "default_instruction": INSTRUCTION},
        "stages": [
            {
                "name": "contrastive",
                "steps": steps,
                "batch_queries": batch_queries,
                "negatives": negatives,
                "query_max_tokens": 64,
                "document_max_tokens": 96,
                "learning_rate": 1.0e-3,
                "warmup_steps": 20,
                "weight_decay": 0.03,
                "tokens_per_micro_batch": 4096,
                "tokens_held": 12288,
                "objective": {"temperature": 0.03, "in_batch": "positives"},
                "mix": {
                    "sources": [
                        {"path": path, "name": task, "instruction": INSTRUCTION}
                        for task, path in sources.items()
                    ]
                },
            }
        ],
        "training": {"precision": "bfloat16", "save_steps": 80, "log_steps": 10},
    }


def page(
    args: argparse.Namespace,
    results: Results,
    rows: Sequence[Variant],
    facts: Mapping[str, Mapping[str, Facts]],
) -> str:
    """Return scores, differences to naive mining and what the negatives are like, as Markdown."""
    tests = {name.partition("/")[2]: [name] for name in sorted(results.tasks)}
    tests["mean"] = sorted(results.tasks)
    by_name = {row.name: row for row in rows}
    naive = by_name[NAIVE]
    titled = [replace(row, name=TITLES[row.name]) for row in rows]
    changes = [row for row in rows if row.name not in (NAIVE, "teacher")]
    return "\n".join(
        [
            setting(args, facts),
            "",
            *table(
                ["nDCG@10", *tests],
                [
                    [row.name, *(unsigned(scores(results, row, names)) for names in tests.values())]
                    for row in titled
                ],
            ),
            "",
            *table(
                ["minus naive top-k", *tests],
                [
                    [
                        TITLES[row.name],
                        *(signed(difference(results, naive, row, names)) for names in tests.values()),
                    ]
                    for row in changes
                ],
            ),
            "",
            *table(
                ["rule", *Facts.columns()],
                [[TITLES[rule], *Facts.joined(own.values()).cells()] for rule, own in facts.items()],
            ),
        ]
    )


def setting(args: argparse.Namespace, facts: Mapping[str, Mapping[str, Facts]]) -> str:
    """Say what was run, in figures."""
    own = f"the bundled decoder after {args.teacher_steps} steps"
    teacher = own if args.teacher == OWN_TEACHER else f"`{args.teacher}`"
    start = {BASE: "the bundled decoder", OWN_TEACHER: "the teacher's weights"}.get(args.base, args.base)
    naive = facts[NAIVE]
    seeds = "1 seed" if len(args.seeds) == 1 else f"{len(args.seeds)} seeds"
    suspects = ", ".join(f"{task} {own.suspects / own.negatives:.2%}" for task, own in naive.items())
    changed = f" Changed: {', '.join(args.changes)}." if args.changes else ""
    return (
        f"{sum(own.examples for own in naive.values()):,} training queries of {', '.join(naive)}, ranked by "
        f"{teacher}. Students start from {start} and take {args.steps} steps of {BATCH} queries, "
        f"{seeds}.{changed} Of naive mining's negatives so many repeat a labelled answer: "
        f"{suspects}. {machine(versions())}"
    )


if __name__ == "__main__":
    main()
