"""Where something was measured."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

from fxcompress.report.model import Environment
from fxcompress.targets.machine import cpu_name


def environment(device: str = "cpu") -> Environment:
    """The machine that this process runs on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Environment(name, cpu_name(), torch.get_num_threads(), str(torch.__version__), _own_version())


def _own_version() -> str:
    try:
        return version("fxcompress")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return ""
