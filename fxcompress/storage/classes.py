"""The module classes that an archive may name, and the plain attributes that make up their settings.

A class of torch.nn is described by an instance made on the meta device: its attributes are the ones that an archive
may set, and what an archive leaves out (an attribute that a later torch has added) keeps the instance's value.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxcompress.errors import ArchiveError
from fxcompress.ir.fused import FUSED, fuse
from fxcompress.quant.fake import FAKE_LAYERS, fake_quantized
from fxcompress.storage import functions, quantized
from fxcompress.storage.values import is_name
from fxcompress.targets.cpu_attention import PackedSelfAttention
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear
from fxcompress.targets.engine import EngineModule

BASE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""What every module has; none of it is a setting."""

_RECURRENT_CACHES = frozenset({"_flat_weights", "_flat_weight_refs"})

# Arguments with which a class can be constructed -> names in torch.nn.
_ARGUMENTS: dict[tuple[Any, ...], str] = {
    (): """
        Module Sequential ModuleList ModuleDict Identity Flatten ReLU ReLU6 RReLU Hardtanh Hardswish Hardsigmoid Hardshrink Softshrink
        Tanhshrink Sigmoid Tanh SiLU Mish ELU CELU SELU GELU GLU LeakyReLU LogSigmoid Softplus Softsign Softmax Softmax2d LogSoftmax
        Softmin PReLU Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout Upsample UpsamplingNearest2d
        UpsamplingBilinear2d CosineSimilarity PairwiseDistance ParameterList
    """,
    (1,): """
        BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LayerNorm RMSNorm
        LocalResponseNorm MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d
        AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d ZeroPad1d ZeroPad2d
        ZeroPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d
        CircularPad2d CircularPad3d PixelShuffle PixelUnshuffle ChannelShuffle Unfold
    """,
    (1, 1): """
        Linear Embedding EmbeddingBag GroupNorm LPPool1d LPPool2d LPPool3d Fold ConstantPad1d ConstantPad2d ConstantPad3d Threshold
        RNN LSTM GRU RNNCell LSTMCell GRUCell MultiheadAttention
    """,
    (1, 1, 1): """
        Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Bilinear TransformerEncoderLayer TransformerDecoderLayer
    """,
    (1, (1, 1)): "Unflatten",
}


class Form(Enum):
    """How a class is taken apart and put together again."""

    ATTRIBUTES = "known attributes are set on an empty instance"
    OPEN = "a class that the caller allows: any attribute that hides none of its methods is set on an empty instance"
    PACKED = "the constructor is called with weight, bias and the settings"
    MADE = "the constructor is called with tensors and settings; what it derives from them is not stored"
    STATE = "state() gives str, int and bytes; from_state() takes them"


@dataclass(frozen=True)
class Layout:
    """How a class is stored: ``attributes`` are its settings with their default values, ``tensors`` arguments of a constructor."""

    cls: Any
    attributes: dict[str, Any]
    form: Form = Form.ATTRIBUTES
    tensors: frozenset[str] = frozenset()

    def takes(self, name: object) -> bool:
        """Whether an archive may set the attribute ``name``."""
        if self.form is not Form.OPEN:
            return name in self.attributes
        return is_name(name) and name not in BASE_ATTRIBUTES and not _is_behaviour(self.cls, str(name))

    def takes_function(self, name: str) -> bool:
        """Whether the attribute may be a function (the activation of a TransformerEncoderLayer)."""
        return self.form is Form.OPEN or callable(self.attributes[name])


def _examples() -> dict[str, Callable[[], nn.Module]]:
    examples: dict[str, Callable[[], nn.Module]] = {}
    for arguments, text in _ARGUMENTS.items():
        for name in text.split():
            if hasattr(nn, name):
                examples[f"torch.nn.{name}"] = partial(getattr(nn, name), *arguments)
    for plain, fused in FUSED.items():
        examples[f"fxcompress.{fused.__name__}"] = partial(_fused, plain, (1, 1) if plain is nn.Linear else (1, 1, 1))
    for plain in FUSED:
        example = partial(_fake, plain, (1, 1) if plain is nn.Linear else (1, 1, 1))
        examples[f"fxcompress.{FAKE_LAYERS[plain].__name__}"] = example
    examples["torch.nn.NonDynamicallyQuantizableLinear"] = lambda: NonDynamicallyQuantizableLinear(1, 1)
    encoder, decoder = nn.TransformerEncoder, nn.TransformerDecoder
    examples["torch.nn.TransformerEncoder"] = lambda: encoder(nn.TransformerEncoderLayer(1, 1, 1), 1, enable_nested_tensor=False)
    examples["torch.nn.TransformerDecoder"] = lambda: decoder(nn.TransformerDecoderLayer(1, 1, 1), 1)
    examples["fxcompress.PackedSelfAttention"] = _attention
    return examples


def _attention() -> nn.Module:
    return PackedSelfAttention(torch.empty(6, 2), None, torch.empty(2, 2), None, num_heads=1, batch_first=True)


def _fused(plain: type[nn.Module], arguments: tuple[int, ...]) -> nn.Module:
    return fuse(plain(*arguments))


def _fake(plain: type[nn.Module], arguments: tuple[int, ...]) -> nn.Module:
    return fake_quantized(plain(*arguments))


@cache
def _class_names() -> dict[type[nn.Module], str]:
    names = {getattr(nn, name): f"torch.nn.{name}" for text in _ARGUMENTS.values() for name in text.split() if hasattr(nn, name)}
    names.update({cls: f"fxcompress.{cls.__name__}" for cls in (*FUSED.values(), *FAKE_LAYERS.values())})
    for cls in (NonDynamicallyQuantizableLinear, nn.TransformerEncoder, nn.TransformerDecoder):
        names[cls] = f"torch.nn.{cls.__name__}"
    names[PackedSelfAttention] = "fxcompress.PackedSelfAttention"
    return names | {cls: name for name, (cls, _) in _own().items()}


def _own() -> dict[str, tuple[type[nn.Module], Form]]:
    """Classes of this package that are more than their attributes."""
    return {
        "fxcompress.PackedConv": (PackedConv, Form.PACKED),
        "fxcompress.PackedLinear": (PackedLinear, Form.PACKED),
        "fxcompress.EngineModule": (EngineModule, Form.STATE),
        **{f"fxcompress.{cls.__name__}": (cls, Form.MADE) for cls in quantized.CLASSES},
    }


@cache
def _layout(name: str) -> Layout | None:
    if name in _own():
        cls, form = _own()[name]
        skipped = {Form.PACKED: ("weight", "bias"), Form.STATE: ("model",), Form.MADE: quantized.TENSORS}[form]
        parameters = inspect.signature(cls).parameters
        settings = {p.name: p.default for p in parameters.values() if p.name not in skipped}
        return Layout(cls, settings, form, frozenset(skipped).intersection(parameters))
    example = _examples().get(name)
    if example is None:
        return None
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a constructor says about the example's tiny sizes
        module = example()
    derived = BASE_ATTRIBUTES | {"_in_proj"} | (_RECURRENT_CACHES if isinstance(module, nn.RNNBase) else frozenset())
    return Layout(type(module), {key: value for key, value in vars(module).items() if key not in derived})


def qualified(item: Any) -> str:
    """The archive's name of a class or function that the caller allows: ``package.module:Name``."""
    return f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', type(item).__qualname__)}"


class Allowed:
    """What an archive may name: the fixed tables, and the classes and functions that the caller adds."""

    def __init__(self, extra: Iterable[Any] = ()) -> None:
        self._extra = {qualified(item): item for item in extra}

    def function_name(self, function: Any) -> str | None:
        return qualified(function) if self._is_extra(function) else functions.function_name(function)

    def function(self, name: object) -> Any:
        if isinstance(name, str) and name in self._extra and not _is_module_class(self._extra[name]):
            return self._extra[name]
        return functions.function_of(str(name))

    def class_name(self, cls: type[nn.Module]) -> str | None:
        return qualified(cls) if self._is_extra(cls) else _class_names().get(cls)

    def layout(self, name: object) -> Layout:
        """The layout of a class.

        Raises:
            ArchiveError: the class is not allowed.
        """
        if isinstance(name, str) and name in self._extra and _is_module_class(self._extra[name]):
            return Layout(self._extra[name], {}, Form.OPEN)
        layout = _layout(name) if isinstance(name, str) else None
        if layout is None:
            raise ArchiveError(
                f"the file names the module class '{str(name)[:80]}', which archives may not make",
                hint="if it is a class of yours, pass it: load(path, allow=(TheClass,)); else do not trust the file",
            )
        return layout

    def _is_extra(self, item: Any) -> bool:
        return self._extra.get(qualified(item)) is item


def _is_module_class(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, nn.Module)


def _is_behaviour(cls: type, name: str) -> bool:
    """Whether a class attribute is a method, a property or the like, which no archive may shadow."""
    found = inspect.getattr_static(cls, name, None)
    return callable(found) or hasattr(found, "__get__")
