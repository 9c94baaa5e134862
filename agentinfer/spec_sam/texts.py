"""The automata of live sessions: one a session, kept between its turns, so that a turn adds only what is new."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.backend import Automaton
from agentinfer.spec_sam.background import Chunk, Job

Tokens = npt.NDArray[np.int32]

OVERLAP: Final = 64  # tokens before a break that are repeated, so that matches reach across it
_CHUNK: Final = 1024  # tokens; whoever reads the text waits for one at most, some 0.2 ms


class SessionText:
    """What a session has said and been told. The automaton's last document ends with `known[:length]`.

    One job or one stream writes at a time: jobs of a session run in order, and the last of them makes the stream.
    """

    def __init__(self, max_match: int) -> None:
        self.automaton = Automaton(max_match)
        self.known: Tokens = np.empty(0, np.int32)
        self.length = 0
        self.num_shared = 0  # tokens of the last prompt that were held before
        self.num_turns = 0
        self.num_indexed = 0  # tokens in the automaton when the prompt was in it
        self.is_broken = False  # the automaton goes on behind `known[:length]`: a reply has begun and is not finished
        self.reader: str | None = None  # the request that has it
        self.num_bytes = 0  # as of the last chunk or finished turn
        self.counted_bytes = 0  # as the owner has counted it

    def chunks(self, prompt: Tokens) -> Iterator[Chunk]:
        """Indexes the prompt, resumably: cut short after any chunk, the text is what was indexed so far."""
        yield lambda: self._follow(prompt)
        for start in range(self.num_shared, len(prompt), _CHUNK):
            yield lambda start=start: self._append(prompt, start)  # type: ignore[misc]

    def finish(self, waiting: list[Tokens]) -> Tokens:
        """A turn ended whose output the automaton holds but for these last tokens; returns the whole output."""
        if waiting:
            self.automaton.extend(np.concatenate(waiting))
        log = self.automaton.tokens
        output: Tokens = log[len(log) - (self.automaton.num_tokens - self.num_indexed) :]
        self.known = np.concatenate([self.known[: self.length], output])
        self.length = len(self.known)
        self.is_broken = False
        self.num_turns += 1
        self._measure()
        return output

    def _follow(self, prompt: Tokens) -> None:
        """Makes ready for the tokens of `prompt` behind those already held.

        Where the prompt departs from the text (an edited history, dropped reasoning), the old ending stays as evidence
        and a new document begins a little before the departure.
        """
        shared = common_prefix(self.known[: self.length], prompt)
        if shared < self.length or self.is_broken:
            self.automaton.start_document()
            self.automaton.extend(prompt[max(0, shared - OVERLAP) : shared])
        self.is_broken = False
        self.known = prompt
        self.length = self.num_shared = shared
        self.num_indexed = self.automaton.num_tokens

    def _append(self, prompt: Tokens, start: int) -> None:
        end = min(start + _CHUNK, len(prompt))
        self.automaton.extend(prompt[start:end])
        self.length = end
        self.num_indexed = self.automaton.num_tokens
        self._measure()

    def _measure(self) -> None:
        self.num_bytes = self.automaton.memory_bytes() + self.known.nbytes


class SessionTexts:
    """The live sessions' texts, least recently used first; those nobody reads leave when they hold too much.

    For one thread (the scheduler's); the texts themselves are written by the indexing thread as well.
    """

    def __init__(self, max_bytes: int, max_match: int) -> None:
        self._max_bytes = max_bytes
        self._max_match = max_match
        self._texts: OrderedDict[Hashable, SessionText] = OrderedDict()
        self._growing: list[tuple[Hashable, SessionText, Job]] = []  # given back, with a job that may not have ended
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._texts)

    def borrow(self, key: Hashable | None, reader: str) -> SessionText:
        """The session's text for this request alone. Without a session, or while another request has it, a new one."""
        text = self._texts.get(key) if key is not None else None
        if text is None or text.reader is not None:
            created = SessionText(self._max_match)
            created.reader = reader
            if key is not None and text is None:
                self._texts[key] = created
            return created
        text.reader = reader
        self._texts.move_to_end(key)
        return text

    def peek(self, key: Hashable) -> SessionText | None:
        return self._texts.get(key)

    def give_back(self, key: Hashable | None, text: SessionText, last_job: Job) -> None:
        """The request is done with it, and the indexing thread will be after `last_job`. Its size is counted now, and
        again with the texts given back after that job."""
        text.reader = None
        if key is None or self._texts.get(key) is not text:
            return
        self._texts.move_to_end(key)
        self._growing.append((key, text, last_job))
        self._growing = [entry for entry in self._growing if not self._count(*entry)]
        idle = [old_key for old_key, old in self._texts.items() if old.reader is None] if self._is_full else []
        for old_key in idle:
            if not self._is_full:
                break
            self.num_bytes -= self._texts.pop(old_key).counted_bytes

    def _count(self, key: Hashable, text: SessionText, last_job: Job) -> bool:
        """Whether that was the last time."""
        is_last = last_job.ended  # before its size is read
        if self._texts.get(key) is not text:
            return True
        grown = text.num_bytes - text.counted_bytes
        text.counted_bytes += grown
        self.num_bytes += grown
        return is_last

    def check_integrity(self) -> None:
        """Raises AssertionError naming the broken rule."""
        counted = sum(text.counted_bytes for text in self._texts.values())
        assert counted == self.num_bytes, f"num_bytes is {self.num_bytes}, the texts were counted as {counted}"

    @property
    def _is_full(self) -> bool:
        return self.num_bytes > self._max_bytes


def common_prefix(left: Tokens, right: Tokens) -> int:
    """Tokens that both begin with."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size
