"""How alike taps see the same images: unbiased linear CKA, and RSA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layertap.looking.kernels import centred, kernel, ranks
from layertap.looking.samples import sample
from layertap.outputs.output import Output

MOST = 5_000
"""How many images are compared at most: the matrices are images x images."""

# Of all taps together, in float32: what of each is kept until all have been read.
_KEPT_BYTES = 512_000_000
_CHUNK = 1_000_000

MEASURES = {
    "cka": "linear CKA, unbiased",
    "rsa": "RSA: Spearman correlation of the dissimilarities 1 - Pearson",
}
"""The matrices of a `Similarity`, and what each holds."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """The similarity of each pair of taps, as `cka` and `rsa` (taps x taps); NaN where a tap has no similarity.

    `names` are the taps. `images` were compared, of the `shared` ones that all outputs hold: a seeded sample where it
    is smaller, from which `left_out` were dropped because they hold values that are not finite.
    """

    names: tuple[str, ...]
    cka: NDArray[np.float64]
    rsa: NDArray[np.float64]
    images: int
    shared: int
    left_out: int

    @property
    def said(self) -> str:
        """By how many images the taps were compared, and how many were left out."""
        count = f"{self.images:,} images"
        if self.images + self.left_out < self.shared:
            count = f"a sample of {self.images:,} of {self.shared:,} images"
        return count + (f"; {self.left_out:,} left out, whose values are not all finite" if self.left_out else "")

    def to_svg(self) -> str:
        """A picture: the text of an SVG with a heat map of each matrix."""
        from layertap.looking.heat_maps import heat_maps

        matrices = {title.partition(":")[0]: getattr(self, name) for name, title in MEASURES.items()}
        return heat_maps(f"{len(self.names)} taps by {self.said}", self.names, matrices)

    def _repr_svg_(self) -> str:
        return self.to_svg()


def similarity(outputs: Sequence[Output], taps: Sequence[Sequence[str]]) -> Similarity:
    """The similarity of the taps of one output, or of several that are joined by id.

    `cka` is linear CKA with the unbiased estimator HSIC_1 (Song et al. 2012; Kornblith et al. 2019). `rsa` is the
    Spearman correlation of the dissimilarities 1 - Pearson correlation of all pairs of images. Maps are flattened; a
    tap is read a number of columns at a time, so that memory does not grow with it. Raises `ConfigError` for fewer than
    two taps or four images.
    """
    drawn = sample(outputs, taps, most(sum(map(len, taps))))
    products: list[NDArray[np.float32] | None] = []
    dissimilarities: list[NDArray[np.float32] | None] = []
    for tap in drawn.taps:
        with np.errstate(all="ignore"):
            found, sums = kernel(tap)
            products.append(centred(found))
            dissimilarities.append(ranks(found, sums, tap.vectors.length))
        del found
    names = tuple(tap.name for tap in drawn.taps)
    return Similarity(names, _matrix(products), _matrix(dissimilarities), drawn.images, drawn.shared, drawn.left_out)


def most(taps: int) -> int:
    """How many images fit: fewer where more taps are compared."""
    pairs = _KEPT_BYTES // (8 * max(1, taps))
    return min(MOST, (1 + math.isqrt(1 + 8 * pairs)) // 2)


def _matrix(vectors: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float64]:
    """The dot products of all pairs, in float64; NaN for one that is None, and exactly 1 of each with itself."""
    known = [number for number, vector in enumerate(vectors) if vector is not None]
    kept = [vector for vector in vectors if vector is not None]
    matrix = np.full((len(vectors), len(vectors)), np.nan)
    if not kept:
        return matrix
    total = np.zeros((len(kept), len(kept)))
    for start in range(0, len(kept[0]), _CHUNK):
        some = np.stack([vector[start : start + _CHUNK] for vector in kept]).astype(np.float64)
        total += some @ some.T
    matrix[np.ix_(known, known)] = total
    matrix[known, known] = 1
    return matrix
