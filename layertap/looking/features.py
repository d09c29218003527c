"""What `layertap.open` gives: an output with ways to look at it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from layertap.outputs import features as stored

if TYPE_CHECKING:
    from layertap.looking.neighbours import Neighbours
    from layertap.looking.notebook import Shown
    from layertap.looking.pairs import Pairs
    from layertap.looking.similarity import Similarity
    from layertap.looking.units import Units
    from layertap.pipeline.inputs import Item


class Features(stored.Features):
    """An output folder: `features["classifier.5"]` are its rows, in the order of `ids`.

    `taps` are the names, `manifest` is everything known about the run. An unfinished output shows what is committed.
    Files are opened when they are read; `close`, or the end of a `with` block, lets go of them.
    """

    @overload
    def search(
        self,
        query: list[Any] | tuple[Any, ...],
        k: int = 10,
        tap: str | None = None,
        metric: str = "cosine",
        *,
        index: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> list[Neighbours]: ...
    @overload
    def search(
        self,
        query: Item,
        k: int = 10,
        tap: str | None = None,
        metric: str = "cosine",
        *,
        index: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Neighbours: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        tap: str | None = None,
        metric: str = "cosine",
        *,
        index: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Neighbours | list[Neighbours]:
        """The `k` rows nearest to one image, exactly: `for row, id, similarity in features.search("cats/01.jpg")`.

        `query` is an id of the output, else the path of an image, or an image as `layertap.extract` takes it; a list of
        these, or with a folder in it, gives a list. An image goes through the model, the preprocessing and the reducers
        of the output's own run, whose weights must have the same digest; `overrides` say what has moved, such as
        `model.weights`. `metric` is `cosine`, `dot` or `euclidean`; maps are flattened; values are computed in float64,
        and equal ones are in the order of the rows. `tap` can be left out where there is only one.

        With `index="usearch"` (extra `index`) the search is approximate, for millions of rows: the index is built once,
        in a folder beside the output, with its recall measured. The values of what it finds are exact.

        Raises `ConfigError` for an unknown tap, metric or id, and for a query that has no cosine; `ImageError` for an
        image that cannot be used; `StoreError` (6) where the model is another one now.
        """
        from layertap.looking.search import search

        return search(self, query, k, tap, metric, index=index, overrides=overrides, plugins=self._plugins)

    def pairs(self, above: float = 0.95, tap: str | None = None) -> Pairs:
        """All pairs of rows whose cosine is at least `above`: `for similarity, row, other_row, id, other_id in ...`.

        The most similar come first, then the order of the rows. Every row is compared with every other one, in blocks
        of bounded memory. Raises `ConfigError` for more than a million pairs, or several taps and none named.
        """
        from layertap.looking.pairs import alike
        from layertap.looking.vectors import one_tap

        return alike(self, one_tap(self, tap), above)

    def units(self, tap: str, k: int = 10, by: str | None = None) -> Units:
        """What each unit or channel of a tap does: statistics, its `k` top and least rows, dead and constant units.

        `by` names a column of metadata: a number gives the `correlation` of each unit with it, text its `selectivity`
        for each label. All of it is computed in one pass of bounded memory. Raises `StoreError` for an unknown tap, and
        `ConfigError` for an unknown column or one of more than 1,000 labels.
        """
        from layertap.looking.units import units

        return units(self, tap, k, by)

    def similarity(self, *others: stored.Features, taps: str | Sequence[str] | None = None) -> Similarity:
        """How alike the taps see the same images: `names`, and the matrices `cka` and `rsa` (taps x taps).

        Of several outputs the rows are joined by id, and a name is `PATH:TAP`; `taps` are all by default. `cka` is
        linear CKA with the unbiased estimator, `rsa` the Spearman correlation of 1 - Pearson correlation.
        More than 5,000 images, or fewer where more taps are compared, are a seeded sample of `images` out of `shared`.
        Raises `ConfigError` for fewer than two taps or four images.
        """
        from layertap.looking.similarity import similarity

        outputs = (self, *others)
        return similarity(outputs, [output.chosen(taps) for output in outputs])

    def show(self, id: str, *, overrides: Mapping[str, Any] | None = None) -> Shown:
        """One image with its metadata, which a notebook displays; `.image` is the picture.

        It comes from the source as it is now; `overrides` say what has moved, such as `source.path`. An image that is
        gone, or has changed since the run, has no picture but a `reason`. Raises `ConfigError` for an unknown id.
        """
        from layertap.looking.notebook import show

        return show(self, id, overrides=overrides, plugins=self._plugins)

    def _repr_html_(self) -> str:
        from layertap.looking.notebook import as_html

        return as_html(self, self._plugins)


def open_features(path: str | os.PathLike[str], *, plugins: Sequence[str] = ()) -> Features:
    """The features in an output folder, finished or not: `open("features/")["classifier.5"]`.

    `plugins` are files or modules with sinks of your own. Raises `StoreError` where there is no output, or one that no
    run of layertap can have written.
    """
    return Features.opened(path, plugins)
