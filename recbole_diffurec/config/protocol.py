"""How data is split and evaluated: RecBole's ``eval_args``, understood and checked before any data is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_diffurec.config.rules import nearest
from recbole_diffurec.errors import UserError

PARTS = ("training", "validation", "test")

# The parts that leaving out single interactions makes.
_LEAVE_OUT = {"valid_and_test": PARTS, "valid_only": PARTS[:2], "test_only": (PARTS[0], PARTS[2])}
_KEYS = ("split", "group_by", "order", "mode")
_MODE = re.compile(r"full|labeled|(?:uni|pop)[1-9]\d*")


@dataclass(frozen=True)
class Protocol:
    """What ``eval_args`` asks for.

    Parameters
    ----------
    parts : tuple of str
        Those of ``PARTS`` that the split makes.
    leaves_out : bool
        Whether the parts after training hold one interaction of each user, or else a share of all.
    by_user : bool
        Whether each user's interactions are split, or all together.
    in_order : bool
        Whether they are split in order of time, or in random order.
    modes : Mapping of str to str
        What is ranked in ``valid`` and in ``test``: ``full``, ``uniN``, ``popN`` or ``labeled``.
    """

    parts: tuple[str, ...]
    leaves_out: bool
    by_user: bool
    in_order: bool
    modes: Mapping[str, str]

    @classmethod
    def of(cls, eval_args: Any) -> Protocol:
        """Understand ``eval_args`` with all its keys.

        Raises
        ------
        UserError
            It is no such mapping, or asks for what does not exist.
        """
        if not isinstance(eval_args, Mapping):
            raise UserError(f"eval_args must be a mapping of {', '.join(_KEYS)}, got {eval_args!r}")
        for key in eval_args:
            if key not in _KEYS:
                hint = nearest(str(key), _KEYS) or f" choose from {', '.join(_KEYS)}"
                raise UserError(f"unknown key '{key}' in eval_args:{hint}")
        parts, leaves_out = _parts(eval_args.get("split"))
        group, order = eval_args.get("group_by"), eval_args.get("order")
        if group not in ("user", "none", None):
            raise UserError(f"group_by in eval_args must be user or none, got {group!r}")
        if order not in ("TO", "RO"):
            raise UserError(f"order in eval_args must be TO (by time) or RO (random), got {order!r}")
        return cls(parts, leaves_out, leaves_out or group == "user", order == "TO", _modes(eval_args.get("mode")))

    @property
    def labeled(self) -> bool:
        """Whether single interactions are rated, and nothing is ranked."""
        return "labeled" in self.modes.values()

    @property
    def is_leave_one_out(self) -> bool:
        """Whether each user's last interaction tests and the one before validates, among all items."""
        ranks_all = set(self.modes.values()) == {"full"}
        return self.leaves_out and self.in_order and self.parts == PARTS and ranks_all


def _parts(split: Any) -> tuple[tuple[str, ...], bool]:
    form = "write {LS: valid_and_test}, or {RS: [0.8, 0.1, 0.1]}"
    if not isinstance(split, Mapping) or len(split) != 1 or next(iter(split)) not in ("LS", "RS"):
        raise UserError(f"split in eval_args must have one of the keys LS and RS, got {split!r}: {form}")
    (kind, how), *_ = split.items()
    if kind == "LS":
        if not isinstance(how, str) or how not in _LEAVE_OUT:
            raise UserError(f"LS in eval_args must be one of {', '.join(_LEAVE_OUT)}, got {how!r}: {form}")
        return _LEAVE_OUT[how], True
    numbers = isinstance(how, (list, tuple)) and all(
        isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share < math.inf for share in how
    )
    if not numbers or len(how) != len(PARTS):
        raise UserError(
            f"RS in eval_args must be the shares of training, validation and test, got {how!r}: write three numbers, "
            f"such as [0.8, 0, 0.2] for no validation"
        )
    parts = tuple(part for part, share in zip(PARTS, how) if share)
    if PARTS[0] not in parts:
        raise UserError(f"RS in eval_args is {how!r}, which leaves nothing to train on: make its first number larger")
    return parts, False


def _modes(mode: Any) -> dict[str, str]:
    modes = dict(mode) if isinstance(mode, Mapping) else {"valid": mode, "test": mode}
    if not modes or not modes.keys() <= {"valid", "test"}:
        raise UserError(f"mode in eval_args must be for valid and test, got {mode!r}: write {{valid: full}} or so")
    other = next(iter(modes.values()))
    modes = {"valid": modes.get("valid", other), "test": modes.get("test", other)}
    for value in modes.values():
        if not isinstance(value, str) or not _MODE.fullmatch(value):
            raise UserError(
                f"mode in eval_args must be full, uni100 or pop100 (or another number) or labeled, got {value!r}"
            )
    if "labeled" in modes.values() and len(set(modes.values())) > 1:
        raise UserError(f"mode in eval_args is {mode!r}: labeled data cannot be ranked beside; give one mode for both")
    return modes
