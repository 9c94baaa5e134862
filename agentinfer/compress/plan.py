"""What a compression would take away and what that is worth, from a session's history alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from agentinfer.compress.memory import Observation, Step, split
from agentinfer.compress.payloads import chars_cut, payload_of
from agentinfer.compress.settings import Settings
from agentinfer.compress.sizes import Sizes
from agentinfer.messages import Message


@dataclass(frozen=True, slots=True)
class Plan:
    """Take `taken` out of the first `covers` messages. All sizes are estimated tokens.

    `prompt_tokens` is the prompt before, `saved_tokens` what goes (the note already counted against it),
    `recomputed_tokens` what of the new prompt no cached branch has: all from the first result taken on.
    """

    covers: int
    taken: tuple[Observation, ...]
    note_tokens: int
    prompt_tokens: int
    saved_tokens: int
    recomputed_tokens: int

    @property
    def saving_share(self) -> float:
        return self.saved_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def make_plan(
    messages: Sequence[Message],
    sizes: Sizes,
    settings: Settings,
    *,
    already_taken: Collection[int] = (),
    covered: int = 0,
    composed_tokens: int | None = None,
) -> Plan | None:
    """The compression that is possible now; None where nothing can go.

    All results of closed steps go, up to the end of the last loop before the recent steps, unless they are short.
    `already_taken` and `covered` are those of the composition that is in place, whose messages take `composed_tokens`;
    whether the plan is worth carrying out is `is_worth_it`.
    """
    steps = [step for step in split(messages) if step.start >= covered]
    old = _whole_loops(steps[: max(0, len(steps) - settings.keep_recent_steps)])
    found = [each for step in old for each in _takeable(messages, step, sizes, settings)]
    found = [(each, saved) for each, saved in found if each.index not in already_taken]
    if not found:
        return None
    taken = tuple(each for each, _ in found)
    beginning = sizes.messages(messages[:covered]) if composed_tokens is None else composed_tokens
    removed = sum(saved for _, saved in found)
    note_tokens = round(min(settings.note_tokens_max, max(settings.note_tokens_min, settings.note_share * removed)))
    prompt = beginning + sizes.messages(messages[covered:])
    before_first = beginning + sizes.messages(messages[covered : taken[0].index])
    saved = removed - note_tokens
    return Plan(
        covers=old[-1].end,
        taken=taken,
        note_tokens=note_tokens,
        prompt_tokens=prompt,
        saved_tokens=saved,
        recomputed_tokens=max(0, prompt - saved - before_first),
    )


def is_worth_it(plan: Plan, settings: Settings, kv_price: float = 0.0) -> bool:
    """Whether to start a job: over the threshold, and the saving is a large enough part of the prompt.

    Each later turn carries `saved_tokens` less, while the job computes `recomputed_tokens` once and its note. With the
    number of turns to come unknown, asking for a share s of the prompt bounds the work: a context that grows by one
    share between jobs is recomputed at most 1/s times over, however long it gets. `kv_price` (0 to 1, the scheduler's
    pressure on the cache) lowers the share asked for, to half at full pressure.
    """
    if plan.prompt_tokens < settings.threshold_tokens or plan.saved_tokens <= 0:
        return False
    asked = settings.min_saving_share * (1.0 - 0.5 * min(1.0, max(0.0, kv_price)))
    return plan.saving_share >= asked


def _takeable(
    messages: Sequence[Message], step: Step, sizes: Sizes, settings: Settings
) -> Iterator[tuple[Observation, int]]:
    """What of a step may go, in the order of its messages, and the tokens that this saves."""
    if settings.take_payloads:
        payload = payload_of(messages[step.start], step.start, settings.min_payload_chars)
        if payload is not None:
            cut = chars_cut(messages[step.start], step.start, settings.min_payload_chars)
            yield payload, round(cut * sizes.tokens_per_char)
    for each in step.observations:
        size = sizes.text(each.text)
        if size >= settings.min_observation_tokens:
            yield each, size - sizes.text(each.id) - 1


def _whole_loops(steps: Sequence[Step]) -> list[Step]:
    """The closed steps from the first on, up to the end of a loop; an open step stays with all that follows it."""
    end = kept = 0
    for position, step in enumerate(steps):
        if not step.is_closed:
            break
        end = position + 1
        if step.ends_loop:
            kept = end
    return list(steps[:kept])
