"""Attention weights: those that a model builds, or what a fused function was given -> the weights it does not build."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layertap.errors import TapError
from layertap.taps.operations.operation import Operation

ATTENTION = "attention"
"""The operation for whatever computes attention weights."""

AXES = "NHQK"
"""The axes of attention weights: image, head, query, key."""

_SOFTMAX, _FUSED, _MULTI_HEAD = "softmax", "scaled_dot_product_attention", "multi_head_attention_forward"

KINDS = f"{_SOFTMAX} over keys, {_FUSED} or {_MULTI_HEAD}"


def attends(operation: Operation) -> bool:
    """Whether an operation that has run computes attention weights, or what is made with them."""
    if operation.name != _SOFTMAX:
        return operation.name in (_FUSED, _MULTI_HEAD)
    made = operation.result
    # Shares of classes or of branches are something else.
    return isinstance(made, Tensor) and made.ndim >= 3 and _softmax_axis(operation) in (-1, made.ndim - 1)


def weights_of(operation: Operation) -> tuple[Tensor, bool]:
    """The attention weights of an operation that has run, and whether they had to be derived from what it was given.

    Raises `TapError` where they cannot be.
    """
    if operation.name == _SOFTMAX:
        return operation.result, False
    if operation.name == _MULTI_HEAD:
        return _multi_head(operation)
    return _fused(*operation.args, **operation.kwargs), True


def _softmax_axis(operation: Operation) -> int | None:
    axis = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else None)
    return axis if isinstance(axis, int) else None


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights of `F.scaled_dot_product_attention` on these arguments, as its documentation defines them."""
    if dropout_p:
        raise TapError("attention weights with dropout cannot be derived: put the model in eval mode")
    if query.is_nested or key.is_nested:
        raise TapError("attention weights of nested tensors cannot be derived")
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    # Half precision would round the scores, which the fused function does not.
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query.to(wide) * scale) @ key.to(wide).transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    # A query that may look at no key gets zeros from the fused function, not NaN.
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(nothing, 0).to(query.dtype)


def _multi_head(operation: Operation) -> tuple[Tensor, bool]:
    """The weights of `F.multi_head_attention_forward`, which gives them itself if it is asked."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*operation.args, **operation.kwargs)
    given.apply_defaults()
    arguments: dict[str, Any] = given.arguments
    weights = operation.result[1]
    if weights is not None and not arguments["average_attn_weights"]:
        return weights, False
    if arguments["training"] and arguments["dropout_p"]:
        raise TapError("attention weights with dropout cannot be derived: put the model in eval mode")
    arguments |= {"need_weights": True, "average_attn_weights": False}
    asked = F.multi_head_attention_forward(**arguments)[1]
    assert asked is not None
    return asked, True
