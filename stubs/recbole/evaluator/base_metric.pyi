from typing import Any

from recbole.config import Config

class AbstractMetric:
    smaller: bool
    metric_need: list[str]
    metric_type: Any
    decimal_place: int
    def __init__(self, config: Config) -> None: ...
    def calculate_metric(self, dataobject: Any) -> dict[str, float]: ...
