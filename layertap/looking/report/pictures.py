"""The pictures of a page: each in the page itself, or many together in sprites beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from layertap.looking.report.packing import packed
from layertap.looking.thumbnails import SIDE, Thumbnail

MOST_INSIDE = 5_000
"""How many pictures are in the page itself; more of them are sprites."""

PER_BLOCK = 250
_ACROSS = 20
PER_SPRITE = _ACROSS * _ACROSS

# The states of an image; from the last one on they are reasons why there is no picture.
_SHOWN, _MAY_DIFFER, _NOT_DRAWN, _REASONS = range(4)
_MOST_REASONS = 200

# Between the pictures of a sprite.
_GROUND = (128, 128, 128)


@dataclass(slots=True)
class Pictures:
    """The pictures of the images of a page, by their numbers; `add_block` and `add_sprite` take what is made of them.

    `states` says for each image whether there is a picture, `places` which one it is.
    """

    states: NDArray[np.uint8]
    places: NDArray[np.int32]
    are_sprites: bool
    add_block: Callable[[int, list[str]], None]
    add_sprite: Callable[[int, bytes], None]
    count: int = 0
    reasons: list[str] = field(default_factory=list)
    _waiting: list[bytes] = field(default_factory=list)

    @classmethod
    def of(
        cls, images: int, are_sprites: bool, add_block: Callable[[int, list[str]], None],
        add_sprite: Callable[[int, bytes], None],
    ) -> Pictures:  # fmt: skip
        """No pictures yet of so many images."""
        states = np.full(images, _NOT_DRAWN, np.uint8)
        return cls(states, np.full(images, -1, np.int32), are_sprites, add_block, add_sprite)

    def take(self, numbered: Iterable[tuple[int, Thumbnail]]) -> None:
        """Take thumbnails with the numbers of their images."""
        for number, thumbnail in numbered:
            if thumbnail.data is None:
                self.states[number] = self._reason(thumbnail.reason or "gone")
            else:
                self.states[number] = _MAY_DIFFER if thumbnail.may_differ else _SHOWN
                self.places[number] = self.count
                self.count += 1
                self._waiting.append(thumbnail.data)
                if len(self._waiting) == self._together:
                    self._flush()
        if self._waiting:
            self._flush()

    def facts(self) -> dict[str, Any]:
        """What the page must know to find a picture."""
        return {
            "states": packed(self.states),
            "places": packed(self.places),
            "reasons": self.reasons,
            "sprites": self.are_sprites,
            "together": self._together,
            "across": _ACROSS,
            "side": SIDE,
            "count": self.count,
        }

    @property
    def _together(self) -> int:
        return PER_SPRITE if self.are_sprites else PER_BLOCK

    def _reason(self, reason: str) -> int:
        if reason not in self.reasons:
            if len(self.reasons) >= _MOST_REASONS:
                reason = "cannot be shown"
            if reason not in self.reasons:
                self.reasons.append(reason)
        return _REASONS + self.reasons.index(reason)

    def _flush(self) -> None:
        number = (self.count - 1) // self._together
        if self.are_sprites:
            self.add_sprite(number, _sprite(self._waiting))
        else:
            self.add_block(number, [base64.b64encode(data).decode("ascii") for data in self._waiting])
        self._waiting.clear()


def _sprite(pictures: list[bytes]) -> bytes:
    """A WebP with each picture in the middle of its square, row by row."""
    sheet = Image.new("RGB", (_ACROSS * SIDE, -(-len(pictures) // _ACROSS) * SIDE), _GROUND)
    for number, data in enumerate(pictures):
        with Image.open(io.BytesIO(data)) as picture:
            across, down = (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
            sheet.paste(picture, (number % _ACROSS * SIDE + across, number // _ACROSS * SIDE + down))
    encoded = io.BytesIO()
    sheet.save(encoded, "WEBP", quality=80, method=2)
    return encoded.getvalue()
