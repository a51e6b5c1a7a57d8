"""For the tests of passes that change weights: modules with random statistics, and comparison with the module itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline, Run

TOLERANCE = 1e-10


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and buffer random values (variances positive), switch to eval mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(values.abs() + 0.3 if name.endswith("running_var") else values)
    return module


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trace(module: nn.Module) -> fx.GraphModule:
    """A graph that shares nothing with ``module``."""
    return fx.symbolic_trace(copy.deepcopy(module))


def execute(module: nn.Module, passes: str, *inputs: Tensor, verify: bool = True) -> Run:
    graph = module if isinstance(module, fx.GraphModule) else trace(module)
    return Pipeline.parse(f"functionalize,{passes}").execute(graph, Inputs(inputs), verify=verify)


def relative(want: Tensor, got: Tensor) -> float:
    assert want.shape == got.shape
    assert want.dtype == got.dtype
    scale = want.abs().max().item()
    return (want - got).abs().max().item() / (scale or 1.0)


def outputs(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def rewritten(module: nn.Module, passes: str, *inputs: Tensor, more: tuple[tuple[Tensor, ...], ...] = ()) -> Run:
    """Run ``passes``, compare the result with ``module`` on ``inputs`` and ``more``, and check that ``module`` is untouched."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    run = execute(module, passes, *inputs)
    for feed in (inputs, *more):
        with torch.no_grad():
            want, got = outputs(module(*feed)), outputs(run.module(*feed))
        assert len(want) == len(got)
        for a, b in zip(want, got, strict=True):
            assert relative(a, b) <= TOLERANCE
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    return run


def applied(run: Run) -> int:
    return sum(step.rewrites for step in run.steps)


def reasons(run: Run) -> str:
    """All refusals of a run."""
    return "\n".join(remark.why for step in run.steps for remark in step.remarks if not remark.applied)


def count(module: nn.Module, *types: type[nn.Module]) -> int:
    """Modules of these types that the graph of ``module`` calls."""
    assert isinstance(module, fx.GraphModule)
    called = [module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module"]
    return sum(isinstance(m, types) for m in called)


def operations(module: fx.GraphModule) -> int:
    """Nodes that compute something."""
    return sum(node.op.startswith("call_") for node in module.graph.nodes)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def image(axes: int, channels: int, batch: int = 2, seed: int = 1) -> Tensor:
    """An input with odd sizes for a convolution over ``axes`` axes."""
    return sample(batch, channels, *(9, 7, 5)[:axes], seed=seed)
