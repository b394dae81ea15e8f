"""Parameters that act only where another one has a certain value, and what is said where it has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Need:
    """What a parameter needs of another one to act.

    Parameters
    ----------
    parameter : str
        The other one.
    holds : callable
        Called with its value; whether that lets the parameter act.
    remedy : str
        An option with which it does, such as ``--sampler=ddim``.
    """

    parameter: str
    holds: Callable[[Any], bool]
    remedy: str


Needs = Mapping[str, Sequence[Need]]  # by the parameter that has them

# What parameters of many models need. A model without the other parameter always reads the one.
NEEDS: dict[str, Sequence[Need]] = {
    "lr_decay_gamma": (Need("lr_decay_step", bool, "--lr_decay_step=20"),),
    "wandb_project": (Need("log_to", lambda names: "wandb" in (names or ()), "--log_to=wandb"),),
    "negative_distribution": (Need("sampled_softmax", bool, "--sampled_softmax=512"),),
    "cooccurrence_decay": (Need("cooccurrence_weight", bool, "--cooccurrence_weight=1"),),
    "initializer_range": (Need("init", lambda init: init == "normal", "--init=normal"),),
}


def unmet(name: str, values: Mapping[str, Any], needs: Needs) -> Need | None:
    """What keeps a parameter from acting, or None where it acts.

    Parameters
    ----------
    name : str
        The parameter.
    values : Mapping of str to object
        All parameters.
    needs : Mapping of str to sequence of Need
        What each parameter needs.
    """
    for need in needs.get(name, ()):
        if need.parameter in values and not need.holds(values[need.parameter]):
            return need
    return None
