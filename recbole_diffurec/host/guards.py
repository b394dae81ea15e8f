"""Where RecBole would run what a parameter or a file holds: each place is refused, or fed checked values.

``docs/security.md`` lists the places. ``apply()`` runs when ``recbole_diffurec`` is imported, imports nothing, and acts
on RecBole's own entry points too. Line numbers are those of recbole 1.2.0; 1.2.1 has the same places, at most one line
further on.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.hooks import HOOKS
from recbole_diffurec.host.stand_in import With
from recbole_diffurec.runtime import files

if TYPE_CHECKING:
    import numpy as np

# The networks of kd_dagfm.py that are made with a configuration alone, which is how a teacher is made.
TEACHERS = ("CrossNet", "CIN")

# Modules that open a file that a parameter or a caller names with ``torch.load``.
READERS_OF_TENSORS = (
    "recbole.trainer.trainer",  # 323, 583: resume_checkpoint(file), evaluate(model_file=file)
    "recbole.model.context_aware_recommender.kd_dagfm",  # 56: warm_up
    "recbole.model.general_recommender.convncf",  # 81: pre_model_path
    "recbole.model.general_recommender.nais",  # 127: pretrain_path
    "recbole.model.general_recommender.neumf",  # 83, 84: mf_pretrain_path, mlp_pretrain_path
    "recbole.model.general_recommender.ract",  # 74, 83: pre_model_path
    "recbole.model.sequential_recommender.s3rec",  # 120: pre_model_path
)


def apply() -> None:
    """Guard RecBole for this process."""
    HOOKS.when_imported("recbole.config.configurator", plain_values)
    HOOKS.when_imported("recbole.trainer.hyper_tuning", plain_choices)
    HOOKS.when_imported("recbole.model.context_aware_recommender.kd_dagfm", known_teachers)
    for name in READERS_OF_TENSORS:
        HOOKS.when_imported(name, tensors_only)
    HOOKS.when_imported("recbole.model.general_recommender.ldiffrec", numbers_only)
    HOOKS.when_imported("recbole.data.utils", no_pickles)
    HOOKS.when_imported("recbole.model.abstract_recommender", own_parameters)


def literal(text: str) -> Any:
    """The value of a Python literal; ``SyntaxError`` for anything that would have to be computed."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise SyntaxError(f"no literal: {text[:100]!r}") from None


@contextlib.contextmanager
def plain_values(configurator: ModuleType) -> Iterator[None]:
    """``Config`` evaluates every text of ``config_dict`` and of the command line as Python (131).

    What is no literal stays a text, as in RecBole everything does that cannot be evaluated. Its YAML loader makes any
    object that a loaded module has (107), and is changed for the whole process; now it makes plain values.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """YAML as data only; RecBole adds its form of numbers to it."""

    yield
    vars(configurator).update(eval=literal, yaml=With(yaml, FullLoader=PlainLoader))


@contextlib.contextmanager
def plain_choices(hyper_tuning: ModuleType) -> Iterator[None]:
    """``HyperTuning`` evaluates the values of a ``choice`` in ``params_file`` as Python (238)."""
    yield

    def choices(text: str) -> Any:
        try:
            return literal(text)
        except SyntaxError:
            raise UserError(
                f"the choices {text!r} of a search are no list of plain values: write them as [1,2] or ['a','b']"
            ) from None

    vars(hyper_tuning)["eval"] = choices


@contextlib.contextmanager
def known_teachers(kd_dagfm: ModuleType) -> Iterator[None]:
    """``KD_DAGFM`` evaluates ``teacher`` as Python (44), which a checkpoint's configuration may hold as well."""
    yield

    def teacher(name: str) -> type:
        if name not in TEACHERS:
            raise UserError(f"teacher must be one of {', '.join(TEACHERS)}, got {name!r}")
        return getattr(kd_dagfm, name)

    vars(kd_dagfm)["eval"] = teacher


@contextlib.contextmanager
def tensors_only(module: ModuleType) -> Iterator[None]:
    """``torch.load`` runs what a file holds, by default before torch 2.6 (``READERS_OF_TENSORS``)."""
    yield
    import torch

    def load(path: Any, map_location: Any = "cpu", **options: Any) -> Any:
        return _read(path, map_location)

    vars(module)["torch"] = With(torch, load=load)


def _read(path: str | Path, device: Any) -> Any:
    from recbole_diffurec.runtime import checkpoint

    return checkpoint.read(path, device)


@contextlib.contextmanager
def numbers_only(ldiffrec: Any) -> Iterator[None]:
    """``LDiffRec`` with ``n_cate`` above 1 unpickles ``item_emb.npy`` in the data set's folder (231)."""
    yield
    vectors_only = With(ldiffrec.np, load=lambda path, allow_pickle: load_vectors(path))
    vars(ldiffrec)["np"] = vectors_only
    build = ldiffrec.LDiffRec.__init__

    @functools.wraps(build)
    def build_from_vectors(self: Any, config: Any, dataset: Any) -> None:
        if config["n_cate"] > 1:
            check_item_vectors(Path(dataset.dataset_path) / "item_emb.npy", dataset)
        build(self, config, dataset)

    ldiffrec.LDiffRec.__init__ = build_from_vectors


def check_item_vectors(path: Path, dataset: Any) -> None:
    """Refuse a file of vectors that is not of a data set's items.

    Parameters
    ----------
    path : Path
        A ``.npy`` file; beside it there may be ``PATH.json``, as ``export`` writes it, which names the items.
    dataset : recbole.data.dataset.Dataset
        Filtered.

    Raises
    ------
    UserError
        The file is missing or no table, or its rows are those of other items, or in another order.
    """
    again = f"recbole-diffurec export CHECKPOINT --format=npy --output={path}"
    if not path.exists():
        raise UserError(
            f"n_cate above 1 clusters the items by their vectors, and '{path}' is missing: write it with '{again}' "
            f"from a model trained on the same data, or give --n_cate=1"
        )
    items = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    found = len(load_vectors(path))
    if found != len(items):
        raise UserError(
            f"'{path}' has {found} rows for {len(items)} items: give one vector for each, in order of their numbers"
        )
    beside = Path(f"{path}.json")
    if not beside.exists():
        return
    try:
        named = files.read_json(beside)["items"][1:]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"'{beside}' does not name the items of '{path}': write both with '{again}'") from None
    if named != items:
        raise UserError(
            f"'{path}' is of other items than this run's, or of another order: write it with '{again}' from a model "
            f"trained with the same filters"
        )


def load_vectors(path: str | Path) -> np.ndarray:
    """The vectors in a ``.npy`` file: finite float32 [rows, d].

    Raises
    ------
    UserError
        The file is missing, cut short, holds objects, or anything but such a table.
    """
    import numpy as np

    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"'{path}' is no regular file: give a .npy file")
    try:
        # Mapped, because a file's header may promise more than it holds, and than fits into memory.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}): check the path") from None
    except Exception as error:  # by where the damage is: ValueError, EOFError, SyntaxError and more
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"'{path}' is no .npy file of numbers ({reason}): save an array of floats") from None
    if not isinstance(mapped, np.ndarray) or mapped.ndim != 2 or not mapped.size or mapped.dtype.kind not in "fiu":
        raise UserError(f"'{path}' must hold one table of numbers, a row for each item: save an array of floats")
    vectors = np.array(mapped, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"'{path}' holds numbers that are not finite: mend the file")
    return vectors


@contextlib.contextmanager
def no_pickles(utils: ModuleType) -> Iterator[None]:
    """``create_dataset`` and ``data_preparation`` unpickle files (61, 122).

    They are those that ``dataset_save_path`` and ``dataloaders_save_path`` name, or that lie in the checkpoint folder.
    """
    yield

    def refuse(file: Any) -> Any:
        raise UserError(
            f"'{file.name}' is a pickle, and opening one runs what it holds: remove it, or leave out "
            f"dataset_save_path and dataloaders_save_path, and the data is prepared afresh"
        )

    vars(utils)["pickle"] = With(vars(utils)["pickle"], load=refuse)


@contextlib.contextmanager
def own_parameters(module: Any) -> Iterator[None]:
    """``load_other_parameter`` sets any attribute that a checkpoint names (abstract_recommender.py:76), methods too.

    Arrays and matrices, which our checkpoints hold as tensors, are themselves again.
    """
    yield
    from recbole_diffurec.runtime.checkpoint import from_plain

    load = module.AbstractRecommender.load_other_parameter

    @functools.wraps(load)
    def load_own(self: Any, para: dict[str, Any] | None) -> None:
        foreign = sorted(map(str, (para or {}).keys() - set(getattr(self, "other_parameter_name", ()))))
        if foreign:
            raise UserError(
                f"the checkpoint holds {', '.join(foreign)} for a {type(self).__name__}, which has no such parameter: "
                f"give a file that a run of this model wrote"
            )
        load(self, from_plain(para))

    module.AbstractRecommender.load_other_parameter = load_own
