"""Results of a model in files: of its run, its evaluation or its audit, as cards of models quote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pydantic
from typing_extensions import NotRequired, TypedDict

from recbole_diffurec.config.rules import meaning
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime.checkpoint import SCHEMA, adapter
from recbole_diffurec.runtime.shared import About

__all__ = ["Results"]

_LARGEST = 2**26  # bytes; results have kilobytes


@pydantic.with_config(SCHEMA)
class Line(TypedDict):
    """One form of the model in an audit."""

    label: str
    not_applicable: NotRequired[str]
    hit: NotRequired[float]
    ndcg: NotRequired[float]


@pydantic.with_config(SCHEMA)
class Verdict(TypedDict):
    """What an audit comes to."""

    sentence: str


@pydantic.with_config(SCHEMA)
class Result(TypedDict):
    """What a run, an evaluation or an audit writes, as far as it is quoted."""

    model: str
    dataset: str
    config: dict[str, Any]
    versions: dict[str, str]
    n_users: int
    n_items: int
    n_interactions: int
    best_epoch: NotRequired[int]
    best_valid_result: NotRequired[Optional[dict[str, float]]]
    test_result: NotRequired[dict[str, float]]
    checkpoints: NotRequired[list[str]]
    verdict: NotRequired[Verdict]
    lines: NotRequired[list[Line]]
    k: NotRequired[int]
    users: NotRequired[int]


@dataclass(frozen=True)
class Results:
    """What is known of one model.

    Attributes
    ----------
    test : Mapping of str to float
        Figures on the test part; empty where there are none.
    audit : Mapping or None
        The result of an audit.
    versions : Mapping of str to str
        Of the packages that measured.
    """

    test: Mapping[str, float] = field(default_factory=dict)
    audit: Optional[Mapping[str, Any]] = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, paths: Iterable[str | Path], about: About) -> Results:
        """Read results, which must be of this very model.

        Parameters
        ----------
        paths : iterable of (str or Path)
            Files that ``run``, ``evaluate`` or ``audit`` wrote with ``result_file``; a later one is stronger.
        about : About
            What the model's file says.

        Raises
        ------
        UserError
            A file cannot be read, is no result, or is of another model, other data or other parameters.
        """
        test: Mapping[str, float] = {}
        audit: Optional[Mapping[str, Any]] = None
        versions: Mapping[str, str] = {}
        for path in paths:
            found = _read(path)
            _check(path, found, about)
            versions = found["versions"]
            if "verdict" in found:
                audit = found
            else:
                test = found.get("test_result", {})
        return cls(test, audit, versions)


def _read(path: str | Path) -> Result:
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise UserError(f"result '{path}' has more than {_LARGEST:,} bytes, which no result has: check the path")
        found = adapter(Result).validate_python(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"result '{path}' cannot be read ({error.strerror or error}): check the path") from None
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(
            f"'{path}' is no result: give a file that 'recbole-diffurec run', 'evaluate' or 'audit' wrote with "
            f"--result_file"
        ) from None
    audited = {"lines", "k", "users"}
    if ("verdict" in found and not audited <= found.keys()) or ("verdict" not in found and "test_result" not in found):
        raise UserError(f"'{path}' has neither figures of a test nor an audit: give a result that has")
    return found


def _check(path: str | Path, found: Result, about: About) -> None:
    """Refuse a result of another model, so that a card says nothing that was not measured of its own."""
    other = []
    if (found["model"], found["dataset"]) != (about["model"], about["dataset"]):
        other.append(f"{found['model']} on {found['dataset']}")
    if len(found.get("checkpoints", ())) > 1:
        other.append("several checkpoints as one")
    counts = {name: about["data"].get(name) for name in ("users", "items", "interactions")}
    other += [f"{found[f'n_{name}']:,} {name}" for name, n in counts.items() if n not in (None, found[f"n_{name}"])]  # type: ignore[literal-required]
    if found.get("best_epoch", about["epoch"]) != about["epoch"]:
        other.append(f"epoch {found['best_epoch'] + 1}")
    known = found.get("best_valid_result")
    if known and about["valid_result"] and known != about["valid_result"]:
        other.append("other figures of validation")
    one, own = meaning(found["config"]), meaning(about["config"])
    other += [f"other {name}" for name in sorted(one.keys() | own.keys()) if one.get(name) != own.get(name)]
    if other:
        raise UserError(
            f"result '{path}' is not of this model ({'; '.join(other[:3])}): give one of its own run, or leave it out"
        )
