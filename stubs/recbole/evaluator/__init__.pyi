from typing import Any

metric_types: dict[str, Any]
