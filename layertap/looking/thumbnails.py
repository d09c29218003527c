"""Small pictures of the images of an output, from its source as it is now."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from layertap.contracts import Params, Preprocessor
from layertap.errors import ConfigError
from layertap.images.batches import Decoding, Slot, batches, default_workers
from layertap.images.decoding.bounds import Bounds
from layertap.images.exif import exif_orientation
from layertap.looking.originals import Original, Originals
from layertap.outputs.output import Output
from layertap.plugins import Plugins
from layertap.records import Planned

if TYPE_CHECKING:
    from layertap.config.model import RunConfig

SIDE = 96
"""The longer side of a thumbnail in pixels."""

MIME = "image/webp"

# Pictures in one batch: at most three batches are in memory.
_BATCH = 32

_QUALITY = 80

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The reasons of a failure that mean that there is no such image any more, or another one.
_GONE = {"not_found": "gone", "vanished": "gone", "changed": "changed since the run"}


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The picture of one image as the bytes of a WebP, or the `reason` why there is none, such as `gone`.

    Images that are not rows of the output have the row -1. `may_differ` is set if the picture may not be that of the
    run, because files of its shard have changed and nothing shows which.
    """

    row: int
    id: str
    data: bytes | None
    reason: str | None = None
    may_differ: bool = False


def thumbnails(
    features: Output,
    rows: Collection[int],
    *,
    side: int = SIDE,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    remote: Collection[str] = (),
) -> Iterator[Thumbnail]:
    """A thumbnail of each of the `rows`, in the order of the rows, in bounded memory.

    They come from the source of the manifest, with `overrides` for what has moved, and are decoded as a run decodes
    them, within the limits of this machine. An image that is gone, has changed or cannot be read has a reason instead;
    so do all images of a source on a machine that `remote` does not name. Raises `ConfigError` for `overrides` that
    make no sense.
    """
    known = Plugins.load(plugins)
    try:
        originals = Originals(features, rows, overrides=overrides, plugins=known, remote=remote)
    except ConfigError as error:
        if overrides:
            raise
        ids, said = features.ids, str(error)  # such as the configuration of a later version
        return (Thumbnail(row, ids[row], None, said) for row in sorted(set(rows)))
    return _drawn(originals, originals.config, side)


def thumbnails_of(planned: Iterable[Planned], config: RunConfig, side: int = SIDE) -> Iterator[Thumbnail]:
    """A thumbnail of each of some records that are not rows of an output, decoded as `config` says."""
    return _drawn((Original(-1, one.record.id, one.record, one.stamp) for one in planned), config, side)


def _drawn(originals: Iterable[Original], config: RunConfig, side: int) -> Iterator[Thumbnail]:
    waiting: deque[Original] = deque()

    def readable() -> Iterator[Planned]:
        for original in originals:
            waiting.append(original)
            if original.record is not None:
                yield Planned(original.record, original.stamp)

    with closing(_encoded(readable(), config, side)) as pictures:
        for picture in pictures:
            yield from _without(waiting)
            original = waiting.popleft()
            reason = None if isinstance(picture, bytes) else picture
            data = picture if isinstance(picture, bytes) else None
            yield Thumbnail(original.row, original.id, data, reason, original.may_differ)
    yield from _without(waiting)


def _without(waiting: deque[Original]) -> Iterator[Thumbnail]:
    """The images at the front that there is nothing to show of."""
    while waiting and waiting[0].record is None:
        original = waiting.popleft()
        yield Thumbnail(original.row, original.id, None, original.reason)


def _encoded(planned: Iterable[Planned], config: RunConfig, side: int) -> Generator[bytes | str, None, None]:
    """Each picture, or the reason why there is none."""
    encoder = _Encoder.of(side=side)
    bounds = Bounds(config.max_pixels, config.image_memory * 2**20)
    decoding = Decoding(config.formats, config.image_timeout, config.isolation, bounds, encoder.enough)
    slot = Slot((1,), torch.uint8, other=(2,))  # any length
    with closing(
        batches(planned, encoder, slot, batch_size=_BATCH, workers=default_workers(), decoding=decoding)
    ) as stream:
        for batch in stream:
            for number in range(len(batch.records)):
                failure = batch.failures.get(number)
                if failure is None:
                    yield batch.sized[number].numpy().tobytes()
                else:
                    yield _GONE.get(failure.reason, f"cannot be read: {failure.reason}")


class _Encoder(Preprocessor):
    """Makes a WebP of an image, upright and at most `side` pixels wide and high, as a tensor of bytes."""

    class Params(Params):
        side: int

    params: Params

    def enough(self, size: tuple[int, int]) -> tuple[int, int]:
        share = min(1, 2 * self.params.side / max(size))
        return max(1, round(size[0] * share)), max(1, round(size[1] * share))

    def prepare(self, image: Image.Image) -> Tensor:
        turn = _UPRIGHT.get(exif_orientation(image))
        small = image.convert("RGB")
        small.thumbnail((self.params.side, self.params.side), Image.Resampling.BICUBIC)
        small = small if turn is None else small.transpose(turn)
        encoded = BytesIO()
        small.save(encoded, "WEBP", quality=_QUALITY)
        return torch.frombuffer(bytearray(encoded.getvalue()), dtype=torch.uint8)
