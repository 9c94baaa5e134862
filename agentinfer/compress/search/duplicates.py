"""Which results repeat an earlier one: the same page, or the same words."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from agentinfer.compress.search.results import SearchResult

# Query parameters that say where a click came from, not which page it is.
_TRACKING = frozenset(("gclid", "fbclid", "msclkid", "yclid", "igshid", "spm"))


def repeated(results: Sequence[SearchResult]) -> list[int | None]:
    """For each result the place of the first one that it repeats, or None.

    The same URL repeats, whatever the snippet; so do equal title and snippet, whatever the URL. Texts that are empty
    repeat nothing.
    """
    first_place: dict[tuple[str, str], int] = {}
    repeats: list[int | None] = []
    for place, result in enumerate(results):
        marks = _marks(result)
        original = min((first_place[mark] for mark in marks if mark in first_place), default=None)
        for mark in marks:
            first_place.setdefault(mark, place if original is None else original)
        repeats.append(original)
    return repeats


def page(url: str) -> str:
    """`url` without what does not change the page: scheme, case of the host, fragment, last slash, click tracking."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").removeprefix("www.")
        port = "" if parts.port in (None, 80, 443) else f":{parts.port}"
    except ValueError:
        return url.strip()
    if not host:
        return url.strip()
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if name not in _TRACKING and not name.startswith("utm_")]
    # A fragment that starts like a path is one: pages whose script reads the address.
    fragment = f"#{parts.fragment}" if parts.fragment.startswith(("!", "/")) else ""
    query = f"?{urlencode(kept)}" if kept else ""
    return f"{host}{port}{parts.path.rstrip('/')}{query}{fragment}"


def _marks(result: SearchResult) -> list[tuple[str, str]]:
    marks = []
    if result.url.strip():
        marks.append(("page", page(result.url)))
    words = " ".join(result.text.split()).casefold()
    if words:
        marks.append(("words", words))
    return marks
