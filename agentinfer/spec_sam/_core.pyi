"""
The compiled suffix automaton. `agentinfer.spec_sam.reference` is its specification.
"""

from collections.abc import Sequence

import numpy
import numpy.typing


class Match:
    """
    The last `length` tokens of a stream, found in the automaton's `state`.
    """

    @property
    def state(self) -> int: ...

    @property
    def length(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __repr__(self) -> str: ...

class Continuation:
    """
    A token that followed a state's strings `count` times, the latest time at position `latest_end`;
    `state` is where it leads.
    """

    @property
    def token(self) -> int: ...

    @property
    def state(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def latest_end(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __repr__(self) -> str: ...

class StateInfo:
    """
    The strings of `shortest` to `longest` tokens that end at the same positions. `link` is the
    state of the next shorter suffix (None for the root); `count`, `latest_end` are None where
    `shortest` exceeds max_match + 1, and `latest_end` also before the first token.
    """

    @property
    def shortest(self) -> int: ...

    @property
    def longest(self) -> int: ...

    @property
    def link(self) -> int | None: ...

    @property
    def count(self) -> int | None: ...

    @property
    def latest_end(self) -> int | None: ...

class Automaton:
    """
    A suffix automaton that grows by tokens. Any thread may call any method; see the reference.
    """

    def __init__(self, max_match: int = 64) -> None: ...

    @property
    def max_match(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_documents(self) -> int: ...

    @property
    def num_states(self) -> int: ...

    @property
    def num_edges(self) -> int: ...

    @property
    def num_count_updates(self) -> int: ...

    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]: ...

    def extend(self, tokens: numpy.typing.NDArray[numpy.int32]) -> None: ...

    def start_document(self) -> None: ...

    def find(self, tokens: numpy.typing.NDArray[numpy.int32]) -> int | None: ...

    def suffix_match(self) -> Match: ...

    def info(self, state: int) -> StateInfo: ...

    def continuations(self, state: int, limit: int) -> list[Continuation]: ...

    def following(self, state: int, limit: int) -> numpy.typing.NDArray[numpy.int32]: ...

    def memory_bytes(self) -> int: ...

    def check_integrity(self) -> None: ...

class Cursor:
    """
    Follows one stream through an automaton, which it keeps alive; see the reference.
    """

    def __init__(self, automaton: Automaton) -> None: ...

    @property
    def match(self) -> Match: ...

    def advance(self, tokens: numpy.typing.NDArray[numpy.int32]) -> Match: ...

    def rematch(self) -> Match: ...

    def reset(self) -> None: ...

def extend_batch(automata: Sequence[Automaton], tokens: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64]) -> None:
    """
    Extends automata[i] by tokens[offsets[i]:offsets[i + 1]]. All is checked before any automaton changes.
    """

def match_batch(cursors: Sequence[Cursor], tokens: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64], states_out: numpy.typing.NDArray[numpy.int32], lengths_out: numpy.typing.NDArray[numpy.int32]) -> None:
    """
    Advances cursors[i] by tokens[offsets[i]:offsets[i + 1]] and writes its match into the caller's arrays.
    """

def peak_parallel_calls() -> int:
    """
    The most calls under way at once without the interpreter lock since this was last asked.
    """

class DraftModel:
    """
    What drafting has learned about its sources; shared by all streams of a server.
    """

    def __init__(self, stop_tokens: Sequence[int] = []) -> None: ...

    def learned(self) -> numpy.typing.NDArray[numpy.float64]: ...

    def restore(self, values: numpy.typing.NDArray[numpy.float64]) -> None: ...

class DraftStream:
    """
    One request's stream of tokens, followed through the session's own text, which it extends,
    and through further sources.
    """

    def __init__(self, model: DraftModel, own: Automaton) -> None: ...

    def add_source(self, automaton: Automaton, kind: int, similarity: float = 1.0) -> int: ...

    def seek(self, tokens: numpy.typing.NDArray[numpy.int32]) -> None: ...

    def take_credits(self) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32]]: ...

class DraftRows:
    """
    The caller's flat arrays for the drafts of a batch, max_nodes + 1 wide a stream (num_nodes_out: 1).
    Looked at once, so that a call with them takes no time for it.
    """

    def __init__(self, max_nodes: int, tokens_out: numpy.typing.NDArray[numpy.int32], parents_out: numpy.typing.NDArray[numpy.int32], probability_out: numpy.typing.NDArray[numpy.float32], num_nodes_out: numpy.typing.NDArray[numpy.int32]) -> None: ...

def draft_batch(streams: Sequence[DraftStream], tokens: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64], rows: DraftRows, max_children: int, min_path_probability: float) -> int:
    """
    Takes tokens[offsets[i]:offsets[i + 1]] into streams[i] and drafts what may come next: a tree of at most
    max_nodes tokens, best first, written into row i. Node 0 is the stream's last token, parent -1,
    probability 1; padding has parent -1, probability 0. Returns how many tokens were drafted in all.
    """
