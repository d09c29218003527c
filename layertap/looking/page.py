"""Pages: HTML files that contain everything they show, and run and fetch nothing."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertap.errors import ConfigError
from layertap.looking.thumbnails import MIME, Thumbnail
from layertap.outputs.output import Output
from layertap.records import INDEX_COLUMNS


@dataclass(frozen=True, slots=True)
class Tile:
    """One image on a page: its id, what is known of it, and a picture, or the reason why there is none."""

    id: str
    facts: Sequence[tuple[str, Any]] = ()
    picture: str | None = None
    reason: str | None = None
    may_differ: bool = False

    @classmethod
    def of(cls, name: str, facts: Sequence[tuple[str, Any]], thumbnail: Thumbnail | None) -> Tile:
        """A tile with a thumbnail; without one its image is gone."""
        if thumbnail is None or thumbnail.data is None:
            return cls(name, facts, reason=thumbnail.reason if thumbnail else "gone")
        picture = f"data:{MIME};base64,{base64.b64encode(thumbnail.data).decode()}"
        return cls(name, facts, picture, may_differ=thumbnail.may_differ)


def metadata(features: Output, rows: Iterable[int]) -> dict[int, list[tuple[str, Any]]]:
    """The metadata of some rows, by row."""
    wanted = set(rows)
    found = {row["row"]: row for row in features.rows() if row["row"] in wanted}
    return {
        number: [(key, value) for key, value in row.items() if key not in INDEX_COLUMNS and value is not None]
        for number, row in found.items()
    }


def rendered(template: str, **values: Any) -> str:
    """A template of `templates/` with its values. Every value is escaped: it enters the page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("layertap.looking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def refuse_inside(path: Path, *outputs: Output) -> None:
    """Raise `ConfigError` for a path in an output folder, in which nothing but its run writes."""
    for output in outputs:
        if Path(os.path.realpath(output.path)) in Path(os.path.realpath(path)).parents:
            raise ConfigError(f"{path}: is inside the output {output.path}; choose a path outside it")


def write_page(path: Path, text: str) -> None:
    """Write a page, in place of an older one. Raises `ConfigError` if it cannot be written."""
    # A file name may hold bytes that are not UTF-8.
    data = text.encode("utf-8", "backslashreplace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
