"""Float latency of fxcompress and its peers, as ratios measured in one run.

    python benchmarks/latency.py --batch 1 8 --threads 2

Every engine lives in its own process, because threads of different runtimes disturb each other. For each network all
processes are started, prepare and warm up one after the other, and are then asked in turn, block by block, to time a few
calls while the others sleep. What is printed is the median over all blocks; peers get the network in their own way
(``torch.onnx.export``, ``openvino.convert_model``), fxcompress through ``compress``.
"""

from __future__ import annotations

import argparse
import tempfile

from harness import Prepared, Rows, geometric_mean, options_of, rounds, sweep

NETWORKS = [
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "deeplabv3_mobilenet_v3_large",
]
ENGINES = ["eager", "channels_last", "compile", "onnxruntime", "openvino", "fx-cpu", "fx-auto"]
PEERS = ENGINES[:5]


# -- one engine in one process ------------------------------------------------------------------------------------------


def network(name: str):
    import torch
    import torchvision

    torch.manual_seed(0)
    extra = {"weights": None, "weights_backbone": None} if "deeplab" in name else {"weights": None}
    return torchvision.models.get_model(name, **extra).eval()


def prepare(engine: str, name: str, batch: int, threads: int) -> Prepared:
    """A function of no arguments that runs the network once, and a note on what runs."""
    import torch

    torch.set_num_threads(threads)
    model, x = network(name), torch.randn(batch, 3, 224, 224)
    if engine == "eager":
        return lambda: model(x), {}
    if engine == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        return lambda: model(x), {}
    if engine == "compile":
        import torch._inductor.config as inductor

        inductor.freezing = True
        compiled = torch.compile(model)
        return lambda: compiled(x), {}
    if engine == "onnxruntime":
        return onnxruntime(model, x, threads), {}
    if engine == "openvino":
        return openvino(model, x, threads), {}
    import fxcompress

    small = fxcompress.compress(model, x, target=engine.removeprefix("fx-"))
    return lambda: small(x), {"note": small.report.target}


def onnxruntime(model, x, threads):
    import io

    import onnxruntime as ort
    import torch

    class Tensors(torch.nn.Module):
        def forward(self, x):
            y = model(x)
            return y["out"] if isinstance(y, dict) else y

    file = io.BytesIO()
    torch.onnx.export(Tensors().eval(), (x,), dynamo=True, verbose=False).save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def openvino(model, x, threads):
    import openvino as ov
    import torch

    try:
        converted = ov.convert_model(model, example_input=x, input=[tuple(x.shape)])
    except Exception:  # vit_b_16 does not survive OpenVINO's own tracing check; its users go through ONNX
        with tempfile.TemporaryDirectory() as folder:
            torch.onnx.export(model, (x,), f"{folder}/model.onnx", dynamo=True, verbose=False)
            converted = ov.convert_model(f"{folder}/model.onnx")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    return lambda: request.infer([x.numpy()], share_inputs=True, share_outputs=True)


# -- all engines on one network -----------------------------------------------------------------------------------------


def measure(name: str, batch: int, threads: int, engines: list[str], blocks: int, seconds: float) -> dict:
    rest = ["--networks", name, "--batch", str(batch), "--threads", str(threads)]
    return rounds({engine: [__file__, "--serve", engine, *rest] for engine in engines}, blocks, seconds)


# -- tables -------------------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict], engines: list[str]) -> str:
    head = ["network", *engines, "fx-auto runs on", "cpu / best torch", "cpu / best engine", "auto / best peer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [f"{row[e]['ms']:.1f}" if row.get(e, {}).get("ms") else "-" for e in engines]
        note = row.get("fx-auto", {}).get("note", "")
        lines.append("| " + " | ".join([name, *cells, note, *(f"{r:.2f}" if r else "-" for r in ratios(row))]) + " |")
    means = [geometric_mean([ratios(row)[i] for row in rows.values()]) for i in range(3)]
    lines.append("| geometric mean |" + " |" * (len(engines) + 1) + " " + " | ".join(f"**{m:.2f}**" if m else "-" for m in means) + " |")
    return "\n".join(lines)


def ratios(row: dict) -> list[float | None]:
    """How many times faster: native over the best of torch, native over the best engine, auto over the best of all peers."""

    def best(names):
        return min((row[n]["ms"] for n in names if row.get(n, {}).get("ms")), default=None)

    pairs = [(best(PEERS[:3]), best(["fx-cpu"])), (best(PEERS[3:]), best(["fx-cpu"])), (best(PEERS), best(["fx-auto"]))]
    return [other / ours if other and ours else None for other, ours in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser, NETWORKS, ENGINES, ["fx-openvino", "fx-onnxruntime"])

    def show(batch: int, rows: Rows) -> str:
        return f"\nMedian ms, batch {batch}, {options.threads} threads\n\n{table(rows, options.engines)}\n"

    sweep(options, prepare, measure, show)


if __name__ == "__main__":
    main()
