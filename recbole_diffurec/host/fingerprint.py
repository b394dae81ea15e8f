"""What a data set holds, in a few words, so that a run goes on with the data it began with and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Counts, and a digest of each column and of the original ids.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
        Filtered and ordered, before it is split.

    Returns
    -------
    dict
        ``users``, ``items`` and ``interactions``, how many there are without padding; ``digests`` by what they are of.
    """
    ids = {"set of user ids": dataset.uid_field, "set of item ids": dataset.iid_field}
    digests = {what: _digest(dataset.field2id_token[field].astype(object)) for what, field in ids.items()}
    for name in dataset.feat_name_list:
        frame = getattr(dataset, name)
        for column in frame.columns:
            digests[f"column {column} of the {name.removesuffix('_feat')} file"] = _digest(frame[column].to_numpy())
    return {
        "users": int(dataset.user_num) - 1,
        "items": int(dataset.item_num) - 1,
        "interactions": int(dataset.inter_num),
        "digests": digests,
    }


def _digest(values: np.ndarray) -> str:
    total = hashlib.sha256()
    if values.dtype == object:
        for value in values:
            part = str(value).encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
            total.update(len(part).to_bytes(8, "little") + part)
    else:
        # Integers and floats of any width, so that a system's own does not count.
        wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        total.update(np.ascontiguousarray(wide).tobytes())
    return total.hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two fingerprints differ in, such as ``99 interactions, not 98``; nothing where they are equal."""
    counts = [
        f"{now[name]:,} {name}, not {before[name]:,}"
        for name in ("users", "items", "interactions")
        if isinstance(before.get(name), int) and before[name] != now[name]
    ]
    digests = before.get("digests")
    if counts or not isinstance(digests, dict):
        return counts
    names = [*now["digests"], *(name for name in digests if name not in now["digests"])]
    return [f"another {name}" for name in names if digests.get(name) != now["digests"].get(name)]
