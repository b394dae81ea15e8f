"""A checkpoint with everything that was around it: what RecBole's ``load_data_and_model`` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_diffurec.host import compat
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import dataset_class
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.host.models import WITHOUT_FIRST_WEIGHTS
from recbole_diffurec.models.cooccurrence import FROM_CHECKPOINT
from recbole_diffurec.runtime import files
from recbole_diffurec.runtime.shared import open_model
from recbole_diffurec.training.evaluate import check_same_data
from recbole_diffurec.training.prepare import PreparedData
from recbole_diffurec.training.report import explained
from recbole_diffurec.training.weights import load_weights, room_for


@files.nameable()
def load_data_and_model(model_file: str | Path) -> tuple[Any, ...]:
    """The configuration, the model with its weights, its data and their loaders.

    Parameters
    ----------
    model_file : str or Path
        A checkpoint that ``run`` wrote, or RecBole's ``run_recbole`` with this package imported.

    Returns
    -------
    tuple
        config, model, dataset, training data, validation data, test data.

    Raises
    ------
    UserError
        The file is no such checkpoint, or the data is not what the model was trained on.
    """
    state = open_model(model_file)
    config = RunConfig(state["model"], state["dataset"], state["config"])
    with compat.quiet():
        init_seed(config["seed"], config["reproducibility"])
        with explained(f"preparing data set '{state['dataset']}'"):
            dataset = dataset_class(config)(config)
            data = PreparedData(config, dataset)
        check_same_data(data, state, model_file)
        init_seed(config["seed"], config["reproducibility"])
        values = data.config.with_values(**FROM_CHECKPOINT, **WITHOUT_FIRST_WEIGHTS.get(state["model"], {}))
        with explained(f"building model '{state['model']}'"), room_for(state, model_file):
            model = config.model_class(values, dataset_of(data.loaders[0]))
        model = model.to(config["device"])
    load_weights(model, state, model_file)
    return data.config, model, dataset, *data.loaders
