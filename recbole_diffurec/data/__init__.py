"""The only caller of ``recbole.data``: sources, order in time, prefixes without copies."""

from __future__ import annotations

from typing import Any

import recbole.data.dataset as host
from recbole.utils import ModelType

from recbole_diffurec.data.dataset import Chronological, SequenceDataset

__all__ = ["Chronological", "SequenceDataset", "dataset_class"]


def dataset_class(config: Any) -> type:
    """The data set class for a configuration: RecBole's choice, ordered in time, and without copies where it can be."""
    default = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
    chosen = getattr(host, f"{config['model']}Dataset", None)
    chosen = chosen or getattr(host, default.get(config["MODEL_TYPE"], "Dataset"))
    if issubclass(chosen, Chronological):
        return chosen
    ours = {host.SequentialDataset: SequenceDataset, host.Dataset: Chronological}
    return ours.get(chosen) or type(chosen.__name__, (Chronological, chosen), {})
