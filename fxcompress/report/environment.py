"""Where something was measured."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fxcompress.report.model import Environment


def environment(device: str = "cpu") -> Environment:
    """The machine that this process runs on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Environment(name, cpu_name(), torch.get_num_threads(), str(torch.__version__), _own_version())


def cpu_name() -> str:
    """The processor's name as the system gives it; its architecture where the system gives none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _own_version() -> str:
    try:
        return version("fxcompress")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return ""
