"""The samples of a WebDataset shard: members of a tar with one key, and the facts in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import layertap
from layertap_plugins.sources import files, tables
from layertap_plugins.sources.members import Archive, Member

# Enough for a caption, a class or a few facts; a larger member with such a name is something else.
_MOST_TEXT = 2**20

# The number of suffixes that a remark names.
_SUFFIXES = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its facts, by column."""

    key: bytes
    image: Member
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """The `keys` of a tar's samples.

    `own` are the texts of keys that would otherwise have the text of another key, `apart` the members that are not next
    to their sample, and `imageless` is the number of samples without an image.
    """

    keys: Collection[bytes]
    own: Mapping[bytes, str]
    apart: Mapping[bytes, Mapping[str, Member]]
    imageless: int

    def text_of(self, key: bytes) -> str:
        """The key as text, a different one for each key."""
        return self.own.get(key) or files.text_of(key)


@dataclass(slots=True)
class Survey:
    """The facts about all shards that are needed before the first record."""

    columns: dict[str, None] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    shared: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        """What is left out of the shards, and what is not where WebDataset looks for it."""
        found = []
        if imageless := sum(shard.imageless for shard in self.shards.values()):
            found.append(f"samples without an image, which are left out: {imageless}")
        if apart := sum(len(parts) for shard in self.shards.values() for parts in shard.apart.values()):
            found.append(
                f"members that are not next to the other members of their sample: {apart}; they are joined by key, "
                "although WebDataset would read them as samples of their own"
            )
        if self.left_out:
            suffixes = [f".{suffix} ({count})" for suffix, count in self.left_out.most_common(_SUFFIXES)]
            more = len(self.left_out) - len(suffixes)
            found.append(
                f"members that metadata cannot hold, which are left out: {', '.join(suffixes)}"
                + (f", and {more} other suffixes" if more else "")
            )
        return found


def groups(members: Iterable[Member], path: str) -> Iterator[tuple[bytes, dict[str, Member]]]:
    """Adjacent members with names that are equal up to the first dot, by the rest of the name in lower case."""
    current, parts = b"", dict[str, Member]()
    for member in members:
        folder, slash, name = member.name.rpartition(b"/")
        stem, _, suffix = name.partition(b".")
        if not stem:
            continue
        key = folder + slash + stem
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, {}
        join(parts, {files.text_of(suffix).lower(): member}, key, path)
    if parts:
        yield current, parts


def join(parts: dict[str, Member], others: Mapping[str, Member], key: bytes, path: str) -> None:
    """Add other members to those of a sample. Raises `ConfigError` for one that it already has."""
    for suffix in others.keys() & parts.keys():
        name = f"{files.text_of(key)}.{suffix}"
        raise layertap.ConfigError(f"{path!r} holds {name!r} twice", where=("path",))
    parts.update(others)


def precedence(suffix: str) -> int:
    """The place of a member among those of its sample: a later one takes precedence for a column that both have."""
    return list(_UNDERSTOOD).index(suffix) if suffix in _UNDERSTOOD else len(_UNDERSTOOD)


def is_understood(suffix: str) -> bool:
    """Whether a member with this suffix is metadata."""
    return suffix.rpartition(".")[2] in _UNDERSTOOD


def facts_of(archive: Archive, member: Member, suffix: str, where: str) -> dict[str, Any]:
    """The facts in a member, by column: the keys of a `.json`, else its suffix. Raises `ConfigError`."""
    try:
        if member.size > _MOST_TEXT:
            raise ValueError(f"it is too large ({member.size} bytes)")
        found = _UNDERSTOOD[suffix.rpartition(".")[2]](archive.read(member))
        if suffix != "json":
            return {suffix: tables.plain(found)}
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise layertap.ConfigError(
            f"cannot read {where}: {error or type(error).__name__}; `metadata: false` skips it", where=("path",)
        ) from error
    return {str(tables.plain(key)): tables.plain(value) for key, value in found.items()}


# In this order, because a .cls or .txt takes precedence over a value of that name in the .json.
_UNDERSTOOD: dict[str, Callable[[bytes], object]] = {
    "json": json.loads,
    "cls": int,
    "txt": lambda data: data.decode("utf-8", "replace"),
}
