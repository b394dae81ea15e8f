"""Which runs a comparison has: models and their named configurations, times data sets, times seeds."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Collection, Mapping, Sequence

from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.checks import check_needs
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.runtime import files


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a model with a configuration, under the label that the tables show."""

    label: str
    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    written: frozenset[str] = frozenset()  # the names among them that the label itself gives a value

    @classmethod
    def parse(cls, text: str) -> Entry:
        """``MODEL`` or ``MODEL@PART+PART``, where a part is a YAML file, an experiment, or ``name=value``.

        Names of variants, such as V1 of DiffuRecSys, stand for their model with the parameters that they fix.

        Raises
        ------
        UserError
            The model, the file or the experiment does not exist, or a parameter is not the model's.
        """
        name, _, parts = text.partition("@")
        spec, fixed = catalogue.named(name)
        catalogue.model_class(spec.name)
        parameters, written = dict(fixed), set()
        for part in filter(None, parts.split("+")):
            key, equals, value = part.partition("=")
            if equals:
                parameters[key] = layers.parse_value(key, value)
                written.add(key)
            else:
                parameters.update(layers.read_yaml(part) if os.path.isfile(part) else layers.experiment(part))
        return cls(text, spec.name, parameters, frozenset(written))


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a comparison. ``key`` differs whenever anything does that its result depends on."""

    entry: Entry
    dataset: str
    seed: int
    key: str
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The stem of its files."""
        label = re.sub(r"[^A-Za-z0-9._=-]+", "_", self.entry.label)[:60]
        return f"{files.shortened(f'{label}-{self.dataset}-{self.seed}')}-{self.key}"

    def __str__(self) -> str:
        return f"{self.entry.label} on {self.dataset}, seed {self.seed}"

    def config(self) -> RunConfig:
        return RunConfig(self.entry.model, self.dataset, self.parameters)


def split_list(text: str) -> list[str]:
    """The parts between commas, those in brackets left whole."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def plan(
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    parameters: Mapping[str, Any],
    given: Collection[str] = (),
) -> list[Job]:
    """All runs, seed by seed, so that a comparison that is cut short has every model.

    Parameters
    ----------
    models : Sequence of str
        Entries as ``Entry.parse`` takes them.
    parameters : Mapping of str to object
        Parameters of every run; weaker than an entry's own. One that a model does not have is left out for that model.
    given : Collection of str, optional
        The names among them that must act in some run.

    Raises
    ------
    UserError
        An entry is wrong or given twice, no model has a parameter, a value is wrong, or one acts nowhere.
    """
    entries = [Entry.parse(text) for text in models]
    named: dict[str, Sequence[Any]] = {"models": models, "dataset": datasets, "seeds": seeds}
    for what, listed in named.items():
        if not listed:
            raise UserError(f"{what} is empty: name at least one")
        twice = next((value for value in listed if list(listed).count(value) > 1), None)
        if twice is not None:
            raise UserError(f"{what} names '{twice}' twice: leave one out")
    jobs, configs = [], []
    for dataset in datasets:
        for seed in seeds:
            for entry in entries:
                known = {name: value for name, value in parameters.items() if _known_to_some(name, entry, entries)}
                values = {**known, **entry.parameters, "seed": seed}
                config = RunConfig(entry.model, dataset, values)
                _check_protocol(config, entry)
                check_needs(entry.written, config, config.internal_config_dict)
                jobs.append(Job(entry, dataset, seed, config.key(), values))
                configs.append((config, known.keys() - entry.parameters.keys()))
    for name in given:
        readers = [config for config, common in configs if name in common]
        if readers and all(config.unmet_need(name) for config in readers):
            check_needs([name], readers[0], readers[0].internal_config_dict)
    return jobs


def _known_to_some(name: str, entry: Entry, entries: Sequence[Entry]) -> bool:
    """False for a parameter that other models have; where none has it, the run's own check says so."""
    if name in known_parameters(entry.model):
        return True
    return not any(name in known_parameters(other.model) for other in entries)


def _check_protocol(config: RunConfig, entry: Entry) -> None:
    if not config.protocol.is_leave_one_out:
        raise UserError(
            f"a comparison ranks all items for one target per user, and eval_args of '{entry.label}' is "
            f"{config['eval_args']}: leave its split at {{LS: valid_and_test}}, its order at TO and its mode at full"
        )
    if config["benchmark_filename"] is not None:
        raise UserError(
            f"a comparison splits the data itself, and benchmark_filename of '{entry.label}' is "
            f"{config['benchmark_filename']}: leave it out, and compare results of 'recbole-diffurec run'"
        )
    missing = {"hit", "ndcg"} - {metric.lower() for metric in config["metrics"]}
    if missing:
        raise UserError(f"a comparison needs the metrics Hit and NDCG, got {config['metrics']} for '{entry.label}'")
