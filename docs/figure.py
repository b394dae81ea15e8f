"""Draws the README's figure, ``docs/images/overview.svg``: how noise becomes a list, and what the models reach.

``python docs/figure.py``. The figures are those of the tables in RESULTS.md, and nothing else; the noise on top is that
of the package's own forward process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from recbole_diffurec.diffusion import schedules

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "images" / "overview.svg"

INK, FAINT, OURS, PUBLISHED = "#1f2328", "#8b949e", "#3f51b5", "#b45309"
STATE = LinearSegmentedColormap.from_list("state", ["#b45309", "#f6f8fa", "#3f51b5"])

# What is drawn: a name, the row of RESULTS.md that was measured here, and the row of a publication.
BEAUTY: list[tuple[str, str | None, str | None]] = [
    ("DiffuRecSys", "DiffuRecSys, `best/amazon-beauty`", "V2 = DiffuRecSys"),
    ("with co-occurrences", "DiffuRecSys, `best/amazon-beauty` with co-occurrences", None),
    ("without repeat_bias", "DiffuRecSys, without `repeat_bias`", None),
    ("DiffuRec", "DiffuRec, `best/amazon-beauty`", "DiffuRec"),
    ("CausalRec", "CausalRec, `best/amazon-beauty-CausalRec`, no diffusion", None),
    ("FEARec", "FEARec, tuned", None),
    ("SASRec", "SASRec, tuned", "SASRec, full cross-entropy"),
    ("GRU4Rec", "GRU4Rec, tuned", "GRU4Rec"),
    ("BERT4Rec", "BERT4Rec, tuned", "BERT4Rec"),
    ("BSARec", None, "BSARec"),
    ("WEARec (best of 88)", None, "WEARec, the best of 88 on test"),
]
ML_1M: list[tuple[str, str | None, str | None]] = [
    ("CausalRec", "CausalRec, `best/ml-1m-CausalRec`", None),
    ("DiffuRecSys", "DiffuRecSys, `best/ml-1m`, 7 epochs", "V2 = DiffuRecSys"),
    ("DiffuRec", "DiffuRec, `best/ml-1m`, 11 epochs", "DiffuRec"),
    ("SASRec (4 epochs)", "SASRec, as wide and deep, 4 epochs and rising", "SASRec"),
    ("eSASRec", None, "eSASRec"),
    ("LRURec", None, "LRURec, 3,416 items"),
]


@dataclass
class Row:
    """Test NDCG@10 of one model, here and published, all items ranked and seen items masked; NaN where missing."""

    name: str
    here: float
    here_masked: float
    published: float
    published_masked: float


def rows(heading: str, wanted: list[tuple[str, str | None, str | None]]) -> list[Row]:
    """The rows of the tables below a heading of RESULTS.md; a generated table of masked figures says so above it."""
    section = (ROOT / "RESULTS.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    # Of rows with equal names, as in two tables, the first counts.
    table: dict[str, dict[str, str]] = {}
    header: list[str] = []
    masked = ""
    for line in filter(None, section.splitlines()):
        if not line.startswith("|"):
            header, masked = [], ", masked" if line.endswith(" masked:") else ""
            continue
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        header = header or [cell + masked if cell.startswith("NDCG") else cell for cell in row]
        for column, cell in zip(header, row, strict=False):
            table.setdefault(row[0], {}).setdefault(column, cell)

    def figures(model: str | None) -> list[float]:
        cells = [table[model].get(name, "") if model else "" for name in ("NDCG@10", "NDCG@10, masked")]
        found = [re.search(r"\.\d+", cell) for cell in cells]
        return [float(figure[0]) if figure else float("nan") for figure in found]

    return [Row(name, *figures(here), *figures(published)) for name, here, published in wanted]


# How noise becomes a list


def states(visited: list[int], size: int = 11) -> list[np.ndarray]:
    """x_s of one made-up item vector at some steps of the default schedule, the first of them the noisiest."""
    random = np.random.default_rng(5)
    x_0, noise = random.choice([-1.0, -0.6, 0.2, 0.6, 1.0], size), random.standard_normal(size)
    kept = np.cumprod(1 - schedules.betas("trunc_lin", 32))
    return [np.sqrt(kept[s]) * x_0 + np.sqrt(1 - kept[s]) * noise if s >= 0 else x_0 for s in visited]


def draw_process(axes: Axes) -> None:
    """History and noise in, a list out; one unit is an inch."""
    axes.set(xlim=(0, 9), ylim=(0, 1.75), aspect="equal")
    axes.axis("off")
    _history(axes)
    visited = [31, 23, 15, 7, -1]
    for place, (step, state) in enumerate(zip(visited, states(visited), strict=True)):
        x = 2.35 + 0.95 * place
        for cell, value in enumerate(state):
            shape = Rectangle((x, 0.42 + cell / len(state)), 0.17, 1 / len(state), fc=STATE((value + 1.6) / 3.2), lw=0)
            axes.add_patch(shape)
        axes.add_patch(FancyBboxPatch((x, 0.42), 0.17, 1.0, "round,pad=0.01", fill=False, ec=FAINT, lw=0.8))
        label = r"$\hat{x}_0$" if step < 0 else f"$x_{{{step + 1}}}$"
        axes.text(x + 0.085, 0.22, label, ha="center", va="center", fontsize=10, color=INK)
        if place:
            _arrow(axes, (x - 0.72, 0.92), (x - 0.06, 0.92))
    axes.text(2.435, 1.58, "noise", ha="center", fontsize=9, color=INK)
    axes.text(4.335, 1.58, "a Transformer denoises it, given the history", ha="center", fontsize=9, color=INK)
    _arrow(axes, (6.4, 0.92), (6.95, 0.92))
    axes.text(7.9, 1.58, "the items nearest to it", ha="center", fontsize=9, color=INK)
    for place, length in enumerate((1.45, 1.2, 1.05, 0.7, 0.45)):
        y = 1.25 - 0.23 * place
        axes.text(7.1, y + 0.07, str(place + 1), fontsize=8, color=FAINT, va="center")
        axes.add_patch(FancyBboxPatch((7.3, y), length, 0.13, "round,pad=0,rounding_size=0.04", fc=OURS, ec="none"))


def _history(axes: Axes) -> None:
    axes.text(0.9, 1.58, "a user's history", ha="center", fontsize=9, color=INK)
    for place in range(5):
        x = 0.08 + 0.34 * place
        axes.add_patch(FancyBboxPatch((x, 0.79), 0.25, 0.26, "round,pad=0,rounding_size=0.05", fc="#eaeef2", ec=FAINT))
        axes.text(x + 0.125, 0.915, f"$i_{place + 1}$", ha="center", va="center", fontsize=8, color=INK)
    # It reaches every step from below.
    axes.plot([0.9, 0.9, 5.68], [0.74, 0.06, 0.06], color=FAINT, lw=1, solid_joinstyle="round")
    for x in (2.91, 3.86, 4.81, 5.76):
        axes.plot([x - 0.08, x], [0.06, 0.06], color=FAINT, lw=1)
        _arrow(axes, (x, 0.06), (x, 0.87))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=FAINT, lw=1, shrinkA=0, shrinkB=0)
    )


# What they reach


def draw_results(axes: Axes, title: str, found: list[Row]) -> None:
    """A line a model: measured here without and with masking, and published."""
    heights = range(len(found) - 1, -1, -1)
    for y, row in zip(heights, found, strict=True):
        axes.plot([row.here, row.here_masked], [y, y], color=OURS, lw=1.6, alpha=0.35, zorder=1)
        axes.plot(row.here_masked, y, "o", ms=7, mfc="white", mec=OURS, mew=1.6, zorder=2)
        # Inside the ring where both are the same.
        axes.plot(row.here, y, "o", ms=4 if abs(row.here - row.here_masked) < 1e-3 else 7, color=OURS, zorder=3)
        axes.plot(row.published, y, "D", ms=6, color=PUBLISHED, zorder=2)
        axes.plot(row.published_masked, y, "D", ms=6, mfc="white", mec=PUBLISHED, mew=1.5, zorder=2)
    axes.set_yticks(list(heights), [row.name for row in found], fontsize=9, color=INK)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel("test NDCG@10", fontsize=8.5, color=INK)
    axes.tick_params(axis="x", labelsize=8, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d8dee4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _legend(figure: Any) -> None:
    marks = [
        plt.Line2D([], [], marker="o", ls="", color=OURS, ms=7, label="here, all items ranked"),
        plt.Line2D([], [], marker="o", ls="", mfc="white", mec=OURS, mew=1.6, ms=7, label="here, seen items masked"),
        plt.Line2D([], [], marker="D", ls="", color=PUBLISHED, ms=6, label="published"),
        plt.Line2D([], [], marker="D", ls="", mfc="white", mec=PUBLISHED, mew=1.5, ms=6, label="published, masked"),
    ]
    figure.legend(handles=marks, loc="lower center", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)


def draw() -> Any:
    """The figure."""
    figure = plt.figure(figsize=(9.2, 4.9), facecolor="white")
    draw_process(figure.add_axes((0.01, 0.63, 0.98, 0.36)))
    draw_results(figure.add_axes((0.16, 0.16, 0.36, 0.41)), "Amazon Beauty", rows("Amazon Beauty", BEAUTY))
    draw_results(figure.add_axes((0.67, 0.25, 0.31, 0.32)), "ML-1M", rows("ML-1M", ML_1M))
    _legend(figure)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update(
        {"svg.hashsalt": "overview", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
    )
    OUTPUT.parent.mkdir(exist_ok=True)
    draw().savefig(OUTPUT, metadata={"Date": None})
