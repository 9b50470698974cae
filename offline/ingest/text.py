"""Plain text out of the markup that real catalogs carry. Knows no file format."""

from __future__ import annotations

import re
from html.parser import HTMLParser

MAX_RAW_CHARACTERS = 100_000
"""Of one field, before cleaning: bounds the work that one hostile row can cause."""
MAX_DESCRIPTION_CHARACTERS = 5_000
MAX_TITLE_CHARACTERS = 2_000
"""A longer "title" is a page that was scraped in its place."""

_MAX_PASSES = 8  # markup escaped inside markup (`&amp;lt;br&amp;gt;`) needs one pass a level
_NOT_CONTENT = re.compile(r"<!--(?:.*?-->|.*\Z)|<[!?][^>]*(?:>|\Z)", re.DOTALL)
_NOT_A_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff\u200b]+")
_INLINE = frozenset("a abbr b big cite code em font i mark s small span strong sub sup tt u wbr".split())  # noqa: SIM905
_CODE = re.compile(
    r"function\s*\(|\bvar\s+\w+\s*=|=>\s*\{|getTime\(|\{[^{}]*:[^{}]*;[^{}]*\}|document\.\w+|window\.\w+"
)


def strip_html(raw: str) -> str:
    """The text that a browser would show, on one line.

    Tags go (block tags leave a space), `script`, `style`, comments and declarations go with their content, entities are
    decoded, markup that was escaped twice goes as well, runs of white space become one space.
    """
    text = raw[:MAX_RAW_CHARACTERS].encode("utf-8", "replace").decode()
    for _ in range(_MAX_PASSES):
        before, text = text, _strip_once(text)
        if text == before:
            break
    return text


def clean_title(raw: str) -> str | None:
    """The title as text; None where it cannot be shown: empty, without a letter or digit, code, or a whole page."""
    title = strip_html(raw)
    if len(title) > MAX_TITLE_CHARACTERS or not any(c.isalnum() for c in title) or _CODE.search(title):
        return None
    return title


def clean_description(raw: str) -> str | None:
    """The description as text, at most MAX_DESCRIPTION_CHARACTERS, cut between words; None when empty."""
    text = strip_html(raw)
    if len(text) > MAX_DESCRIPTION_CHARACTERS:
        text = text[:MAX_DESCRIPTION_CHARACTERS].rpartition(" ")[0] or text[:MAX_DESCRIPTION_CHARACTERS]
    return text or None


def clean_label(raw: str) -> str | None:
    """A short field (brand, one category) as text; None when empty or without a letter or digit."""
    text = strip_html(raw)
    return text if any(c.isalnum() for c in text) else None


def _strip_once(text: str) -> str:
    if "<" in text or "&" in text:
        # html.parser raises on unknown declarations, and takes quadratic time on tags that never close.
        parser = _TextOnly()
        parser.feed(_NOT_A_TAG.sub("&lt;", _NOT_CONTENT.sub(" ", text)))
        parser.close()
        text = "".join(parser.parts).encode("utf-8", "replace").decode()  # `&#xD800;` is no character
    return " ".join(_CONTROL.sub(" ", text).split())


class _TextOnly(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._hidden = tag in self.CDATA_CONTENT_ELEMENTS
        self._space(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._space(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        self._space(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    def _space(self, tag: str) -> None:
        if tag not in _INLINE:
            self.parts.append(" ")
