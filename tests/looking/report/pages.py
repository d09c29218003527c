"""Reports read back: their blocks of data, and the tags of their page."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

_INSIDE = re.compile(r'<script type="application/json" id="block-([a-z0-9-]+)">(.*?)</script>', re.S)
_BESIDE = re.compile(r'layertapBlock\("([a-z0-9-]+)",(.*)\)\n', re.S)


def blocks(page: Path) -> dict[str, Any]:
    """Every block of a report, with its arrays as arrays."""
    found = dict(_INSIDE.findall(page.read_text("utf-8")))
    for path in page.parent.glob("data/*.js"):
        matched = _BESIDE.fullmatch(path.read_text("ascii"))
        assert matched, path
        found[matched[1]] = matched[2]
    return {name: _arrays(json.loads(text)) for name, text in found.items()}


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dtype", "shape", "data"}:
            return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])
        return {key: _arrays(one) for key, one in value.items()}
    return [_arrays(one) for one in value] if isinstance(value, list) else value


class Tags(HTMLParser):
    """The tags of a page in their order with their attributes, and its text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self._quiet = False

    @classmethod
    def of(cls, page: Path) -> Tags:
        tags = cls()
        tags.feed(page.read_text("utf-8"))
        return tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.text += data
