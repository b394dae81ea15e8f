from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.utils import InputType, ModelType
from torch import Tensor, nn

class AbstractRecommender(nn.Module):
    input_type: InputType
    device: torch.device
    def __init__(self) -> None: ...
    # The sum of several losses where a model has parts.
    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, ...]: ...
    def predict(self, interaction: Interaction) -> Tensor: ...
    def full_sort_predict(self, interaction: Interaction) -> Tensor: ...

class AutoEncoderMixin:
    history_item_id: Tensor
    history_item_value: Tensor
    def build_histroy_items(self, dataset: Any) -> None: ...

class SequentialRecommender(AbstractRecommender):
    type: ModelType  # type: ignore[assignment]  # hides the method of nn.Module that casts
    USER_ID: str
    ITEM_ID: str
    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    POS_ITEM_ID: str
    NEG_ITEM_ID: str
    max_seq_length: int
    n_items: int
    # Of the data set only the number of items is asked for.
    def __init__(self, config: Config, dataset: Any) -> None: ...
