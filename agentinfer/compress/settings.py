"""What can be chosen about the compression of a session's memory, and what each choice is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes are in tokens of the served model, estimated as `agentinfer.compress.sizes` says.

    `threshold_tokens`: no compression below this prompt (the paper's 5K). `min_saving_share`: of the prompt, what a
    compression must take away to be worth a job. `keep_recent_steps`: the last steps keep their tool results whole
    (without them the paper measures +29.5% latency, since agents ask again). `min_observation_tokens`: shorter results
    stay, since what stands for them would be as long. `note_share` of what is taken away, between `note_tokens_min` and
    `note_tokens_max`, is what a note may take.

    `note_is_step`: the note is a message of the assistant after the last compressed step, as in the paper; False puts
    it behind that step's last result, for models whose chat template refuses two such messages in a row.

    `take_payloads`: texts of at least `min_payload_chars` in the arguments of old calls are cut too.

    `warm_share`: of the swap turn's prompt, what must be in the cache. `max_rounds`: turns that a finished note waits
    for such a turn, after which it swaps at the next one. `distil_timeout_s` ends a job that has no note by
    then, `warm_timeout_s` one of whose context nothing more came into the cache for so long.
    """

    threshold_tokens: int = 5_000
    min_saving_share: float = 0.15
    keep_recent_steps: int = 3
    min_observation_tokens: int = 48
    note_share: float = 0.08
    note_tokens_min: int = 48
    note_tokens_max: int = 640
    note_is_step: bool = True
    take_payloads: bool = False
    min_payload_chars: int = 600
    warm_share: float = 0.95
    max_rounds: int = 6
    distil_timeout_s: float = 60.0
    warm_timeout_s: float = 120.0
