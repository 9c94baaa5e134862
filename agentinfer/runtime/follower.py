"""Following turns: who asks, what came of it, and where that is told.

`begin` runs before the engine sees a request and `finish` after the last byte of the answer went out; both are plain
calls on the HTTP server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from agentinfer.clock import Clock
from agentinfer.errors import HintError
from agentinfer.hints import parse_hints
from agentinfer.messages import Api, Conversation, Reply
from agentinfer.metrics import Metrics
from agentinfer.prefix_doctor import Diagnosis, diagnose
from agentinfer.record import RecordWriter, TurnRecord
from agentinfer.runtime.turns import FollowedTurn
from agentinfer.sessions import Outcome, SessionTable
from agentinfer.tool_gaps import ToolGaps

logger = logging.getLogger(__name__)

# Turns whose details a session's view shows.
RECENT_TURNS = 64

HOUSEKEEPING_PERIOD_S = 2.0

# What of a request's sampling goes into the record: enough to ask again.
_RECORDED_SAMPLING = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of the engine once it serves. `page_size` is its prefix cache's, in tokens."""

    model: str
    device: str
    page_size: int


class TurnFollower:
    """Owns the session table and everything that is told about turns. Lives on one event loop; not thread-safe."""

    def __init__(
        self,
        table: SessionTable,
        clock: Clock,
        metrics: Metrics,
        engine: EngineFacts,
        about: Mapping[str, Any],
        recorder: RecordWriter | None = None,
    ) -> None:
        """`about` is shown by `status` as it is."""
        self.table = table
        self._clock = clock
        self._metrics = metrics
        self._engine = engine
        self._about = about
        self._recorder = recorder
        self._gaps = ToolGaps()
        self._started_s, self._started_unix_s = clock.monotonic_s(), clock.unix_s()
        self._turns: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def begin(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> FollowedTurn | None:
        """The turn that this request begins; None for one that is not followed. Raises HintError.

        Whoever gets a turn must `finish` it.
        """
        try:
            hints = parse_hints(body, headers)
        except HintError as error:
            self._metrics.hint_error(error.field)
            raise
        conversation = Conversation.from_body(path, body)
        if conversation is None:
            return None
        turn = self.table.begin_turn(hints, conversation)
        if turn.tool_gap_s is not None:
            tool = self._gaps.observe(turn.tool_names, turn.tool_gap_s)
            self._metrics.tool_gap(tool, turn.tool_gap_s)
        return FollowedTurn(
            turn=turn,
            hints=hints,
            conversation=conversation,
            sampling={name: body[name] for name in _RECORDED_SAMPLING if body.get(name) is not None},
            clock=self._clock,
            arrived_s=self._clock.monotonic_s(),
            arrived_unix_s=self._clock.unix_s(),
        )

    def finish(self, followed: FollowedTurn, outcome: Outcome, content_type: str, raw: bytes) -> None:
        """End a turn. Never raises: the answer is out, and what is wrong here is ours alone."""
        try:
            self._finish(followed, outcome, _reply(followed.conversation.api, content_type, raw))
        except Exception:
            logger.exception("agentinfer: a turn of session %s could not be written down", followed.session_id)
            self.table.abandon(followed.turn)

    async def keep_house(self) -> None:
        """Forget expired sessions and bring the gauges up to date, every few seconds until cancelled."""
        while True:
            self.table.expire()
            self._metrics.sessions(self.table.counts(), self.table.totals, self.table.size_bytes)
            if self._recorder is not None:
                self._metrics.record_dropped(self._recorder.num_dropped)
            await asyncio.sleep(HOUSEKEEPING_PERIOD_S)

    def status(self) -> dict[str, Any]:
        """What `GET /agentinfer/status` answers."""
        record = self._recorder
        return {
            **self._about,
            "model": self._engine.model,
            "device": self._engine.device,
            "uptime_s": round(self._clock.monotonic_s() - self._started_s, 3),
            "sessions": {**self.table.counts(), **self.table.totals, "size_bytes": self.table.size_bytes},
            "turns": dict(self._turns),
            "prefix": dict(self._causes),
            "tokens": dict(self._tokens),
            "tools": {name: summary.as_dict() for name, summary in self._gaps.summaries().items()},
            "record": None if record is None else {"path": str(record.path), "dropped": record.num_dropped},
        }

    def _finish(self, followed: FollowedTurn, outcome: Outcome, reply: Reply) -> None:
        turn, usage = followed.turn, followed.usage
        if outcome == "error" and usage is None:
            # The engine refused it: no turn of the session, but counted.
            self.table.abandon(turn)
            self._count(followed, outcome, None)
            return
        diagnosis = None
        if usage is not None:
            diagnosis = diagnose(
                turn.continues, turn.conversation, usage.prompt_tokens, usage.cached_tokens, self._engine.page_size
            )
            self._log_first_miss(turn.session_id, turn.index, diagnosis)
        self.table.finish_turn(turn, reply, usage, outcome)
        self._annotate(followed, outcome, reply, diagnosis)
        self._count(followed, outcome, diagnosis)
        self._record(followed, reply)

    def _annotate(self, followed: FollowedTurn, outcome: Outcome, reply: Reply, diagnosis: Diagnosis | None) -> None:
        turn, usage = followed.turn, followed.usage
        view = self.table.get(turn.session_id)
        if view is None:
            return
        seen = {
            "turn": turn.index,
            "api": turn.conversation.api,
            "outcome": outcome,
            "arrived_unix_s": followed.arrived_unix_s,
            "ttft_s": followed.ttft_s,
            "latency_s": followed.latency_s,
            "queue_s": followed.queue_s,
            "prompt_tokens": usage and usage.prompt_tokens,
            "cached_tokens": usage and usage.cached_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "finish_reason": followed.finish_reason,
            "tools": [call.name for call in reply.tool_calls],
            "tool_gap_s": turn.tool_gap_s,
            "prefix": None if diagnosis is None else {**diagnosis.as_dict(), "text": str(diagnosis)},
        }
        self.table.annotate(
            turn.session_id,
            inferred=view.notes.get("inferred", True) and turn.inferred,
            last_outcome=outcome,
            last_seen_unix_s=self._clock.unix_s(),
            recent_turns=[*view.notes.get("recent_turns", ()), seen][-RECENT_TURNS:],
        )

    def _log_first_miss(self, session_id: str, turn_index: int, diagnosis: Diagnosis) -> None:
        if not diagnosis.is_miss:
            return
        view = self.table.get(session_id)
        is_first = view is not None and not view.notes.get("prefix_miss_logged")
        level = logging.INFO if is_first else logging.DEBUG
        logger.log(level, "session %s turn %d: %s", session_id, turn_index, diagnosis)
        self.table.annotate(session_id, prefix_miss_logged=True)

    def _count(self, followed: FollowedTurn, outcome: Outcome, diagnosis: Diagnosis | None) -> None:
        usage = followed.usage
        self._turns[outcome] += 1
        self._metrics.turn(
            followed.conversation.api, outcome, followed.turn.inferred, followed.ttft_s, followed.latency_s
        )
        if diagnosis is not None:
            self._causes[diagnosis.cause] += 1
            self._metrics.prefix(diagnosis.cause, diagnosis.tokens_lost)
        if usage is not None:
            self._tokens["prompt_cached"] += usage.cached_tokens
            self._tokens["prompt_computed"] += usage.prompt_tokens - usage.cached_tokens
            self._tokens["completion"] += usage.completion_tokens
            self._metrics.tokens(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)

    def _record(self, followed: FollowedTurn, reply: Reply) -> None:
        if self._recorder is None:
            return
        turn, usage = followed.turn, followed.usage
        self._recorder.write(
            TurnRecord(
                session=turn.session_id,
                parent=turn.parent_id,
                turn=turn.index,
                api=turn.conversation.api,
                t_s=followed.arrived_unix_s - self._started_unix_s,
                messages=[message.as_openai() for message in turn.conversation.messages],
                reply=None if reply.is_empty else reply.message.as_openai(),
                tools=turn.conversation.tools,
                sampling=followed.sampling,
                ttft_s=followed.ttft_s,
                latency_s=followed.latency_s,
                prompt_tokens=None if usage is None else usage.prompt_tokens,
                cached_tokens=None if usage is None else usage.cached_tokens,
                completion_tokens=None if usage is None else usage.completion_tokens,
                finish_reason=followed.finish_reason,
                tool=reply.tool_calls[0].name if reply.tool_calls else None,
                tool_gap_s=turn.tool_gap_s,
            )
        )


def _reply(api: Api, content_type: str, raw: bytes) -> Reply:
    if content_type.startswith("text/event-stream"):
        return Reply.from_sse(api, raw)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Reply()
    return Reply.from_json(api, body)
