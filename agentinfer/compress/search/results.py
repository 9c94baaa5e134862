"""A search result, and reading one out of what search tools return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentinfer.errors import AgentInferError

# What search tools call each part; the first that is there counts.
_NAMES = {
    "title": ("title", "name"),
    "snippet": ("snippet", "content", "body", "description", "summary", "text"),
    "url": ("url", "link", "href"),
}


class SearchInputError(AgentInferError):
    """A query or a result cannot be read. `field` is its dotted path, e.g. ``results[3].snippet``."""

    def __init__(self, field: str, seen: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {seen}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One result. `id` is the caller's own and only handed back; any of the texts may be empty."""

    id: str | int
    title: str
    snippet: str
    url: str = ""

    @property
    def text(self) -> str:
        """What is judged: title and snippet."""
        return f"{self.title}\n{self.snippet}".strip()


def read_results(raw: object, max_results: int | None = None, max_chars: int | None = None) -> tuple[SearchResult, ...]:
    """The results in `raw`, a sequence of mappings. At most `max_results`, each of at most `max_chars` characters.

    Raises SearchInputError naming the place and the field.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        raise SearchInputError("results", described(raw), "an array of results")
    if max_results is not None and len(raw) > max_results:
        raise SearchInputError("results", str(len(raw)), f"at most {max_results} results in one call")
    results = tuple(read_result(each, order_id) for order_id, each in enumerate(raw))
    for order_id, result in enumerate(results):
        size = len(result.title) + len(result.snippet) + len(result.url)
        if max_chars is not None and size > max_chars:
            raise SearchInputError(f"results[{order_id}]", f"{size} characters", f"at most {max_chars}")
    return results


def read_result(raw: object, order_id: int) -> SearchResult:
    """The result at place `order_id`; its id is that place where it names none. Parts that are null count as absent.

    Other names that search tools use for the parts are read as well, and what else a result carries is left alone.
    Raises SearchInputError.
    """
    field = f"results[{order_id}]"
    if not isinstance(raw, Mapping):
        raise SearchInputError(field, described(raw), "an object with title, snippet and url")
    parts = {part: _text(raw, names, field) for part, names in _NAMES.items()}
    if parts["title"] is None and parts["snippet"] is None:
        keys = ", ".join(sorted(map(str, raw))) or "nothing"
        raise SearchInputError(field, f"an object with {keys}", "a title or a snippet")
    own_id = raw.get("id")
    if own_id is None:
        own_id = order_id
    if isinstance(own_id, bool) or not isinstance(own_id, str | int):
        raise SearchInputError(f"{field}.id", described(own_id), "text or a whole number")
    return SearchResult(own_id, parts["title"] or "", parts["snippet"] or "", parts["url"] or "")


def described(value: object) -> str:
    """A value in an error message: its kind, and its start where that helps."""
    if value is None:
        return "nothing"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _text(raw: Mapping[object, object], names: Sequence[str], field: str) -> str | None:
    for name in names:
        value = raw.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise SearchInputError(f"{field}.{name}", described(value), "text")
        return value
    return None
