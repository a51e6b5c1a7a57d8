"""Inputs that anybody can make again: from a named generator and a seed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fxcompress.compare.sketch import digest
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs

__all__ = ["DATA", "GENERATOR", "chosen", "digest_of", "seeded"]

GENERATOR = "numpy.random.RandomState"
"""Its stream is frozen, and it is the same on every machine."""

DATA = "data"
"""The name of the generator where the user gave the inputs."""


def chosen(example: Inputs, seed: int, count: int, data: Iterable[Inputs] | None) -> tuple[tuple[Inputs, ...], str]:
    """The first ``count`` of ``data``, or seeded inputs where there is no data; and the name of what made them.

    Raises:
        InputError: ``data`` is empty.
    """
    if data is None:
        return seeded(example, seed, max(1, count)), GENERATOR
    given = tuple(islice(data, max(1, count)))
    if not given:
        raise InputError("there is no data to run the model on", hint="give a few inputs, each as example_inputs, or leave data out")
    return given, DATA


def seeded(example: Inputs, seed: int, count: int) -> tuple[Inputs, ...]:
    """``count`` inputs of the structure, shapes and dtypes of ``example``.

    Floating-point numbers are standard normal, integers uniform within the range of the example's values, booleans fair coins. What is
    no tensor stays.
    """
    random = np.random.RandomState(seed)
    return tuple(example.map_tensors(lambda t: _like(t, random)) for _ in range(count))


def _like(example: Tensor, random: np.random.RandomState) -> Tensor:
    shape = tuple(example.shape)
    if example.is_complex():
        values = random.standard_normal((*shape, 2))
        made = torch.view_as_complex(torch.from_numpy(values))
    elif example.is_floating_point():
        made = torch.from_numpy(np.asarray(random.standard_normal(shape)))
    elif example.dtype is torch.bool:
        made = torch.from_numpy(np.asarray(random.randint(0, 2, shape))) > 0
    else:
        low, high = (int(example.min()), int(example.max())) if example.numel() and not example.is_meta else (0, 0)
        made = torch.from_numpy(np.asarray(random.randint(low, high + 1, shape, dtype=np.int64))) if high < 2**63 - 1 else example.cpu()
    return made.to(dtype=example.dtype, device=example.device)


def digest_of(inputs: tuple[Inputs, ...]) -> str:
    """16 hex digits over all tensors of ``inputs``."""
    return digest([t for one in inputs for t in one.tensors()])
