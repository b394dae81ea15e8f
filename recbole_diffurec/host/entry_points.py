"""RecBole's own entry points, on the data, the splits, the metrics and the files of this package.

``run_recbole``, ``Config``, ``create_dataset``, ``data_preparation`` and trainers that are made by hand do what
``docs/recbole_entry_points.md`` says. ``register()`` imports nothing; line numbers are those of recbole 1.2.0 and
1.2.1.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.hooks import HOOKS
from recbole_diffurec.models import spec as register_of_models


def register() -> None:
    """Let each mend wait for the module that it mends."""
    HOOKS.when_imported("recbole.config.configurator", _configuration)
    HOOKS.when_imported("recbole.data.utils", _data)
    HOOKS.when_imported("recbole.evaluator.register", _metrics)
    HOOKS.when_imported("recbole.evaluator.collector", _collector)
    HOOKS.when_imported("recbole.trainer.trainer", _checkpoints)


def replace(module: ModuleType, name: str, new: Any) -> None:
    """Put ``new`` in the place of a name of a module of RecBole, and of those that imported it from there."""
    old = vars(module)[name]
    for other in [module, *(m for key, m in list(sys.modules.items()) if key.split(".")[0] == "recbole")]:
        if vars(other).get(name) is old:
            setattr(other, name, new)


@contextlib.contextmanager
def _configuration(module: ModuleType) -> Iterator[None]:
    """Defaults of registered models; the time among the columns wherever rows go by it; GPUs left visible."""
    yield
    load, init_device = module.Config._load_internal_config_dict, module.Config._init_device

    @functools.wraps(load)
    def load_with_our_defaults(self: Any, model: str, model_class: type, dataset: str) -> None:
        load(self, model, model_class, dataset)
        spec, own = register_of_models.find(model), self.internal_config_dict
        own.setdefault("encoding", layers.shipped_defaults("overall")["encoding"])
        if spec is not None:
            for layer in (layers.shipped_defaults("overall"), spec.default_values()):
                own.update(layer)
            own.update(layers.shipped_defaults(f"dataset/{dataset}"))
        own["load_col"] = _columns(self, registered=spec is not None)

    @functools.wraps(init_device)
    def init_device_of_one_process(self: Any) -> None:
        from recbole_diffurec.host.config import gpu_numbers, use_device

        final = self.final_config_dict
        if "local_rank" in final:  # RecBole's own several processes, which have the machine
            init_device(self)
        else:
            use_device(final, gpu_numbers(final))

    module.Config._load_internal_config_dict = load_with_our_defaults
    module.Config._init_device = init_device_of_one_process


def _columns(config: Any, registered: bool) -> Any:
    """``load_col`` where the user gives none.

    RecBole's defaults leave out the time, by which sequences are ordered and ``order: TO`` splits, and name the columns
    as RecBole does, whatever ``USER_ID_FIELD`` and the like say.
    """
    from recbole.utils import ModelType

    from recbole_diffurec.host.config import columns_to_load, own_names

    values = {**config.internal_config_dict, **config.external_config_dict}
    if registered:
        return columns_to_load({**values, "load_col": config.internal_config_dict["load_col"]})
    columns = own_names(config.internal_config_dict["load_col"], values)
    asked = values["eval_args"] if isinstance(values["eval_args"], dict) else {}  # kinds are checked after this
    by_time = asked.get("order") == "TO" and not values["benchmark_filename"]
    if values["MODEL_TYPE"] != ModelType.SEQUENTIAL and not by_time:
        return columns
    known, time = list(columns.get("inter", ())), values["TIME_FIELD"]
    return {**columns, "inter": known if time in known else [*known, time]}


@contextlib.contextmanager
def _data(module: ModuleType) -> Iterator[None]:
    """Data sets in exact order, candidates that stay the same, no pickles of either."""
    yield
    create, choose = module.create_dataset, module.get_dataloader

    @functools.wraps(create)
    def create_ordered_dataset(config: Any) -> Any:
        from recbole_diffurec.host import catalogue
        from recbole_diffurec.host.checks import check_pickles
        from recbole_diffurec.host.dataset import dataset_class
        from recbole_diffurec.host.sequences import check_rows

        check_pickles(config)
        try:
            chosen = dataset_class(config)
        except UserError:  # of a model of the user's own
            return create(config)
        check_rows(config, catalogue.find(config["model"]))
        return chosen(config)

    @functools.wraps(choose)
    def get_dataloader(config: Any, phase: Any) -> type:
        from recbole_diffurec.host.candidates import SampledEvalLoader

        found = choose(config, phase)
        return SampledEvalLoader if found is module.NegSampleEvalDataLoader else found

    replace(module, "create_dataset", create_ordered_dataset)
    replace(module, "get_dataloader", get_dataloader)


@contextlib.contextmanager
def _metrics(module: ModuleType) -> Iterator[None]:
    """The metrics of lists by RecBole's definitions."""
    yield
    from recbole_diffurec.host.metrics import evaluator_classes

    for name, metric in evaluator_classes().items():
        module.metrics_dict[name] = metric
        module.metric_information[name] = metric.metric_need  # type: ignore[attr-defined]


@contextlib.contextmanager
def _collector(module: ModuleType) -> Iterator[None]:
    """What those metrics are computed from."""
    yield
    from recbole_diffurec.host.collector import list_collector

    replace(module, "Collector", list_collector(module.Collector))


@contextlib.contextmanager
def _checkpoints(module: ModuleType) -> Iterator[None]:
    """Checkpoints of tensors and plain values, which ``evaluate`` and ``Recommender`` open too.

    RecBole's hold its whole ``Config`` as a pickle (trainer.py:308), which torch 2.6 and later do not open by default
    (583), so that its own runs fail at their test.
    """
    yield

    def save_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        from recbole_diffurec.host.checkpoints import contents
        from recbole_diffurec.runtime import checkpoint

        if self.config["single_spec"] or self.config["local_rank"] == 0:
            checkpoint.save(kwargs.get("saved_model_file", self.saved_model_file), contents(self, epoch))

    module.Trainer._save_checkpoint = save_checkpoint
