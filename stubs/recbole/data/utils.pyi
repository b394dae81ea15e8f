from typing import Any

from recbole.config import Config

def data_preparation(config: Config, dataset: Any) -> tuple[Any, Any, Any]: ...
