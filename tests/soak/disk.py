"""A disk as a power cut leaves it: synced data stays, and unsynced data has one of several fates.

A file keeps the content of its last fsync, a folder the entries of its own last fsync: the fsync of a file does not
save its name, and that of a folder does not save its own name. A rename is one operation, safe after the fsync of the
folder that it leads into.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.faults import Event

FATES = ("dropped", "hollow", "half", "garbled")
"""What stays of unsynced data: nothing; all names but no content; a random half; all names and random content."""


@dataclass(eq=False)
class _File:
    synced: bytes = b""
    data: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        self.data = _written(self.data, offset, data)
        self.pending.append((offset, data))

    def truncate(self, length: int) -> None:
        self.data = self.data[:length].ljust(length, b"\0")
        self.pending.append((length, b""))

    def sync(self) -> None:
        self.synced, self.pending = self.data, []

    def after(self, fate: str, chance: random.Random) -> bytes:
        """The content that a power cut leaves. An empty piece marks the file's end."""
        content = self.synced
        if fate == "half":
            for offset, data in self.pending:
                if chance.random() < 0.5:
                    content = _written(content, offset, data) if data else content[:offset].ljust(offset, b"\0")
        elif fate == "garbled" and self.pending:
            for offset, data in self.pending:
                content = _written(content, offset, chance.randbytes(len(data))) if data else content[:offset]
            least = min(len(self.synced), len(content)) if len(self.data) >= len(self.synced) else 0
            content = content[: chance.randint(least, len(content))]
        return content


@dataclass(eq=False)
class _Folder:
    pass


Node = _File | _Folder
Entries = dict[Node, dict[str, Node]]


@dataclass(eq=False)
class _Change:
    """A change of entries: `node` moves from `source` (folder, name) to `target`."""

    node: Node
    source: tuple[_Folder, str] | None
    target: tuple[_Folder, str] | None
    durable: bool = False

    def apply(self, entries: Entries) -> None:
        if self.source is not None:
            folder, name = self.source
            if entries.setdefault(folder, {}).get(name) is self.node:
                del entries[folder][name]
        if self.target is not None:
            folder, name = self.target
            entries.setdefault(folder, {})[name] = self.node


class Disk:
    """A folder and everything done to it since it was last known to be safe; events come from a trace."""

    def __init__(self) -> None:
        self._root = _Folder()
        self._base: Entries = {}
        self._now: Entries = {}
        self._changes: list[_Change] = []
        self._handles: dict[int, Node] = {}
        self.promised = 0
        """The number of shards that the run has reported as committed."""

    @classmethod
    def of(cls, place: Path) -> Disk:
        """An existing folder, with everything in it safe."""
        disk = cls()
        disk._take(place, disk._root)
        disk._now = {folder: dict(entries) for folder, entries in disk._base.items()}
        return disk

    def play(self, events: Iterable[Event]) -> None:
        """Apply the events of a trace."""
        self._handles = {}
        for event in events:
            self.happen(event)

    def happen(self, event: Event) -> None:
        """Apply one event; one that the system refused changes nothing."""
        kind, *facts = event
        if kind == "mark":
            if facts[0] == "committed":
                self.promised = facts[1] + 1
        elif kind == "create":
            self._handles[facts[1]] = node = _File()
            self._change(node, None, self._spot(facts[0]))
        elif kind == "mkdir":
            self._change(_Folder(), None, self._spot(facts[0]))
        elif kind in ("open", "empty"):
            self._handles[facts[1]] = node = self._node(facts[0])
            if kind == "empty":
                node.truncate(0)
        elif kind in ("write", "truncate"):
            getattr(self._handles[facts[0]], kind)(*facts[1:])
        elif kind in ("unlink", "rmdir"):
            self._change(self._node(facts[0]), self._spot(facts[0]), None)
        elif kind == "link":
            self._change(self._node(facts[0]), None, self._spot(facts[1]))
        elif kind == "rename":
            self._change(self._node(facts[0]), self._spot(facts[0]), self._spot(facts[1]))
        elif kind == "fsync":
            self._sync(self._handles[facts[0]])

    def lay_out(self, place: Path, fate: str, chance: random.Random) -> None:
        """Fill the empty `place` with the state after a power cut at this moment; `kept` for no power cut at all."""
        entries = {folder: dict(known) for folder, known in self._base.items()}
        for change in self._changes:
            if change.durable or fate in ("hollow", "garbled", "kept") or (fate == "half" and chance.random() < 0.5):
                change.apply(entries)
        self._write(place, self._root, entries, fate, chance)

    def _write(self, place: Path, folder: Node, entries: Entries, fate: str, chance: random.Random) -> None:
        for name, node in sorted(entries.get(folder, {}).items()):
            if isinstance(node, _File):
                (place / name).write_bytes(node.data if fate == "kept" else node.after(fate, chance))
            else:
                (place / name).mkdir()
                self._write(place / name, node, entries, fate, chance)

    def _sync(self, node: Node) -> None:
        if isinstance(node, _File):
            node.sync()
            return
        for change in self._changes:
            folder, _ = change.target or change.source or (None, "")
            change.durable |= folder is node

    def _change(self, node: Node, source: tuple[_Folder, str] | None, target: tuple[_Folder, str] | None) -> None:
        change = _Change(node, source, target)
        change.apply(self._now)
        self._changes.append(change)

    def _spot(self, name: str) -> tuple[_Folder, str]:
        folder, base = os.path.split(name)
        parent = self._node(folder)
        assert isinstance(parent, _Folder)
        return parent, base

    def _node(self, name: str) -> Node:
        node: Node = self._root
        for part in name.split("/"):
            if part not in ("", "."):
                node = self._now[node][part]
        return node

    def _take(self, place: Path, folder: _Folder) -> None:
        self._base[folder] = {}
        for path in place.iterdir():
            node: Node = _Folder() if path.is_dir() else _File(path.read_bytes(), path.read_bytes())
            self._base[folder][path.name] = node
            if isinstance(node, _Folder):
                self._take(path, node)


def _written(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]
