"""How the images lie to one another in one tap: products and dissimilarities of all pairs (images x images)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layertap.looking.samples import Tap

# The columns of a tap that are in memory at once, in float64: a map of any size goes through them.
_COLUMNS_BYTES = 128_000_000

# Rows of the products that are made at once.
_ROWS = 1024

# Values this small beside the ones that they come from are rounding.
_NOTHING = 1e-12

Floats = NDArray[np.float64]


def kernel(tap: Tap) -> tuple[Floats, Floats]:
    """The dot products of all pairs of images (the lower triangle holds), and the sum of the values of each image."""
    count, vectors = len(tap.rows), tap.vectors
    order = np.argsort(tap.rows)
    rows = tap.rows[order]
    products, sums = np.zeros((count, count)), np.zeros(count)
    width = max(1, min(vectors.length, _COLUMNS_BYTES // (8 * count)))
    piece = np.empty((count, width))
    for left in range(0, vectors.length, width):
        columns = slice(left, min(left + width, vectors.length))
        values = piece[:, : columns.stop - left]
        for start, stretch in vectors.stretches(vectors.count):
            here = slice(*np.searchsorted(rows, [start, start + len(stretch)]))
            if here.start < here.stop:
                values[order[here]] = stretch[rows[here] - start, columns]
        sums += values.sum(axis=1)
        for top in range(0, count, _ROWS):
            bottom = min(top + _ROWS, count)
            products[top:bottom, :bottom] += values[top:bottom] @ values[:bottom].T
    return products, sums


def centred(products: Floats) -> NDArray[np.float32] | None:
    """The products below the diagonal, centred without bias and scaled to length 1; None where all images are alike.

    The dot product of two of these is the unbiased linear CKA: HSIC_1 of Song et al. (2012) is that of the matrices
    which Székely and Rizzo (2014) call U-centred, whose diagonal does not count.
    """
    count = len(products)
    sums = np.zeros(count)
    for row in range(count):
        sums[row] += products[row, :row].sum()
        sums[:row] += products[row, :row]
    shares, whole = sums / (count - 2), sums.sum() / ((count - 1) * (count - 2))
    flat = _below(products)
    at = 0
    for row in range(1, count):
        flat[at : at + row] += whole - shares[row] - shares[:row]
        at += row
    return _scaled(flat, np.abs(np.diagonal(products)).max())


def ranks(products: Floats, sums: Floats, length: int) -> NDArray[np.float32] | None:
    """The ranks of the images' dissimilarities, 1 - their Pearson correlation, centred and scaled to length 1.

    The dot product of two of these is a Spearman correlation; equal dissimilarities have the mean of their ranks. None
    where all are equal. An image whose values are all equal has the correlation 0 with every other one.
    """
    squares = np.diagonal(products)
    variances = squares - sums**2 / length
    constant = variances <= _NOTHING * squares
    scales = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variances)))
    flat = _below(products)
    at = 0
    for row in range(1, len(products)):
        some = flat[at : at + row]
        some -= sums[row] * sums[:row] / length
        some *= -scales[row] * scales[:row]
        at += row
    np.round(flat, 10, out=flat)  # so that what is equal but for rounding is equal
    return _scaled(_mean_ranks(flat) - (len(flat) + 1) / 2, 1.0)


def _below(products: Floats) -> Floats:
    count = len(products)
    flat = np.empty(count * (count - 1) // 2)
    at = 0
    for row in range(1, count):
        flat[at : at + row] = products[row, :row]
        at += row
    return flat


def _scaled(flat: Floats, unit: float) -> NDArray[np.float32] | None:
    length = np.sqrt(flat @ flat)
    if not length > _NOTHING * unit * np.sqrt(len(flat)):
        return None
    flat /= length
    return flat.astype(np.float32)


def _mean_ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values with the mean of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    del ordered
    ends = np.append(starts[1:], len(values))
    found = np.empty(len(values))
    found[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return found
