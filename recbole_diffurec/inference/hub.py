"""The Hugging Face Hub, by the mixin of its own library."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime.shared import WEIGHTS

__all__ = ["check_name", "fetch", "push"]

Found = TypeVar("Found")


class HubFolder(ModelHubMixin):
    """The files of a shared model in a folder, which the mixin takes to the Hub and from there.

    Parameters
    ----------
    folder : Path
        Where they are.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _save_pretrained(self, save_directory: Path) -> None:
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **of_config: Any,
    ) -> HubFolder:
        """The mixin's hook. What it reads in a ``config.json`` (``of_config``) is nothing that this model asks for."""
        options: dict[str, Any] = {"force_download": force_download, "local_files_only": local_files_only}
        path = hf_hub_download(model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, token=token, **options)
        return cls(Path(path).parent)


def check_name(name: str) -> None:
    """Raise ``UserError`` unless models on the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        name_is_wrong = True
    else:
        name_is_wrong = name.count("/") != 1
    if name_is_wrong:
        raise UserError(f"'{name}' is no folder and no name of a model on the Hub: give ORGANISATION/NAME")


def push(folder: Path, name: str, options: Mapping[str, Any]) -> str:
    """Put a folder's files on the Hub; the address of the commit."""
    return _told(name, lambda: str(HubFolder(folder).push_to_hub(name, **options)))


def fetch(name: str, options: Mapping[str, Any]) -> Path:
    """The file of a model of the Hub, downloaded or from the cache."""
    return _told(name, lambda: HubFolder.from_pretrained(name, **options)).folder / WEIGHTS


def _told(name: str, ask: Callable[[], Found]) -> Found:
    """What the Hub gives; what goes wrong with it in one sentence."""
    try:
        return ask()
    except RepositoryNotFoundError:
        reason = "there is no such model, or it is private: check the name, or log in with 'hf auth login'"
    except LocalEntryNotFoundError as error:
        reason = f"it is not in the cache, and the Hub was not reached ({_first_line(error)}): check the connection"
    except EntryNotFoundError:
        reason = f"it has no {WEIGHTS}: give one that push_to_hub wrote"
    except HfHubHTTPError as error:
        reason = f"{_first_line(error)}: try again, or log in with 'hf auth login'"
    except TypeError as error:  # an option that the mixin does not have
        reason = f"{_first_line(error)}: leave it out"
    except Exception as error:  # by the library's version: those of its network, and of a config.json that is none
        what = f"{type(error).__name__}: {_first_line(error)}"
        reason = f"the Hub cannot be reached or answers otherwise than it should ({what}): check the connection"
    raise UserError(f"model '{name}': {reason}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
