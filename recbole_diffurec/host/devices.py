"""What is said of devices that are asked for and are not there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from recbole_diffurec.host.config import gpu_numbers, once

__all__ = ["say_without_gpu"]


def say_without_gpu(given: Mapping[str, Any]) -> None:
    """Warn where GPUs are asked for and there is none, so that the processors do the work.

    Parameters
    ----------
    given : Mapping of str to object
        The parameters that the user set; the default GPU is asked for by nobody.
    """
    devices = gpu_numbers({"gpu_id": given.get("gpu_id"), "use_gpu": given.get("use_gpu", True)})
    if devices and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "PyTorch sees none" if built else "this PyTorch is built without GPUs"
        once(
            logging.WARNING,
            f"gpu_id is {','.join(map(str, devices))}, but {reason}: the CPU is used (--gpu_id= asks for it)",
        )
