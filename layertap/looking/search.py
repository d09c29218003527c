"""Search as Python asks for it: by one image, or by several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from layertap.errors import ConfigError, ImageError
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
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Neighbours | list[Neighbours]:
    """`Features.search`."""
    name, several = one_tap(features, tap), isinstance(query, (list, tuple))
    if not several and isinstance(query, (str, os.PathLike)) and os.path.isdir(query) and query not in features.ids:
        raise ConfigError(f"{os.fspath(query)!r} is a folder; give it in a list to search by each of its images")
    queries = queries_of(features, query, name, _refuse, overrides=overrides, plugins=plugins)
    found = list(nearest(features, queries, name, k, metric))
    if not several and len(found) != 1:
        raise ConfigError(f"search: {type(query).__name__} gives {len(found)} images; give it in a list")
    return found if several else found[0]


def _refuse(failure: Failure) -> None:
    what = f"{failure.record.id!r} cannot be used: {failure.reason} ({failure.stage})"
    raise ImageError(failure.reason, what)
