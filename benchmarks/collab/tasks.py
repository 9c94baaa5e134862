"""Lookup tasks over small made-up knowledge bases, with one right answer each.

"What is the home of the manager of the author of Falcon?" takes three steps. In each the agent says one of the facts
that it was told: one about a person looks that person up, one about a place is its answer. Every look-up tells other
facts as well, so a wrong turn is always at hand, and so is the way back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_PEOPLE: Final = (
    "Alice Bruno Clara David Emma Felix Grace Henry Irene Jacob Karen Louis Maria Nancy Oscar Peter Quinn Rachel Simon "
    "Teresa Victor Wendy Martin Helen Thomas Laura Daniel Sophie Robert Julia Andrew Nina Edward Diana George Linda"
)
_CITIES: Final = (
    "Oslo Rome Paris London Berlin Madrid Vienna Dublin Lisbon Prague Athens Cairo Tokyo Boston Chicago Denver Seattle "
    "Toronto Sydney Delhi Moscow Warsaw Zurich Milan Lima Havana Dallas Houston Geneva Munich Venice Florence Kyoto "
    "Dubai Bangkok Jakarta"
)
_REPORTS: Final = "Falcon Harbor Mercury Atlas Phoenix Orion Delta Horizon Summit Granite Voyager Eclipse"
_OF_REPORT: Final = ("author", "editor", "reviewer", "sponsor")
_OF_PERSON: Final = ("manager", "teacher", "brother", "neighbor", "friend")
_PLACES: Final = ("home", "office", "birthplace")
_KNOWN_PLACES: Final = 0.5


class Wording(StrEnum):
    """How a question names the way: in the order of the steps, or from its end."""

    FORWARD = "forward"  # Falcon's author's manager's home
    BACKWARD = "backward"  # the home of the manager of the author of Falcon


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a look-up tells, and what an agent says to follow it."""

    subject: str
    relation: str
    value: str

    @property
    def text(self) -> str:
        return f"{self.subject}'s {self.relation} is {self.value}."

    @property
    def is_answer(self) -> bool:
        """Whether saying it ends the task: it names a place."""
        return self.relation in _PLACES


@dataclass(frozen=True, slots=True)
class Task:
    """One question. `path`: the facts that lead to the answer, which is the last one's value.

    `told`: what looking up each name tells. `hops`: the length of the path. `distractors`: other facts a look-up.
    """

    id: str
    question: str
    path: tuple[Fact, ...]
    told: Mapping[str, tuple[Fact, ...]]
    distractors: int
    wording: Wording

    @property
    def hops(self) -> int:
        return len(self.path)


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a task hard."""

    hops: int
    distractors: int
    wording: Wording


def kinds(hops: Sequence[int], distractors: Sequence[int], wordings: Sequence[Wording]) -> list[Kind]:
    return [Kind(steps, others, wording) for others in distractors for steps in hops for wording in wordings]


def make_tasks(count: int, seed: int, of_kinds: Sequence[Kind]) -> list[Task]:
    """`count` tasks, the kinds in turn."""
    rng = random.Random(seed)
    return [_task(f"{seed}-{number}", rng, of_kinds[number % len(of_kinds)]) for number in range(count)]


def _task(name: str, rng: random.Random, kind: Kind) -> Task:
    people = iter(_shuffled(_PEOPLE, rng))
    cities = iter(_shuffled(_CITIES, rng))
    subjects = [rng.choice(_REPORTS.split()), *(next(people) for _ in range(kind.hops - 1))]
    relations = [rng.choice(_OF_REPORT), *rng.choices(_OF_PERSON, k=kind.hops - 2), rng.choice(_PLACES)]
    values = [*subjects[1:], next(cities)]
    path = tuple(map(Fact, subjects, relations, values))
    told: dict[str, tuple[Fact, ...]] = {}
    for number, fact in enumerate(path):
        is_last = number == kind.hops - 1
        known = _OF_REPORT if number == 0 else (*_OF_PERSON, *_PLACES) if is_last else _OF_PERSON
        others = rng.sample([each for each in known if each != fact.relation], kind.distractors)
        facts = [fact, *(_made(fact.subject, relation, people, cities) for relation in others)]
        rng.shuffle(facts)
        told[fact.subject] = tuple(facts)
    # Of half of the persons beside the path a place is known, which is a wrong answer; of the others nothing is.
    for fact in [each for facts in told.values() for each in facts if not each.is_answer and each not in path]:
        if rng.random() < _KNOWN_PLACES:
            told[fact.value] = (_made(fact.value, rng.choice(_PLACES), people, cities),)
    return Task(name, _question(subjects[0], relations, kind.wording), path, told, kind.distractors, kind.wording)


def _shuffled(words: str, rng: random.Random) -> list[str]:
    found = words.split()
    rng.shuffle(found)
    return found


def _made(subject: str, relation: str, people: Iterator[str], cities: Iterator[str]) -> Fact:
    return Fact(subject, relation, next(cities if relation in _PLACES else people))


def _question(start: str, relations: Sequence[str], wording: Wording) -> str:
    if wording is Wording.FORWARD:
        return "What is " + "'s ".join([start, *relations]) + "?"
    return "What is " + "".join(f"the {each} of " for each in reversed(relations)) + f"{start}?"
