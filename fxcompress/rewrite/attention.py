r"""Writes ``nn.MultiheadAttention`` out as projections, ``scaled_dot_product_attention`` and an output projection.

The layer is a black box to everything that looks at channels. Written out (Vaswani et al., 2017, section 3.2),

    q, k, v = heads(x_q W_q^T + b_q), heads(x_k W_k^T + b_k), heads(x_v W_v^T + b_v)
    y = flatten(softmax(q k^T / sqrt(d) + mask) v) W_o^T + b_o

its heads and its embedding can be pruned, and no size but the number of heads stands in the graph. The parameters stay
where they are: the graph reads ``in_proj_weight`` (or ``q_proj_weight``, ...) and ``in_proj_bias`` of the layer, and
calls its ``out_proj``, so the keys of the state_dict survive.

The scores are written out, with ``softmax``, where the weights of the attention are read, and where the layer drops
weights in training (``nn.Dropout`` then follows ``train()`` and ``eval()`` as the layer did).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxcompress.ir.view import Op, kind_of, view
from fxcompress.rewrite.rules import Rule, Scope


@dataclass(frozen=True)
class Attention:
    """One call of an ``nn.MultiheadAttention``."""

    node: Node
    op: Op

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.node, *self.node.all_input_nodes)

    @property
    def layer(self) -> Any:
        return self.op.module

    @property
    def masks(self) -> tuple[Node, ...]:
        return tuple(m for m in (self.op["attn_mask"], self.op["key_padding_mask"]) if m is not None)

    def reads_weights(self) -> bool:
        """Whether somebody uses the weights of the attention."""
        readers = [user for user in self.node.users if user.op == "output" or (user.users and _chosen(user) == 1)]
        return bool(self.op["need_weights"]) and bool(readers)


def _chosen(user: Node) -> int | None:
    """Which of the two results a node takes; None when it is no item of them."""
    index = user.args[1] if kind_of(user) == "getitem" else None
    return {0: 0, 1: 1, -2: 0, -1: 1}.get(index) if isinstance(index, int) else None


def find(node: Node, scope: Scope) -> Attention | None:
    op = view(node, "multihead_attention")
    return None if op is None else Attention(node, op)


def check(match: Attention, scope: Scope) -> str | None:
    layer, op = match.layer, match.op
    if layer.bias_k is not None or layer.add_zero_attn:
        return "it appends keys of its own (add_bias_kv or add_zero_attn)"
    if layer.dropout > 0 and layer.training:
        return f"it is in training mode and drops {layer.dropout:g} of the weights; call eval() first"
    if type(layer.out_proj) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(layer.out_proj).__name__}"
    if any(not isinstance(op[name], bool) for name in ("need_weights", "average_attn_weights", "is_causal")):
        return "need_weights, average_attn_weights or is_causal is computed"
    if op["is_causal"] and op["attn_mask"] is None:
        return "is_causal is a hint about attn_mask, which is not given"
    return _odd_shape(match, scope) or _odd_reader(match.node)


def _odd_shape(match: Attention, scope: Scope) -> str | None:
    rank = _rank(match, scope)
    if rank not in (2, 3):
        return "the number of axes of its query is not known"
    for mask in match.masks:
        dtype = scope.shapes.dtype(mask) if isinstance(mask, Node) else None
        if dtype is None or not (dtype is torch.bool or dtype.is_floating_point):
            return "the type of a mask is not known, or neither bool nor float"
    return None


def _odd_reader(node: Node) -> str | None:
    for user in node.users:
        if user.op != "output" and _chosen(user) is None:
            return f"'{user.name}' reads the pair of its results as a whole"
    return None


def _rank(match: Attention, scope: Scope) -> int:
    return len(scope.shapes.shape(match.op["query"]) or ())


# -- the rewrite --------------------------------------------------------------------------------------------------------


def expand(match: Attention, scope: Scope) -> str:
    result, weights = _Writer(match, scope).write()
    for user in list(match.node.users):
        if user.op == "output":
            _substitute(user, match.node, (result, weights))
            continue
        chosen = result if _chosen(user) == 0 else weights
        for reader in list(user.users):
            _substitute(reader, user, chosen)  # weights that were not asked for are None
        scope.editor.erase(user)
    scope.editor.erase(match.node)
    return f"{match.layer.num_heads} heads are nodes of the graph now"


def _substitute(reader: Node, old: Node, new: Any) -> None:
    def pick(node: Node) -> Any:
        return new if node is old else node

    reader.args, reader.kwargs = torch.fx.node.map_arg((reader.args, reader.kwargs), pick)


class _Writer:
    """Writes one call out, before it. Values inside are (N, heads, length, d), or (heads, length, d) without a batch."""

    def __init__(self, match: Attention, scope: Scope) -> None:
        self.match, self.op, self.layer = match, match.op, match.layer
        self.path, self.editor, self.scope = str(match.node.target), scope.editor, scope
        self.batched = _rank(match, scope) == 3

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        return self.editor.call_function(target, args, kwargs, before=self.match.node, of=[self.match.node])

    def parameter(self, name: str) -> Node | None:
        if getattr(self.layer, name) is None:
            return None
        return self.editor.read(f"{self.path}.{name}", before=self.match.node, of=[self.match.node])

    def write(self) -> tuple[Node, Node | None]:
        q, k, v = map(self.heads, self.projected())
        written = self.match.reads_weights() or self.layer.dropout > 0 or (self.op["need_weights"] and bool(self.match.masks))
        mixed, weights = self.written_out(q, k, v) if written else (self.fused(q, k, v), None)
        if weights is not None and self.op["need_weights"]:
            weights = self.call(torch.mean, weights, -3) if self.op["average_attn_weights"] else weights
        flat = self.call(torch.flatten, self.back(mixed), -2)
        _plain_out_proj(self.layer)
        result = self.editor.call(f"{self.path}.out_proj", (flat,), before=self.match.node, of=[self.match.node])
        return result, weights if self.op["need_weights"] else None

    def projected(self) -> tuple[Node, Node, Node]:
        """x W^T + b for queries, keys and values; one product where all three read the same x."""
        query, key, value = (self.op[name] for name in ("query", "key", "value"))
        bias = self.parameter("in_proj_bias")
        if self.layer.in_proj_weight is not None:
            whole = self.parameter("in_proj_weight")
            if query is key is value:
                return self.thirds(self.call(F.linear, query, whole, bias), -1)
            weights = self.thirds(whole, 0)
        else:
            weights = tuple(self.parameter(f"{name}_proj_weight") for name in "qkv")  # type: ignore[assignment]
        biases = (None, None, None) if bias is None else self.thirds(bias, 0)
        q, k, v = (self.call(F.linear, x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def thirds(self, value: Any, dim: int) -> tuple[Node, Node, Node]:
        pieces = self.call(torch.chunk, value, 3, dim)
        q, k, v = (self.call(operator.getitem, pieces, i) for i in range(3))
        return q, k, v

    def heads(self, x: Node) -> Node:
        """(N, L, E), (L, N, E) or (L, E) -> (N, heads, L, d) or (heads, L, d)"""
        split = self.call(torch.unflatten, x, -1, (self.layer.num_heads, -1))
        if not self.batched:
            return self.call(torch.transpose, split, 0, 1)
        return self.call(torch.transpose, split, 1, 2) if self.layer.batch_first else self.call(torch.permute, split, (1, 2, 0, 3))

    def back(self, x: Node) -> Node:
        """The inverse of :meth:`heads`, with (heads, d) as the last two axes."""
        if not self.batched:
            return self.call(torch.transpose, x, 0, 1)
        return self.call(torch.transpose, x, 1, 2) if self.layer.batch_first else self.call(torch.permute, x, (2, 0, 1, 3))

    def fused(self, q: Node, k: Node, v: Node) -> Node:
        if self.op["is_causal"] and self.op["key_padding_mask"] is None:
            return self.call(F.scaled_dot_product_attention, q, k, v, is_causal=True)
        forbidden, added = self.masks()
        mask = added
        if forbidden is not None and added is not None:
            mask = self.call(torch.masked_fill, added, forbidden, -math.inf)
        elif forbidden is not None:
            mask = self.call(torch.eq, forbidden, False)  # True lets attend there
        return self.call(F.scaled_dot_product_attention, q, k, v, **({} if mask is None else {"attn_mask": mask}))

    def written_out(self, q: Node, k: Node, v: Node) -> tuple[Node, Node]:
        scaled = self.call(torch.mul, q, math.sqrt(1.0 / self.layer.head_dim))
        scores = self.call(torch.matmul, scaled, self.call(torch.transpose, k, -2, -1))
        forbidden, added = self.masks()
        scores = scores if added is None else self.call(torch.add, scores, added)
        scores = scores if forbidden is None else self.call(torch.masked_fill, scores, forbidden, -math.inf)
        weights = self.call(torch.softmax, scores, -1)
        if self.layer.dropout > 0:
            drop = nn.Dropout(self.layer.dropout).train(self.layer.training)
            weights = self.editor.call_module(f"{self.path}.dropped", drop, (weights,), before=self.match.node, of=[self.match.node])
        return self.call(torch.matmul, weights, v), weights

    def masks(self) -> tuple[Node | None, Node | None]:
        """Where it is forbidden to attend (bool) and what is added to the scores, both broadcast to the scores' shape."""
        forbidden: Node | None = None
        added: Node | None = None
        for mask, axes in ((self.op["attn_mask"], self.per_head), (self.op["key_padding_mask"], self.per_key)):
            if mask is None:
                continue
            wide = axes(mask)
            if self.scope.shapes.dtype(mask) is torch.bool:
                forbidden = wide if forbidden is None else self.call(torch.maximum, forbidden, wide)
            else:
                added = wide if added is None else self.call(torch.add, added, wide)
        return forbidden, added

    def per_head(self, mask: Node) -> Node:
        """(L, S) as it is; (N heads, L, S) -> (N, heads, L, S)"""
        if len(self.scope.shapes.shape(mask) or ()) < 3 or not self.batched:
            return mask
        return self.call(torch.unflatten, mask, 0, (-1, self.layer.num_heads))

    def per_key(self, mask: Node) -> Node:
        """(N, S) -> (N, 1, 1, S); (S,) as it is"""
        if not self.batched:
            return mask
        return self.call(torch.unsqueeze, self.call(torch.unsqueeze, mask, 1), 1)


def _plain_out_proj(layer: Any) -> None:
    """torch's subclass of nn.Linear differs in what dynamic quantisation does with it only; everybody knows nn.Linear."""
    old = layer.out_proj
    if type(old) is nn.Linear:
        return
    new = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta").train(old.training)
    new.weight = old.weight
    new.register_parameter("bias", old.bias)
    layer.out_proj = new


EXPAND_ATTENTION = Rule("expand-attention", find, expand, check)
"""Every call of an ``nn.MultiheadAttention`` that allows it becomes nodes of the graph."""
