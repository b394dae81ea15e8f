"""The host's gaps on today's Python stack, mended in one place. No file of RecBole is edited or copied.

``apply()`` runs when ``recbole_diffurec`` is imported. Each function says what breaks, in which versions of RecBole
it was seen, and when it can go. Line numbers are those of recbole 1.2.0 and 1.2.1.
"""

from __future__ import annotations

import builtins
import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch


def apply() -> None:
    """Mend RecBole for this process. Calling it again changes nothing."""
    _numpy_aliases()
    _quiet_warnings()
    _pandas_3()
    _hyperopt()
    _anomaly_detection()
    _few_masked()


def _numpy_aliases() -> None:
    """Names that RecBole reads from numpy and numpy 2 no longer has.

    ``Config.__init__`` reads ``np.float_`` and its like (configurator.py:625) and itself sets ``np.float`` and its
    like, which the data code reads in processes that never build a ``Config``. Can go when RecBole drops both.
    """
    aliases = {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool": np.bool_,
        "int": np.int_,
        "float": np.float64,
        "complex": np.complex128,
        "object": np.object_,
        "str": np.str_,
        "long": np.int_,
        "unicode": np.str_,
    }
    for name, value in aliases.items():
        # numpy answers getattr for some of these names with a warning, so the namespace itself is asked.
        if name not in np.__dict__:
            setattr(np, name, value)


def _quiet_warnings() -> None:
    """Deprecation warnings of RecBole's own calls, about which its user can do nothing.

    ``torch.cuda.amp.GradScaler`` (trainer.py:236), chained assignment in pandas (dataset.py:501), tensors made of
    read-only arrays, which pandas 3 hands out (dataset.py:2136). Can go with the calls.
    """
    warnings.filterwarnings("ignore", message=r"The given NumPy array is not writable", category=UserWarning)
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.GradScaler.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.GradScaler is enabled, but CUDA.*")
    warnings.filterwarnings("ignore", module=r"recbole\..*", category=FutureWarning)
    warnings.filterwarnings("ignore", module=r"recbole\..*", category=DeprecationWarning)
    chained = getattr(pd.errors, "ChainedAssignmentError", None)
    if chained is not None:
        warnings.filterwarnings("ignore", module=r"recbole\..*", category=chained)


class _PandasForAtomicFiles:
    """What ``recbole.data.dataset.dataset`` sees as ``pd``: pandas, with another way to read atomic files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(path: Any, *, usecols: list[str], delimiter: str, encoding: str, **_: Any) -> pd.DataFrame:
        """Read one atomic file, in the columns that it names with their types (``item_id:token``).

        Against RecBole's own call, which pads lines that are too short and shifts those that are too long: they are
        refused. Identifiers such as "nan" or "00123" stay what they are, only an empty cell is missing; quotes are
        ordinary characters; missing sequences are empty; what should be a number and is none is named.
        """
        from recbole_diffurec.data.tables import AtomicFile

        return AtomicFile(Path(path), None, delimiter, encoding).frame(usecols)


def _length(x: Any) -> Any:
    """``len``, except that a Series is measured element by element."""
    return x.map(builtins.len) if isinstance(x, pd.Series) else builtins.len(x)


def _pandas_3() -> None:
    """What pandas 3 changed under RecBole's data code.

    ``feat[field].fillna(..., inplace=True)`` works on a copy (dataset.py:501, 648, 650): sequences are filled while
    reading, the others before RecBole tries. ``Series.agg(len)`` gives one number (dataset.py:712, 792, 809, 1217;
    sequential_dataset.py:165): the two modules get a ``len`` that gives one per element. Can go when RecBole supports
    pandas 3.
    """
    from recbole.data.dataset import dataset as host
    from recbole.data.dataset import sequential_dataset as sequential_host
    from recbole.utils import FeatureType

    if isinstance(host.pd, _PandasForAtomicFiles):
        return
    host.pd = _PandasForAtomicFiles()
    host.len = sequential_host.len = _length

    fill_nan = host.Dataset._fill_nan

    @functools.wraps(fill_nan)
    def fill_nan_by_assignment(self: Any) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                if self.field2type[field] == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif self.field2type[field] == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
        fill_nan(self)

    host.Dataset._fill_nan = fill_nan_by_assignment


class _RandomWithGenerator:
    """``numpy.random``, whose ``RandomState`` is the generator that took its place."""

    RandomState = staticmethod(np.random.default_rng)

    def __getattr__(self, name: str) -> Any:
        return getattr(np.random, name)


class _NumpyForTuning:
    """What ``recbole.trainer.hyper_tuning`` sees as ``np``."""

    random = _RandomWithGenerator()

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _hyperopt() -> None:
    """The exhaustive search of RecBole's ``HyperTuning`` with hyperopt 0.2.7 and later, which wants a ``Generator``.

    It hands over a ``RandomState`` (hyper_tuning.py:116). Can go when RecBole hands over a generator.
    """
    from recbole.trainer import hyper_tuning

    hyper_tuning.np = _NumpyForTuning()


def _anomaly_detection() -> None:
    """Training at half speed, for every model, once RecBole has looked up one of its sequential models.

    That imports all of them, SINE too, whose module turns autograd's anomaly detection on for the whole process
    (sine.py:25). Can go with that line.
    """
    enabled = torch.is_anomaly_enabled()
    import recbole.model.sequential_recommender  # noqa: F401

    torch.autograd.set_detect_anomaly(enabled)


def _few_masked() -> None:
    """BERT4Rec's loss where a batch has nothing, or little, to predict.

    A mask on a history's first item counts as padding (bert4rec.py:207), so a batch of one-item histories, which
    ``batch_by_length`` makes, has no targets and a loss of 0/0: it now has loss 0. Can go when RecBole tells the two
    apart. And every row gets scores of all items for as many masks as the longest history may have: columns without
    a target in any row, which count for nothing, are left out now.
    """
    from recbole.model.sequential_recommender import BERT4Rec

    calculate_loss = BERT4Rec.calculate_loss
    if hasattr(calculate_loss, "__wrapped__"):
        return

    @functools.wraps(calculate_loss)
    def calculate_loss_of_something(self: Any, interaction: Any) -> torch.Tensor:
        used = (interaction[self.MASK_INDEX] > 0).any(dim=0)
        if not used.any():
            return sum(0.0 * parameter.sum() for parameter in self.parameters())
        masks = (self.POS_ITEMS, self.NEG_ITEMS, self.MASK_INDEX)
        fewer = {name: interaction[name][:, used] for name in masks}
        return calculate_loss(self, {**interaction.interaction, **fewer})

    BERT4Rec.calculate_loss = calculate_loss_of_something


class _NoWriter:
    """A TensorBoard writer that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def no_tensorboard() -> None:
    """Keep RecBole's trainers in this process from writing event files, as each of several processes would."""
    from recbole.trainer import trainer

    trainer.get_tensorboard = lambda logger: _NoWriter()
