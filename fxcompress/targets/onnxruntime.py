"""ONNX Runtime as a target: float32 on the CPU, on as many threads as torch has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxcompress.errors import TargetError
from fxcompress.targets.engine import INSTALL, EngineTarget

SHAPES = 4  # sessions that are kept for input shapes of their own


@dataclass(frozen=True)
class OnnxRuntimeTarget(EngineTarget):
    """Lowers whole graphs to ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")


class OnnxRuntimeRunner:
    """A network in ONNX Runtime, with a session for each input shape: with known sizes it plans memory and folds shapes once.

    Args:
        model: ONNX bytes.
        threads: number of threads.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise TargetError("onnxruntime is not installed", hint=INSTALL) from error
        self._ort, self._model, self._threads = onnxruntime, model, threads
        self._sessions: dict[tuple[torch.Size, ...] | None, Any] = {}

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        shapes: tuple[torch.Size, ...] | None = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._sessions and len(self._sessions) >= SHAPES:
            shapes = None
        session = self._sessions.get(shapes)
        if session is None:
            session = self._sessions[shapes] = self._session(shapes)
        feeds = {f"input_{i}": tensor.numpy() for i, tensor in enumerate(tensors)}
        return tuple(torch.from_numpy(array) for array in session.run(None, feeds))

    def _session(self, shapes: tuple[torch.Size, ...] | None) -> Any:
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        # threads spin during a run, which gains a third on small layers, and not after it, when torch needs the cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for i, shape in enumerate(shapes or ()):
            for axis, size in enumerate(shape):  # names of sizes that are free; see onnx_export
                options.add_free_dimension_override_by_name(f"d{i}_{axis}", size)
        try:
            return self._ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise TargetError(f"onnxruntime refuses the network: {error}", hint="use target='cpu'") from error
