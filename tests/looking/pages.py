"""What a browser would make of a page: its elements, their text, and whether anything runs or is fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """`tags` are all elements with their attributes, `texts` all pieces of text outside of `style`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.texts.append(data)

    def pictures(self) -> list[str]:
        return [str(attributes["alt"]) for tag, attributes in self.tags if tag == "img"]

    def refuse_active(self, *, styled: bool = False) -> None:
        """Fail for anything that runs, or that leads anywhere; `styled` if elements have styles of their own."""
        for tag, attributes in self.tags:
            assert tag not in {"script", "iframe", "object", "embed", "form", "base", "link", "a"}, tag
            assert not [name for name in attributes if name.startswith("on")], attributes
            assert re.match(r"data:image/webp;base64,[\w+/=]+$", attributes.get("src") or "data:image/webp;base64,x")
            refused = {"href", "srcset", "action", "formaction", "background"} | (set() if styled else {"style"})
            assert not attributes.keys() & refused
            assert "url(" not in (attributes.get("style") or "")
