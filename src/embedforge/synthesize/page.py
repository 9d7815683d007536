"""What report.json says of a run, as a page to read, with samples of what was kept and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedforge.report.charts import histograms
from embedforge.report.page import (
    Bar,
    Cell,
    Chart,
    Finding,
    Headline,
    Report,
    Sample,
    Samples,
    Share,
    Table,
    Tone,
    percent,
)

_TONES: dict[str, Tone] = {"kept": "good", "dropped": "bad"}
_FACTS = ("versions", "machine", "date", "phases")


def page_of(report: Mapping[str, Any]) -> Report:
    """Return the page of what report.json holds."""
    settings, samples = report["settings"], report["samples"]
    return Report(
        title="Synthetic data",
        subtitle=f"{settings['model']} at {settings['endpoint']}",
        summary=[Finding(f"Stopped early: {report['stopped']}", "bad")] if report["stopped"] else [],
        headlines=_headlines(report),
        tables=[_groups_table(report), _dropped_table(report), _spent_table(report["spent"])],
        charts=_charts(report["diversity"]),
        samples=[
            _nearest(report["diversity"]),
            *(
                Samples(f"{what.capitalize()}: {name}", [_shown(sample, tone) for sample in drawn])
                for what, tone in _TONES.items()
                for name, drawn in samples[what].items()
            ),
        ],
        details={key: report[key] for key in _FACTS} | settings,
    )


def _headlines(report: Mapping[str, Any]) -> list[Headline]:
    totals, spent = report["totals"], report["spent"]
    judged, estimated = totals["kept"] + totals["dropped"], spent["answers with estimated tokens"]
    tokens = f"{spent['tokens in']:,} in, {spent['tokens out']:,} out"
    if estimated:
        tokens += f"; estimated for {estimated:,} answers"
    cost, each = spent["cost"], "no prices given"
    if cost is not None:
        each = f"{cost / totals['kept']:.4f} for each that was kept" if totals["kept"] else ""
    return [
        Headline("Kept", f"{totals['kept']:,}", f"{percent(totals['kept'], judged)} of {judged:,} answered"),
        Headline("Not asked yet", f"{totals['not asked yet']:,}", f"of {totals['planned']:,} planned"),
        Headline("Tokens", f"{spent['tokens in'] + spent['tokens out']:,}", tokens),
        Headline("Cost", "–" if cost is None else f"{cost:.2f}", each),
    ]


def _groups_table(report: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, group in report["groups"].items():
        counts = (group["planned"], group["not asked yet"], sum(group["dropped"].values()), group["kept"])
        instructions = report["diversity"].get(name, {}).get("distinct instructions")
        rows.append([name, *counts, group["without a hard negative"], instructions])
    languages = ", ".join(f"{code} {count:,}" for code, count in report["languages"].items())
    columns = ["group", "planned", "not asked yet", "dropped", "kept", "without a hard negative"]
    note = f"Instructions: distinct ones among what was kept. Languages of queries: {languages or 'none'}."
    return Table("By group", [*columns, "instructions"], rows, note=note)


def _dropped_table(report: Mapping[str, Any]) -> Table:
    judged = report["totals"]["kept"] + report["totals"]["dropped"]
    return Table(
        "What was dropped, and why",
        ["filter", "dropped", "share", ""],
        [
            [reason, count, Share(count, judged), Bar(0, count, judged)]
            for reason, count in report["dropped"].items()
        ],
        note="An example counts under the first filter that it fails; shares are of all that were answered.",
    )


def _spent_table(spent: Mapping[str, Any]) -> Table:
    note = "Everything in the journal, earlier runs and requests that failed included."
    if spent["unused answers"]:
        note += f" {spent['unused answers']:,} of its answers belong to other settings and are not used."
    return Table(
        "Requests and tokens",
        ["step", "requests", "tokens in", "tokens out", "cost"],
        [
            [name, step["requests"], step["tokens in"], step["tokens out"], step["cost"]]
            for name, step in {**spent["steps"], "all": spent}.items()
        ],
        note=note,
        has_total=True,
    )


def _charts(diversity: Mapping[str, Any]) -> list[Chart]:
    groups = {name: of for name, of in diversity.items() if "histogram" in of}
    if not groups:
        return []
    title = "How much the queries differ"
    svg = histograms(
        {name: of["histogram"] for name, of in groups.items()},
        title=title,
        x_label="distance to the nearest other query: 0 is a copy, 1 has nothing in common",
    )
    note = (
        "On at most 2,000 queries of a group: 1 minus the cosine of counted runs of 3 to 5 characters. Long "
        "texts are nearer to each other than short ones: compare runs, not groups."
    )
    return [Chart(title, svg, note)]


def _nearest(diversity: Mapping[str, Any]) -> Samples:
    """Show the two queries of each group that are nearest to each other."""
    samples = []
    for name, of in diversity.items():
        if "histogram" in of:
            distance, one, other = of["closest"][0]
            median = of["distance to the nearest query"]["median"]
            texts = {"one": one, "other": other, "distance": f"{distance:.2f}; {median:.2f} in the median"}
            samples.append(Sample(texts, name))
    return Samples("The nearest two queries of each group", samples)


def _shown(sample: Mapping[str, Any], tone: Tone) -> Sample:
    """Show a sample as report.json holds it; what was drawn for it and its number come last."""
    known = ("why", "drawn", "number", "group")
    texts = {key: str(value) for key, value in sample.items() if key not in known}
    if "drawn" in sample:
        texts["drawn"] = "; ".join(f"{key}: {value}" for key, value in sample["drawn"].items())
    texts["example"] = f"{sample['number']} of the plan, {sample['group']}"
    return Sample(texts, sample.get("why", ""), tone)
