"""Rows of the table of operations: arithmetic, creation, checks, sizes."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch

from fxcompress.ir.guards import expect_constant
from fxcompress.ir.op_spec import OpSpec, Trait, op


def _arithmetic() -> Iterator[OpSpec]:
    yield op(
        "add",
        "input other alpha",
        functions=(operator.add, operator.iadd, torch.add),
        methods="add add_",
        traits=(Trait.ELEMENTWISE,),
        alpha=1,
    )
    yield op(
        "sub",
        "input other alpha",
        functions=(operator.sub, operator.isub, torch.sub),
        methods="sub sub_",
        traits=(Trait.ELEMENTWISE,),
        alpha=1,
    )
    yield op("mul", "input other", functions=(operator.mul, operator.imul, torch.mul), methods="mul mul_", traits=(Trait.ELEMENTWISE,))
    yield op(
        "div",
        "input other rounding_mode",
        functions=(operator.truediv, operator.itruediv, torch.div, torch.true_divide),
        methods="div div_ true_divide",
        traits=(Trait.ELEMENTWISE,),
        rounding_mode=None,
    )
    yield op(
        "floor_divide",
        "input other",
        functions=(operator.floordiv, torch.floor_divide),
        methods="floor_divide",
        traits=(Trait.ELEMENTWISE,),
    )
    yield op("remainder", "input other", functions=(operator.mod, torch.remainder), methods="remainder", traits=(Trait.ELEMENTWISE,))
    yield op("pow", "input exponent", functions=(operator.pow, torch.pow), methods="pow pow_", traits=(Trait.ELEMENTWISE,))
    yield op("neg", "input", functions=(operator.neg, torch.neg), methods="neg", traits=(Trait.ELEMENTWISE,))
    for name in (
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "abs",
        "square",
        "reciprocal",
        "sin",
        "cos",
        "floor",
        "ceil",
        "round",
        "sign",
        "erf",
        "log1p",
        "expm1",
    ):
        yield op(name, "input", functions=(getattr(torch, name),), methods=name, traits=(Trait.ELEMENTWISE,))
    yield op(
        "clamp",
        "input min max",
        functions=(torch.clamp, torch.clip),
        methods="clamp clamp_ clip",
        traits=(Trait.ELEMENTWISE,),
        min=None,
        max=None,
    )
    for name in ("addcmul", "addcdiv"):
        operands = "input tensor1 tensor2 value"
        yield op(name, operands, functions=(getattr(torch, name),), methods=name, traits=(Trait.ELEMENTWISE,), value=1)
    yield op("lerp", "input end weight", functions=(torch.lerp,), methods="lerp", traits=(Trait.ELEMENTWISE,))
    yield op("maximum", "input other", functions=(torch.maximum,), methods="maximum", traits=(Trait.ELEMENTWISE,))
    yield op("minimum", "input other", functions=(torch.minimum,), methods="minimum", traits=(Trait.ELEMENTWISE,))
    yield op("where", "condition input other", functions=(torch.where,), traits=(Trait.ELEMENTWISE,))
    yield op(
        "masked_fill", "input mask value", functions=(torch.masked_fill,), methods="masked_fill masked_fill_", traits=(Trait.ELEMENTWISE,)
    )
    for name, fn in (
        ("eq", operator.eq),
        ("ne", operator.ne),
        ("lt", operator.lt),
        ("le", operator.le),
        ("gt", operator.gt),
        ("ge", operator.ge),
    ):
        yield op(name, "input other", functions=(fn, getattr(torch, name)), methods=name, traits=(Trait.ELEMENTWISE,))
    yield op("matmul", "input other", functions=(torch.matmul, operator.matmul), methods="matmul")
    yield op("bmm", "input mat2", functions=(torch.bmm,), methods="bmm")
    yield op("mm", "input mat2", functions=(torch.mm,), methods="mm")
    yield op("addmm", "input mat1 mat2 beta alpha", functions=(torch.addmm,), methods="addmm", beta=1, alpha=1)
    yield op("baddbmm", "input batch1 batch2 beta alpha", functions=(torch.baddbmm,), methods="baddbmm", beta=1, alpha=1)


def _rest() -> Iterator[OpSpec]:
    yield op("getattr", "input name", functions=(getattr,), traits=(Trait.META,))
    yield op("size", "input dim", methods="size", traits=(Trait.META,), dim=None)
    for name in ("dim", "numel", "ndimension", "is_floating_point"):
        yield op(name, "input", methods=name, traits=(Trait.META,))
    for name in ("zeros", "ones", "full", "arange", "linspace", "eye", "zeros_like", "ones_like", "full_like", "tril", "triu"):
        yield op(name, "input *rest", functions=(getattr(torch, name),))
    yield op("assert", "condition message", functions=(torch._assert,), traits=(Trait.EFFECT,), message="")
    yield op("expect_constant", "value expected name", functions=(expect_constant,), traits=(Trait.EFFECT,))
    for name in ("bernoulli", "rand", "randn", "randint", "rand_like", "randn_like", "normal", "multinomial"):
        yield op(name, "input *rest", functions=(getattr(torch, name),), traits=(Trait.RANDOM,))


def rows() -> Iterator[OpSpec]:
    yield from _arithmetic()
    yield from _rest()
