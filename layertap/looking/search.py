"""Search as Python asks for it: by one image, or by several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layertap.errors import ConfigError, ImageError, did_you_mean
from layertap.looking.index import INDEXES, Index
from layertap.looking.neighbours import Neighbours, nearest
from layertap.looking.queries import queries_of
from layertap.looking.vectors import one_tap
from layertap.outputs.output import Output
from layertap.records import Failure


def search(
    features: Output,
    query: Any,
    k: int,
    tap: str | None,
    metric: str,
    *,
    index: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Neighbours | list[Neighbours]:
    """`Features.search`."""
    name, several = one_tap(features, tap), isinstance(query, (list, tuple))
    if not several and isinstance(query, (str, os.PathLike)) and os.path.isdir(query) and query not in features.ids:
        raise ConfigError(f"{os.fspath(query)!r} is a folder; give it in a list to search by each of its images")
    queries = queries_of(features, query, name, _refuse, overrides=overrides, plugins=plugins)
    if index is None:
        found = list(nearest(features, queries, name, k, metric))
    else:
        found = list(indexed(features, name, metric, index).nearest(queries, k))
    if not several and len(found) != 1:
        raise ConfigError(f"search: {type(query).__name__} gives {len(found)} images; give it in a list")
    return found if several else found[0]


def indexed(
    features: Output, tap: str, metric: str, library: str, said: Callable[[str], None] = lambda text: None
) -> Index:
    """The approximate index of a tap by that library; `said` is called with what takes long. Raises `ConfigError`."""
    if library not in INDEXES:
        raise ConfigError(f"no index is named {library!r}{did_you_mean(library, INDEXES)} ({', '.join(INDEXES)})")
    return Index(features, tap, metric, said)


def _refuse(failure: Failure) -> None:
    what = f"{failure.record.id!r} cannot be used: {failure.reason} ({failure.stage})"
    raise ImageError(failure.reason, what)
