"""One call that captures, rewrites, lowers, measures and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.api.batches import calibration_of
from fxcompress.api.options import Pruning
from fxcompress.api.quantizing import Quantizing, limit_of
from fxcompress.api.tracing import check_model
from fxcompress.api.work import NATIVE, Work
from fxcompress.capture import capture
from fxcompress.capture.refuse import check_data
from fxcompress.errors import InputError, TargetError
from fxcompress.pipeline import Pass, Pipeline
from fxcompress.pipeline.base import Property
from fxcompress.pruning.options import Prune
from fxcompress.pruning.plan import PruningPlan
from fxcompress.quant.options import Int8
from fxcompress.targets.registry import lookup, names

REWRITES = (
    "functionalize,drop-noops,fold-constants,raise-layers,cse,dead-code,"
    "fold-norm,fold-norm-before,fold-scale,merge-branches,fold-scale,merge-chain,merge-parallel,fuse"
)
"""The passes of ``compress`` before lowering: all keep the function."""


def compress(
    model: nn.Module,
    example_inputs: Any,
    *,
    prune: float | Prune | PruningPlan | None = None,
    quantize: str | Int8 | None = None,
    pipeline: str | Pass | None = None,
    target: str = "auto",
    calibration: Iterable[Any] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
    verify: bool = True,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """A module that computes the same as ``model``, faster. The model itself is not touched.

    Args:
        model: a trained module in eval mode.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments. The result also takes
            other batch sizes, and other image sizes where the model does.
        prune: remove channels first: the share to remove, or a :class:`fxcompress.Prune`, or a plan made before. The
            result then computes something else, which is reported; see :func:`fxcompress.prune`.
        quantize: ``"int8"`` or a :class:`fxcompress.Int8`: quantize what is left; see :func:`quantize`. The quantized form takes part
            in the race, and float is given back where int8 is not faster.
        pipeline: passes to run instead of the default ones, as text (``"fold-norm,fuse"``) or as a Pass.
        target: ``"auto"`` races the native CPU kernels and every installed engine and keeps the fastest whose numbers
            hold; a name (``"cpu"``, ``"openvino"``, ``"onnxruntime"``) races only that one; ``"none"`` only rewrites, and
            the result can still be trained.
        calibration, loss: data for pruning and quantization; see :func:`fxcompress.prune`.
        verify: compare the outputs after every pass, and the whole in float64.
        leaves, bake: see :func:`fxcompress.trace`.
        name: how the report calls the model.
        on_step: called with a line of text before each step.

    Returns:
        A module with the signature of ``model.forward``, ``.report``, ``.save(path)`` and, if pruned, ``.plan``.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    check_model(model)
    check_data(model)
    if model.training:
        raise InputError("the model is in training mode", hint="call model.eval() first; dropout and batch norm behave differently there")
    began = time.perf_counter()
    data = calibration_of(calibration, loss, model, example_inputs, limit_of(quantize))
    pruning, quantizing = Pruning.of(prune, data, model), Quantizing.of(quantize, data)
    then = _pipeline(pipeline)
    candidates = _candidates(target, then)
    with torch.inference_mode(False):  # what is made here must be good outside of a caller's inference mode
        on_step("capture")
        captured = capture(model, example_inputs, leaves=leaves, bake=bake)
        pruning.check(captured)
        if quantizing is not None:
            quantizing.check(captured)
        work = Work(model, captured, pruning, then, verify, on_step, quantizing)
        work.rewrite()
        work.quantize()
        for candidate in candidates:
            work.lower(candidate)
        on_step("measure")
        work.race()
        return work.result(name or type(model).__name__, began)


def quantize(
    model: nn.Module,
    example_inputs: Any,
    options: Int8 | None = None,
    *,
    calibration: Iterable[Any] = (),
    target: str = "auto",
    verify: bool = True,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """``model`` in int8 where that is faster, lowered to this machine's kernels. The model itself is not touched.

    Weights become int8 with one scale per output channel; activations become uint8, with ranges found on the calibration data.
    Every form is raced; where float wins, the float form is given back and the report says so (``Int8(speed="none")`` keeps int8).

    Args:
        model: a trained module in eval mode.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        options: everything that can be chosen.
        calibration: a few dozen typical inputs in batches, each as ``example_inputs``, or a pair of those and targets, as a
            DataLoader gives.
        target, verify, leaves, bake, name, on_step: see :func:`compress`. With ``target="none"`` the result is the integer graph in
            plain torch, which runs anywhere and is exact, but slow.

    Returns:
        A module with the signature of ``model.forward``, ``.report``, ``.save(path)`` and ``.fake_quantized``, the same network in
        float arithmetic on the grids of the integers.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    return compress(
        model,
        example_inputs,
        quantize=Int8() if options is None else options,
        target=target,
        calibration=calibration,
        verify=verify,
        leaves=leaves,
        bake=bake,
        name=name,
        on_step=on_step,
    )


def _pipeline(given: str | Pass | None) -> Pipeline:
    if given is None:
        return Pipeline.parse(REWRITES)
    if isinstance(given, str):
        return Pipeline.parse(given)
    if isinstance(given, Pass):
        return Pipeline((given,))
    raise InputError(
        f"pipeline is a {type(given).__name__}",
        hint='pass text such as "fold-norm,fuse", a Pass or a Pipeline',
    )


def _candidates(target: str, steps: Pipeline) -> list[str]:
    """Targets to race; none when the pipeline lowers by itself."""
    if target != "none" and target != "auto":
        missing = lookup(target).missing()
        if missing is not None:
            raise TargetError(f"target '{target}' cannot be used: {missing}")
    if target == "none" or any(Property.LOWERED in step.establishes for step in steps.passes):
        return []
    if target not in ("auto", "cpu"):
        return [target]
    return [*NATIVE, *(name for name in names() if name not in NATIVE and target == "auto")]
