"""Tables in the place of data sets: made data sets of before a run begins, once for all runs on the same table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_diffurec.config import layers
from recbole_diffurec.config.rules import take_options
from recbole_diffurec.data.formats import is_table
from recbole_diffurec.data.prepare import TableOptions, prepared
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import distributed

logger = logging.getLogger("recbole_diffurec")

# Options of a table beside those of what is read of it.
_ABOUT_SET = ("name", "overwrite")


def data_set_of(
    dataset: str | None,
    parameters: dict[str, Any],
    config_files: Sequence[str | Path] = (),
    experiment: str | None = None,
    data: Any = None,
) -> str | None:
    """The name of the data set to run on: ``dataset``, or where it is the path of a table, the one made of it.

    Parameters
    ----------
    dataset : str or None
        A name or a path.
    parameters : dict of str to object
        Of the run; what is meant for the table is taken out.
    config_files, experiment : Sequence of (str or Path) and str
        Where ``data_path`` may be set too.
    data : DataFrame, str or Path, optional
        A table in the place of ``dataset``.

    Raises
    ------
    UserError
        The table cannot be used, both are given, or options of a table without one.
    """
    if data is not None and dataset is not None:
        raise UserError(f"dataset '{dataset}' and data are both given: leave one out")
    table = dataset if data is None and dataset is not None and is_table(dataset) else data
    names = (TableOptions.names() - {"encoding"}) | set(_ABOUT_SET)  # which atomic files have too
    if table is None:
        for name in sorted(names & parameters.keys()):
            raise UserError(
                f"'{name}' says how a table is read, and dataset '{dataset or 'by default'}' is none: give the path of "
                f"a .csv, .tsv, .jsonl or .parquet file as --dataset"
            )
        return dataset
    data_path = layers.settings(experiment, config_files, parameters, many_runs=True).get("data_path")
    name, overwrite = (parameters.pop(option, None) for option in _ABOUT_SET)
    options = take_options(TableOptions, parameters)
    data_path = data_path or layers.shipped_defaults("overall")["data_path"]
    folder, made = prepared(table, name, data_path, bool(overwrite), options, make=distributed.world_size() == 1)
    if made is None:
        logger.info("data set '%s' was made of this table before", folder.name)
    else:
        logger.info("%s", made.describe())
    return folder.name
