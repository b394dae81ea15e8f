"""The figure of an audit: what each line costs, quality by steps and by time, and how calibrated the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_diffurec.experiments.audit_tables import ANSWERS
from recbole_diffurec.experiments.looks import COLOURS, COLUMN, MARKERS, STYLE, Picture, write_figure
from recbole_diffurec.experiments.verdict import MARGIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_HEIGHT = 0.16  # inches
# How the names of the lines of each kind of steps begin, and what they are called.
STEPS = {"ddpm": "DDPM", "ddim": "DDIM", "own": "its own sampler"}


def draw(result: Mapping[str, Any], stem: Path) -> Picture:
    """Draw an audit, as ``stem.png`` and ``stem.svg``.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    stem : Path
        The files without their endings.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        svg = write_figure(_figure(result), stem)
    title = (
        f"{result['model']} on {result['dataset']}, {result['users']:,} test users: difference of each line to the "
        f"model as trained (grey: less than {MARGIN:.0%} of it), quality by steps and by time, and reliability"
    )
    return Picture(stem.name, result["dataset"], title, svg)


def _figure(result: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    lines = [line for line in result["lines"] if "difference" in line]
    forest = 0.8 + LINE_HEIGHT * len(lines)
    figure = Figure(figsize=(2 * COLUMN, forest + 2.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[forest, 2.6])
    above, below = parts
    _differences(above.subplots(), result, lines)
    steps, cost, reliable = below.subplots(1, 3)
    _steps(steps, result)
    _cost(cost, result)
    _reliability(reliable, result)
    return figure


def _differences(axes: Any, result: Mapping[str, Any], lines: list[Mapping[str, Any]]) -> None:
    """A point and an interval for each line, the margin behind them."""
    margin = MARGIN * result["lines"][0]["ndcg"]
    axes.axvspan(-margin, margin, color="0.9", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    for place, line in enumerate(lines):
        found = line["difference"]["ndcg"]
        decisive = line["name"] == result["verdict"]["line"]
        axes.plot([found["low"], found["high"]], [place, place], color=COLOURS[0], linewidth=2 if decisive else 1)
        axes.plot(
            found["mean"], place, MARKERS[2 if decisive else 0], color=COLOURS[4 if decisive else 0], markersize=4
        )
    axes.set_yticks(range(len(lines)), [line["label"] for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(f"difference in NDCG@{result['k']} to the model as trained, 95 % interval over users")
    axes.grid(axis="x", alpha=0.3)


def _steps(axes: Any, result: Mapping[str, Any]) -> None:
    """NDCG by the number of steps; one step is the same for all samplers."""
    measured = {line["name"]: line["ndcg"] for line in result["lines"] if "ndcg" in line}
    for i, (kind, title) in enumerate(STEPS.items()):
        found = {int(name.partition("_")[2]): v for name, v in measured.items() if name.startswith(f"{kind}_")}
        if found:
            found = {**({1: measured["one_step"]} if "one_step" in measured else {}), **found}
            axes.plot(
                list(found), list(found.values()), color=COLOURS[i], marker=MARKERS[i], markersize=3, linewidth=1,
                label=title,
            )  # fmt: skip
    axes.axhline(result["lines"][0]["ndcg"], color="0.4", linewidth=0.8, linestyle="--", label="as trained")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    _from_zero(axes, result)
    axes.set_xlabel("steps")
    axes.set_ylabel(f"NDCG@{result['k']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=6)


def _from_zero(axes: Any, result: Mapping[str, Any]) -> None:
    """The same range of NDCG in the panels that show it."""
    axes.set_ylim(0, 1.15 * max(line.get("ndcg", 0.0) for line in result["lines"]) or 1.0)


def _cost(axes: Any, result: Mapping[str, Any]) -> None:
    """NDCG by milliseconds, of the ways to spend the same inference."""
    from matplotlib.ticker import LogLocator

    wanted = {
        "as_trained": "as trained",
        "one_step": "1 step",
        "twin": "twin",
        "mc_dropout": "MC dropout",
        "ensemble": "checkpoints as one",
        "mean_of_samples": "mean of samples",
    }
    there = {line["name"]: line for line in result["lines"] if "ndcg" in line}
    for i, (name, title) in enumerate(wanted.items()):
        if name in there:
            axes.plot(
                there[name]["ms_per_user"], there[name]["ndcg"], MARKERS[i], color=COLOURS[i], markersize=4, label=title
            )
    axes.set_xscale("log", subs=[])
    # Within one power of ten matplotlib would print a number at each of its minor ticks, one over the other.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    _from_zero(axes, result)
    axes.set_xlabel("milliseconds per user")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=6)


def _reliability(axes: Any, result: Mapping[str, Any]) -> None:
    """How often answers are right, by how sure they are."""
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--")
    for i, (name, title) in enumerate(ANSWERS.items()):
        found = result["uncertainty"].get(name)
        if found:
            curve = found["reliability"]
            axes.plot(
                curve["confidence"], curve["accuracy"], color=COLOURS[i], marker=MARKERS[i], markersize=3, linewidth=1,
                label=title,
            )  # fmt: skip
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the first item")
    axes.set_ylabel("share in which it is right")
    axes.grid(alpha=0.3)
    axes.legend(framealpha=1, edgecolor="none", loc="upper left", fontsize=6)
