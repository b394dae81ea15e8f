"""The folder of a search: what it was asked for, and whether Ray Tune may open its own files in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files


def same_search(path: Path, asked: Mapping[str, Any], resume: bool) -> None:
    """Keep what was asked for; a search is resumed only as what it was."""
    text = json.dumps(asked, indent=1, sort_keys=True, default=str)
    if resume and path.is_file():
        before, now = _asked_before(path), json.loads(text)
        changed = [key for key in now if key != "fixed" and before.get(key) != now[key]]
        names = before["fixed"].keys() | now["fixed"].keys()
        changed += sorted(n for n in names - NOT_IN_RESULT if before["fixed"].get(n) != now["fixed"].get(n))
        if changed:
            raise UserError(f"the search in '{path.parent}' has another {', '.join(changed)}: resume it as it was")
    files.write_text(path, text)


def refuse_foreign(folder: Path) -> None:
    """Refuse files that somebody else could have written: Ray Tune unpickles its own, which runs what they say."""
    if not hasattr(os, "geteuid"):
        return
    trusted = {0, os.geteuid()}
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            found = os.lstat(path)
            writable = found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode)
            if found.st_uid not in trusted or writable:
                raise UserError(
                    f"'{path}' belongs to another user, or every user may write it, and resuming a search runs code "
                    f"that such files hold: resume your own searches, with files that you alone write (chmod o-w)"
                )


def _asked_before(path: Path) -> dict[str, Any]:
    """What a search was asked for, as its folder keeps it."""
    try:
        before = files.read_json(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{path}' cannot be read ({reason}): start the search again in another folder") from None
    if not isinstance(before, dict) or not isinstance(before.get("fixed"), dict):
        raise UserError(f"'{path}' does not say what the search was: start it again in another folder")
    return before
