"""What may be said of how a search goes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from recbole_diffurec.config.rules import check_numbers
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments import cluster

SEARCHERS = ("random", "grid", "optuna")
SCHEDULERS = ("asha", "hyperband", "none")


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes; wrong values are refused.

    Parameters
    ----------
    num_trials : int
        How many configurations; ``search="grid"`` tries all choices instead.
    max_epochs : int or None
        Epochs of a trial, and of the last runs; by default the parameter ``epochs``, which is refused beside it.
    search : str
        ``random``, ``grid``, or ``optuna`` (Bayesian, needs the extra ``tune``).
    scheduler : str
        ``asha``, ``hyperband`` or ``none``; stops poor trials early by their validation metric.
    grace_epochs : int
        Validated epochs that asha leaves every trial.
    concurrent_trials : int or None
        Trials at a time.
    cpus_per_trial, gpus_per_trial : float
        What each trial is given; fractions share.
    time_budget : float or None
        Seconds after which no trial goes on; those that had not ended start again with ``resume``.
    final_seeds : int
        Seeds to train the best configuration with at the end, and to test; 0 for none.
    ray_address : str or None
        A Ray cluster; ``auto`` finds a local one.
    """

    num_trials: int = 20
    max_epochs: int | None = None
    search: str = "random"
    scheduler: str = "asha"
    grace_epochs: int = 2
    concurrent_trials: int | None = None
    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    time_budget: float | None = None
    final_seeds: int = 1
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("search", self.search, SEARCHERS),
            ("scheduler", self.scheduler, SCHEDULERS),
        ):
            if value not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got '{value}'")
        check_numbers(
            {
                "num_trials": (self.num_trials, 1, "int"),
                "max_epochs": (self.max_epochs, 1, "int"),
                "grace_epochs": (self.grace_epochs, 1, "int"),
                "concurrent_trials": (self.concurrent_trials, 1, "int"),
                "cpus_per_trial": (self.cpus_per_trial, 0, "number"),
                "gpus_per_trial": (self.gpus_per_trial, 0, "number"),
                "time_budget": (self.time_budget, 1, "number"),
                "final_seeds": (self.final_seeds, 0, "int"),
            }
        )
        if self.time_budget is not None and threading.current_thread() is not threading.main_thread():
            raise UserError("time_budget needs the main thread: call tune from it, or leave time_budget out")

    def require(self) -> None:
        """Raise ``UserError`` where a package that these options need is not installed."""
        cluster.require("ray.tune", "tune")
        if self.search == "optuna":
            cluster.require("optuna", "search optuna")
