"""From result files to `results.json` and `report.html`: means, intervals, tests, sentences. Needs mteb."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from statistics import fmean
from typing import Any

from embedforge.data.notes import told
from embedforge.evaluate.decontamination import sentence
from embedforge.evaluate.results import PACKAGES, EvaluationSettings, Results
from embedforge.evaluate.units import Units, compare, interval
from embedforge.files import write_json
from embedforge.report.charts import grouped_bars
from embedforge.report.page import Cell, Chart, Finding, Report, Table, finding, write_report
from embedforge.run_folder import facts, machine, versions
from embedforge.statistics import Interval, PairedTest, as_dict

_METRICS = {
    "ndcg_at_10": "nDCG@10",
    "map_at_1000": "MAP",
    "accuracy": "accuracy",
    "v_measure": "V-measure",
    "cosine_spearman": "Spearman",
    "cosine_ap": "average precision",
    "max_ap": "average precision",
}
_MOST_BARS = 40
_MOST_SENTENCES = 8


def write_summary(results: Results, settings: EvaluationSettings) -> None:
    """Write `results.json` and `report.html` into the folder of the results."""
    tests = {model: _tests(results, model) for model in results.models[1:]}
    write_json(results.folder / "results.json", summary(results, tests, settings))
    write_report(results.folder / "report.html", _report(results, tests, settings))


def summary(
    results: Results, tests: dict[str, dict[str, PairedTest]], settings: EvaluationSettings
) -> dict[str, Any]:
    """Return the content of `results.json`: all scores and settings, without the scores of single queries."""
    tasks = {}
    elsewhere = ("units", "notes")
    for name, row in results.tasks.items():
        tasks[name] = {
            model: result and {key: value for key, value in result.items() if key not in elsewhere}
            for model, result in row.items()
        }
    return {
        **facts(PACKAGES),
        "phases": _phases(results),
        "settings": asdict(settings) | {"instructions": dict(settings.instructions or {})},
        "mean": {model: _mean(results, model, results.tasks) for model in results.models},
        "by_type": {
            kind: {model: _mean(results, model, names) for model in results.models}
            for kind, names in _types(results).items()
        },
        "differences": {
            model: {name: as_dict(test) for name, test in row.items()} for model, row in tests.items()
        },
        "notes": results.notes,
        "undecontaminated": {model: list(names) for model, names in results.undecontaminated.items()},
        "tasks": tasks,
    }


def _tests(results: Results, model: str) -> dict[str, PairedTest]:
    """Compare a model with the first one, on every task that both have units for."""
    first, tests = results.models[0], {}
    for name, row in results.tasks.items():
        a, b = (_units(row[m]) for m in (first, model))
        if a is not None and b is not None:
            tests[name] = compare(a, b)
    return tests


def _report(
    results: Results, tests: dict[str, dict[str, PairedTest]], settings: EvaluationSettings
) -> Report:
    intervals: dict[str, dict[str, Interval | float | None]] = {
        name: {model: _score(result) for model, result in row.items()} for name, row in results.tasks.items()
    }
    charts = []
    if len(results.tasks) <= _MOST_BARS:
        series = {model: [row[model] for row in intervals.values()] for model in results.models}
        svg = grouped_bars(list(results.tasks), series, title="Main score of each task", x_label="main score")
        charts.append(Chart("Side by side", svg, "Thin lines are 95% intervals."))
    several = len(results.models) > 1
    return Report(
        title="Evaluation of "
        + " and ".join(filter(None, [", ".join(results.models[:-1]), results.models[-1]])),
        subtitle=f"{len(results.tasks)} task{'s' * (len(results.tasks) > 1)}, split {settings.split}",
        summary=_sentences(results, tests),
        tables=[_task_table(results, intervals, tests)] + ([_type_table(results)] if several else []),
        charts=charts,
        details=_details(results, settings),
    )


def _task_table(
    results: Results,
    intervals: dict[str, dict[str, Interval | float | None]],
    tests: dict[str, dict[str, PairedTest]],
) -> Table:
    rows: list[list[Cell]] = []
    for name, row in intervals.items():
        differences = [tests[model].get(name) for model in results.models[1:]]
        metric = next((r["metric"] for r in results.tasks[name].values() if r), "")
        rows.append([name, _METRICS.get(metric, metric), *row.values(), *differences])
    means: list[Cell] = [_mean(results, model, results.tasks) for model in results.models]
    rows.append(["mean of all tasks", "", *means, *[None] * len(tests)])
    first = results.models[0]
    return Table(
        "Scores",
        ["task", "metric", *results.models, *(f"{model} − {first}" for model in results.models[1:])],
        rows,
        note="Main score of mteb, from 0 to 1, with its 95% interval: bootstrap over queries, texts or "
        "pairs, for V-measure over random halves. Differences are paired tests on the same ones; grey may "
        "be chance. A dash: the model cannot do the task, or the metric has no test.",
        has_total=True,
        bold_best=len(results.models) > 1,
    )


def _type_table(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for kind, names in _types(results).items():
        rows.append([kind, len(names), *(_mean(results, model, names) for model in results.models)])
    return Table("By type of task", ["type", "tasks", *results.models], rows, bold_best=True)


def _sentences(results: Results, tests: dict[str, dict[str, PairedTest]]) -> list[Finding]:
    sentences = []
    first = results.models[0]
    for model, row in tests.items():
        better = sum(t.is_real and t.difference > 0 for t in row.values())
        worse = sum(t.is_real and t.difference < 0 for t in row.values())
        untested = len(results.tasks) - len(row)
        text = f"{model} against {first}: better on {better}, worse on {worse} of {len(row)} tested tasks"
        text += f"; on {len(row) - better - worse} the difference may be chance"
        text += f"; {untested} could not be tested." if untested else "."
        sentences.append(Finding(text, "good" if better > worse else "bad" if worse > better else "neutral"))
        if len(row) * len(tests) <= _MOST_SENTENCES:
            sentences += [_task_sentence(results, name, model, test) for name, test in row.items()]
    if not tests:
        sentences.append(_mean_sentence(results))
    sentences += [Finding(f"{name}: {told(notes)}.") for name, notes in results.notes.items()]
    for model, unchecked in results.undecontaminated.items():
        text = sentence(model, unchecked, len(results.tasks))
        sentences.append(Finding(text, "bad" if unchecked else "good"))
    return sentences


def _mean_sentence(results: Results) -> Finding:
    first, tasks = results.models[0], len(results.tasks)
    mean = _mean(results, first, results.tasks)
    if mean is None:
        done = sum(row[first] is not None for row in results.tasks.values())
        return Finding(f"{first} can do {done} of the {tasks} tasks, so its mean is not given.")
    return Finding(f"{first} scores {mean:.3f} on average over {tasks} task{'s' * (tasks > 1)}.")


def _task_sentence(results: Results, name: str, model: str, test: PairedTest) -> Finding:
    result = results.tasks[name][model]
    assert result is not None  # a test needs both results
    metric = _METRICS.get(result["metric"], result["metric"])
    return finding(f"{model}, {name}: {metric}", test, unit=result["units"]["kind"])


def _details(results: Results, settings: EvaluationSettings) -> dict[str, object]:
    details: dict[str, object] = {
        "Packages": ", ".join(f"{name} {number}" for name, number in versions(PACKAGES).items()),
        "Machine": machine(),
        "Split": settings.split,
    }
    for model in results.models:
        done = [row[model] for row in results.tasks.values() if row[model] is not None]
        if done and done[0] and done[0]["settings"]:
            details[f"Settings of {model}"] = ", ".join(f"{k}: {v}" for k, v in done[0]["settings"].items())
        given = {n: r["instruction"] for n, row in results.tasks.items() if (r := row[model])}
        lines = [f"{name}: {text}" for name, text in given.items() if text]
        if lines:
            details[f"Instructions of {model}"] = "\n".join(lines)
    return details


def _phases(results: Results) -> dict[str, float]:
    """Seconds that each model took, over all starts: of a task that was kept, those of its own run."""
    return {
        model: round(sum(r["seconds"] for row in results.tasks.values() if (r := row[model])), 1)
        for model in results.models
    }


def _score(result: dict[str, Any] | None) -> Interval | float | None:
    if result is None:
        return None
    units = _units(result)
    return float(result["score"]) if units is None else interval(units)


def _units(result: dict[str, Any] | None) -> Units | None:
    return None if result is None else Units.from_json(result["units"])


def _types(results: Results) -> dict[str, list[str]]:
    types: dict[str, list[str]] = {}
    for name, row in results.tasks.items():
        kind = next((result["type"] for result in row.values() if result is not None), "other")
        types.setdefault(kind, []).append(name)
    return types


def _mean(results: Results, model: str, names: Iterable[str]) -> float | None:
    """Mean of main scores; None unless the model has all of them, for then it is another mean."""
    scores = [results.score(model, name) for name in names]
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
