"""Where in an image the channels of a layer respond: the model run again on a few images, or the maps that are kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from layertap.errors import LayertapError
from layertap.looking.originals import Originals
from layertap.looking.queries import as_then, refuse_another, source_of
from layertap.looking.report.packing import packed
from layertap.outputs.features import Features
from layertap.records import Planned
from layertap.store.manifest import TapFacts

if TYPE_CHECKING:
    from torch import Tensor

    from layertap.plugins import Plugins

MOST_IMAGES = 64
"""How many images the model is run on again."""

# A larger map is averaged down to so many positions across and down.
_MOST_ACROSS = 28
_KEPT_PER_CHANNEL = 8
_VIEW_SIDE = 224

Maps = NDArray[np.float32]


@dataclass(slots=True)
class Activations:
    """The maps of some images (tap -> images x channels x height x width), and what the model saw of each as a WebP.

    `views` is empty where the model could not be run again, for the reason `why`.
    """

    rows: list[int]
    maps: dict[str, Maps]
    views: list[bytes]
    why: str | None = None


def has_maps(facts: TapFacts) -> bool:
    """Whether the layer of a tap returns maps of channels."""
    axes = facts.raw.axes
    return len(axes) == len(facts.raw.shape) + 1 and {"C", "H", "W"} <= set(axes)


def activations(
    features: Features,
    taps: Sequence[str],
    rows: Collection[int],
    *,
    overrides: Mapping[str, Any] | None,
    plugins: Plugins,
    remote: Collection[str],
) -> Activations:
    """The maps of the taps for these rows, from the model of the manifest; what is stored if it cannot be run again."""
    try:
        return _computed(features, taps, rows, overrides, plugins, remote)
    except LayertapError as error:
        kept = {tap: _stored(features, tap, sorted(rows)) for tap in taps if _keeps_maps(features.facts(tap))}
        return Activations(sorted(rows), kept, [], str(error))


def block(found: Maps, numbers: NDArray[np.int32]) -> dict[str, Any]:
    """The maps of one tap as data for the page: of each channel, the images that it responds to most.

    A map is scaled so that 255 is the largest value of its channel, and values below 0 are 0.
    """
    count, channels = found.shape[:2]
    kept = min(count, _KEPT_PER_CHANNEL)
    finite = np.where(np.isfinite(found), found, 0)
    peaks = finite.max(axis=(2, 3)).T
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :kept]
    chosen = finite[order, np.arange(channels)[:, None]]
    top = np.maximum(chosen.max(axis=(1, 2, 3)), 0)
    scaled = np.maximum(chosen, 0) * np.where(top > 0, 255 / np.where(top > 0, top, 1), 0)[:, None, None, None]
    return {
        "images": packed(numbers[order].astype(np.int32)),
        "peaks": packed(np.take_along_axis(peaks, order, axis=1).astype(np.float32)),
        "maps": packed(np.round(scaled).astype(np.uint8)),
        "of": count,
    }


def view_text(view: bytes) -> str:
    """A picture as text for the page."""
    return base64.b64encode(view).decode("ascii")


def _computed(
    features: Features,
    taps: Sequence[str],
    rows: Collection[int],
    overrides: Mapping[str, Any] | None,
    plugins: Plugins,
    remote: Collection[str],
) -> Activations:
    from layertap.pipeline.prepare import prepared

    originals = Originals(features, rows, overrides=_of_source(overrides), plugins=plugins, remote=remote)
    there = [original for original in originals if original.record is not None]
    if not there:
        raise LayertapError("none of the images is there any more")
    planned = [Planned(original.record, original.stamp) for original in there if original.record]
    row_of = {original.id: original.row for original in there}
    config = as_then(features, overrides, plugins, taps=[_whole(features, tap) for tap in taps])
    found = Activations([], {tap: np.empty(0, np.float32) for tap in taps}, [])
    parts: dict[str, list[Maps]] = {tap: [] for tap in taps}
    with prepared(config, plugins, source=source_of(lambda: (one.record for one in planned))) as this:
        refuse_another(features, this, besides=("taps", "columns", "shard_rows"))
        for tap, column in this.info.columns.items():
            if list(column.tap.shape) != list(features.facts(tap).raw.shape):
                # Such as windows that the run put together.
                raise LayertapError(f"{tap!r} gives values of the shape {column.tap.shape} now")
        stream = this.batches(planned)
        with closing(stream), closing(this.forward.activations(stream, this.info.columns)) as computed:
            for batch, values in computed:
                good = (slot for slot in range(len(batch.records)) if slot not in batch.failures)
                found.views += [_view(batch.sized.get(slot, batch.pixels[slot : slot + 1].squeeze(0))) for slot in good]
                found.rows += [row_of[record.id] for record in values.records]
                for tap in taps:
                    parts[tap].append(_small(values.values[tap], features.facts(tap).raw.axes))
    if not found.rows:
        raise LayertapError("none of the images can be read")
    found.maps = {tap: np.concatenate(some) for tap, some in parts.items()}
    return found


def _of_source(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (overrides or {}).items() if key.partition(".")[0] == "source"}


def _whole(features: Features, tap: str) -> dict[str, Any]:
    """The tap as its layer returned it, before the reducers."""
    facts = features.facts(tap)
    where = {"layer": facts.layer, "side": facts.side, "call": facts.call, "select": list(facts.select), "name": tap}
    if facts.op is not None:
        where |= {"op": facts.op, "index": facts.index}
    return where | ({"batch_axis": facts.batch_axis} if facts.batch_axis else {})


def _keeps_maps(facts: TapFacts) -> bool:
    return has_maps(facts) and not facts.reduce and list(facts.shape) == list(facts.raw.shape)


def _stored(features: Features, tap: str, rows: Sequence[int]) -> Maps:
    import torch

    values = np.asarray(features[tap][np.array(rows, np.int64)]).astype(np.float32)
    return _small(torch.from_numpy(values), features.facts(tap).raw.axes)


def _small(values: Tensor, axes: str) -> Maps:
    """Maps as images x channels x height x width, of at most 28 x 28 positions."""
    import torch

    ordered = values.to(torch.float32).permute([axes.index(axis) for axis in "NCHW"])
    height, width = (min(side, _MOST_ACROSS) for side in ordered.shape[2:])
    maps: Maps = torch.nn.functional.adaptive_avg_pool2d(ordered, (height, width)).numpy()
    return maps


def _view(pixels: Tensor) -> bytes:
    """One prepared image as a picture: as it is if it consists of bytes, and else stretched to the full range."""
    import torch

    values = pixels if pixels.ndim == 3 else pixels.reshape(1, 1, -1)
    if values.shape[0] in (1, 3):
        values = values.permute(1, 2, 0)
    values = values[..., :3] if values.shape[-1] >= 3 else values[..., :1].expand(-1, -1, 3)
    if values.dtype != torch.uint8:
        values = values.to(torch.float32).nan_to_num()
        low, high = values.min(), values.max()
        values = ((values - low) / (high - low if high > low else 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(values.numpy()), "RGB")
    picture.thumbnail((_VIEW_SIDE, _VIEW_SIDE))
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=80)
    return encoded.getvalue()
