"""ONNX Runtime as a target: float32 on the CPU, on as many threads as torch has."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxcompress.errors import TargetError
from fxcompress.ir.inputs import Inputs
from fxcompress.targets.engine import lower_to_engine

INSTALL = "pip install fxcompress[engines]"


@dataclass(frozen=True)
class OnnxRuntimeTarget:
    """Lower whole graphs to ONNX Runtime.

    Args:
        threads: how many threads it computes with; None follows ``torch.get_num_threads()``.
    """

    threads: int | None = None
    name: str = "onnxruntime"

    def missing(self) -> str | None:
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {INSTALL}"
        return None

    def lower(self, gm: GraphModule, inputs: Inputs) -> GraphModule:
        """See :class:`fxcompress.targets.base.Target`."""
        lacking = self.missing()
        if lacking:
            raise TargetError(f"target 'onnxruntime' cannot be used: {lacking}", hint=INSTALL)
        return lower_to_engine(gm, inputs, "onnxruntime", self.threads)


class OnnxRuntimeRunner:
    """A network in ONNX Runtime.

    Args:
        model: ONNX bytes.
        threads: number of threads.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise TargetError("onnxruntime is not installed", hint=INSTALL) from error
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        # threads spin during a run, which gains a third on small layers, and not after it, when torch needs the cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise TargetError(f"onnxruntime refuses the network: {error}", hint="use target='cpu'") from error
        self._names = [port.name for port in self._session.get_inputs()]

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        feeds = {name: tensor.numpy() for name, tensor in zip(self._names, tensors, strict=True)}
        return tuple(torch.from_numpy(array) for array in self._session.run(None, feeds))
