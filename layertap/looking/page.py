"""Pages: HTML files that contain everything they show, and run and fetch nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from layertap.errors import ConfigError
from layertap.outputs.output import Output


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
