"""How an output and its images show themselves in a notebook: HTML in which every name is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from layertap.errors import ConfigError, ImageError, did_you_mean
from layertap.looking.page import rendered
from layertap.outputs.output import Output

if TYPE_CHECKING:
    from PIL import Image

    from layertap.looking.thumbnails import Thumbnail

_SIDE, _SMALL = 512, 112

# Images that an output shows of itself.
_FIRST = 8

# Among more ids, looking for one that is spelled alike takes too long.
_MOST_SPELLED = 10_000


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of an output: a notebook displays its picture, id, row and metadata.

    `data` is the picture as the bytes of a WebP, at most 512 pixels wide and high, and `image` as an image. If there is
    none, `reason` says why, such as `gone`.
    """

    row: int
    id: str
    meta: Mapping[str, Any]
    thumbnail: Thumbnail

    @property
    def data(self) -> bytes | None:
        """The picture as the bytes of a WebP; None where there is none."""
        return self.thumbnail.data

    @property
    def reason(self) -> str | None:
        """Why there is no picture; None where there is one."""
        return self.thumbnail.reason

    @property
    def image(self) -> Image.Image:
        """The picture, as RGB. Raises `ImageError` where there is none."""
        if self.data is None:
            raise ImageError("error", f"{self.id!r} has no picture: {self.reason}")
        from PIL import Image

        return Image.open(BytesIO(self.data)).convert("RGB")

    def __repr__(self) -> str:
        return f"<Shown row {self.row}: {self.id!r}{f' ({self.reason})' if self.reason else ''}>"

    def _repr_html_(self) -> str:
        from layertap.looking.tiles import Tile

        tile = Tile.of(self.id, [("row", self.row), *self.meta.items()], self.thumbnail)
        return rendered("images.html", side=_SIDE, tiles=[tile])


def show(features: Output, name: str, *, overrides: Mapping[str, Any] | None, plugins: Sequence[str]) -> Shown:
    """`Features.show`."""
    from layertap.looking.thumbnails import thumbnails
    from layertap.looking.tiles import metadata

    ids = features.ids
    if name not in ids:
        near = did_you_mean(name, ids) if len(ids) <= _MOST_SPELLED else ""
        raise ConfigError(f"{name!r} is not an id of {features.path}{near}")
    row = ids.index(name)
    (found,) = thumbnails(features, [row], side=_SIDE, overrides=overrides, plugins=plugins)
    return Shown(row, name, dict(metadata(features, [row])[row]), found)


def as_html(features: Output, plugins: Sequence[str]) -> str:
    """An output as HTML: its taps with their shapes, and its first images with their ids."""
    from layertap.looking.thumbnails import thumbnails
    from layertap.looking.tiles import Tile

    facts = features.manifest
    taps = [
        {"name": tap, "layer": facts["taps"][tap]["layer"], "shape": features[tap].shape, "dtype": features[tap].dtype}
        for tap in features.taps
    ]
    count = sum(shard.kept for shard in features.shards)
    first = thumbnails(features, range(min(_FIRST, count)), side=_SMALL, plugins=plugins)
    return rendered(
        "features.html",
        path=features.path,
        is_complete=features.is_complete,
        model=facts["model"].get("name"),
        count=count,
        failed=len(features.failures),
        taps=taps,
        tiles=[Tile.of(one.id, [], one) for one in first],
        side=_SMALL,
    )
