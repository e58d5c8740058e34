"""Matplotlib figures as SVG fragments that stand directly in a page.

Only the object interface is used: no pyplot, no global figure, no display. Text stays text (selectable, in the fonts of
the page) and the fragments name nothing outside themselves.
"""

from collections.abc import Iterator
import contextlib
import io
import re
from typing import Any
import warnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#667483", "#d9dee4"
PREDICTED, ACTUAL, RAW = "#2166ac", "#e08214", "#8073ac"
_WIDTH, _LEFT, _RIGHT, _BOTTOM, _TOP = 4.8, 0.8, 0.3, 0.5, 0.26  # inches: of a figure, of its margins
LINES = ("#2166ac", "#e08214", "#1b7837", "#8073ac", "#b2182b", "#01665e", "#8c510a", "#4d4d4d")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a bucket or model may be named "$10-$20"
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Applies the house style to figures made and written inside, without warnings of glyphs that only pages have."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height: float = 3.2, is_measured: bool = False) -> Figure:
    """Returns an empty figure with fixed margins, as wide as 9 pt text needs to stay readable on a phone.

    Args:
      height: in inches.
      is_measured: texts of any length stand beside the axes; all are measured to make room for them, which takes as
        long as drawing them.
    """
    figure = Figure(figsize=(_WIDTH, height), layout="constrained" if is_measured else None)
    FigureCanvasSVG(figure)
    if not is_measured:
        figure.subplots_adjust(_LEFT / _WIDTH, _BOTTOM / height, 1 - _RIGHT / _WIDTH, 1 - _TOP / height)
    return figure


def single_axes(height: float = 3.2, is_measured: bool = False) -> tuple[Figure, Axes]:
    """Returns a new figure with one pair of axes, see `new_figure`."""
    figure = new_figure(height, is_measured)
    return figure, figure.add_subplot()


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """Returns the figure as an `<svg>` element.

    Args:
      figure: what to write.
      name: letters, digits and hyphens, unique in the page; starts every id in the fragment.
      title: what the figure shows, for readers who cannot see it.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None, "matplotlib wrote an SVG without a viewBox"
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    return f'<svg {view_box.group()} role="img" aria-label="{_attribute(title)}">{body}'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
