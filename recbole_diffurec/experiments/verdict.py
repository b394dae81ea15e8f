"""What an audit comes to, in one sentence, by a rule that can say yes, no and undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A loss smaller than this share of the figure as trained is none that anybody would pay for.
MARGIN = 0.02
# Fewer users say nothing by showing no difference.
FEWEST_USERS = 100

RULE = (
    "Of the lines that take the diffusion away, the first that there is decides: {lines}. Yes: the 95 % interval of "
    f"its difference in NDCG lies below zero, and not all of it within {MARGIN:.0%} of the figure as trained. No: no "
    f"part of it lies further below zero than that, and {FEWEST_USERS} users or more were asked. Undecided: all else."
)


@dataclass(frozen=True)
class Removal:
    """A line that takes the diffusion away, or a part of it.

    Parameters
    ----------
    line : str
        Its name.
    what : str
        How its sentence begins, before "changes".
    part : str
        What it takes away.
    positive : str
        What is said for yes.
    """

    line: str
    what: str
    part: str
    positive: str


# In the order of their weight: a network that was trained without is not put off by what it has never seen.
REMOVALS = (
    Removal(
        "twin",
        "training the same network without the noised vector",
        "the diffusion",
        "the diffusion contributes, as far as one training of each can tell",
    ),
    Removal(
        "factor_0",
        "removing the noised vector",
        "the diffusion",
        "the network uses it; whether one trained without it does as well, --train_twin tells",
    ),
    Removal(
        "other_noise",
        "replacing the noised vector by noise",
        "what the noised vector says",
        "the network uses what the vector says",
    ),
    Removal("one_step", "taking one step", "any further step", "further steps contribute"),
)


def rule() -> str:
    """The rule in words."""
    return RULE.format(lines=", ".join(removal.what for removal in REMOVALS))


def decide(low: float, high: float, as_trained: float, n_users: int) -> str:
    """``yes``, ``no`` or ``undecided``, by ``RULE``.

    Parameters
    ----------
    low, high : float
        The interval of the difference that taking away makes, negative where it costs.
    as_trained : float
        The figure with everything in place.
    n_users : int
        How many users the interval is of.
    """
    if low >= -MARGIN * as_trained:
        return "no" if n_users >= FEWEST_USERS and as_trained > 0 else "undecided"
    return "yes" if high < 0 else "undecided"


def verdict(lines: Sequence[Mapping[str, Any]], n_users: int, k: int) -> dict[str, str]:
    """The answer, its sentence and the rule.

    Parameters
    ----------
    lines : Sequence of Mapping
        Of an audit; the first is the model as trained.
    n_users : int
        How many users they are of.
    k : int
        The length of the lists.
    """
    there = {line["name"]: line for line in lines if "difference" in line}
    as_trained = lines[0]["ndcg"]
    for removal in REMOVALS:
        if removal.line in there:
            found = there[removal.line]["difference"]["ndcg"]
            answer = decide(found["low"], found["high"], as_trained, n_users)
            sentence = (
                f"{removal.what} changes NDCG@{k} by {found['mean']:+.4f} (95 % interval {found['low']:+.4f} to "
                f"{found['high']:+.4f}; as trained {as_trained:.4f}): {_conclusion(answer, removal, found, n_users)}"
            )
            return {"answer": answer, "line": removal.line, "sentence": _capital(sentence), "rule": rule()}
    sentence = (
        "No line that takes the diffusion away applies to this model: what the diffusion contributes is undecided."
    )
    return {"answer": "undecided", "line": "", "sentence": sentence, "rule": rule()}


def _conclusion(answer: str, removal: Removal, found: Mapping[str, float], n_users: int) -> str:
    users = f"{n_users:,} users"
    if answer == "yes":
        return f"{removal.positive}."
    if answer == "undecided":
        return f"whether {removal.part} contributes is undecided with {users}."
    if found["low"] > 0:
        return f"{removal.part} costs more than it contributes, as {users} show."
    if found["high"] < 0:
        return f"{removal.part} contributes less than {MARGIN:.0%}, though {users} show it."
    return f"{removal.part} contributes nothing that {users} can show."


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
