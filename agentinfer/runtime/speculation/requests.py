"""What the drafter knows of the engine's requests: opened with the prompt, told of each token, closed at the end."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agentinfer.runtime.requests import HINTS_KEY
from agentinfer.spec_sam import DraftBatch


class Drafter(Protocol):
    """`agentinfer.spec_sam.Speculation`, as far as it is used here."""

    def open(
        self, request_id: str, prompt: np.ndarray, *, session: str | None, parent: str | None, namespace: str
    ) -> None: ...

    def draft(
        self, request_ids: list[str], new_tokens: np.ndarray, offsets: np.ndarray, max_width: int
    ) -> DraftBatch: ...

    def close(self, request_id: str, *, finished: bool) -> None: ...


@dataclass(slots=True)
class _Known:
    """A request that the drafter has: `told` of its output tokens were passed on. The engine owns the request."""

    request: weakref.ref[Any]
    told: int


class RequestBook:
    """Keeps the drafter in step with the engine's requests. For the scheduler's thread."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._known: dict[str, _Known] = {}
        # Requests that vanished without an end that we were told of. Weak references call back at any time, so the
        # drafter hears of it at the next step.
        self._vanished: deque[tuple[str, weakref.ref[Any]]] = deque()

    def enter(self, requests: Sequence[Any]) -> None:
        """Opens those of `requests` that are new; one that comes back after a retraction is still open."""
        self._sweep()
        for request in requests:
            if request.rid in self._known:
                continue
            # What a retracted request had said before we knew it is a part of its prompt.
            prompt = np.concatenate([_int32(request.origin_input_ids), _int32(request.output_ids)])
            session, parent = _session(request)
            self._drafter.open(
                request.rid, prompt, session=session, parent=parent, namespace=str(request.extra_key or "")
            )
            self._known[request.rid] = _Known(self._watch(request), len(request.output_ids))

    def draft(self, requests: Sequence[Any], ahead: Sequence[Sequence[int]] | None, max_width: int) -> DraftBatch:
        """Passes on what is new of each request's output and returns its drafts.

        `ahead`: verified tokens that the scheduler has not yet put into `output_ids`, a list a request; None where it
        has them all.
        """
        self.enter(requests)
        pieces = [self._news(request, () if ahead is None else ahead[i]) for i, request in enumerate(requests)]
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return self._drafter.draft([request.rid for request in requests], np.concatenate(pieces), offsets, max_width)

    def finish(self, rid: str) -> None:
        """The engine ended this request; a reply that was not aborted is remembered up to where it stopped."""
        known = self._known.pop(rid, None)
        if known is None:
            return
        request = known.request()
        if request is None or type(request.finished_reason).__name__ == "FINISH_ABORT":
            self._drafter.close(rid, finished=False)
            return
        tail = _int32(request.output_ids_through_stop[known.told :])
        self._drafter.draft([rid], tail, np.array([0, len(tail)], dtype=np.int64), 1)
        self._drafter.close(rid, finished=True)

    def forget_all(self) -> None:
        """Closes every request; for when the engine's cache is flushed, which it does only while nothing runs."""
        for rid in list(self._known):
            del self._known[rid]
            self._drafter.close(rid, finished=False)

    @property
    def num_open(self) -> int:
        self._sweep()
        return len(self._known)

    def _news(self, request: Any, ahead: Sequence[int]) -> np.ndarray:
        known = self._known[request.rid]
        tokens = _int32(request.output_ids[known.told :])
        # Tokens ahead follow the output; some of them may have been told already.
        start = max(0, known.told - len(request.output_ids))
        tokens = np.concatenate([tokens, _int32(ahead[start:])])
        known.told += len(tokens)
        return tokens

    def _watch(self, request: Any) -> weakref.ref[Any]:
        rid = request.rid
        return weakref.ref(request, lambda gone: self._vanished.append((rid, gone)))

    def _sweep(self) -> None:
        while self._vanished:
            rid, gone = self._vanished.popleft()
            known = self._known.get(rid)
            if known is not None and known.request is gone:
                del self._known[rid]
                self._drafter.close(rid, finished=False)


def _session(request: Any) -> tuple[str | None, str | None]:
    """Whose request it is, and whose sub-agent that is, as far as anybody said."""
    custom = request.sampling_params.custom_params
    hints = custom.get(HINTS_KEY) if isinstance(custom, dict) else None
    if not isinstance(hints, dict):
        return request.session_id, None
    return hints.get("session", request.session_id), hints.get("parent")


def _int32(tokens: Any) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int32)
