from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from embedforge.report import charts
from embedforge.report.page import (
    Chart,
    Finding,
    Headline,
    Hit,
    QueryExample,
    Report,
    Table,
    finding,
    render_report,
    write_report,
)
from embedforge.statistics import Interval, PairedTest

NASTY = "<script>alert('x')</script> $a$ & \"b\""
REAL = PairedTest(0.31, 0.28, 0.34, 0.0001, 300, True)
CHANCE = PairedTest(-0.01, -0.02, 0.04, 0.4, 141, False)
STEPS = list(range(40))


class Page(HTMLParser):
    """Collects tags, attributes and text of a page, and checks that its tags are closed in order."""

    VOID = {"meta", "br"}
    SVG_LEAVES = {"path", "use", "rect"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def all_charts():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((30, 2))
    names = [f"label {i % 10} {NASTY}" for i in range(30)]
    return {
        "loss": charts.loss_curves({"$a$ <script>": (STEPS, STEPS), "other": (STEPS, STEPS[::-1])}),
        "bars": charts.grouped_bars(
            ["a", NASTY], {"before": [0.1, None], "after": [Interval(0.5, 0.4, 0.6), 0.2]}, title=NASTY
        ),
        "scores": charts.score_distributions(
            {"before": ([0.1, 0.5], [0.3]), "after": ([0.9], [0.1])}, title="s"
        ),
        "map": charts.vector_map({"before": points, "after": points}, names, title="m"),
    }


def full_report():
    return Report(
        title=NASTY,
        subtitle=NASTY,
        summary=[finding("nDCG@10", REAL), Finding(NASTY, "bad"), NASTY],
        headlines=[Headline(NASTY, NASTY, NASTY, "good")],
        tables=[
            Table(
                NASTY,
                ["task", "a", "b", NASTY],
                [
                    ["x", Interval(0.2, 0.1, 0.3), 0.25, REAL],
                    [NASTY, None, math.nan, CHANCE],
                    ["n", 1200, 0.5, "-"],
                ],
                note=NASTY,
                has_total=True,
                bold_best=True,
            )
        ],
        charts=[Chart(name, svg, NASTY) for name, svg in all_charts().items()],
        examples=[
            QueryExample(NASTY, [[Hit(NASTY, True, 0.5, NASTY)], [Hit("word " * 200, False)]], NASTY),
        ],
        models=(NASTY, "after"),
        details={NASTY: NASTY, "seed": 0},
    )


@pytest.fixture(scope="module")
def html():
    return render_report(full_report())


def test_the_page_is_well_formed_and_everything_is_escaped(html):
    page = Page(html)
    assert "script" not in page.tags
    assert sum("alert('x')" in text for text in page.texts) > 15
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_loads_nothing_from_outside(html):
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "script"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
    assert "url(http" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_ids_are_unique_on_the_page_and_every_reference_has_its_target(html):
    page = Page(html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r"url\(#([^)]+)\)", html)) | {v[1:] for n, v in page.attributes if n == "href"}
    assert targets <= set(ids)


def test_numbers_of_the_table(html):
    assert "0.100 – 0.300" in html
    assert re.search(r'class="number good">\+0\.310<small>p &lt; 0\.001', html)
    assert re.search(r'class="number unsure">−0\.010<small>p = 0\.400', html)
    assert re.search(r'class="number best">0\.250', html.replace("  ", " "))
    assert "1,200" in html
    assert "nan" not in Page(html).texts


def test_long_documents_unfold(html):
    shown, rest = re.search(
        r"((?:word )+word)<details><summary>… more</summary>( word.*?)</details>", html
    ).groups()
    assert (shown + rest).split() == ["word"] * 200


def test_equal_reports_are_equal_pages(html):
    assert render_report(full_report()) == html


def test_a_bare_report_has_no_empty_sections(tmp_path):
    write_report(tmp_path / "deep" / "report.html", Report("Only a title"))
    text = (tmp_path / "deep" / "report.html").read_text()
    assert "<section>" not in text
    Page(text)


def test_verdicts_say_what_the_test_says():
    assert finding("recall", REAL).tone == "good"
    assert finding("recall", PairedTest(-0.1, -0.2, -0.05, 0.01, 40, True)).tone == "bad"
    chance = finding("recall", CHANCE, unit="texts")
    assert chance.tone == "neutral"
    assert "chance may explain" in chance.text
    assert "141 texts" in chance.text
    single = finding("recall", PairedTest(1.0, math.nan, math.nan, 1.0, 1, False))
    assert "too few queries (1)" in single.text


@pytest.mark.parametrize("name", ["loss", "bars", "scores", "map"])
def test_charts_follow_the_theme_and_stay_text(name):
    svg = all_charts()[name]
    assert svg.startswith("<svg")
    assert "var(--" in svg
    assert "<text" in svg
    assert "<style" not in svg
    assert " pt" not in svg
    Page(svg)
    if name in ("loss", "bars"):
        assert "&lt;script&gt;" in svg
        assert "$a$" in svg


def test_charts_leave_the_callers_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    all_charts()
    assert dict(matplotlib.rcParams) == before


def test_area_under_roc_counts_ties_half():
    assert charts.area_under_roc([1, 2], [0, 1]) == (1 + 1 + 0.5 + 1) / 4


def test_projection_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 16, dtype=np.float32), 20, axis=0)
    points = charts.project_2d(centres + 0.05 * rng.standard_normal((60, 16)).astype(np.float32))
    assert points.shape == (60, 2)
    middles = points.reshape(3, 20, 2).mean(axis=1)
    spread = points.reshape(3, 20, 2).std(axis=1).max()
    distances = [np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(distances) > 2 * spread


@pytest.mark.parametrize(
    "name", ["packages/some/long/path/MODULE_{}_of_many.py", "文書" * 11 + "{}", "short {}"]
)
def test_the_names_of_a_map_are_inside_of_it(name: str) -> None:
    """A name of eight was cut off, in a legend of two columns."""
    labels = [name.format(n % 8) for n in range(40)]
    points = np.random.default_rng(0).standard_normal((40, 2))
    svg = charts.vector_map({"before": points, "after": points}, labels, title="m")
    _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    shown = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>\s*([^<]+?)\s*</text>', svg)
    placed = [(float(x), float(y), text) for x, y, text in shown if text in labels]
    assert len(placed) == 8
    widest = {True: 9.5, False: 0.65 * 9.5}
    for x, y, text in placed:
        assert x + len(text) * widest["文" in text] <= width
        assert y <= height
