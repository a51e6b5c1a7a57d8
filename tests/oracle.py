"""What a rewritten network must satisfy, checked against the original ``nn.Module`` and with no code of the library's own checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from drawing import Feed
from networks import Net, trace
from quantized import check_integers, shaken, sqnr
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pass, Pipeline, Property, Semantics, registry
from fxcompress.pipeline.base import Calibration
from fxcompress.pruning.handover import waiting
from fxcompress.pruning.mask import masked

CLOSE = 1e-10  # of the largest value of an output, in float64
GROWTH = 16.0  # lowered, in float32: so many times further from the float64 truth than the original may it be
FLOAT32 = 1e-5  # ... and this is never too far, relative to the largest value


class Broken(AssertionError):
    """The rewritten network is not the original one."""


# -- comparing ----------------------------------------------------------------------------------------------------------


def same(want: Any, got: Any, tolerance: float | None, where: str = "output") -> None:
    """Compare nested outputs; ``tolerance`` None asks for the same bits (of NaNs: only the place).

    With a tolerance, a place where the original is NaN may hold anything that is not finite: sums that were merged give
    inf where separate ones gave inf - inf.
    """
    if type(want) is not type(got):
        raise Broken(f"{where}: {type(want).__name__} became {type(got).__name__}")
    if isinstance(want, dict):
        if list(want) != list(got):
            raise Broken(f"{where}: keys {list(want)} became {list(got)}")
        for key in want:
            same(want[key], got[key], tolerance, f"{where}[{key!r}]")
    elif isinstance(want, (tuple, list)):
        if len(want) != len(got):
            raise Broken(f"{where}: {len(want)} values became {len(got)}")
        for at, (a, b) in enumerate(zip(want, got, strict=True)):
            same(a, b, tolerance, f"{where}[{at}]")
    elif isinstance(want, Tensor):
        if want.shape != got.shape or want.dtype != got.dtype:
            raise Broken(f"{where}: {want.dtype}{list(want.shape)} became {got.dtype}{list(got.shape)}")
        _same_tensor(want.detach(), got.detach(), tolerance, where)
    elif want != got:
        raise Broken(f"{where}: {want!r} became {got!r}")


def _same_tensor(want: Tensor, got: Tensor, tolerance: float | None, where: str) -> None:
    if not want.is_floating_point():
        if not torch.equal(want, got):
            raise Broken(f"{where}: {int((want != got).sum())} of {want.numel()} values differ")
        return
    if tolerance is None:
        integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[want.element_size()]
        bits = want.contiguous().view(integer) != got.contiguous().view(integer)
        wrong = bits & ~(want.isnan() & got.isnan())
        if wrong.any():
            raise Broken(f"{where}: {int(wrong.sum())} of {want.numel()} values have other bits, by up to {distance(want, got):.3g}")
        return
    definite = ~want.isnan()
    if not torch.equal(want.isfinite() & definite, got.isfinite() & definite) or (got.isfinite() & ~definite).any():
        raise Broken(f"{where}: NaN or infinity at other places")
    infinite = want.isinf()
    if not torch.equal(want[infinite], got[infinite]):
        raise Broken(f"{where}: infinities differ")
    far = distance(want, got)
    if far > tolerance:
        raise Broken(f"{where}: relative error {far:.3g}, allowed {tolerance:.3g}")


def distance(want: Tensor, got: Tensor) -> float:
    """Largest absolute difference over the largest finite value of ``want``; 1.0 for a difference from all zeros."""
    finite = want.isfinite() & got.isfinite()
    a, b = want[finite].double(), got[finite].double()
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    scale = a.abs().max().item()
    return (a - b).abs().max().item() / scale if scale > 0 else 1.0


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


# -- the original -------------------------------------------------------------------------------------------------------


def run(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Outputs and buffers after one call on copies of module and inputs, with a fixed random state."""
    module = copy.deepcopy(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        output = module(*[t.clone() for t in inputs])
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, output), dict(module.named_buffers(remove_duplicate=False))


@dataclass(frozen=True)
class Case:
    """A network with its inputs and what it gives; made once and shared by the tests of all passes."""

    model: nn.Module
    graph: fx.GraphModule
    feeds: tuple[tuple[Tensor, ...], ...]  # the example inputs, and another batch size
    outputs: tuple[Any, ...]
    buffers: tuple[dict[str, Tensor], ...]
    slack: float  # how far an error of rounding in the inputs and weights carries

    def state(self) -> dict[str, Any]:
        tensors = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return tensors | {f"training of {name}": m.training for name, m in self.model.named_modules()}


@lru_cache(maxsize=512)
def case(net: Net, feed: Feed) -> Case:
    model = net.build()
    feeds = (feed.inputs(net), feed.inputs(net, batch=feed.batch % 3 + 1))
    ran = [run(model, x) for x in feeds]
    return Case(model, trace(model), feeds, tuple(r[0] for r in ran), tuple(r[1] for r in ran), _slack(model, feeds[0], ran[0][0]))


def _slack(model: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> float:
    """How much rounding is amplified: the change of the output when all numbers change by 2^-50, with some room.

    Norms of nearly constant channels and differences of large numbers make any honest rewrite inexact; there, and only
    there, this exceeds :data:`CLOSE`.
    """
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)

    def nudge(t: Tensor) -> Tensor:
        return t * (1 + 2.0**-50 * torch.randn(t.shape, generator=generator, dtype=t.dtype)) if t.is_floating_point() else t

    with torch.no_grad():
        for t in (*moved.parameters(), *moved.buffers()):
            t.copy_(nudge(t))
    # What is exactly zero, or the same at every place, is so no longer after the first layer that rounds.
    other, _ = run(moved, [nudge(t) if t.any() else 2.0**-50 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs])
    return max([0.0, *(distance(a, b) for a, b in zip(tensors(output), tensors(other), strict=True) if a.is_floating_point())]) * 64


# -- passes -------------------------------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {"observe": {"speed": "none"}}
"""Other than the default ones: small networks are not faster in integers."""


def make(name: str) -> Pass:
    return registry.lookup(name)(**OPTIONS.get(name, {}))


def establishing(name: str) -> list[str]:
    """The shortest list of passes that fulfils the requirements of ``name`` and ends with it."""
    done: list[str] = []
    _establish(name, done, set())
    return done


def _establish(name: str, done: list[str], open_: set[str]) -> None:
    kind = registry.lookup(name)
    for wanted in sorted(kind.requires, key=lambda p: p.name):
        if any(wanted in registry.lookup(n).establishes for n in done):
            continue
        makers = [n for n in registry.names() if wanted in registry.lookup(n).establishes and n not in open_ and n != name]
        if not makers:
            raise Broken(f"no pass establishes {wanted.name}, which {name} requires")
        _establish(min(makers, key=lambda n: (len(registry.lookup(n).requires), n)), done, open_ | {name})
    done.append(name)


def lowers(passes: Sequence[Pass]) -> bool:
    return any(Property.LOWERED in step.establishes for step in passes)


def prunes(passes: Sequence[Pass]) -> bool:
    return any(step.name == "prune-apply" for step in passes)


def quantizes(passes: Sequence[Pass]) -> bool:
    return any(Property.OBSERVED in step.establishes for step in passes)


def pruned_reference(pipeline: Pipeline, graph: fx.GraphModule, inputs: Inputs) -> fx.GraphModule:
    """What ``pipeline`` must compute: the network in which the channels that its last ``prune-apply`` removes are ignored."""
    last = max(at for at, step in enumerate(pipeline.passes) if step.name == "prune-apply")
    before = Pipeline(pipeline.passes[:last]).execute(graph, inputs, verify=False).module
    plan = waiting(before)
    if plan is None:
        return before
    deps = Analyses(before, inputs).get(ChannelDependencyGraph)
    return masked(deps, plan.keep(deps))


# -- the property -------------------------------------------------------------------------------------------------------


def check(pipeline: Pipeline, net: Net, feed: Feed = Feed(), *, verify: bool = False) -> None:  # noqa: B008
    """Raise :class:`Broken` (or what the pipeline raises) unless ``pipeline`` keeps the function of ``net``."""
    it = case(net, feed)
    before = it.state()
    if prunes(pipeline.passes) and (net.train or feed.kind in ("nan", "inf")):
        return  # random numbers differ with the sizes; NaN and infinity go through a mask
    if quantizes(pipeline.passes):
        _check_quantized(pipeline, net, feed)
    if lowers(pipeline.passes):
        if not quantizes(pipeline.passes):
            _check_lowered(pipeline, net, feed, verify)
        return
    inputs = Inputs(tuple(t.clone() for t in it.feeds[0]))
    result = pipeline.execute(it.graph, inputs, verify=verify)
    _unchanged(it, before, inputs)
    if prunes(pipeline.passes):
        _check_pruned(pipeline, it, inputs, result.module)
        return  # run again, it would remove more
    if not any(step.semantics is Semantics.LOSSY for step in pipeline.passes):
        exact = all(step.semantics is Semantics.EXACT for step in pipeline.passes)
        for at, x in enumerate(it.feeds):
            got, buffers = run(result.module, x)
            tolerance = None if exact else max(CLOSE, it.slack if math.isfinite(it.slack) else 0.0)
            same(it.outputs[at], got, tolerance, f"output for batch {x[0].shape[0]}")
            _same_state(it, at, buffers, tolerance)
    _settles(pipeline, result.module, inputs)


def _check_pruned(pipeline: Pipeline, it: Case, inputs: Inputs, module: fx.GraphModule) -> None:
    reference = pruned_reference(pipeline, it.graph, inputs)
    for x in it.feeds:
        wanted = run(reference, x)[0]
        slack = max(it.slack, _slack(reference, x, wanted))
        same(wanted, run(module, x)[0], max(CLOSE, slack if math.isfinite(slack) else 0.0), f"pruned output for batch {x[0].shape[0]}")


def _unchanged(it: Case, before: dict[str, Any], inputs: Inputs) -> None:
    after = it.state()
    for key, value in before.items():
        if isinstance(value, Tensor):
            same(value, after[key], None, f"'{key}' of the original model")
        elif value != after[key]:
            raise Broken(f"{key} of the original model changed")
    for mine, given in zip(it.feeds[0], inputs.args, strict=True):
        same(mine, given, None, "the example input")


def _same_state(it: Case, at: int, buffers: dict[str, Tensor], tolerance: float | None) -> None:
    """Buffers that a call of the original changes must be there, changed in the same way."""
    start = dict(it.model.named_buffers(remove_duplicate=False))
    for name, value in it.buffers[at].items():
        if torch.equal(start[name].nan_to_num(), value.nan_to_num()):
            continue
        if name not in buffers:
            raise Broken(f"buffer '{name}', which a call of the original changes, is gone")
        same(value, buffers[name], tolerance, f"buffer '{name}' after a call")


def _settles(pipeline: Pipeline, module: fx.GraphModule, inputs: Inputs) -> None:
    """Running it again comes to rest: one pass in the third run at the latest; of several, each may make work for another."""
    for _ in range(2 if len({step.name for step in pipeline.passes}) == 1 else 8):
        again = pipeline.execute(module, inputs, verify=False)
        module = again.module
        if not any(s.changed for s in again.steps):
            return
    changing = [s.text for s in again.steps if s.changed]
    raise Broken(f"'{pipeline}' never comes to rest: {changing} still change the graph")


def _check_quantized(pipeline: Pipeline, net: Net, feed: Feed) -> None:
    """In float32, as that is what integers are made of; see ``quantized.py``. The integer graph is near to the fake-quantized one."""
    if net.train or feed.kind not in ("normal", "zeros") or prunes(pipeline.passes):
        return
    model = net.build().float()
    feeds = [tuple(t.float() for t in x) for x in case(net, feed).feeds]
    inputs = Inputs(tuple(t.clone() for t in feeds[0]))
    data = Calibration((inputs,))

    def after(passes: Sequence[Pass]) -> fx.GraphModule:
        return Pipeline(tuple(passes)).execute(trace(model), inputs, verify=False, calibration=data).module

    names = [step.name for step in pipeline.passes]
    if "lower-int8" not in names:
        after(pipeline.passes)
        return
    at = names.index("lower-int8")
    fake, integers, result = after(pipeline.passes[:at]), after(pipeline.passes[: at + 1]), after(pipeline.passes)
    check_integers(integers, feeds[0])
    for x in feeds:
        wanted = run(fake, x)[0]
        worst = min(sqnr(wanted, run(shaken(fake, seed), x)[0]) for seed in range(4))
        for got in (run(integers, x)[0], run(result, x)[0]):
            same(wanted, got, math.inf)
            if sqnr(wanted, got) < min(worst, 15.0) - 10.0:  # every integer is checked above; in a small net one flip may be 12 dB
                raise Broken(
                    f"{sqnr(wanted, got):.1f} dB to the fake-quantized graph; it is at {worst:.1f} dB from itself when it is shaken"
                )


def _check_lowered(pipeline: Pipeline, net: Net, feed: Feed, verify: bool) -> None:
    """In float32, where machines' kernels are; the truth is the original in float64.

    ``slack`` holds 64 times the effect of numbers that are off by 2^-50; in float32 they are off by 2^-24, so 2^24 of it
    is sixteen times what rounding of the inputs alone may do.
    """
    if net.train or feed.kind in ("nan", "inf", "huge", "tiny"):
        return
    it = case(net, feed)
    model = net.build().float()
    inputs = Inputs(tuple(t.float() for t in it.feeds[0]))
    result = pipeline.execute(trace(model), inputs, verify=verify)
    original = pruned_reference(pipeline, trace(model), inputs) if prunes(pipeline.passes) else model
    for output, x in zip(it.outputs, it.feeds, strict=True):
        small = [t.float() for t in x]
        truth = output if original is model else run(copy.deepcopy(original).double(), x)[0]
        wanted, got = run(original, small)[0], run(result.module, small)[0]
        same(wanted, got, math.inf)
        for true, a, b in zip(tensors(truth), tensors(wanted), tensors(got), strict=True):
            near, far = distance(true, a), distance(true, b)
            if far > max(FLOAT32, GROWTH * near, it.slack * 2.0**24):
                raise Broken(f"relative error {far:.3g} in float32; the original's is {near:.3g}")
