"""The stored ResNet-20 of ``benchmarks/cifar.py``: its weights fit, it is captured and pruned; its accuracy where the images are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture

FILE = Path(__file__).parents[1] / "benchmarks" / "cifar.py"


@pytest.fixture(scope="module")
def cifar() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_stored_weights_fit(cifar: Any) -> None:
    tensors = load_file(cifar.WEIGHTS)
    model = cifar.resnet20()
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    model = cifar.resnet20(trained=True)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 272_474
    assert cifar.macs(model) == 40_813_184
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert cifar.WEIGHTS.stat().st_size < 2**21


def test_its_channels(cifar: Any) -> None:
    """Three residual streams and the inner channels of nine blocks."""
    part = capture(cifar.resnet20(trained=True), (cifar.EXAMPLE,)).parts[0]
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    assert sorted(len(group.classes) for group in deps.groups) == [16] * 4 + [32] * 4 + [64] * 4


def test_augmentation_cuts_and_flips(cifar: Any) -> None:
    """Every image is one of the 81 x 2 cuts of its padded self."""
    x = torch.randint(1, 255, (6, 32, 32, 3), dtype=torch.uint8)
    images = cifar.Images(x, torch.arange(6))
    for batch, labels in images.augmented(3, torch.Generator().manual_seed(0)):
        wide = torch.nn.functional.pad(x[labels], (0, 0, 4, 4, 4, 4))
        for image, source in zip(batch, wide, strict=True):
            cuts = [source[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
            every = cifar.normalised(torch.stack([*cuts, *(c.flip(1) for c in cuts)]))
            assert (every == image).all((1, 2, 3)).sum() == 1


def test_accuracy_on_the_first_test_images(cifar: Any) -> None:
    if not (cifar.DATA / "cifar10.npz").exists():
        pytest.skip(f"the CIFAR-10 images are not in {cifar.DATA}; benchmarks/cifar.py says where they come from")
    _, test = cifar.cifar10(cifar.DATA)
    assert cifar.accuracy(cifar.resnet20(trained=True), test.first(1000)) > 80
