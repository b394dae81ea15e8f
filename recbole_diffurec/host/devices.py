"""What is said of devices that are asked for and are not there, or not used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from recbole_diffurec.host.config import gpu_numbers, once
from recbole_diffurec.runtime import distributed

__all__ = ["say_of_gpus"]


def say_of_gpus(given: Mapping[str, Any]) -> None:
    """Warn where GPUs are asked for and there is none, or where one process is given several and uses the first.

    Parameters
    ----------
    given : Mapping of str to object
        The parameters that the user set; the default GPU is asked for by nobody.
    """
    devices = gpu_numbers({"gpu_id": given.get("gpu_id"), "use_gpu": given.get("use_gpu", True)})
    if len(devices) > 1 and distributed.world_size() == 1 and torch.cuda.is_available():
        named = ", ".join(map(str, devices))
        once(
            logging.WARNING,
            f"gpu_id names the GPUs {named}, and one process uses GPU {devices[0]}: 'recbole-diffurec run "
            f"--nproc={len(devices)}' trains on all",
        )
    if devices and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "PyTorch sees none" if built else "this PyTorch is built without GPUs"
        once(
            logging.WARNING,
            f"gpu_id is {','.join(map(str, devices))}, but {reason}: the CPU is used (--gpu_id= asks for it)",
        )
