"""Streams and drafts in few words, and agent sessions as tokens, for the tests of drafting."""

from __future__ import annotations

import json
import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentinfer.spec_sam import reference, reference_drafting
from tests.agent_sessions import generated_sessions

RELATED, MEMORY, RETRIEVED = 1, 2, 3


def int32s(values: Iterable[int]) -> Any:
    return np.array(list(values), dtype=np.int32)


@dataclass(frozen=True)
class Draft:
    """One row of a batch without its padding, and that padding checked."""

    tokens: list[int]
    parents: list[int]
    probability: list[np.float32]

    @property
    def width(self) -> int:
        return len(self.tokens)

    def path(self, node: int) -> list[int]:
        """The tokens from the first drafted one to `node`."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def children(self, node: int) -> list[int]:
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def accepted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens the tree holds, one after the other from the root."""
        node = 0
        for count, token in enumerate(tokens):
            found = [child for child in self.children(node) if self.tokens[child] == token]
            if not found:
                return count
            node = found[0]
        return len(tokens)


def draft(
    module: Any,
    streams: Sequence[Any],
    rows: Sequence[Sequence[int]],
    *,
    max_nodes: int = 16,
    max_children: int = 0,
    worth: float = 0.06,
) -> list[Draft]:
    """One call of `module.draft_batch` in which rows[i] came for streams[i]; the outputs begin as rubbish."""
    width = max_nodes + 1
    outputs = [np.full(len(streams) * width, -77, np.int32) for _ in range(2)]
    probability = np.full(len(streams) * width, -7.7, np.float32)
    num_nodes = np.full(len(streams), -77, np.int32)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    tokens = int32s(token for row in rows for token in row)
    batch = module.DraftRows(max_nodes, outputs[0], outputs[1], probability, num_nodes)
    num_drafted = module.draft_batch(streams, tokens, offsets, batch, max_children, worth)
    assert num_drafted == num_nodes.sum() - len(streams)
    drafts = []
    for row, count in enumerate(num_nodes.tolist()):
        first, end = row * width, row * width + count
        padding = slice(end, (row + 1) * width)
        assert not outputs[0][padding].any()
        assert (outputs[1][padding] == -1).all()
        assert not probability[padding].any()
        drafts.append(
            Draft(outputs[0][first:end].tolist(), outputs[1][first:end].tolist(), list(probability[first:end]))
        )
    return drafts


def token_sessions(limit: int, tokens_a_turn: int = 100) -> list[list[tuple[Any, Any]]]:
    """Sessions as turns of (prompt, reply): recorded ones where AGENTINFER_TRACES names a folder of them, else made up.

    A token is a word or a punctuation mark, numbered as they come. The prompt is all that was said before the reply,
    each message cut to `tokens_a_turn` tokens.
    """
    number: dict[str, int] = {}

    def tokens_of(message: dict[str, Any]) -> list[int]:
        text = f"<{message['role']}> {message.get('content') or ''} {message.get('tool_calls') or ''}"
        words = re.findall(r"\w+|\S", text)[:tokens_a_turn]
        return [number.setdefault(word, len(number)) for word in words]

    sessions = []
    for messages in _messages(limit):
        said: list[int] = []
        turns = []
        for message in messages:
            if message["role"] == "assistant" and said:
                turns.append((int32s(said), int32s(tokens_of(message))))
            said += tokens_of(message)
        sessions.append(turns)
    return sessions


def _messages(limit: int) -> list[list[dict[str, Any]]]:
    folder = os.environ.get("AGENTINFER_TRACES")
    if not folder:
        return generated_sessions(num_sessions=limit, num_turns=8, seed=11)
    sessions = []
    for name in ("swe_dev.jsonl.xz", "airline.jsonl.xz"):
        with lzma.open(Path(folder) / name, "rt") as lines:
            sessions += [json.loads(next(lines))["messages"] for _ in range((limit + 1) // 2)]
    return sessions[:limit]


class InlineBuilder:
    """Runs jobs when told to, in the caller's thread: the background builder without its thread.

    `run` runs chunks, all or so many; jobs of one key one after the other, as submitted. With `does_at_once` what is to
    be run at once is, where no other job waits.
    """

    def __init__(self, *, does_at_once: bool = False) -> None:
        self.jobs: list[InlineJob] = []
        self.is_full = False
        self.does_at_once = does_at_once

    def submit(self, key: object, chunks: Iterable[Callable[[], object]], *, at_once: int = 0) -> InlineJob:
        job = InlineJob(iter(chunks), is_refused=self.is_full)
        if self.does_at_once and not self.jobs:
            while at_once and job.run_chunk():
                at_once -= 1
        if not job.ended:
            self.jobs.append(job)
        return job

    def run(self, num_chunks: int | None = None) -> int:
        """Returns how many chunks ran."""
        num_run = 0
        while self.jobs and num_run != num_chunks:
            if self.jobs[0].run_chunk():
                num_run += 1
            else:
                self.jobs.pop(0)
        return num_run

    def drain(self, timeout_s: float | None = None) -> bool:
        self.run()
        return True


class InlineJob:
    def __init__(self, chunks: Iterator[Callable[[], object]], *, is_refused: bool) -> None:
        self._chunks: Iterator[Callable[[], object]] | None = None if is_refused else chunks

    @property
    def ended(self) -> bool:
        return self._chunks is None

    def cancel(self) -> bool:
        self._chunks = None
        return True

    def run_chunk(self) -> bool:
        """Whether there was one."""
        chunk = next(self._chunks, None) if self._chunks is not None else None
        if chunk is None:
            self._chunks = None
            return False
        chunk()
        return True


def drafting(name: str) -> Any:
    """The automaton and the drafter of one implementation: "native" (skips where it is not built) or "reference"."""
    if name == "native":
        return pytest.importorskip(
            "agentinfer.spec_sam._core", reason="the compiled core is not built: pip install -e ."
        )
    return SimpleNamespace(
        Automaton=reference.Automaton,
        DraftModel=reference_drafting.DraftModel,
        DraftRows=reference_drafting.DraftRows,
        DraftStream=reference_drafting.DraftStream,
        draft_batch=reference_drafting.draft_batch,
    )
