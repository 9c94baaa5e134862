"""Facts needed later: numbers, names, paths and URLs that a later reply uses, first said in what is gone by then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentinfer.compress.anchors import anchors, occurs
from agentinfer.compress.distiller import Assignment, sources_of
from agentinfer.compress.note import Note
from agentinfer.messages.content import chat_message
from benchmarks.compress.variants import OpenAIMessage, SentTurn


@dataclass(slots=True)
class Facts:
    """Uses of facts in replies, counted by turn, whose first source is no longer in the prompt as it was.

    `present` in the prompt all the same; else `retrievable` from a result that the prompt names by id; else `lost`.
    `own_words_lost` are those that the agent itself had said first.
    """

    present: int = 0
    retrievable: int = 0
    lost: int = 0
    own_words_lost: int = 0

    def add(self, other: Facts) -> None:
        self.present += other.present
        self.retrievable += other.retrievable
        self.lost += other.lost
        self.own_words_lost += other.own_words_lost


@dataclass(frozen=True, slots=True)
class Use:
    """A reply uses `anchor`, which message `index` of the history said first."""

    anchor: str
    index: int
    is_result: bool


class SessionFacts:
    """Of one session; holds the texts of its messages, each read once."""

    def __init__(self, prompts: Sequence[Sequence[OpenAIMessage]], replies: Sequence[OpenAIMessage]) -> None:
        self._prompts = prompts
        self._texts: dict[int, tuple[OpenAIMessage, str]] = {}
        self._found: dict[int, frozenset[str]] = {}
        self.uses = self._uses(replies)
        """By turn, what its reply uses. Instructions and what persons say never go, so they do not count."""

    def judge(self, index: int, turn: SentTurn) -> Facts:
        """What became of the facts that the reply of turn `index` uses, when `turn` was its prompt."""
        found = Facts()
        prompt = self._prompts[index]
        kept = set(map(id, turn.sent))
        candidates = [use for use in self.uses[index] if id(prompt[use.index]) not in kept]
        if not candidates:
            return found
        copies = [each for each in turn.sent if id(each) not in set(map(id, prompt))]
        is_gone = {i: prompt[i] not in copies for i in {use.index for use in candidates}}
        shown = "\n".join(map(self._text, turn.sent))
        for use in candidates:
            if not is_gone[use.index]:
                continue
            if any(use.anchor in self._anchors(each) for each in turn.sent) or occurs(use.anchor, shown):
                found.present += use.is_result
            elif any(occurs(use.anchor, _unescaped(each.text)) for each in turn.recallable):
                found.retrievable += use.is_result
            else:
                found.lost += use.is_result
                found.own_words_lost += not use.is_result
        return found

    def _uses(self, replies: Sequence[OpenAIMessage]) -> list[list[Use]]:
        first: dict[str, tuple[int, str]] = {}
        read: Sequence[OpenAIMessage] = ()
        found = []
        for prompt, reply in zip(self._prompts, replies, strict=True):
            if any(ours is not theirs for ours, theirs in zip(read, prompt, strict=False)):
                first, read = {}, ()  # the history was edited
            for index in range(len(read), len(prompt)):
                for anchor in anchors(self._text(prompt[index])):
                    first.setdefault(anchor, (index, str(prompt[index]["role"])))
            read = prompt
            known = [(anchor, *first[anchor]) for anchor in anchors(self._text(reply)) if anchor in first]
            found.append([Use(a, index, role == "tool") for a, index, role in known if role in ("tool", "assistant")])
        return found

    def _anchors(self, message: OpenAIMessage) -> frozenset[str]:
        if id(message) not in self._found:
            self._found[id(message)] = frozenset(anchors(self._text(message)))  # `_texts` holds the message
        return self._found[id(message)]

    def _text(self, message: OpenAIMessage) -> str:
        if id(message) not in self._texts:
            self._texts[id(message)] = (message, text_of(message))
        return self._texts[id(message)][1]


def invented(notes: Iterable[tuple[Note, Assignment]]) -> tuple[int, int]:
    """(anchors in the notes' lines, those of them that the line's own source does not have)."""
    total = wrong = 0
    for note, assignment in notes:
        sources = sources_of(assignment.observations)
        for line in note.lines():
            for anchor in anchors(line.text):
                total += 1
                wrong += not occurs(anchor, sources.get(line.source, ""))
    return total, wrong


def text_of(message: OpenAIMessage) -> str:
    """All that a message says: thoughts, text, and the calls with their arguments as they are meant, not escaped."""
    read = chat_message(message)
    parts = [read.reasoning_text, read.text]
    parts += [f"{call.name} {call.arguments_text}" for call in read.tool_calls]
    return _unescaped("\n".join(part for part in parts if part))


def _unescaped(text: str) -> str:
    """Line ends and quotes inside of JSON texts as they are meant: a name behind one is no longer name."""
    return text.replace("\\n", "\n").replace('\\"', '"')
