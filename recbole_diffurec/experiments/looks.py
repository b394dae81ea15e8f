"""How figures look: how each model is told from all others, sizes, legends, files.

matplotlib is imported when figures are drawn.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recbole_diffurec.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Widths of a paper's column and of its page, and of what a legend is made of; inches.
COLUMN, PAGE, LEGEND_ROW, LEGEND_HANDLE, LEGEND_CHARACTER = 3.5, 7.2, 0.15, 0.47, 0.052
FEW = 8  # models that a column has room for
# Okabe and Ito's palette, which colour-blind readers can tell apart, and after it what is far from its colours and from
# each other. Lines, hatches and markers say the same once more.
COLOURS = [
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933",
    "#6A3D9A", "#A50026", "#B2DF8A", "#8C564B", "#7F7F7F", "#FF9896", "#17375E", "#00C5C5",
]  # fmt: skip
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "d", "+", "x", "1", "|"]
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "ooo", "++", "--"]
LINES = ["-", "--", "-.", ":"]
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "recbole_diffurec",
    "text.usetex": False,  # LaTeX would run what names say
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its title for the report, its data set, the SVG text, and whether it is as wide as a page."""

    name: str
    dataset: str
    title: str
    svg: bytes
    wide: bool = False

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


class Look(NamedTuple):
    """How one model is drawn."""

    colour: str
    marker: str
    line: str
    hatch: str


def look(i: int) -> Look:
    """Of the i-th model: the first 16 have colours and markers of their own, the first 64 differ in one of all."""
    n = len(COLOURS)
    lap = i // n
    line = LINES[(i // FEW) % 2 if lap == 0 else (1 + lap) % len(LINES)]
    return Look(COLOURS[i % n], MARKERS[(i + lap) % n], line, HATCHES[(i + i // FEW) % len(HATCHES)])


def new_figure(rows: int = 1, height: float = 2.3, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of so many axes: of a column's width, or of a page's where axes stand side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def legend(figure: Figure, axes: Any) -> None:
    """A legend below the axes, in as many columns as fit; many rows make the figure higher, not the axes lower."""
    handles, labels = axes.get_legend_handles_labels()
    widest = LEGEND_HANDLE + LEGEND_CHARACTER * max(map(len, labels))
    width = figure.get_figwidth()
    columns = max(1, min(len(labels), 3 if width <= COLUMN else 6, int(width / widest)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def write_figure(figure: Figure, stem: Path) -> bytes:
    """Write ``stem.svg`` and ``stem.png``; returns the SVG."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text():  # others are the numbers of an axis, which may be powers of ten
            text.set_parse_math(False)  # in names, a dollar sign begins no formula
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, dpi=200, bbox_inches="tight")
    figure.savefig(png, format="png", dpi=200, bbox_inches="tight")
    for extension, content in (("svg", svg), ("png", png)):
        with files.atomic_write(stem.with_name(f"{stem.name}.{extension}")) as file:
            file.write(content.getvalue())
    return svg.getvalue()
