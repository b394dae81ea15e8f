"""Models given to others: as a folder of a safetensors file and a card, and on the Hugging Face Hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.inference.card import LIBRARY, card
from recbole_diffurec.inference.results import Results
from recbole_diffurec.runtime import files, shared
from recbole_diffurec.runtime.checkpoint import RunCheckpoint
from recbole_diffurec.runtime.shared import WEIGHTS, About
from recbole_diffurec.version import __version__

__all__ = ["Shareable", "about_model", "hub_library"]

# As the Hub knows them. Its library asks for a configuration before anything else, and counts downloads by it.
CARD, CONFIG = "README.md", "config.json"
Self = TypeVar("Self", bound="Shareable")


def about_model(state: RunCheckpoint, config: RunConfig, parameters: Iterable[str]) -> About:
    """What a shared file says of an opened model.

    Parameters
    ----------
    state : RunCheckpoint
        As it was opened.
    config : RunConfig
        With what was changed for inference.
    parameters : iterable of str
        Names of the parameters that the user changed.
    """
    changed = {name: value for name, value in config.plain().items() if name in set(parameters)}
    # Folders and devices of this machine are nobody else's.
    values = {name: value for name, value in {**state["config"], **changed}.items() if name not in NOT_IN_RESULT}
    return {
        "format": shared.FORMAT,
        "version": __version__,
        "model": state["model"],
        "dataset": state["dataset"],
        "config": values,
        "items": state["id_tokens"]["items"],
        "popularity": state["popularity"].tolist(),
        "item_columns": state.get("item_columns", {}),
        "n_users": state["n_users"],
        "data": state.get("data", {}),
        "epoch": state["epoch"],
        "valid_result": state["valid_result"],
    }


class Shareable:
    """What a ``Recommender`` does for others to have it."""

    # Of the class that this one is mixed into.
    network: Any
    config: RunConfig
    load: Callable[..., Any]
    # What its file said of it; None where it was made of parts.
    about_model: About | None = None

    def as_safetensors(self) -> bytes:
        """The bytes of a safetensors file that ``load`` opens.

        Raises
        ------
        UserError
            The model keeps what such a file has no place for, or safetensors is not installed.
        """
        about = self._about()
        for name, value in about["config"].items():
            if json.loads(json.dumps(value)) != value:  # a mapping with numbers as its keys
                raise UserError(f"parameter '{name}' is {value!r}, which a safetensors file cannot hold: leave it out")
        if self.network.other_parameter():
            names = ", ".join(self.network.other_parameter())
            raise UserError(f"model '{about['model']}' keeps {names} beside its weights: share the checkpoint itself")
        return shared.content(about, self.network.state_dict())

    def card(self, results: Iterable[str | Path] = (), name: str = WEIGHTS) -> str:
        """The model's card, in Markdown.

        Parameters
        ----------
        results : iterable of (str or Path), optional
            Files that ``run``, ``evaluate`` and ``audit`` wrote with ``result_file``, whose figures it is to have.
        name : str, optional
            Of its file, or what it is called on the Hub, ``ORGANISATION/NAME``.

        Raises
        ------
        UserError
            A file is no result, or one of another model.
        """
        about = self._about()
        n_parameters = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return card(about, self.config, n_parameters, Results.read(results, about), name)

    def save_pretrained(self, folder: str | Path, results: Iterable[str | Path] = (), name: str = WEIGHTS) -> None:
        """Write the model into a folder: ``model.safetensors``, which names no user, its card and a ``config.json``.

        Parameters
        ----------
        folder : str or Path
            Made when missing.
        results : iterable of (str or Path), optional
            As for ``card``.
        name : str, optional
            As for ``card``.

        Raises
        ------
        UserError
            As ``card``; or the model cannot be written so, or the files cannot.
        """
        told, weights = self.card(results, name), self.as_safetensors()
        files.make_folder(str(folder), "folder")
        with files.atomic_write(Path(folder) / WEIGHTS) as file:
            file.write(weights)
        files.write_text(Path(folder) / CARD, told)
        what = {name: self._about()[name] for name in ("model", "dataset")}
        files.write_text(Path(folder) / CONFIG, json.dumps({"library_name": LIBRARY, **what}, indent=1))

    def push_to_hub(self, repo_id: str, results: Iterable[str | Path] = (), **options: Any) -> str:
        """Put the model and its card on the Hugging Face Hub.

        Parameters
        ----------
        repo_id : str
            ``ORGANISATION/NAME``; made when missing.
        results : iterable of (str or Path), optional
            As for ``card``.
        **options : object
            Of ``huggingface_hub.ModelHubMixin.push_to_hub``: ``private``, ``token``, ``commit_message``, ``branch``,
            ``create_pr``.

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        UserError
            As ``save_pretrained``; huggingface_hub is not installed, the name is none, or the Hub does not take it.
        """
        hub = hub_library()
        hub.check_name(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, results, repo_id)
            return hub.push(Path(folder), repo_id, options)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        name: str | Path,
        /,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **parameters: Any,
    ) -> Self:
        """Open a model of the Hugging Face Hub, or of a folder that ``save_pretrained`` wrote.

        Nothing but ``model.safetensors`` is made use of, and nothing is executed.

        Parameters
        ----------
        name : str or Path
            ``ORGANISATION/NAME``, or the folder.
        revision, token, cache_dir, force_download, local_files_only : str or bool or Path, optional
            Of the Hub, as ``huggingface_hub.ModelHubMixin.from_pretrained`` takes them.
        **parameters : object
            As for ``load``.

        Raises
        ------
        UserError
            As ``load``; huggingface_hub is not installed, or there is no such model.
        """
        if Path(name).is_dir():
            return cast(Self, cls.load(Path(name) / WEIGHTS, **parameters))
        if Path(name).exists():
            raise UserError(f"'{name}' is a file: open it with Recommender.load, or give its folder")
        hub = hub_library()
        hub.check_name(str(name))
        options: dict[str, Any] = {"force_download": force_download, "local_files_only": local_files_only}
        file = hub.fetch(str(name), {"revision": revision, "token": token, "cache_dir": cache_dir, **options})
        return cast(Self, cls.load(file, **parameters))

    def _about(self) -> About:
        if self.about_model is None:
            raise UserError("a Recommender that is made of parts has no file to share: get it by Recommender.load")
        return self.about_model


def hub_library() -> Any:
    """``inference.hub``, whose import takes a while and wants a package that not everybody has."""
    try:
        from recbole_diffurec.inference import hub
    except ImportError as error:
        raise cannot_import("the Hugging Face Hub", error, "[hub]") from None
    return hub
