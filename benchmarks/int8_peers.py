"""The int8 peers, each used the way its own documentation says, and fxcompress behind the same call.

``PREPARE[name](task)`` gives a function from a float32 batch to the float32 output. Import a peer only here, and run one peer per
process: some set global state, and their threads disturb each other.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Any]


@dataclass
class Task:
    """What everybody gets.

    Attributes:
        model: float, eval mode; every peer may change its copy.
        calibration: batches of images.
        example: a batch of the shape that will be run.
        transformer: some peers want to be told.
        facts: what a peer has to tell besides its function.
    """

    model: nn.Module
    calibration: list[Tensor]
    example: Tensor
    threads: int = 2
    transformer: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class FirstTensor(nn.Module):
    """``model``, with its output ``"out"`` where it gives a dict: exporters and tracers of the peers want tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return y["out"] if isinstance(y, dict) else y


def tensors_only(model: nn.Module, example: Tensor) -> nn.Module:
    """``model`` itself if it gives a tensor."""
    with torch.inference_mode():
        return model if isinstance(model(example[:1]), Tensor) else FirstTensor(model).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Deprecations and progress of the peers stay out of the tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- torch --------------------------------------------------------------------------------------------------------------


def eager(task: Task) -> Run:
    """The float network as it is."""
    return task.model


def torch_fx(engine: str) -> Callable[[Task], Run]:
    """FX graph mode quantization, deprecated: ``prepare_fx`` and ``convert_fx`` with the defaults of ``engine``."""

    def prepare(task: Task) -> Run:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.backend_config import get_native_backend_config, get_onednn_backend_config
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        with quiet(), torch.no_grad():
            torch.backends.quantized.engine = engine
            config = get_onednn_backend_config() if engine == "onednn" else get_native_backend_config()
            mapping = get_default_qconfig_mapping(engine)
            prepared = prepare_fx(copy.deepcopy(task.model), mapping, (task.example,), backend_config=config)
            for x in task.calibration:
                prepared(x)
            converted = convert_fx(prepared, qconfig_mapping=mapping, backend_config=config)
        return converted.to(memory_format=torch.channels_last) if task.example.dim() == 4 else converted

    return prepare


def pt2e(task: Task, *, compiled: bool = True) -> Run:
    """``torch.export``, torchao's X86InductorQuantizer and ``torch.compile`` with freezing."""
    import torch._inductor.config as inductor
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    with quiet(), torch.no_grad():
        # strict: its quantizer fails on resnet18 exported the default way, because one ReLU module is called twice
        exported = torch.export.export(tensors_only(task.model, task.example), (task.example,), strict=True).module()
        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for x in whole(task):
            prepared(x)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        if not compiled:
            return converted
        inductor.freezing = True
        optimized = torch.compile(converted)
        optimized(task.example)
    return lambda x: optimized(x)


def whole(task: Task) -> list[Tensor]:
    """The calibration images in batches of exactly the size of the example; what is left over is dropped."""
    x = torch.cat(task.calibration)
    size = len(task.example)
    return [x[at : at + size] for at in range(0, len(x) - size + 1, size)]


# -- engines ------------------------------------------------------------------------------------------------------------


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Static shapes, as the engine will be run."""
    with quiet():
        torch.onnx.export(tensors_only(model, example), (example,), dynamo=True, verbose=False).save(str(path))


class _Reader:
    """``onnxruntime.quantization.CalibrationDataReader`` without its base class, which is only an interface."""

    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self.feeds = iter([{name: x.numpy()} for x in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def onnxruntime(task: Task, *, method: str = "MinMax", reduce_range: bool = False) -> Run:
    """Static QDQ quantization after the recommended preprocessing; uint8 activations, int8 weights per channel."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, clean, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "clean", "int8"))
        export_onnx(task.model, task.example, plain)
        quant_pre_process(str(plain), str(clean), skip_symbolic_shape=True)
        name = ort.InferenceSession(str(clean), providers=["CPUExecutionProvider"]).get_inputs()[0].name
        quantize_static(
            str(clean),
            str(small),
            _Reader(name, whole(task)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = task.threads
        session = ort.InferenceSession(small.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {name: x.numpy()})[0]


def openvino(task: Task, *, preset: str = "PERFORMANCE", fast_bias: bool = True) -> Run:
    """NNCF's post-training quantization, then OpenVINO with the latency hint."""
    import nncf
    import openvino as ov

    with quiet():
        nncf.set_log_level(logging.ERROR)
        model = _converted(ov, task)
        small = nncf.quantize(
            model,
            nncf.Dataset([x.numpy() for x in whole(task)]),
            preset=nncf.QuantizationPreset[preset],
            subset_size=len(whole(task)),
            fast_bias_correction=fast_bias,
            model_type=nncf.ModelType.TRANSFORMER if task.transformer else None,
        )
        settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(small, "CPU", settings).create_infer_request()

    def run(x: Tensor) -> Any:
        return request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]

    return run


def _converted(ov: Any, task: Task) -> Any:
    model = tensors_only(task.model, task.example)
    try:
        return ov.convert_model(model, example_input=task.example, input=[tuple(task.example.shape)])
    except Exception:  # some transformers do not survive its own tracing check; their users go through ONNX
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, task.example, Path(folder) / "model.onnx")
            return ov.convert_model(str(Path(folder) / "model.onnx"))


# -- ours ---------------------------------------------------------------------------------------------------------------


def ours(target: str, **options: Any) -> Callable[[Task], Run]:
    """``fxcompress.quantize``; ``options`` are those of ``Int8``."""

    def prepare(task: Task) -> Run:
        import fxcompress

        extra = {"options": fxcompress.Int8(**options)} if options else {}
        small = fxcompress.quantize(task.model, task.example, calibration=task.calibration, target=target, **extra)
        task.facts["note"] = small.report.target
        task.facts["report"] = str(small.report)
        if done := small.report.quantized:
            task.facts |= {"kept": done.kept, "quantizes": done.quantizes, "dequantizes": done.dequantizes}
        return small

    return prepare


def ours_float(target: str) -> Callable[[Task], Run]:
    """``fxcompress.compress`` without quantization."""

    def prepare(task: Task) -> Run:
        import fxcompress

        small = fxcompress.compress(task.model, task.example, target=target)
        task.facts["note"] = small.report.target
        return small

    return prepare


PREPARE: dict[str, Callable[[Task], Run]] = {
    "eager": eager,
    "torch-x86": torch_fx("x86"),
    "torch-onednn": torch_fx("onednn"),
    "pt2e": pt2e,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "float-cpu": ours_float("cpu"),
    "float-auto": ours_float("auto"),
    "cpu": ours("cpu"),
    "auto": ours("auto"),
}
"""By the names of the tables; ``cpu`` and ``auto`` are fxcompress."""
