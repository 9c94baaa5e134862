"""The progress check: what the model that spoke is asked about its last step, and how its answer is read.

The paper's block (section 1), as a continuation of the same context, so that only the question is prefilled. The answer
is constrained by the engine's grammar backend, so it always parses; the verdict comes from the probability of TRUE
where the engine reports one, since a small model that says TRUE too easily still says it with less confidence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentinfer.collab_lang.controller import Verdict

_JUDGE: Final = (
    "Before anything else, judge your last step. TRUE: it brought the task forward, by a fact that was needed, a "
    "subgoal that is now done, or a plan that holds. FALSE: it repeated something, failed, drifted, or you are unsure "
    "what to do next. "
)
QUESTION: Final = (
    _JUDGE + "Answer with this block and nothing else, the reason in 10 to 20 words:\n"
    "===PROGRESS===\n<reason> ... </reason>\n<value>TRUE or FALSE</value>\n===END_PROGRESS==="
)
QUESTION_FOR_VALUE: Final = _JUDGE + "Answer with one word, TRUE or FALSE."
# What stands in for the results of calls that still run: chat templates want a result after each call.
PENDING_RESULT: Final = "(still running)"

# No spaces inside the value's tags, where the paper has them: under a grammar the space is mostly a token by itself,
# after which the words are cut into other tokens than the model would write, and their probabilities are not its own.
# A word has at most 24 characters, so that the block ends whatever the model would like to say.
_WORDS: Final = r"(?:[^\s<>]{1,24} ){9,19}[^\s<>]{1,24}"
BLOCK_REGEX: Final = (
    r"===PROGRESS===\n<reason> " + _WORDS + r" </reason>\n<value>(?:TRUE|FALSE)</value>\n===END_PROGRESS==="
)
VALUE_REGEX: Final = "(?:TRUE|FALSE)"
_WORDS_OF_VALUE: Final = ("TRUE", "FALSE")
# The longest block: twenty words of 24 characters, at a token for every two, and the frame.
BLOCK_MAX_TOKENS: Final = 320
# The first token decides: after it the grammar leaves one word only.
VALUE_MAX_TOKENS: Final = 1

_BLOCK: Final = re.compile(
    r"===PROGRESS===\s*<reason>(?P<reason>.*?)</reason>\s*<value>\s*(?P<value>TRUE|FALSE)\s*</value>\s*===END_PROGRESS===",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A check's answer: the value as written, the probability of TRUE against FALSE where known, and the reason."""

    is_progress: bool
    p_true: float | None = None
    reason: str = ""


def question_messages(reply: Mapping[str, Any], question: str) -> list[dict[str, Any]]:
    """What follows a history when its last step is judged: the reply, results of its calls to come, the question."""
    calls = reply.get("tool_calls") or []
    pending = [{"role": "tool", "tool_call_id": call.get("id", ""), "content": PENDING_RESULT} for call in calls]
    return [dict(reply), *pending, {"role": "user", "content": question}]


def read_block(text: str, p_true: float | None = None) -> Judgement | None:
    """The first block in `text`, or None where there is no whole one."""
    found = _BLOCK.search(text)
    if found is None:
        return None
    return Judgement(found["value"] == "TRUE", p_true, " ".join(found["reason"].split()))


def read_value(text: str, p_true: float | None = None) -> Judgement | None:
    """TRUE, FALSE, or what one of them begins with; None for anything else."""
    word = text.strip()
    begun = [each for each in _WORDS_OF_VALUE if word and each.startswith(word)]
    return Judgement(begun[0] == "TRUE", p_true) if begun else None


def probability_of_true(alternatives: Iterable[tuple[str, float]]) -> float | None:
    """P(TRUE) against P(FALSE), from the tokens that could have come where the value begins, with log-probabilities.

    A token counts for the word that it begins: "TR" as well as " TRUE". A word that is not among the likeliest tokens
    counts as impossible. None where neither is among them. Only differences between log-probabilities matter, and
    those that are no finite numbers are left out.
    """
    starts = [(token.strip(), logprob) for token, logprob in alternatives if math.isfinite(logprob)]
    known = [
        (word, logprob) for start, logprob in starts for word in _WORDS_OF_VALUE if start and word.startswith(start)
    ]
    if not known:
        return None
    likeliest = max(logprob for _, logprob in known)
    mass = dict.fromkeys(_WORDS_OF_VALUE, 0.0)
    for word, logprob in known:
        mass[word] += math.exp(logprob - likeliest)
    return mass["TRUE"] / sum(mass.values())


def verdict(judgement: Judgement | None, threshold: float) -> Verdict:
    """What a check says to the controller: the probability against `threshold`, else the value as written."""
    if judgement is None:
        return Verdict.MISSING
    if judgement.p_true is not None:
        return Verdict.PROGRESS if judgement.p_true >= threshold else Verdict.NO_PROGRESS
    return Verdict.PROGRESS if judgement.is_progress else Verdict.NO_PROGRESS
