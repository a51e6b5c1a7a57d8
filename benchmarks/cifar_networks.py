"""Small networks of four families on CIFAR-10, trained here, for accuracy under quantization.

    python benchmarks/cifar_networks.py --train mobilenet repvgg vit --epochs 8     # writes benchmarks/weights/NAME.safetensors

``resnet20`` is that of cifar.py. The others follow, in small: Sandler et al., arXiv:1801.04381 (inverted residuals with ReLU6);
Ding et al., arXiv:2101.03697 (three branches per block, as in training); Dosovitskiy et al., arXiv:2010.11929, with the
convolutional stem of Xiao et al., arXiv:2106.14881. All take (N, 3, 32, 32), normalised as in cifar.py, and give (N, 10).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from cifar import CLASSES, DATA, Recipe, accuracy, cifar10, resnet20, save, train
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "weights"


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, *, act: type[nn.Module] | None = None
) -> nn.Sequential:
    """A convolution with "same" padding, its batch norm, and perhaps an activation."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


class InvertedResidual(nn.Module):
    """Wider, depthwise, narrower; the residual where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.layers = nn.Sequential(
            conv_norm(inputs, wide, 1, act=nn.ReLU6),
            conv_norm(wide, wide, 3, stride, groups=wide, act=nn.ReLU6),
            conv_norm(wide, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """MobileNetV2 in small."""
    rows = [(16, 24, 2), (24, 24, 1), (24, 40, 1), (40, 40, 1), (40, 80, 2), (80, 80, 1), (80, 80, 1)]
    blocks = [InvertedResidual(inputs, outputs, stride, 4) for inputs, outputs, stride in rows]
    head = [conv_norm(80, 256, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)]
    return nn.Sequential(conv_norm(3, 16, act=nn.ReLU6), *blocks, *head)


class RepBlock(nn.Module):
    """The sum of a 3x3, a 1x1 and, where the shape allows it, an identity branch, each with its batch norm; then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_norm(inputs, outputs, 3, stride)
        self.point = conv_norm(inputs, outputs, 1, stride)
        self.identity = nn.BatchNorm2d(inputs) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def repvgg() -> nn.Module:
    """RepVGG in small, in its form for training."""
    rows = [(3, 24, 1), (24, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 48, 1), (48, 96, 2), (96, 96, 1), (96, 96, 1)]
    return nn.Sequential(*[RepBlock(*row) for row in rows], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, CLASSES))


class Attention(nn.Module):
    """Self-attention of (N, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Encoder(nn.Module):
    """A transformer block with the norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """64 tokens from a stem of two strided convolutions, and four blocks."""

    def __init__(self, width: int = 96, blocks: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(3, width // 2, stride=2, act=nn.ReLU), conv_norm(width // 2, width, stride=2, act=nn.ReLU), nn.Conv2d(width, width, 1)
        )
        self.position = nn.Parameter(torch.zeros(1, 64, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*[Encoder(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def vit() -> nn.Module:
    """A small vision transformer."""
    return ViT()


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "mobilenet": mobilenet, "repvgg": repvgg, "vit": vit}


def trained(name: str) -> nn.Module:
    """The network with its stored weights, in eval mode."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; python benchmarks/cifar_networks.py --train {name} makes it")
    model = MODELS[name]()
    model.load_state_dict(load_file(path))
    return model.eval()


def recipe(name: str, epochs: int) -> Recipe:
    """SGD for convolutions, AdamW for the transformer."""
    return Recipe(epochs, rate=2e-3, decay=0.05, optimizer="adamw") if name == "vit" else Recipe(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", choices=list(MODELS), required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of cifar10.npz")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, test = cifar10(options.data)
    for name in options.train:
        torch.manual_seed(0)
        model = train(MODELS[name](), images, recipe(name, options.epochs))
        save(model, FOLDER / f"{name}.safetensors")
        print(f"{name}: accuracy {accuracy(model, test):.2f} %", flush=True)


if __name__ == "__main__":
    main()
