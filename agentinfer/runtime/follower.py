"""Following turns: who asks, what came of it, and where that is told.

`begin` runs before the engine sees a request and `finish` after the last byte of the answer went out; both are plain
calls on the HTTP server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from agentinfer.clock import Clock
from agentinfer.errors import HintError
from agentinfer.hints import parse_hints
from agentinfer.messages import Api, Conversation, Reply
from agentinfer.metrics import Metrics
from agentinfer.prefix_doctor import Diagnosis, diagnose
from agentinfer.record import RecordWriter, TurnRecord
from agentinfer.runtime.scheduling.channel import SchedulerChannel
from agentinfer.runtime.tool_times import ToolTimes
from agentinfer.runtime.turns import FollowedTurn
from agentinfer.sessions import Outcome, SessionTable

if TYPE_CHECKING:
    from agentinfer.radix_ext.latency_file import LatencyFile
    from agentinfer.runtime.compression.service import CompressionService
    from agentinfer.runtime.prefill.service import PrefillService
    from agentinfer.runtime.prefill.warming import Pace

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
        channel: SchedulerChannel | None = None,
        latency_file: LatencyFile | None = None,
        compression: CompressionService | None = None,
        prefill: PrefillService | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`about` is shown by `status` as it is. `channel` is there when the scheduler wants to hear of sessions,
        `compression` where their memory is shortened, `prefill` where prompts are computed ahead on request, `pace`
        where either is.

        What is learned of tools is kept in `latency_file`, where there is one.
        """
        self.table = table
        self._clock = clock
        self._metrics = metrics
        self._engine = engine
        self._about = about
        self._recorder = recorder
        self._channel = channel
        self.compression = compression
        self.prefill = prefill
        self._pace = pace
        self._tool_times = ToolTimes(clock, metrics, latency_file)
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
        self._tool_times.turn_begun(turn)
        if self._channel is not None:
            self._channel.turn_begun()
        if self._pace is not None:
            self._pace.turn_begun()
        if self.prefill is not None:
            self.prefill.turn_begun(turn.session_id)
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
        if self._pace is not None:
            self._pace.turn_finished()
        if self.prefill is not None:
            self.prefill.turn_finished(followed.session_id, None if followed.usage is None else followed.prompt)
        try:
            reply = _reply(followed.conversation.api, content_type, raw)
            self._finish(followed, outcome, reply)
        except Exception:
            logger.exception("agentinfer: a turn of session %s could not be written down", followed.session_id)
            self.table.abandon(followed.turn)
        else:
            self._compress(followed, outcome, reply)
        self._tool_times.turn_finished(self.table.get(followed.session_id), outcome)
        if self._channel is not None:
            self._tell(self._channel, followed.session_id, outcome)

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the server until it ends."""
        return [self.keep_house()] if self._channel is None else [self.keep_house(), self._channel.keep_time()]

    async def keep_house(self) -> None:
        """Forget expired sessions and bring the gauges up to date, every few seconds until cancelled."""
        while True:
            self.table.expire()
            self._metrics.sessions(self.table.counts(), self.table.totals, self.table.size_bytes)
            if self._recorder is not None:
                self._metrics.record_dropped(self._recorder.num_dropped)
            await self._tool_times.save_if_due()
            await asyncio.sleep(HOUSEKEEPING_PERIOD_S)

    def session_gone(self, session_id: str) -> None:
        """The table calls this: no further turn of the session is expected."""
        self._tool_times.session_gone(session_id, is_forgotten=self.table.get(session_id) is None)
        if self._channel is not None:
            self._channel.session_gone(session_id)
        if self.compression is not None:
            self.compression.session_gone(session_id)
        if self.prefill is not None:
            self.prefill.session_gone(session_id)

    def close(self) -> None:
        """The server ends: keep what is to be kept."""
        self._tool_times.close()
        if self.compression is not None:
            self.compression.close()
        if self.prefill is not None:
            self.prefill.close()

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
            "tools": self._tool_times.status(),
            **({} if self._channel is None else {"scheduling": self._channel.status()}),
            **({} if self.compression is None else {"compression": self.compression.status()}),
            **({} if self.prefill is None else {"prefill": self.prefill.status()}),
            "record": None if record is None else {"path": str(record.path), "dropped": record.num_dropped},
        }

    def _compress(self, followed: FollowedTurn, outcome: Outcome, reply: Reply) -> None:
        if self.compression is None or outcome != "ok":
            return
        try:
            self.compression.turn_ended(followed, reply)
        except Exception:
            logger.exception("agentinfer: session %s cannot be compressed and keeps its context", followed.session_id)

    def _finish(self, followed: FollowedTurn, outcome: Outcome, reply: Reply) -> None:
        turn, usage = followed.turn, followed.usage
        if outcome == "error" and usage is None:
            # The engine refused it: no turn of the session, but counted.
            self.table.abandon(turn)
            self._count(followed, outcome, None)
            return
        diagnosis = None
        if usage is not None and not followed.is_swap:
            diagnosis = diagnose(
                turn.continues, turn.conversation, usage.prompt_tokens, usage.cached_tokens, self._engine.page_size
            )
            self._log_first_miss(turn.session_id, turn.index, diagnosis)
        self.table.finish_turn(turn, reply, usage, outcome)
        self._annotate(followed, outcome, reply, diagnosis)
        self._count(followed, outcome, diagnosis)
        self._record(followed, reply)

    def _tell(self, channel: SchedulerChannel, session_id: str, outcome: Outcome) -> None:
        """What the end of a turn means for the scheduler."""
        channel.turn_finished()
        view = self.table.get(session_id)
        if view is None or view.num_running or view.state == "finished":
            return  # the table tells of sessions that it forgets or that are finished
        if outcome == "client_gone":
            channel.session_gone(session_id)
        elif view.tool_names:
            channel.tools_called(session_id, view.tool_names, self._clock.monotonic_s() - view.idle_s)

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
        if followed.composition is not None:
            seen |= {"composed": True, "saved_tokens": followed.saved_tokens}
        if followed.recalled and usage is not None:
            seen["recalled"] = {
                "ids": followed.recalled,
                "prompt_tokens": usage.again_prompt_tokens,
                "cached_tokens": usage.again_cached_tokens,
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
            self._tokens["prompt_cached"] += usage.all_cached_tokens
            self._tokens["prompt_computed"] += usage.all_prompt_tokens - usage.all_cached_tokens
            self._tokens["completion"] += usage.completion_tokens
            self._metrics.tokens(usage.all_prompt_tokens, usage.all_cached_tokens, usage.completion_tokens)

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
