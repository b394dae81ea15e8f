"""The tables of an audit, for the terminal, for pages and for people who go on with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

NOTE = (
    "Differences are to the model as trained, with their 95 % bootstrap intervals over users; p is of a two-sided "
    "Wilcoxon signed-rank test over users, corrected for the number of lines (Benjamini-Hochberg). Overlap is the "
    "share of the list as trained that is in the line's."
)
CALIBRATION_NOTE = (
    "Brier score: 0 is certain and right, 1 says nothing, 2 is certain and wrong. Calibration error: the mean distance "
    "between how sure an answer is and how often it is right."
)
ANSWERS = {
    "frequencies": "sampled frequencies",
    "one_sample": "softmax of one sample",
    "mean_of_samples": "mean softmax of the samples",
}


def lines(result: Mapping[str, Any]) -> pd.DataFrame:
    """One row per line, with its label as the index and numbers in the cells.

    Parameters
    ----------
    result : Mapping
        Of an audit.
    """
    k, rows = result["k"], {}
    for line in result["lines"]:
        row: dict[str, Any] = {"not applicable": line.get("not_applicable", "")}
        if not row["not applicable"]:
            row |= {f"HR@{k}": line["hit"], f"NDCG@{k}": line["ndcg"], "ms/user": line["ms_per_user"]}
            row["overlap"] = line["overlap"]
            for metric, title in (("hit", "HR"), ("ndcg", "NDCG")):
                found = line.get("difference", {}).get(metric, {})
                row |= {f"{title} {name}": found.get(name) for name in ("mean", "low", "high", "p", "p_corrected")}
        rows[line["label"]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def shown(result: Mapping[str, Any]) -> pd.DataFrame:
    """``lines`` with readable cells; lines that do not apply are left to ``not_applicable``.

    Parameters
    ----------
    result : Mapping
        Of an audit.
    """
    k, rows = result["k"], {}
    for line in result["lines"]:
        if "not_applicable" in line:
            continue
        own = line.get("difference", {})
        rows[line["label"]] = {
            f"HR@{k}": f"{line['hit']:.4f}",
            f"NDCG@{k}": f"{line['ndcg']:.4f}",
            "HR difference [95 %]": _interval(own.get("hit")),
            "p (HR)": _p(own.get("hit")),
            "NDCG difference [95 %]": _interval(own.get("ndcg")),
            "p (NDCG)": _p(own.get("ndcg")),
            "overlap": f"{line['overlap']:.1%}",
            "ms/user": f"{line['ms_per_user']:.3g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _interval(found: Mapping[str, float] | None) -> str:
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]" if found else ""


def _p(found: Mapping[str, float] | None) -> str:
    return f"{found['p_corrected']:.2g}" if found else ""


def not_applicable(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each line that does not apply.

    Parameters
    ----------
    result : Mapping
        Of an audit.
    """
    return [
        f"Not applicable: {line['label']}, because {line['not_applicable']}."
        for line in result["lines"]
        if "not_applicable" in line
    ]


def agreement(result: Mapping[str, Any]) -> str:
    """What samples under different noise have in common, in a sentence.

    Parameters
    ----------
    result : Mapping
        Of an audit.
    """
    seeds, k = result["seeds"], result["k"]
    return (
        f"{seeds['samples']} samples under different noise: the top {k} of two share {seeds['overlap']:.1%} of their "
        f"items; NDCG@{k} {seeds['ndcg_mean']:.4f} ± {seeds['ndcg_deviation']:.4f} over them; a user's samples lie "
        f"{seeds['spread_mean']:.2%} of their mean's length from it."
    )


def calibration(result: Mapping[str, Any]) -> pd.DataFrame:
    """How sure and how right the answers are.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    """
    rows = {
        title: {
            "Brier score": f"{found['brier']:.4f}",
            "calibration error": f"{found['calibration_error']:.4f}",
            "mean confidence": f"{found['mean_confidence']:.4f}",
            "right": f"{found['accuracy']:.4f}",
        }
        for name, title in ANSWERS.items()
        if (found := result["uncertainty"].get(name))
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def spread_and_rank(result: Mapping[str, Any]) -> str:
    """Whether the spread of a user's samples predicts where the target ranks, in a sentence.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    """
    found = result["uncertainty"]["spread_and_rank"]
    if found is None:
        return "Spread and the target's rank: no correlation can be had, because one of them is the same for all users."
    return (
        f"Spread and the target's rank: Spearman's rho {found['rho']:+.3f} over {found['users']:,} users "
        f"(p {found['p']:.2g}); above zero, users whose samples lie far apart are those whose target ranks low."
    )


def protocol(result: Mapping[str, Any]) -> str:
    """Whom the figures are of, and how they were ranked.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    """
    drawn = result["users"] < result["test_users"]
    of = f"{result['users']:,} of {result['test_users']:,} test users (sample_seed {result['sample_seed']})"
    users = of if drawn else f"all {result['users']:,} test users"
    mode = result["protocol"]["mode"]
    ranking = "all items ranked" if mode == "full" else f"among sampled candidates ({mode})"
    masked = "left out of the ranking" if result["protocol"]["mask_seen"] else "ranked too"
    return f"{users}, {ranking}, items of the history {masked}"


def terminal(result: Mapping[str, Any]) -> str:
    """A whole audit as plain text.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    """
    parts = [f"{result['model']} on {result['dataset']}: {protocol(result)}.", "", shown(result).to_string(), ""]
    parts += not_applicable(result)
    parts += ["", agreement(result), "", calibration(result).to_string(), "", spread_and_rank(result), ""]
    return "\n".join([*parts, result["verdict"]["sentence"], ""])
