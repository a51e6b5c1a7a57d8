"""Graph diffs: are equal graphs found equal, single edits told exactly, and how long does it take.

    OMP_NUM_THREADS=1 python benchmarks/graph_diff.py            # everything
    OMP_NUM_THREADS=1 python benchmarks/graph_diff.py zoo --names resnet18 swin_t

Times are of one thread's CPU, which other processes disturb less than the wall clock.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from compress_time import Chain
from equivalence import build
from graph_edits import EDITS, Wrapped, renamed, reordered
from tabulate import tabulate
from torch import nn

import fxcompress
from fxcompress.api import REWRITES
from fxcompress.capture import capture
from fxcompress.compare import codec
from fxcompress.compare.diff import diff
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.take import take
from fxcompress.ir.inputs import Inputs
from fxcompress.report.difference import Difference

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the driver of the browser

FAMILIES = (torchvision.models, torchvision.models.segmentation, torchvision.models.detection)
EDITED = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "densenet121", "efficientnet_b0", "swin_t")


def stored(snapshot: Snapshot) -> Snapshot:
    """As another process reads it from a file: without the graph and without what nodes were captured from."""
    return replace(codec.decode(codec.encode(snapshot)), live=None)


def structure(module: torch.fx.GraphModule, inputs: Inputs) -> Snapshot:
    return stored(take(module, inputs, model="model", numbers=False))


def table(head: list[str], rows: list[list[Any]]) -> None:
    print("\n" + tabulate(rows, head, tablefmt="github", disable_numparse=True) + "\n", flush=True)


def seconds(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """CPU seconds of the fastest of some calls, and what the last gave."""
    taken = []
    for _ in range(repeats):
        gc.collect()
        began = time.process_time()
        result = call()
        taken.append(time.process_time() - began)
    return min(taken), result


# -- the same function -------------------------------------------------------------------------------------------------


def variants(part: Any, whole: bool, model: nn.Module, base: Snapshot) -> Iterator[tuple[str, Snapshot]]:
    yield "renamed", structure(renamed(part.graph), part.inputs)
    yield "reordered", reordered(base, random.Random(0))
    if whole:  # torchvision's networks take one argument
        again = capture(Wrapped(model).eval(), part.inputs)
        if again.step != "parts":
            yield "retraced", structure(again.parts[0].graph, part.inputs)


def same(found: Difference) -> bool:
    """Nothing is told; the names of arguments may differ."""
    return not (found.added or found.removed or found.changed or found.rewired or found.moved or found.groups)


def zoo(options: argparse.Namespace) -> None:
    """Equal graphs under other names, in another order, and traced again inside of another module."""
    names = options.names or [name for family in FAMILIES for name in torchvision.models.list_models(module=family)]
    totals: dict[str, list[int]] = {}
    failures: list[list[Any]] = []
    sizes: list[tuple[int, int]] = []
    for name in names:
        model, inputs = build(name)
        captured = capture(model, inputs)
        for part in captured.parts:
            base = structure(part.graph, part.inputs)
            sizes.append((len(base.nodes), len(codec.encode(base))))
            for kind, head in variants(part, captured.step != "parts", model, base):
                found = diff(base, head)
                total = totals.setdefault(kind, [0, 0, 0, 0])
                for place, value in enumerate((1, same(found), found.base_nodes, found.matched)):
                    total[place] += value
                if not same(found) or found.matched != found.base_nodes:
                    failures.append([name + (f".{part.path}" if part.path else ""), kind, f"{found.matched} of {found.base_nodes}"])
        print(f"{name}: {failures[-1] if failures and failures[-1][0].startswith(name) else 'ok'}", file=sys.stderr, flush=True)
        del model, captured
        gc.collect()
    rows = [[kind, t[0], t[1], t[2], f"{100 * t[3] / t[2]:.2f} %"] for kind, t in totals.items()]
    table(["the same graph", "graphs", "found the same", "nodes", "matched"], rows)
    if failures:
        table(["not the same", "variant", "matched"], failures)
    nodes, size = sum(n for n, _ in sizes), sum(s for _, s in sizes)
    print(f"{len(names)} networks, {nodes} nodes; a snapshot without numbers has {size / nodes:.0f} kB per 1,000 nodes")


# -- single edits ------------------------------------------------------------------------------------------------------


def edits(options: argparse.Namespace) -> None:
    """One random edit at a time, and whether the difference tells exactly that."""
    bases = {name: _rewritable(name) for name in options.names or EDITED}
    rows, misses = [], []
    for edit in EDITS:
        done = exact = empty = 0
        for name, base in bases.items():
            for seed in range(options.edits):
                made = edit(base, random.Random(f"{name} {seed}"))
                if made is None:
                    continue
                found = diff(base, stored(made.head))
                done, exact, empty = done + 1, exact + made.is_told(found), empty + found.same_function
                if not made.is_told(found):
                    misses.append([name, seed, made.kind, made.what, _summary(found)])
        rows.append([edit.__name__, done, exact, f"{100 * exact / max(done, 1):.1f} %", empty])
    table(["single edit", "tried", "told exactly", "share", "not seen"], rows)
    if misses and options.verbose:
        table(["network", "seed", "edit", "where", "told as"], misses)


def _rewritable(name: str) -> Snapshot:
    model, inputs = build(name)
    part = capture(model, inputs).parts[0]
    return structure(part.graph, part.inputs)


def _summary(found: Difference) -> str:
    kinds = ("added", "removed", "changed", "rewired", "moved", "groups")
    return ", ".join(f"{len(getattr(found, kind))} {kind}" for kind in kinds if getattr(found, kind)) or "nothing"


# -- folds -------------------------------------------------------------------------------------------------------------


def folds(_: argparse.Namespace) -> None:
    """Batch norms of densenet121 folded into convolutions: each is one group of two nodes that became one."""
    rows = []
    for name in ("densenet121", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5"):
        model, x = build(name)
        graph, inputs = fxcompress.trace(model, x), Inputs.of(x)
        run = fxcompress.Pipeline.parse("functionalize").execute(graph, inputs, verify=False)
        folded = fxcompress.Pipeline.parse("functionalize,fold-norm").execute(graph, inputs, verify=False)
        base, head = (take(r.module, inputs, model=name, numbers=False) for r in (run, folded))
        done = sum(step.rewrites for step in folded.steps if step.text == "fold-norm")
        for kind, found in (("one process", diff(base, head)), ("files", diff(stored(renamed_of(base)), stored(head)))):
            exact = sum((len(group.base), len(group.head)) == (2, 1) for group in found.groups)
            rows.append([name, kind, done, exact, _summary(found)])
    table(["network", "compared from", "folds", "groups of two to one", "all that is told"], rows)


def renamed_of(snapshot: Snapshot) -> Snapshot:
    """Without a name that the other side could know."""
    return replace(snapshot, nodes=tuple(replace(n, name=f"n{i}", path="", origins=()) for i, n in enumerate(snapshot.nodes)), live=None)


# -- time and size -----------------------------------------------------------------------------------------------------


def large(options: argparse.Namespace) -> None:
    """Pairs of graphs of 10,000 nodes from files: one edit, and every norm folded."""
    graph = chain(options.nodes)
    x = torch.randn(1, 8, 8, 8)
    taking, base = seconds(lambda: take(graph, Inputs.of(x), model="chain", numbers=False), 1)
    base = stored(base)
    rows = [["snapshot without numbers", len(base.nodes), "", f"{taking:.2f}", ""]]
    for edit in EDITS:
        made = edit(base, random.Random(1))
        assert made is not None
        head = stored(made.head)
        taken, found = seconds(lambda head=head: diff(base, head), 1)
        rows.append([f"diff: {edit.__name__}", len(base.nodes), len(head.nodes), f"{taken:.2f}", _summary(found)])
    run = fxcompress.Pipeline.parse("functionalize,fold-norm").execute(graph, Inputs.of(x), verify=False)
    head = stored(take(run.module, Inputs.of(x), model="chain", numbers=False))
    taken, found = seconds(lambda: diff(base, head), 1)
    rows.append(["diff: every norm folded", len(base.nodes), len(head.nodes), f"{taken:.2f}", _summary(found)])
    table(["", "nodes", "nodes of head", "CPU seconds", "told"], rows)


def chain(nodes: int) -> torch.fx.GraphModule:
    """A deep network of so many nodes, written down without tracing: conv, norm, relu, scale and residual."""
    blocks = nodes // 5
    model = Chain(blocks).eval()
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for i in range(blocks):
        y = graph.call_module(f"norms.{i}", (graph.call_module(f"convs.{i}", (x,)),))
        x = graph.call_function(torch.add, (x, graph.call_function(torch.mul, (graph.call_function(torch.relu, (y,)), 0.1))))
    graph.output(x)
    return torch.fx.GraphModule(model, graph).eval()


def snapshots(_: argparse.Namespace) -> None:
    """Time and size of snapshots with numbers."""
    rows = []
    for name in ("resnet18", "resnet50", "densenet121", "swin_t"):
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, 224, 224)
        captured = fxcompress.trace(model, x)
        whole, _ = seconds(lambda model=model, x=x: fxcompress.snapshot(model, x), 2)
        taken, snapshot = seconds(lambda captured=captured, x=x: take(captured, Inputs.of(x), model=""), 3)
        size, nodes = len(codec.encode(snapshot).encode()), len(snapshot.nodes)
        rows.append([name, nodes, f"{whole:.2f}", f"{taken:.2f}", f"{size / 1e3:.0f}", f"{size / nodes:.0f}"])
    table(["snapshot", "nodes", "CPU seconds with capture", "without", "kB", "kB per 1,000 nodes"], rows)


def page(options: argparse.Namespace) -> None:
    """The page of a diff in a headless browser: size, first paint, and until it can be used."""
    from browser import chromium, opened

    rows = []
    for name, (base, head) in _pairs().items():
        taken, text = seconds(lambda base=base, head=head: diff(base, head).to_html(), 1)
        row = [name, len(base.nodes), len(head.nodes), f"{taken:.1f}", f"{len(text.encode()) / 1e6:.2f}"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "diff.html")
            path.write_text(text, encoding="utf-8")
            if chromium() is not None:
                began = time.monotonic()
                with opened(path) as shown:
                    shown.wait("performance.getEntriesByName('first-contentful-paint').length > 0")
                    paint = shown.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")
                    loaded = shown.value("performance.timing.loadEventEnd - performance.timing.navigationStart")
                    row += [f"{paint / 1e3:.2f}", f"{loaded / 1e3:.2f}", f"{time.monotonic() - began:.1f}"]
        rows.append(row)
    table(
        ["page", "nodes", "nodes of head", "CPU seconds to write", "MB", "first paint, s", "loaded, s", "with the browser's start, s"], rows
    )


def _pairs() -> dict[str, tuple[Snapshot, Snapshot]]:
    def pair(graph: torch.fx.GraphModule, x: torch.Tensor) -> tuple[Snapshot, Snapshot]:
        run = fxcompress.Pipeline.parse(REWRITES).execute(graph, Inputs.of(x), verify=False)
        return tuple(take(g, Inputs.of(x), model="page") for g in (graph, run.module))  # type: ignore[return-value]

    x = torch.randn(1, 3, 64, 64)
    found = {name: pair(fxcompress.trace(torchvision.models.get_model(name).eval(), x), x) for name in ("resnet18", "swin_t")}
    found["chain of 400 blocks"] = pair(chain(2000), torch.randn(1, 8, 8, 8))
    return found


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "zoo": zoo,
    "edits": edits,
    "folds": folds,
    "large": large,
    "snapshots": snapshots,
    "page": page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="what to measure (default: everything)")
    parser.add_argument("--names", nargs="+", help="networks for zoo and edits")
    parser.add_argument("--edits", type=int, default=20, help="edits of each kind per network")
    parser.add_argument("--nodes", type=int, default=10_000, help="size of the large graphs")
    parser.add_argument("--verbose", action="store_true", help="list the edits that were not told exactly")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in options.sections or SECTIONS:
        print(f"### {name}: {SECTIONS[name].__doc__}", flush=True)
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
