"""A figure as inline SVG: no external reference, and colours that follow the page's theme.

Every colour is a CSS variable with a fallback (`var(--after, #2f6fde)`), so one SVG serves light, dark
and print; text stays text. `before` is grey, `after` blue everywhere; positives are teal, negatives
orange (Okabe & Ito's safe pair), and labels also differ by marker, not by colour alone.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, BACKGROUND = "#1a1d23", "#646b78", "#dfe2e8", "#fefefd"
BEFORE, AFTER, POSITIVE, NEGATIVE = "#9aa1ad", "#2f6fde", "#0d8f80", "#d9691f"
CATEGORIES = ("#2f6fde", "#d9691f", "#0d8f80", "#a24fc0", "#c99a06", "#d6336c", "#4a9fd8", "#7b8a2e")
"""Colours of sources, models and labels, in order; further ones repeat with another marker."""
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BACKGROUND: "surface",
    BEFORE: "before",
    **{colour: f"series-{i + 1}" for i, colour in enumerate(CATEGORIES)},
}


def svg_of(figure: Figure, title: str) -> str:
    """Serialise a figure: only referenced ids stay, made unique by the content; colours become variables."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # text stays text: which glyphs matplotlib's own font has is no matter
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|font-family: [^;"]*;? ?', "", svg)
    svg = re.sub(r'(?<= )(?:d|x|y)="[^"]*"', _rounded, svg)
    svg = _unique_ids(svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    name = html.escape(title, quote=True)
    head = f'<svg class="chart" role="img" aria-label="{name}" font-family="system-ui, sans-serif"'
    return re.sub(r'<svg\b([^>]*?) width="[^"]*" height="[^"]*"', rf"{head}\1", svg, count=1)


def _rounded(attribute: re.Match[str]) -> str:
    """Two digits after the point are a hundredth of a pixel; matplotlib writes six."""
    return re.sub(r"(\.\d{2})\d+", r"\1", attribute[0])


def _unique_ids(svg: str) -> str:
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", svg))
    key = "c" + hashlib.sha256(svg.encode()).hexdigest()[:10]
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r"((?:url\(|href=\")#)", rf"\g<1>{key}-", svg)
