"""All models that ``--model`` takes: the registered ones, and RecBole's own with what is known of them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recbole

from recbole_diffurec.config import layers
from recbole_diffurec.config.rules import nearest
from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.host.models import NEEDED, NOT_LISTED
from recbole_diffurec.host.repeats import may_learn_repeats
from recbole_diffurec.models import spec as register
from recbole_diffurec.models.spec import ModelSpec

HOST_PROPERTIES = Path(recbole.__file__).parent / "properties"

# RecBole's models whose batches may be as narrow as their longest history. Others read the padded length: FEARec
# transforms it to frequencies, Caser convolves it.
TRIMS_PADDING = frozenset({"BERT4Rec", "GRU4Rec", "SASRec"})

# RecBole's models whose state at a position is that of the prefix that ends there; see ``host.all_positions``.
ALL_POSITIONS = frozenset({"GRU4Rec", "SASRec"})
# What ``loss_type`` stands for, and the models that add something to it, such as a penalty or a contrast.
LOSSES = {"CE": "cross-entropy", "BPR": "BPR"}
MORE_LOSS = frozenset({"Caser", "FEARec", "FOSSIL", "GCSAN", "HGN", "NextItNet", "RepeatNet", "SHAN", "SINE"})
# Of their own parameters, those that nothing reads once a model is trained.
OF_TRAINING = frozenset({"hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "initializer_range"})
# What we add to the parameters of all that are sequential.
OF_HISTORIES = {"repeat_bias": False, "cooccurrence_weight": None, "cooccurrence_decay": 0.8}
# What others cannot do, and why.
CANNOT = {"BERT4Rec": {"sequences": "its attention sees what comes after a position"}}


class HostSpec(ModelSpec):
    """A model of RecBole: its class is found by RecBole, its defaults are RecBole's."""

    @property
    def model_class(self) -> type:
        from recbole.utils import get_model

        return get_model(self.name)

    def default_values(self) -> dict[str, Any]:
        """The defaults of RecBole, and ours for this model where ``properties/model`` has some."""
        return {
            **(OF_HISTORIES if may_learn_repeats(self.name) else {}),
            **layers.read_yaml(HOST_PROPERTIES / "model" / f"{self.name}.yaml"),
            **layers.shipped_defaults(f"model/{self.name}"),
        }


@functools.cache
def _host_spec(name: str) -> ModelSpec:
    return HostSpec(
        name,
        name,
        trims_padding=name in TRIMS_PADDING,
        all_positions=name in ALL_POSITIONS,
        of_training=OF_TRAINING,
        cannot=CANNOT.get(name, {}),
        loss="" if name in MORE_LOSS else lambda values: LOSSES.get(values.get("loss_type", ""), ""),
    )


def known_models() -> list[str]:
    """Names of all models that ``--model`` takes: the registered ones first, then RecBole's."""
    ours = register.names()
    hosts = sorted(path.stem for path in (HOST_PROPERTIES / "model").glob("*.yaml"))
    return [*ours, *(name for name in hosts if name not in ours and name not in NOT_LISTED)]


def find(name: str) -> ModelSpec:
    """The spec of a model; ``UserError`` names the nearest where there is none."""
    spec = register.find(name)
    if spec is not None:
        return spec
    if name in NOT_LISTED:
        raise UserError(f"model '{name}' cannot be run, because {NOT_LISTED[name]}: choose another model")
    if name not in known_models():
        names = [*known_models(), *register.variants()]
        hint = nearest(name, names) or " run 'recbole-diffurec --list_models' for all names"
        raise UserError(f"unknown model '{name}':{hint}")
    return _host_spec(name)


def named(name: str) -> tuple[ModelSpec, Mapping[str, Any]]:
    """The spec that the name of a model or of a variant stands for, and the parameters that the variant fixes."""
    if register.find(name) is None and name not in known_models() and name in register.variants():
        return register.variants()[name]
    return find(name), {}


def in_host_spelling(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under the names that RecBole reads: DiffRec's ``time_aware`` is ``time-aware`` there.

    Parameters
    ----------
    name : str
        A model.
    given : Mapping of str to object
        Parameters.

    Raises
    ------
    UserError
        One is given under both names, with two values.
    """
    values = dict(given)
    for theirs in find(name).default_values():
        ours = theirs.replace("-", "_")
        if ours != theirs and ours in values:
            value = values.pop(ours)
            if values.setdefault(theirs, value) != value:
                raise UserError(f"{ours} is {value!r}, and {theirs}, its other name, {values[theirs]!r}: give one")
    return values


def model_class(name: str) -> type:
    """The class of a model; ``UserError`` where a package that it needs cannot be imported."""
    module, package = NEEDED.get(name, (None, None))
    try:
        if module is not None and importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=package)
        return find(name).model_class
    except ImportError as error:
        package = (error.name or "recbole-diffurec").partition(".")[0]
        raise cannot_import(f"model '{name}'", error, package) from None
