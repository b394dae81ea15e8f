"""The host's gaps on today's Python stack, mended in one place. No file of RecBole is edited or copied.

``apply()`` runs when ``recbole_diffurec`` is imported, and imports nothing: each mend waits for the module that it
mends. Each says what breaks, in which versions of RecBole it was seen, and when it can go. Line numbers are those of
recbole 1.2.0 and 1.2.1.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_diffurec.errors import pip_install
from recbole_diffurec.host import all_positions, bert4rec, guards, models
from recbole_diffurec.host.hooks import HOOKS

if TYPE_CHECKING:
    import pandas as pd

# The modules of RecBole that read names which numpy 2 no longer has.
NUMPY_READERS = (
    "recbole.data.dataset.dataset",
    "recbole.data.interaction",
    "recbole.evaluator.metrics",
    "recbole.model.abstract_recommender",
    "recbole.model.context_aware_recommender.ffm",
    "recbole.model.layers",
)


def apply() -> None:
    """Mend RecBole for this process. Calling it again changes nothing."""
    if HOOKS.installed:
        return
    HOOKS.install()
    for name in NUMPY_READERS:
        HOOKS.when_imported(name, numpy_aliases)
    HOOKS.when_imported("recbole.evaluator.metrics", sklearn_on_demand)
    HOOKS.when_imported("recbole.config.configurator", no_numpy_aliases)
    HOOKS.when_imported("recbole.quick_start.quick_start", without_ray)
    HOOKS.when_imported("recbole.trainer.hyper_tuning", random_state)
    HOOKS.when_imported("recbole.data.dataset.dataset", pandas_3)
    HOOKS.when_imported("recbole.data.dataset.sequential_dataset", length_of_each)
    HOOKS.when_imported("recbole.model.sequential_recommender.sine", anomaly_detection)
    HOOKS.when_imported("recbole.model.sequential_recommender.bert4rec", bert4rec.apply)
    for name in ("GRU4Rec", "SASRec"):
        module = f"recbole.model.sequential_recommender.{name.lower()}"
        HOOKS.when_imported(module, functools.partial(all_positions.apply, name))
    guards.apply()
    models.apply()


class _Numpy(ModuleType):
    """numpy as a module of RecBole sees it: with names that numpy 2 no longer has; it may set others."""

    def __init__(self) -> None:
        import numpy as np

        super().__init__("numpy")
        self.__dict__.update(
            float_=np.float64,
            complex_=np.complex128,
            unicode_=np.str_,
            bool=np.bool_,
            int=np.int_,
            float=np.float64,
            complex=np.complex128,
            object=np.object_,
            str=np.str_,
            long=np.int_,
            unicode=np.str_,
        )

    def __getattr__(self, name: str) -> Any:
        import numpy as np

        return getattr(np, name)


@contextlib.contextmanager
def numpy_aliases(module: ModuleType) -> Iterator[None]:
    """Names that RecBole reads from numpy and numpy 2 no longer has.

    Each of these modules gets a numpy of its own that has them. Can go when RecBole reads numpy 2's names.
    """
    yield
    vars(module)["np"] = _Numpy()


@contextlib.contextmanager
def no_numpy_aliases(module: ModuleType) -> Iterator[None]:
    """``Config.__init__``, which reads ``np.float_`` and its like, and sets others for the whole process.

    configurator.py:625; numpy 2 has no ``float_``; for what RecBole reads see ``numpy_aliases``. Can go with it.
    """
    yield
    module.Config.compatibility_settings = lambda self: None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the deprecation warnings of RecBole's own calls, about which its user can do nothing.

    ``torch.cuda.amp.GradScaler`` (trainer.py:236), chained assignment in pandas (dataset.py:501), tensors made of
    read-only arrays, which pandas 3 hands out (dataset.py:2136). Can go with the calls.
    """
    import pandas as pd

    with warnings.catch_warnings():
        ours = r"recbole(_diffurec)?\."
        warnings.filterwarnings("ignore", r"The given NumPy array is not writable", UserWarning, ours)
        warnings.filterwarnings("ignore", r".*torch\.cuda\.amp\.GradScaler.*")
        chained = getattr(pd.errors, "ChainedAssignmentError", None)
        for category in (FutureWarning, DeprecationWarning, *((chained,) if chained else ())):
            warnings.filterwarnings("ignore", module=r"recbole\.", category=category)
        yield


class _PandasForAtomicFiles:
    """What ``recbole.data.dataset.dataset`` sees as ``pd``: pandas, with another way to read atomic files."""

    def __getattr__(self, name: str) -> Any:
        import pandas as pd

        return getattr(pd, name)

    @staticmethod
    def read_csv(
        path: Any, *, usecols: list[str], delimiter: str, encoding: str = "utf-8-sig", **_: Any
    ) -> pd.DataFrame:
        """Read one atomic file, in the columns that it names with their types (``item_id:token``).

        Against RecBole's own call, which pads lines that are too short and shifts those that are too long: they are
        refused. Identifiers such as "nan" or "00123" stay what they are, only an empty cell is missing; quotes are
        ordinary characters; missing sequences are empty; what should be a number and is none is named.
        """
        from recbole_diffurec.data.delimited import AtomicFile

        return AtomicFile(Path(path), None, delimiter, encoding).frame(usecols)


def _length(x: Any) -> Any:
    """``len``, except that a Series is measured element by element."""
    import pandas as pd

    return x.map(builtins.len) if isinstance(x, pd.Series) else builtins.len(x)


@contextlib.contextmanager
def length_of_each(module: ModuleType) -> Iterator[None]:
    """``Series.agg(len)``, which gives one number in pandas 3.

    dataset.py:712, 792, 809, 1217; sequential_dataset.py:165. The modules get a ``len`` that gives one per element.
    Can go when RecBole supports pandas 3.
    """
    yield
    vars(module)["len"] = _length


@contextlib.contextmanager
def pandas_3(module: ModuleType) -> Iterator[None]:
    """What pandas 3 changed under RecBole's data code.

    ``feat[field].fillna(..., inplace=True)`` works on a copy (dataset.py:501, 648, 650): sequences are filled while
    reading, the others before RecBole tries. And see ``length_of_each``. Can go when RecBole supports pandas 3.
    """
    yield
    from recbole.utils import FeatureType

    vars(module).update(pd=_PandasForAtomicFiles(), len=_length)
    fill_nan = module.Dataset._fill_nan

    @functools.wraps(fill_nan)
    def fill_nan_by_assignment(self: Any) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                if self.field2type[field] == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif self.field2type[field] == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
        with quiet():
            fill_nan(self)

    module.Dataset._fill_nan = fill_nan_by_assignment


class _NoRay(ModuleType):
    """What ``ray`` and ``ray.tune`` are to a module of RecBole where Ray is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(
            f"RecBole wants ray.tune.{name}, which cannot be imported here: {pip_install('[tune]')}",
            name="ray",
        )


@contextlib.contextmanager
def without_ray(module: ModuleType) -> Iterator[None]:
    """``run_recbole`` and its like without Ray, which RecBole 1.2.0 neither requires nor does without.

    quick_start.py:20 imports ``ray.tune`` for one function that reports to it (223). Where Ray is missing, that
    function alone fails. Can go when RecBole imports it where it is used.
    """
    try:
        import ray.tune  # noqa: F401
    except ImportError:
        without, tune = _NoRay("ray"), _NoRay("ray.tune")
        vars(without)["tune"] = tune
        before: dict[str, ModuleType] = {name: sys.modules[name] for name in ("ray", "ray.tune") if name in sys.modules}
        sys.modules["ray"], sys.modules["ray.tune"] = without, tune
        try:
            yield
        finally:
            del sys.modules["ray"], sys.modules["ray.tune"]
            sys.modules.update(before)
    else:
        yield


@contextlib.contextmanager
def sklearn_on_demand(module: ModuleType) -> Iterator[None]:
    """RecBole's metrics without scikit-learn until one is computed that needs it: its import takes a second or two.

    metrics.py:29 imports three functions of ``sklearn.metrics``, for AUC, MAE and RMSE alone. Each is imported here
    when it is first called. Can go when RecBole imports them where they are used.
    """
    name = "sklearn.metrics"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    for function in ("auc", "mean_absolute_error", "mean_squared_error"):
        setattr(stand_in, function, functools.partial(_of_sklearn, function))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


def _of_sklearn(function: str, *arguments: Any, **named: Any) -> Any:
    from sklearn import metrics

    return getattr(metrics, function)(*arguments, **named)


@contextlib.contextmanager
def random_state(module: ModuleType) -> Iterator[None]:
    """The exhaustive search of RecBole's ``HyperTuning`` with hyperopt 0.2.7 and later, which wants a ``Generator``.

    It hands over a ``RandomState`` (hyper_tuning.py:116), and reads ``np.str`` (385). Can go when
    RecBole hands over a generator.
    """
    yield
    import numpy as np

    random = ModuleType("numpy.random")
    vars(random).update(vars(np.random), RandomState=np.random.default_rng)
    vars(module)["np"] = _Numpy()
    module.np.random = random


@contextlib.contextmanager
def anomaly_detection(module: ModuleType) -> Iterator[None]:
    """Training at half speed, for every model, once RecBole has looked up one of its sequential models.

    That imports all of them, SINE too, whose module turns autograd's anomaly detection on for the whole process
    (sine.py:25). Can go with that line.
    """
    import torch

    enabled = torch.is_anomaly_enabled()
    yield
    torch.autograd.set_detect_anomaly(enabled)


class _NoWriter:
    """A TensorBoard writer that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def no_tensorboard() -> Iterator[None]:
    """RecBole's trainers write no event files within, not even empty ones."""
    from recbole.trainer import trainer

    before, trainer.get_tensorboard = trainer.get_tensorboard, lambda logger: _NoWriter()
    try:
        yield
    finally:
        trainer.get_tensorboard = before
