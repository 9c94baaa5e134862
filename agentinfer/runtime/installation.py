"""Our HTTP layer, from the configuration to the middleware and the routes of an app that does not serve yet."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentinfer import __version__
from agentinfer.clock import Clock, SystemClock
from agentinfer.config import AgentInferConfig
from agentinfer.errors import ConfigError
from agentinfer.metrics import Metrics
from agentinfer.record import RecordWriter
from agentinfer.runtime.follower import EngineFacts, TurnFollower
from agentinfer.runtime.http import FollowTurns
from agentinfer.runtime.scheduling.channel import SchedulerChannel, connect
from agentinfer.runtime.seams import Seam
from agentinfer.sessions import SessionTable

if TYPE_CHECKING:
    from agentinfer.radix_ext.latency_file import LatencyFile
    from agentinfer.runtime.compression.registration import PreparedCompression
    from agentinfer.runtime.compression.service import CompressionService
    from agentinfer.runtime.prefill.service import PrefillService
    from agentinfer.runtime.prefill.warming import Pace

SEAMS = (
    Seam(
        target="sglang.srt.runtime_context.get_schedule",
        parameters=(),
        caller=None,
        reason="the prefix cache's page size, for the prefix doctor",
        feature="sessions",
        door="call",
        processes=("launcher",),
    ),
    Seam(
        target="sglang.srt.arg_groups.fields.schedule.Schedule.page_size",
        parameters=None,
        caller=None,
        reason="the prefix cache's page size, for the prefix doctor",
        feature="sessions",
        door="read",
        processes=("launcher",),
    ),
)


@dataclass(slots=True)
class HttpLayer:
    """What was installed. `follow_turns` is to be called when the server is warm: turns are followed from then on.

    `refused`: why the server ended while it started up, where it did.
    """

    follow_turns: Callable[[], None]
    refused: Exception | None = None

    def refuse(self, error: Exception) -> None:
        self.refused = error


def install(app: Any, config: AgentInferConfig, model: str, aliases: tuple[str, ...] = ()) -> HttpLayer:
    """Put the middleware around SGLang's FastAPI `app` and add our routes; must run before the server starts.

    `model` is the served model's name, `aliases` are further ones a request may ask for. Raises ConfigError or
    TraceError for what can be refused before the engine is there, as a record file that cannot be continued.
    """
    from agentinfer.runtime.ranking import ranking_routes
    from agentinfer.runtime.routes import session_routes

    clock = SystemClock()
    recorder = None if config.record.record is None else _open_record(Path(config.record.record), model, clock)
    latency_file = _open_latency_file(config, clock)
    compression = _prepare_compression(config)
    followers: list[TurnFollower] = []
    is_warm = threading.Event()
    layer = HttpLayer(is_warm.set)

    def start() -> TurnFollower:
        followers[:] = [_follower(config, model, clock, recorder, latency_file, compression)]
        return followers[0]

    served = (model, *aliases) if config.sessions.check_model else None
    app.add_middleware(FollowTurns, start=start, is_open=is_warm.is_set, served_models=served, refuse=layer.refuse)
    if config.compress.enabled:
        from agentinfer.runtime.compression.routes import memory_routes

        app.include_router(
            memory_routes(
                lambda: _compression_of(followers[0]), lambda session_id: followers[0].table.get(session_id) is not None
            )
        )
    if config.prefill_route.enabled:
        from agentinfer.runtime.prefill.routes import prefill_routes

        app.include_router(prefill_routes(lambda: _prefill_of(followers[0]), served))
    app.include_router(session_routes(lambda: followers[0]))
    app.include_router(ranking_routes())
    return layer


def _follower(
    config: AgentInferConfig,
    model: str,
    clock: Clock,
    recorder: RecordWriter | None,
    latency_file: LatencyFile | None,
    compression: PreparedCompression | None,
) -> TurnFollower:
    from sglang.srt.runtime_context import get_device, get_schedule

    settings = config.sessions
    channel = connect(clock, config.scheduling) if config.scheduling.enabled else None
    pace = _pace(config, clock)
    follower = TurnFollower(
        table=SessionTable(
            max_sessions=settings.max_sessions,
            expiry_s=settings.session_expiry_s,
            clock=clock,
            ids=lambda: f"s-{uuid.uuid4().hex[:16]}",
            max_bytes=settings.session_text_mb << 20,
            on_gone=lambda session_id: follower.session_gone(session_id),
        ),
        clock=clock,
        metrics=Metrics(),
        engine=EngineFacts(model=model, device=str(get_device().device), page_size=get_schedule().page_size or 1),
        about={
            "version": __version__,
            "sglang": metadata.version("sglang"),
            "features": list(config.enabled_features),
        },
        recorder=recorder,
        channel=channel,
        latency_file=latency_file,
        compression=None if compression is None or pace is None else compression.service(clock, pace, channel),
        prefill=_prefill(config, clock, pace, channel),
        pace=pace,
    )
    return follower


def _pace(config: AgentInferConfig, clock: Clock) -> Pace | None:
    """One for all that computes beside the turns."""
    if not config.compress.enabled and not config.prefill_route.enabled:
        return None
    from agentinfer.runtime.prefill.warming import Pace

    return Pace(clock)


def _prefill(
    config: AgentInferConfig, clock: Clock, pace: Pace | None, channel: SchedulerChannel | None
) -> PrefillService | None:
    if pace is None or not config.prefill_route.enabled:
        return None
    from agentinfer.metrics import PrefillMetrics
    from agentinfer.runtime.prefill.job import Computer
    from agentinfer.runtime.prefill.service import PrefillService
    from agentinfer.runtime.scoring import served_manager

    computer = Computer(pace, served_manager(), clock)
    return PrefillService(config.prefill_route.prefill_max, computer, clock, PrefillMetrics(), channel)


def _prefill_of(follower: TurnFollower) -> PrefillService:
    assert follower.prefill is not None, "the route is there with the feature only"
    return follower.prefill


def _prepare_compression(config: AgentInferConfig) -> PreparedCompression | None:
    if not config.compress.enabled:
        return None
    from agentinfer.runtime.compression.registration import prepare

    return prepare(config.compress)


def _compression_of(follower: TurnFollower) -> CompressionService:
    assert follower.compression is not None, "the memory routes are there with compression only"
    return follower.compression


def _open_latency_file(config: AgentInferConfig, clock: Clock) -> LatencyFile | None:
    kept_in = config.scheduling.sched_latency_file
    if not config.scheduling.enabled or kept_in is None:
        return None
    from agentinfer.radix_ext.latency_file import LatencyFile

    return LatencyFile(Path(kept_in), clock)


def _open_record(path: Path, model: str, clock: Clock) -> RecordWriter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RecordWriter(path, model, clock.unix_s())
    except OSError as error:
        raise ConfigError(f"--agentinfer-record {path}: {error}; name a file in a folder you can write to") from None
