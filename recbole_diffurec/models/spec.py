"""What the package knows of a model beside its class, and the register through which any model enters.

A model of this package, or of another package that declares the entry point group ``recbole_diffurec.models``, is one
``ModelSpec``. Help texts, lists of names, messages, defaults, checks and tests are made from it; no other file names a
model. What is known of RecBole's own models is in ``host.catalogue``.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from recbole_diffurec.config import layers
from recbole_diffurec.config.needs import Needs
from recbole_diffurec.config.rules import Rule
from recbole_diffurec.errors import UserError

logger = logging.getLogger("recbole_diffurec")

GROUP = "recbole_diffurec.models"

# Where the spec of each model of this package is. A module is imported when its model is asked for.
BUILTIN = {
    "DiffuRec": "recbole_diffurec.models.diffurec:DIFFUREC",
    "DiffuRecSys": "recbole_diffurec.models.diffurec:DIFFURECSYS",
    "MaskedDiffRec": "recbole_diffurec.models.masked_diffusion:MASKED_DIFFREC",
    "DuoRec": "recbole_diffurec.models.duorec:DUOREC",
    "CL4SRec": "recbole_diffurec.models.cl4srec:CL4SREC",
    "DCRec": "recbole_diffurec.models.dcrec:DCREC",
    "DiffRecDNR": "recbole_diffurec.models.diffrec_dnr:DIFFREC_DNR",
    "ADRec": "recbole_diffurec.models.adrec:ADREC",
    "DreamRec": "recbole_diffurec.models.dreamrec:DREAMREC",
    "STOSA": "recbole_diffurec.models.stosa:STOSA_SPEC",
    "VSAN": "recbole_diffurec.models.vsan:VSAN_SPEC",
    "ACVAE": "recbole_diffurec.models.acvae:ACVAE_SPEC",
    "MFGAN": "recbole_diffurec.models.mfgan:MFGAN_SPEC",
    "CausalRec": "recbole_diffurec.models.causal:CAUSALREC",
}

# What a model may be unable to do; ``ModelSpec.cannot`` gives the reason.
ABILITIES = ("recommend", "samples", "onnx", "torch", "safetensors", "faiss", "resume", "nproc", "sequences")


@dataclass(frozen=True)
class ModelSpec:
    """One model: its class and everything that the package has to know of it.

    Parameters
    ----------
    name : str
        What ``--model`` takes; the name of the class.
    model : type or str
        The class, a subclass of a RecBole recommender, or where it is, as ``module:Class``.
    summary : str
        One line for ``--list_models``: what it is, and its paper.
    defaults : Path or str or None
        A YAML file of its parameters' defaults; it may say ``base: NAME`` and list only what differs from that model's.
        The default is ``properties/model/NAME.yaml``.
    rules : Mapping of str to Rule
        What its own parameters may be.
    needs : Mapping of str to sequence of Need
        Of its own parameters, those that act only where another one has a certain value; otherwise they are refused.
    of_training : frozenset of str
        Its own parameters that nothing reads once it is trained, so that a use of its checkpoint refuses them.
    of_lists : frozenset of str
        Those that nothing reads but what draws: lists of several items, and samples. Rankings refuse them.
    check : callable or None
        Called with the parameters; raises ``UserError`` where values do not fit together.
    method : bool
        Whether comparisons count it as a method whose improvement is reported, or as a baseline.
    trims_padding : bool
        Whether scores, loss and gradients are the same with and without trailing columns of padding, so that batches
        need be no wider than their longest history; ``testing.check_model`` proves it.
    all_positions : bool
        Whether its loss takes batches of sequences (see ``data.rows``) and is then that of every prefix as a row of its
        own, so that ``rows: sequences`` can train it; ``testing.check_model`` proves it.
    trainer : type or None
        A trainer of its own, a subclass of RecBole's.
    dataset : type or None
        A data set class of its own, a subclass of RecBole's.
    variants : Mapping of str to Mapping
        Names that stand for this model with some parameters fixed, such as the variants of a paper.
    for_inference : Mapping of str to object
        Parameters that inference needs otherwise than training, such as those that want the training data.
    cannot : Mapping of str to str
        Which of ``ABILITIES`` it lacks, each with the reason, a clause that follows "because".
    loss : str or callable
        What its training loss is, such as ``cross-entropy``, or what says so of the parameters. Reports draw the losses
        of models that say the same in one place; without, that of the model stands alone.
    """

    name: str
    model: type | str
    summary: str = ""
    defaults: Path | str | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)
    needs: Needs = field(default_factory=dict)
    of_training: frozenset[str] = frozenset()
    of_lists: frozenset[str] = frozenset()
    check: Callable[[Mapping[str, Any]], None] | None = None
    method: bool = False
    trims_padding: bool = False
    all_positions: bool = False
    trainer: type | None = None
    dataset: type | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    for_inference: Mapping[str, Any] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)
    loss: str | Callable[[Mapping[str, Any]], str] = ""

    def __post_init__(self) -> None:
        unknown = self.cannot.keys() - set(ABILITIES)
        if unknown:
            raise ValueError(f"cannot has {', '.join(sorted(unknown))}: its keys are among {', '.join(ABILITIES)}")

    @property
    def model_class(self) -> type:
        """The class, imported."""
        return _resolve(self.model) if isinstance(self.model, str) else self.model

    def default_values(self) -> dict[str, Any]:
        """The parameters' defaults, those of its ``base`` included.

        Raises
        ------
        UserError
            A file is missing or malformed, or bases go round in a circle.
        """
        return _with_base(self, ())

    def loss_of(self, parameters: Mapping[str, Any]) -> str:
        """What the training loss is with these parameters."""
        said = self.loss(parameters) if callable(self.loss) else self.loss
        return said or f"loss of {self.name}"

    def refuse(self, ability: str, what: str) -> None:
        """Raise ``UserError`` where the model lacks an ability.

        Parameters
        ----------
        ability : str
            One of ``ABILITIES``.
        what : str
            What was asked for, such as "be exported as onnx".
        """
        if ability in self.cannot:
            raise UserError(f"model '{self.name}' cannot {what}, because {self.cannot[ability]}")


def _with_base(spec: ModelSpec, seen: tuple[str, ...]) -> dict[str, Any]:
    path = layers.properties_dir() / "model" / f"{spec.name}.yaml" if spec.defaults is None else Path(spec.defaults)
    values = layers.read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if base == spec.name or base in seen or find(str(base)) is None:
        raise UserError(f"'{path}' says 'base: {base}', which is no other model of the register: correct it")
    inherited = find(str(base))
    assert inherited is not None
    return {**_with_base(inherited, (*seen, spec.name)), **values}


def _resolve(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def plugin_entry_points() -> Mapping[str, EntryPoint]:
    """The models that other installed packages declare, by name; names of this package's models stay its own."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in sorted(found.keys() & BUILTIN.keys()):
        logger.warning(
            "model '%s' of package '%s' has the name of one of ours and is not used: rename its entry point",
            name,
            found.pop(name).value,
        )
    return found


@functools.cache
def _load(name: str) -> ModelSpec:
    if name in BUILTIN:
        return _resolve(BUILTIN[name])
    entry = plugin_entry_points()[name]
    try:
        spec = entry.load()
    except Exception as error:  # whatever another package's import may raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"model '{name}' cannot be loaded from '{entry.value}' ({type(error).__name__}: {reason}): mend or remove "
            f"the package that declares it"
        ) from error
    if not isinstance(spec, ModelSpec) or spec.name != name:
        found = f"of '{spec.name}'" if isinstance(spec, ModelSpec) else f"a {type(spec).__name__}"
        raise UserError(f"entry point '{name}' = '{entry.value}' must be the ModelSpec of '{name}', and is {found}")
    return spec


def names() -> list[str]:
    """Names of all registered models, this package's first."""
    return [*BUILTIN, *sorted(plugin_entry_points())]


def find(name: str) -> ModelSpec | None:
    """The spec of a registered model; None where there is none of this name.

    Raises
    ------
    UserError
        A plugin's model of this name fails to load; the message says why.
    """
    return _load(name) if name in BUILTIN or name in plugin_entry_points() else None


def all_specs() -> tuple[list[ModelSpec], dict[str, str]]:
    """The specs of all registered models that load, and {name: reason} of those that do not."""
    specs, failures = [], {}
    for name in names():
        try:
            specs.append(_load(name))
        except UserError as error:
            failures[name] = str(error)
    return specs, failures


def variants() -> dict[str, tuple[ModelSpec, Mapping[str, Any]]]:
    """{name: (spec, fixed parameters)} of all variants of registered models."""
    return {name: (spec, fixed) for spec in all_specs()[0] for name, fixed in spec.variants.items()}
