"""What the figures mean, in sentences; also where nothing was gained."""

from __future__ import annotations

from embedforge.prove.figures import ALL, BM25, FUSED, Figures, Measure
from embedforge.prove.systems import ACROSS, AS_IT_CAME, TEACHER, TRAINED, UNTRAINED
from embedforge.report.page import Finding, Tone, against_bm25, finding
from embedforge.statistics import Interval, PairedTest


def findings(figures: Figures) -> list[Finding]:
    """Return the sentences of the summary, the most important first."""
    lines: list[Finding] = []
    if figures.retrieval:
        measure = figures.retrieval[ALL]["ndcg@10"]
        lines += _on_distillation(figures, measure) if TEACHER in measure.values else _on_retrieval(measure)
    else:
        lines.append(Finding("No question could be made of the held-out text: retrieval was not measured."))
    if figures.clustering:
        what = "Clustering by the part of the folder (V-measure) against the decoder as it came"
        lines.append(finding(what, figures.clustering.changes[AS_IT_CAME], unit="halves"))
    if figures.loss:
        lines += _on_loss(figures.loss)
    if figures.alignment and figures.uniformity:
        lines.append(_on_space(figures.alignment, figures.uniformity))
    if figures.own_half:
        what = "How often halves of a passage are nearer than halves of two, against the decoder as it came,"
        lines.append(finding(what, figures.own_half.changes[AS_IT_CAME], unit="passages"))
    return lines


def _on_retrieval(measure: Measure) -> list[Finding]:
    changes = measure.changes
    lines = [finding("Retrieval (nDCG@10) against the decoder as it came", changes[AS_IT_CAME])]
    if UNTRAINED in changes:
        what = "Retrieval (nDCG@10) against the untrained decoder without its causal mask"
        lines.append(finding(what, changes[UNTRAINED]))
    others = [name for name in changes if name not in (AS_IT_CAME, UNTRAINED, BM25, FUSED)]
    lines += [finding(f"Retrieval (nDCG@10) in the stages {name}", changes[name]) for name in others]
    untrained = [changes[name] for name in (AS_IT_CAME, UNTRAINED) if name in changes]
    if not any(test.is_real and test.difference > 0 for test in untrained):
        lines.append(
            Finding(
                "Training did not make retrieval better on this folder. More text, more --minutes or a "
                "larger --base may; pairs of questions and answers (embedforge quickstart, or your own) "
                "help more than text alone.",
                "bad",
            )
        )
    why = (
        "the questions share many words with their answers. Combine both, or train longer, with pairs, or "
        "from a larger base."
    )
    together = measure.values[FUSED].mean
    lines.append(against_bm25(changes[BM25], "the trained model", why))
    return [*lines, Finding(f"Fused with BM25, as embedforge search does, nDCG@10 is {together:.3f}.")]


def _on_distillation(figures: Figures, measure: Measure) -> list[Finding]:
    """Both modes of a student: in the place of its teacher, and before an index that the teacher has made."""
    changes, values = measure.changes, measure.values
    start = changes[AS_IT_CAME]
    lines = [finding("Retrieval (nDCG@10) of the student alone against what it started from", start)]
    if not (start.is_real and start.difference > 0):
        lines.append(
            Finding(
                "The student is no better than what it started from: it is not worth using as it is. More "
                "text, more --minutes, a larger --student or a higher learning rate may help.",
                "bad",
            )
        )
    lines.append(_share_of_teacher("The student alone", values[TRAINED], values[TEACHER], changes[TEACHER]))
    if figures.across:
        across, test = figures.across.values[ACROSS], figures.across.changes
        what = "The student's questions against the teacher's documents"
        lines.append(_share_of_teacher(what, across, values[TEACHER], test[TEACHER]))
        lines.append(finding(f"{what}: nDCG@10 against the student alone", test[TRAINED]))
    if figures.fidelity:
        shown = ", ".join(f"{value.mean:.3f} of {kind}" for kind, value in figures.fidelity.items())
        lines.append(Finding(f"Mean cosine of the student's vectors to the teacher's: {shown}."))
    why = "words find more here than this student does; combine both, or train longer."
    return [*lines, against_bm25(changes[BM25], "the student alone", why)]


def _share_of_teacher(what: str, own: Interval, teacher: Interval, test: PairedTest) -> Finding:
    """Say how much of the teacher's nDCG@10 is kept; a difference that chance may explain is no news."""
    share = own.mean / teacher.mean if teacher.mean else 0.0
    interval = f"{test.difference:+.3f}, 95 % interval {test.low:+.3f} to {test.high:+.3f}"
    tone: Tone = ("bad" if test.difference < 0 else "good") if test.is_real else "neutral"
    text = f"{what}: nDCG@10 {own.mean:.3f}, {share:.0%} of the teacher's {teacher.mean:.3f} ({interval})."
    return Finding(text.replace("%", " %", 1), tone)


def _on_loss(measure: Measure) -> list[Finding]:
    trained, values = measure.reference, measure.values
    lines = [
        _loss_sentence(
            f"Held-out MNTP loss of the bidirectional decoder ({values[UNTRAINED].mean:.3f} nats a hidden "
            f"token untrained, {values[trained].mean:.3f} trained)",
            measure.changes[UNTRAINED],
        )
    ]
    if trained != TRAINED:
        back = measure.better_by(TRAINED)
        if back and back.is_real and back.difference > 0:
            lines.append(
                Finding(
                    f"The stages after MNTP raised that loss again, by {back.difference:.3f} to "
                    f"{values[TRAINED].mean:.3f}: they train the vectors of whole texts, not the prediction "
                    "of words."
                )
            )
    return lines


def _loss_sentence(what: str, test: PairedTest) -> Finding:
    interval = f"95 % interval {test.low:+.3f} to {test.high:+.3f}"
    if not test.is_real:
        return Finding(f"{what} changed by {test.difference:+.3f}, which chance may explain ({interval}).")
    fell = test.difference < 0
    sentence = f"{what} {'fell' if fell else 'rose'} by {abs(test.difference):.3f} ({interval})."
    return Finding(sentence, "good" if fell else "bad")


def _on_space(alignment: Measure, uniformity: Measure) -> Finding:
    """Neither says much alone: vectors that are all alike align perfectly."""
    changes = [measure.changes[AS_IT_CAME] for measure in (alignment, uniformity)]
    better = [test.is_real and test.difference < 0 for test in changes]
    worse = [test.is_real and test.difference > 0 for test in changes]
    figures = "; ".join(
        f"{name} {measure.values[AS_IT_CAME].mean:.3f} → {measure.values[TRAINED].mean:.3f}"
        for name, measure in (("alignment", alignment), ("uniformity", uniformity))
    )
    tone: Tone = "neutral"
    if any(better) and not any(worse):
        meaning, tone = "at least one of both got better, and none worse", "good"
    elif better[1] and worse[0]:
        meaning = "texts are spread more evenly, and with them the halves of a passage"
    elif better[0] and worse[1]:
        meaning = "halves of a passage lie nearer, but so do all texts"
    elif any(worse):
        meaning, tone = "the vectors got worse in at least one and better in none", "bad"
    else:
        meaning = "chance may explain both changes"
    return Finding(f"From the decoder as it came to the end ({figures}; lower is better): {meaning}.", tone)
