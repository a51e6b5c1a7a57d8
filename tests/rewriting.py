"""Runs passes on small models and compares with the model itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from oracle import same
from torch import Tensor, fx, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline, Run


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, with parameters and statistics that hide no index error."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(0.5 + noise if "running_var" in name else noise - 0.4)
    return model.eval()


def rewritten(model: nn.Module, inputs: Any, text: str, tolerance: float | None = 1e-10, *, seed: int = 0) -> Run:
    """The run of the passes ``text`` on the float64 model; its output must be that of the model."""
    model = randomized(model, seed).double()
    feed = Inputs.of(inputs).map_tensors(lambda t: t.double() if t.is_floating_point() else t)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = Pipeline.parse(text).execute(fx.symbolic_trace(copy.deepcopy(model)), feed, verify=False)
    with torch.no_grad():
        same(feed.clone().call(copy.deepcopy(model)), feed.clone().call(run.module), tolerance)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the user's model was changed"
    return run


def kinds(run: Run) -> list[str]:
    """What the nodes of a run's graph call, in order."""
    nodes = [n for n in run.module.graph.nodes if n.op.startswith("call_")]
    return [type(run.module.get_submodule(str(n.target))).__name__ if n.op == "call_module" else _name(n.target) for n in nodes]


def missed(run: Run) -> str:
    return "\n".join(str(remark) for step in run.steps for remark in step.remarks if not remark.applied)


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target)).strip("_")


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*(shape or (2, 4, 7, 5)), generator=torch.Generator().manual_seed(seed))
