"""Charts of the report, drawn by matplotlib without pyplot's state, as inline SVG (see svg.py)."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedforge.report.svg import (
    AFTER,
    BEFORE,
    CATEGORIES,
    GRID,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    svg_of,
)
from embedforge.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embedforge",
    "text.parse_math": False,  # a "$" in a user's label is a dollar
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.borderaxespad": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_WIDTH = 7.6  # inches; the page scales the SVG to its column
_LINE = 0.21  # inches of a legend's row
_LONGEST_NAME = 60
_P = ParamSpec("_P")


def _styled(draw: Callable[_P, str]) -> Callable[_P, str]:
    """Draw under the charts' own style, whatever the caller's matplotlib settings are."""

    @functools.wraps(draw)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapped


@_styled
def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float | Interval]]],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    smooth: bool = False,
    height: float = 3.1,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
    dashed: Collection[str] = (),
) -> str:
    """Draw name -> (x, y) as lines; `smooth` draws a running mean over faint raw values.

    An `Interval` among y is drawn as a point with its bar. `log_x` doubles x from mark to mark, `levels` are
    named horizontal lines, and the series of `dashed` have the colours of the others in their order.
    """
    figure, (axes,) = _figure(height)
    for level, y in (levels or {}).items():
        axes.axhline(y, color=MUTED, linewidth=0.9, linestyle=":")
        side = "bottom" if y == max((levels or {}).values()) else "top"  # so that near ones do not collide
        axes.annotate(level, (0.01, y), xycoords=("axes fraction", "data"), va=side, fontsize=8)
    counts = {True: 0, False: 0}
    for name, (x, values) in series.items():
        i = counts[name in dashed]
        counts[name in dashed] += 1
        colour = CATEGORIES[i % len(CATEGORIES)]
        dashes = "--" if i >= len(CATEGORIES) or name in dashed else "-"
        drawn = np.asarray([_as_interval(value).mean for value in values])
        if smooth and len(drawn) >= 10:
            axes.plot(x, drawn, color=colour, alpha=0.22, linewidth=0.9)
            drawn = _running_mean(drawn, window=max(3, len(drawn) // 25))
        axes.plot(x, drawn, dashes, color=colour, linewidth=1.9, label=name, solid_capstyle="round")
        for at, value in zip(x, values, strict=True):
            if isinstance(value, Interval):
                axes.plot([at], [value.mean], _MARKERS[i % len(_MARKERS)], color=colour, markersize=4.5)
                axes.plot([at, at], [value.low, value.high], color=colour, linewidth=0.9, alpha=0.6)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    axes.margins(x=0.01)
    if log_x:
        marks = sorted({float(at) for x, _ in series.values() for at in x})
        powers = 2.0 ** np.arange(np.floor(np.log2(marks[0])), np.ceil(np.log2(marks[-1])) + 1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(powers, [f"{mark:,.0f}" for mark in powers])
        axes.margins(x=0.04)
    _legend(figure, axes)
    return svg_of(figure, title)


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = "Training loss"
) -> str:
    """Draw the loss of each source over steps: name -> (steps, losses), raw and smoothed."""
    return line_chart(curves, title=title, x_label="step", y_label="loss", smooth=True)


@_styled
def grouped_bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Interval | float | None]],
    *,
    title: str,
    x_label: str = "",
) -> str:
    """Draw one horizontal bar for each group (dataset) and series (model), with its interval and value.

    Two series are coloured as before and after. None (a task a model cannot do) leaves a gap.
    """
    count = len(series)
    colours = (BEFORE, AFTER) if count == 2 else CATEGORIES
    figure, (axes,) = _figure(0.75 + len(groups) * (0.19 + 0.21 * count))
    thickness = 0.78 / count
    right = max((_as_interval(v).mean for row in series.values() for v in row if v is not None), default=1.0)
    for i, (name, values) in enumerate(series.items()):
        offsets = [g + (i - (count - 1) / 2) * thickness for g in range(len(groups))]
        shown = [(y, _as_interval(v)) for y, v in zip(offsets, values, strict=True) if v is not None]
        colour = colours[i % len(colours)]
        axes.barh(
            [y for y, _ in shown], [v.mean for _, v in shown], thickness * 0.88, color=colour, label=name
        )
        for y, v in shown:
            end = v.mean
            if np.isfinite(v.low) and v.high > v.low:
                axes.plot([v.low, v.high], [y, y], color=INK, linewidth=1.1, solid_capstyle="butt")
                end = max(v.high, v.mean)
            axes.text(max(end, 0) + 0.012 * right, y, f"{v.mean:.3f}", va="center", fontsize=8.5)
            axes.update_datalim([(max(end, 0) + 0.09 * right, y)])
    axes.autoscale_view()
    axes.set_yticks(range(len(groups)), [_shorten(group, 44) for group in groups])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(x_label)
    _legend(figure, axes)
    return svg_of(figure, title)


@_styled
def histograms(
    panels: Mapping[str, Sequence[int]], *, title: str, x_label: str, span: tuple[float, float] = (0.0, 1.0)
) -> str:
    """Draw, for each name, the counts of equal bins from one end of `span` to the other."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = _figure(0.5 + 1.5 * rows, rows=rows, columns=columns, share_x=True)
    for axes, (name, counts) in zip(grid, panels.items(), strict=False):
        edges = np.linspace(*span, len(counts) + 1)
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=AFTER)
        axes.set_title(_shorten(name, 30))
        axes.set_yticks([])
        axes.tick_params(labelbottom=True)
        axes.spines["left"].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(x_label, fontsize=9.5, color=MUTED)
    return svg_of(figure, title)


@_styled
def score_distributions(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    x_label: str = "cosine similarity",
    other: str = "negative",
) -> str:
    """Draw, for each model, the densities of the scores of positives and of negatives.

    `panels` maps a name ("before", "after") to (positive scores [P], negative scores [N]). Each panel
    states how often a positive scores above a negative (the area under the ROC curve), or above what
    `other` calls the second.
    """
    figure, rows = _figure(0.6 + 1.35 * len(panels), rows=len(panels), share_x=True)
    arrays = {
        n: (np.ravel(np.asarray(p, float)), np.ravel(np.asarray(q, float))) for n, (p, q) in panels.items()
    }
    everything = np.concatenate([a for pair in arrays.values() for a in pair])
    edges = np.linspace(everything.min(), everything.max() + 1e-9, 61)
    for axes, (name, (positive, negative)) in zip(rows, arrays.items(), strict=True):
        for scores, colour, label in ((negative, NEGATIVE, f"{other}s"), (positive, POSITIVE, "positives")):
            x, density = _density(scores, edges)
            axes.fill_between(x, density, color=colour, alpha=0.28, linewidth=0)
            axes.plot(x, density, color=colour, linewidth=1.8, label=label)
        axes.set_title(name)
        note = f"a positive beats a {other} {area_under_roc(positive, negative):.1%} of the time"
        axes.text(1, 1.04, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=9.5, color=MUTED)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.spines["left"].set_visible(False)
    rows[-1].set_xlabel(x_label)
    _legend(figure, rows[0], reverse=True)
    return svg_of(figure, title)


@_styled
def vector_map(
    panels: Mapping[str, ArrayLike], labels: Sequence[str], *, title: str, named_labels: int = 8
) -> str:
    """Draw 2-D points [n, 2] of each panel ("before", "after"), coloured by label.

    The `named_labels` most frequent labels get a colour and a marker each; the rest are small and grey.
    """
    names, counts = np.unique(np.array(labels, dtype=object).astype(str), return_counts=True)
    frequent = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:named_labels]]
    own = np.array([str(label) for label in labels])
    figure, columns = _figure(3.9 if len(panels) > 1 else 5.0, columns=len(panels))
    for axes, (name, points) in zip(columns, panels.items(), strict=True):
        xy = np.asarray(points, dtype=float)
        rest = ~np.isin(own, frequent)
        axes.scatter(xy[rest, 0], xy[rest, 1], s=5, color=BEFORE, alpha=0.5, linewidths=0)
        for i, label in enumerate(frequent):
            here = own == label
            axes.scatter(
                xy[here, 0],
                xy[here, 1],
                s=15,
                marker=_MARKERS[i % len(_MARKERS)],
                color=CATEGORIES[i % len(CATEGORIES)],
                alpha=0.8,
                linewidths=0,
                label=label,
            )
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("left", "bottom", "top", "right"):
            axes.spines[side].set_visible(True)
    _legend(figure, columns[0], below=True)
    return svg_of(figure, title)


def project_2d(vectors: NDArray[np.float32], *, seed: int = 0, most: int = 2000) -> NDArray[np.float32]:
    """Lay vectors [n, D] out in the plane by t-SNE on cosine distance; n may not exceed `most`.

    t-SNE keeps neighbourhoods, not distances: the chart's note should say so.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) > most:
        raise ValueError(f"t-SNE of {len(vectors)} points takes too long; draw {most} of them")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    width = min(50, *unit.shape)
    reduced = PCA(width, random_state=seed).fit_transform(unit) if unit.shape[1] > width else unit
    perplexity = max(2.0, min(30.0, (len(unit) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(reduced), dtype=np.float32)


def area_under_roc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Chance that a random positive score exceeds a random negative one, ties counting half."""
    above, below = np.asarray(positive, float), np.sort(np.asarray(negative, float))
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.mean() / (2 * len(below)))


def _figure(
    height: float, *, rows: int = 1, columns: int = 1, share_x: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x)
    return figure, list(grid.ravel())


def _legend(figure: Figure, axes: Axes, *, below: bool = False, reverse: bool = False) -> None:
    """Name the series, where there are several, in as many columns as there is room for.

    The figure grows by the rows beyond the second, so that the axes keep their size.
    """
    handles, names = axes.get_legend_handles_labels()
    if len(names) < 2:
        return
    names = [_shorten(name, _LONGEST_NAME) for name in names]
    columns = _columns_that_fit(figure, names)
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + _LINE * max(0, rows - 2))
    figure.legend(
        handles[::-1] if reverse else handles,
        names[::-1] if reverse else names,
        loc="outside lower left" if below else "outside upper left",
        ncols=columns,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _columns_that_fit(figure: Figure, names: Sequence[str]) -> int:
    """Return the most columns, four at most, whose names are together no wider than the figure.

    One for scripts that matplotlib's own font does not know: it sets columns too near for them.
    """
    if any(unicodedata.east_asian_width(letter) in "WF" for name in names for letter in name):
        return 1
    widths = [0.55 + 9.5 / 72 * sum(0.8 if letter.isupper() else 0.62 for letter in name) for name in names]
    for columns in range(min(4, len(names)), 1, -1):
        rows = -(-len(names) // columns)  # filled column by column
        if sum(max(widths[k : k + rows]) for k in range(0, len(names), rows)) <= figure.get_figwidth():
            return columns
    return 1


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` values, over what is left of it at the ends."""
    ones = np.ones(window)
    total = np.convolve(values, ones, "same")
    return np.asarray(total / np.convolve(np.ones_like(values), ones, "same"))


def _density(
    scores: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smooth a histogram on `edges` by a small binomial kernel, so that the outline is calm."""
    counts = np.histogram(scores, edges, density=True)[0]
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return (edges[:-1] + edges[1:]) / 2, np.convolve(np.pad(counts, 2, mode="edge"), kernel, "valid")


def _as_interval(value: Interval | float) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, float("nan"), float("nan"))


def _shorten(label: str, most: int) -> str:
    """Cut the middle out of a long label: paths differ at their ends."""
    if len(label) <= most:
        return label
    end = most // 2
    return f"{label[: most - end - 1]}…{label[-end:]}"
