"""The folder of a report: a page, and beside it what would make it too long to open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layertap.errors import ConfigError
from layertap.looking.page import refuse_inside, rendered
from layertap.looking.report.figures import library
from layertap.looking.report.packing import json_text
from layertap.outputs.output import Output

PAGE = "index.html"
SECTIONS = ("Run", "Map", "Units", "Maps", "Layers", "Duplicates")
_SCRIPTS = ("core.js", "map.js", "units.js", "maps.js", "layers.js", "duplicates.js", "start.js")
_MARK = b'<meta name="generator" content="layertap report">'
_HEAD_BYTES = 2_000

_DATA, _SPRITES = "data", "sprites"


class PageFolder:
    """A report that is being written: its blocks of data go into the page, or into scripts beside it."""

    def __init__(self, folder: Path, beside: bool) -> None:
        self.folder = folder
        self._beside = beside
        self._inside: list[tuple[str, str]] = []
        if beside:
            (folder / _DATA).mkdir()
            (folder / _SPRITES).mkdir()

    def add(self, name: str, value: Any) -> None:
        """Add a block, whose name consists of letters, digits and `-`."""
        text = json_text(value)
        if self._beside:
            (self.folder / _DATA / f"{name}.js").write_text(f'layertapBlock("{name}",{text})\n', "ascii")
        else:
            self._inside.append((name, text))

    def add_sprite(self, number: int, data: bytes) -> None:
        """Add the WebP of that number."""
        (self.folder / _SPRITES / f"{number}.webp").write_bytes(data)

    def finish(self, **values: Any) -> None:
        """Write the page itself."""
        from markupsafe import Markup

        # Both are made of safe characters alone: see `json_text` and `library`.
        blocks = [(name, Markup(text)) for name, text in self._inside]
        text = rendered(
            "report/report.html",
            sections=SECTIONS,
            scripts=_SCRIPTS,
            blocks=blocks,
            library=Markup(library()),
            **values,
        )
        (self.folder / PAGE).write_bytes(text.encode("utf-8", "backslashreplace"))


@contextmanager
def replacing(target: Path, output: Output) -> Iterator[Path]:
    """A new folder to write a report into, which takes the place of `target` when the block ends.

    Raises `ConfigError` if `target` is in the output, or is something else than an older report.
    """
    refuse_inside(target / PAGE, output)
    _refuse_among_images(target, output)
    _refuse_others(target)
    new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        try:
            yield new
            _refuse_others(target)
            if target.exists():
                shutil.rmtree(target)
            new.rename(target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error


def _refuse_among_images(target: Path, output: Output) -> None:
    """Raise `ConfigError` for a folder among the images, whose pictures the next run would take for images."""
    source = output.manifest["config"]["source"]
    path = source.get("path") if isinstance(source, dict) else None
    if isinstance(path, str) and os.path.isdir(path) and Path(os.path.realpath(path)) in _real_parents(target):
        raise ConfigError(f"{target}: is inside the folder of the images, {path!r}; choose a path outside it with --to")


def _real_parents(path: Path) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(path)).parents)


def _refuse_others(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if target.is_dir() and not target.is_symlink():
        names = {entry.name for entry in target.iterdir()}
        if not names or (names <= {PAGE, _DATA, _SPRITES} and _is_report(target / PAGE)):
            return
    raise ConfigError(f"{target}: exists and is not a report of layertap; choose another folder with --to")


def _is_report(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return _MARK in file.read(_HEAD_BYTES)
    except OSError:
        return False
