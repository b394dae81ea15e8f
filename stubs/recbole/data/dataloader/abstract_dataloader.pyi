from logging import Logger
from typing import Any

import torch
from recbole.config import Config

class AbstractDataLoader(torch.utils.data.DataLoader[Any]):
    config: Config
    logger: Logger
    sample_size: int
    batch_sampler: Any
    shuffle: bool
    step: int
    transform: Any
    _dataset: Any
    _sampler: Any
    _batch_size: int
    def __init__(self, config: Config, dataset: Any, sampler: Any, shuffle: bool = False) -> None: ...
    def update_config(self, config: Config) -> None: ...

class NegSampleDataLoader(AbstractDataLoader):
    def __init__(self, config: Config, dataset: Any, sampler: Any, shuffle: bool = True) -> None: ...
    neg_sample_args: dict[str, Any]
    times: int
    uid_field: str
    iid_field: str
    neg_sample_num: int
    sampling_func: Any
    def _neg_sampling(self, inter_feat: Any) -> Any: ...
