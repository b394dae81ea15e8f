from typing import Any

from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader, NegSampleDataLoader

class NegSampleEvalDataLoader(NegSampleDataLoader):
    uid_list: Any
    uid2index: Any
    uid2items_num: Any
    def __init__(self, config: Config, dataset: Any, sampler: Any, shuffle: bool = False) -> None: ...
    def collate_fn(self, index: Any) -> Any: ...

class FullSortEvalDataLoader(AbstractDataLoader):
    def collate_fn(self, index: Any) -> Any: ...
