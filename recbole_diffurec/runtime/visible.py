"""What is seen of work that Python code asks for: its lines, and progress bars where there is a place to draw them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from recbole_diffurec.runtime import ranks


@contextlib.contextmanager
def lines() -> Iterator[None]:
    """Show our messages on standard error where nobody has said where logs go: in a notebook, or in a plain script.

    Python shows warnings alone, and not even these once a run has its log file. A program that configures ``logging``
    decides for itself, as the command line does.
    """
    logger = logging.getLogger("recbole_diffurec")
    if logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO if ranks.rank() == 0 else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel, whose output is a page."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def bars_are_drawn() -> bool:
    """Whether a progress bar is drawn in place: on a terminal, and in a notebook that has widgets; not into a file."""
    if ranks.rank() > 0:
        return False
    return importlib.util.find_spec("ipywidgets") is not None if in_notebook() else sys.stderr.isatty()


def progress_bar(show: bool, **options: Any) -> tqdm:
    """A bar of tqdm that leaves nothing behind, and draws nothing where it could not do so in place.

    Parameters
    ----------
    show : bool
        Whether a bar is wanted.
    **options : object
        tqdm's own.
    """
    kind: type[tqdm] = tqdm
    if in_notebook():
        from tqdm.notebook import tqdm_notebook

        kind = tqdm_notebook
    return kind(**options, leave=False, disable=not (show and bars_are_drawn()))
