"""A tap's layer -> the modules of a model that it selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from layertap.errors import TapError, did_you_mean
from layertap.taps.grammar import ROOT, Tap
from layertap.taps.patterns import matching


def find_layers(root: nn.Module, tap: Tap) -> Sequence[tuple[str, nn.Module]]:
    """The layers of a tap, by path. An exact path wins over a pattern, so that odd module names stay reachable."""
    if tap.layer == ROOT:
        return [(ROOT, root)]
    every = dict(root.named_modules(remove_duplicate=False))
    del every[""]
    if tap.layer in every:
        return [(tap.layer, every[tap.layer])]
    if not tap.is_pattern:
        raise TapError(f"the model has no layer {tap.layer!r}{did_you_mean(tap.layer, every) or _inside(tap, every)}")
    # A module with several matching names is tapped once; a shared module may match by its second name alone.
    first: dict[nn.Module, str] = {}
    for path in matching(tap.layer, every):
        first.setdefault(every[path], path)
    found = [(path, module) for module, path in first.items()]
    if not found:
        raise TapError(f"no layer matches {tap.layer!r}; the model has {', '.join(dict(root.named_children()))}")
    if len(found) > 1 and tap.name is not None:
        raise TapError(f"{tap.layer!r} matches {len(found)} layers, which cannot all be named {tap.name!r}")
    return found


def unfused(root: nn.Module, layers: Iterable[str], operated: Iterable[str] = ()) -> list[str]:
    """The layers that leave torch's fused inference path because they are tapped; the last bits then change.

    torch does this automatically for a transformer block with hooks on it or in it, and for attention in which
    operations are tapped. `operated` are those of `layers` of which operations are tapped.
    """
    operated = list(operated)
    hooked = {block for layer in operated for block in blocks_of(root if layer == ROOT else root.get_submodule(layer))}
    tapped = [f"{layer}." for layer in layers]
    found = []
    for path, module in root.named_modules():
        is_block = isinstance(module, nn.TransformerEncoderLayer)
        inside = is_block and any(layer.startswith(f"{path}." if path else "") for layer in tapped)
        is_operated = isinstance(module, nn.MultiheadAttention) and (path or ROOT) in operated
        if inside or is_operated or (is_block and module in hooked):
            found.append(path or ROOT)
    return found


def blocks_of(layer: nn.Module) -> list[nn.Module]:
    """The nearest layers inside it that hold others and are called: those that hold none run too briefly to pause."""
    found: list[nn.Module] = []
    for child in layer.children():
        # A list or dict of layers is never called.
        if type(child).forward is nn.Module.forward:
            found += blocks_of(child)
        elif next(child.children(), None) is not None:
            found.append(child)
    return found


def why_silent(root: nn.Module, layer: str) -> str | None:
    """Why a layer is never called, if its type shows it; otherwise None."""
    if layer == ROOT:
        return None
    parent, _, name = layer.rpartition(".")
    if name == "out_proj" and isinstance(root.get_submodule(parent), nn.MultiheadAttention):
        return f"nn.MultiheadAttention uses its weights without calling it; tap {parent or ROOT!r} instead"
    module = root.get_submodule(layer)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return f"a {type(module).__name__} only holds layers and is never called; tap those in it: {layer}.*"
    above = root.get_submodule(parent) if parent else root
    if getattr(above, "fused_attn", False) is True:  # as timm names it
        return (
            f"{parent or 'the model'} computes fused attention, which skips the layers inside it: set the environment "
            "variable TIMM_FUSED_ATTN=0, or call timm.layers.set_fused_attn(False) before the model is built"
        )
    return None


def why_empty(root: nn.Module, layer: nn.Module, keys: Sequence[int | str]) -> str:
    """The cure for a layer of transformers that gives no attention weights; an empty string for any other."""
    attention = getattr(getattr(root, "config", None), "_attn_implementation", None)
    whole = "attentions" in keys
    if not isinstance(attention, str) or not (whole or "Attention" in type(layer).__name__):
        return ""
    if attention == "eager" and not whole:
        return ""
    args = "attn_implementation: eager" + (", output_attentions: true" if whole else "")
    return f"; attention weights need model.args={{{args}}} (in Python, the same fields of the model's config)"


def _inside(tap: Tap, every: Mapping[str, nn.Module]) -> str:
    """The children of the longest part of the path that does exist."""
    parent = tap.layer
    while parent and parent not in every:
        parent = parent.rpartition(".")[0]
    head = f"{parent}." if parent else ""
    children = [p for p in every if p.startswith(head) and "." not in p[len(head) :]]
    listed = ", ".join(children[:12]) + (", ..." if len(children) > 12 else "")
    return f"; {parent or 'the model'} has {listed}" if children else f"; {parent!r} has no layers inside"
