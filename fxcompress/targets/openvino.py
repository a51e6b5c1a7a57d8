"""OpenVINO as a target: one compiled network per input shape, float32, on as many threads as torch has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxcompress.errors import TargetError
from fxcompress.targets.engine import INSTALL, EngineTarget

SHAPES = 4  # input shapes that get a network of their own; all others share one for any shape


@dataclass(frozen=True)
class OpenVinoTarget(EngineTarget):
    """Lowers whole graphs to OpenVINO."""

    name: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx")


class OpenVinoRunner:
    """A network in OpenVINO. The first input shapes get a network compiled for them, which plans memory and layouts once.

    Args:
        model: ONNX bytes.
        threads: number of threads.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise TargetError("openvino is not installed", hint=INSTALL) from error
        self._ov = openvino
        self._core = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would otherwise take bfloat16 without a word
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": False,  # pinned threads wait for cores that torch's own threads are on
        }
        try:
            self._model = self._core.read_model(model)
        except RuntimeError as error:
            raise TargetError(f"openvino cannot read the network: {_first_line(error)}", hint="use target='cpu'") from error
        self._requests: dict[tuple[torch.Size, ...] | None, Any] = {}

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        shapes: tuple[torch.Size, ...] | None = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._requests and len(self._requests) >= SHAPES:
            shapes = None
        request = self._requests.get(shapes)
        if request is None:
            request = self._requests[shapes] = self._compile(shapes)
        results = request.infer([tensor.numpy() for tensor in tensors], share_inputs=True, share_outputs=False)
        return tuple(torch.from_numpy(results[i]) for i in range(len(results)))

    def _compile(self, shapes: tuple[torch.Size, ...] | None) -> Any:
        try:
            model = self._model.clone()
            if shapes:
                model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            return self._core.compile_model(model, "CPU", self._options).create_infer_request()
        except RuntimeError as error:
            sizes = "any shape" if shapes is None else ", ".join(str(tuple(shape)) for shape in shapes)
            raise TargetError(f"openvino cannot compile the network for {sizes}: {_first_line(error)}", hint="use target='cpu'") from error


def _first_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
