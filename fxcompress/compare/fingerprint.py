"""What a graph computes on seeded inputs, as a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from fxcompress.capture.check import kept_state
from fxcompress.compare.ports import leaves
from fxcompress.compare.schema import Numbers, OutputPrint, Sketch
from fxcompress.compare.seeded import digest_of
from fxcompress.compare.sketch import sketch
from fxcompress.errors import FxCompressError, InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams

__all__ = ["fingerprint", "numbers_of", "refusal", "tensors_in", "undisturbed"]

SAMPLE = 64
"""How many values of an output are kept."""

OUTPUT_BUCKETS = 32
"""Outputs are few, and what limits are about: their sketches may be finer than those of other values."""

Grids = Mapping[Node, QParams]


def fingerprint(
    module: GraphModule, inputs: tuple[Inputs, ...], generator: str, seed: int, grids: Grids
) -> tuple[dict[Node, Sketch], Numbers]:
    """Run ``module`` in the mode it is in, on one thread, node by node; it is left as it was, and so are inputs and random state.

    Args:
        grids: of the nodes whose values are quantized. Their integers count as the numbers that they stand for, so that a quantized network
            can be compared with a float one.

    Returns:
        Prints of the outputs of all nodes on the first inputs, and what comes out on all of them.

    Raises:
        InputError: it does not run on the inputs.
    """
    prints: dict[Node, Sketch] = {}
    results: list[list[Tensor]] = []
    for place, one in enumerate(inputs):
        runner = _Runner(module, grids, prints if place == 0 else None)
        with undisturbed(module, one), refusal():
            runner.run(*one.clone().bind(module.graph).values())
        results.append(runner.result)
    return prints, numbers_of(results, inputs, generator, seed)


class _Runner(fx.Interpreter):
    """Runs a graph; sketches every value as soon as it is there, because the next node may write over it."""

    def __init__(self, module: GraphModule, grids: Grids, prints: dict[Node, Sketch] | None) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.grids, self.prints = grids, prints
        self.result: list[Tensor] = []

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            self.result = self._result(n)
        value = super().run_node(n)
        tensors = tensors_in(value) if self.prints is not None and n.op != "output" else []
        if self.prints is not None and tensors:
            self.prints[n] = sketch(*(_real(t, self.grids.get(n)) for t in tensors))
        return value

    def _result(self, output: Node) -> list[Tensor]:
        """The tensors of the output as real numbers."""
        given = fx.node.map_arg(output.args[0], lambda n: _mapped(self.env[n], self.grids.get(n)))
        return tensors_in(given)


def _mapped(value: Any, grid: QParams | None) -> Any:
    return _real(value, grid) if isinstance(value, Tensor) else value


def _real(value: Tensor, grid: QParams | None) -> Tensor:
    return grid.dequantize(value) if grid is not None and value.dtype is torch.uint8 else value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of an output, in its order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def numbers_of(results: list[list[Tensor]], inputs: tuple[Inputs, ...], generator: str, seed: int) -> Numbers:
    """``results``: the tensors of the output on each of ``inputs``; those that not all of them have are left out."""
    count = min(len(result) for result in results)
    outputs = tuple(_output([result[place] for result in results]) for place in range(count))
    return Numbers(generator, seed, digest_of(inputs), len(inputs), outputs)


def _output(values: list[Tensor]) -> OutputPrint:
    """Of one output on all inputs."""
    numbers = torch.cat([_flat(value) for value in values])
    step = max(1, math.ceil(numbers.numel() / SAMPLE))
    classes = [c for value in values for c in value.argmax(1).tolist()] if all(map(_has_classes, values)) else []
    return OutputPrint(sketch(numbers, buckets=OUTPUT_BUCKETS), step, tuple(numbers[::step].float().tolist()), tuple(classes))


def _flat(value: Tensor) -> Tensor:
    plain = value.detach().cpu()
    return (torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain).reshape(-1)


def _has_classes(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() == 2 and value.shape[1] > 1


@contextmanager
def undisturbed(module: nn.Module, inputs: Inputs) -> Iterator[None]:
    """One thread (the order of additions depends on their number), no gradients, seed 0, and everything put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), kept_state(module, inputs):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def refusal() -> Iterator[None]:
    """An error of the model becomes an InputError."""
    try:
        yield
    except FxCompressError:
        raise
    except Exception as error:  # the model may refuse numbers like these in any way
        raise InputError(
            f"the model does not run on seeded inputs of the shapes of the example: {type(error).__name__}: {str(error)[:200]}",
            hint="give typical inputs: data=[...], or leave the numbers out: numbers=False",
        ) from error
