"""Serves a pair: both engines under this process, and one public port on which they speak as one model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from agentinfer.collab_lang.virtual_model.addresses import EngineAddress, Role
from agentinfer.config import AgentInferConfig, all_options
from agentinfer.errors import ConfigError
from agentinfer.runtime.arguments import CommandLine, read_config_file
from agentinfer.runtime.collab.children import Child, EngineEnded, Patience, show
from agentinfer.runtime.collab.command_lines import CommandLines, Door, Elsewhere, EngineLine, command_lines
from agentinfer.runtime.collab.elsewhere import found_elsewhere
from agentinfer.runtime.collab.front import front_app, front_settings, with_warming_chosen
from agentinfer.runtime.collab.gpus import find_gpus
from agentinfer.runtime.collab.placement import Placement

# Makes the front application. Handed in so that a test can serve another one.
MakeApp = Callable[[Mapping[Role, EngineAddress], AgentInferConfig, str | None], web.Application]

_LAUNCHER = (sys.executable, "-m", "agentinfer.launch_server")
# Clients that are in the middle of an answer when the server is asked to end.
_CLIENTS_GRACE_S = 2.0


def serve_pair(
    argv: Sequence[str], line: CommandLine, environ: Mapping[str, str], make_app: MakeApp = front_app
) -> int:
    """Serves until stopped by SIGTERM or SIGINT; returns an exit status, 0 after these, else the failed engine's.

    `argv` is the user's command line and `line` what was read of it. Raises ConfigError before anything is started.
    """
    lines = command_lines(argv, read_config_file(argv), line.resolved, different_ports())
    front_settings(line.resolved.config, lines.door.api_key)  # what it refuses is better refused now
    logging.basicConfig(level=logging.INFO, format="agentinfer: %(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory(prefix="agentinfer-collab-") as folder:
        try:
            return asyncio.run(_Supervisor(lines, line.resolved.config, environ, make_app, Path(folder)).serve())
        except EngineEnded as error:
            say(f"error: {error}")
            return error.status if error.status in (1, 2, 3) else 1


def different_ports() -> Callable[[], int]:
    """Gives ports of this machine that nobody listens on, each once: below those that the kernel hands out itself."""
    given: set[int] = set()

    def free_port() -> int:
        while True:
            port = random.randint(20_000, 32_000)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in given:
                    given.add(port)
                    return port

    return free_port


class _Supervisor:
    def __init__(
        self,
        lines: CommandLines,
        config: AgentInferConfig,
        environ: Mapping[str, str],
        make_app: MakeApp,
        folder: Path,
    ) -> None:
        self._lines = lines
        self._config = config
        self._environ = environ
        self._make_app = make_app
        self._folder = folder
        self._stop = asyncio.Event()
        self._children: list[Child] = []

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        tls = _tls(self._lines.door)
        with _bound_socket(self._lines.door) as door:
            serving = asyncio.create_task(self._start_and_serve(door, tls))
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    await serving  # raises what went wrong
            finally:
                for task in (serving, stopping):
                    task.cancel()
                await asyncio.gather(serving, stopping, return_exceptions=True)
                await asyncio.gather(*(child.stop() for child in self._children))
        return 0

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():  # asked twice: at once, then
            for child in self._children:
                child.kill()
        self._stop.set()

    async def _start_and_serve(self, door: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Until cancelled."""
        addresses = {role: await _address(engine) for role, engine in self._lines.engines.items()}
        _refuse_same_names([self._config.collab.collab_model_name, *(each.model for each in addresses.values())])
        shares_device = False
        if self._lines.started_here:
            placement = await asyncio.to_thread(Placement, self._lines, self._config.collab, self._environ, find_gpus)
            await self._launch(placement)
            shares_device = placement.shares_device
        runner = web.AppRunner(
            self._make_app(addresses, with_warming_chosen(self._config, shares_device), self._lines.door.api_key),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_CLIENTS_GRACE_S,
        )
        keeping = [asyncio.create_task(child.keep()) for child in self._children]
        try:
            await runner.setup()
            await web.SockSite(runner, door, ssl_context=tls).start()
            show(_ready_line(self._lines.door, addresses, self._config))
            # A keeping task ends by a mistake of ours only; it must not go unseen.
            await asyncio.gather(self._stop.wait(), *keeping)
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            await runner.cleanup()

    async def _launch(self, placement: Placement) -> None:
        starting = asyncio.Lock() if placement.is_shared_gpu else None
        for line in self._lines.started_here:
            self._children.append(self._child(line, placement, starting))
            say(f"{line.role} engine: {line.model_path} as {line.model} at {line.base_url}")
        if division := placement.described():
            say(division)
        # The large one's task is first, and so is its start where they take turns.
        launches = [asyncio.create_task(child.launch()) for child in self._children]
        try:
            for each in asyncio.as_completed(launches):
                await each  # the first that fails ends the others
        finally:
            for task in launches:
                task.cancel()
            await asyncio.gather(*launches, return_exceptions=True)

    def _child(self, line: EngineLine, placement: Placement, starting: asyncio.Lock | None) -> Child:
        file: list[str] = []
        if line.file:
            path = self._folder / f"{line.role}.yaml"
            _write_yaml(path, line.file)
            file = ["--config", str(path)]

        async def command() -> list[str]:
            flags = await asyncio.to_thread(placement.flags, line.role)
            return [*_LAUNCHER, *line.argv, *file, *flags]

        return Child(line.role, command, placement.environ(line.role), line.base_url, say, Patience(), starting)


async def _address(engine: EngineLine | Elsewhere) -> EngineAddress:
    if isinstance(engine, EngineLine):
        return EngineAddress(engine.role, engine.base_url, engine.model, engine.api_key)
    return await found_elsewhere(engine, say)


def _refuse_same_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two models are called {name}, so clients could not tell them apart: give the server there another "
                f"--served-model-name, or this one --large-served-model-name, --small-served-model-name or "
                f"{all_options()['collab_model_name'].flag}"
            )


def _bound_socket(door: Door) -> socket.socket:
    """Bound, so that a taken port shows before minutes of loading, but refusing connections until both are ready."""
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((door.host, door.port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"--host {door.host} --port {door.port}: cannot listen there: {error.strerror}") from None
    return bound


def _tls(door: Door) -> ssl.SSLContext | None:
    if door.ssl_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(door.ssl_certfile, door.ssl_keyfile, door.ssl_keyfile_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ssl-certfile {door.ssl_certfile}, --ssl-keyfile {door.ssl_keyfile}: {error}") from None
    return context


def _write_yaml(path: Path, content: Mapping[str, object]) -> None:
    import yaml  # type: ignore[import-untyped]

    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


def _ready_line(door: Door, addresses: Mapping[Role, EngineAddress], config: AgentInferConfig) -> str:
    host = f"[{door.host}]" if ":" in door.host else door.host
    scheme = "https" if door.ssl_certfile else "http"
    names = ", ".join((config.collab.collab_model_name, *(address.model for address in addresses.values())))
    features = ",".join(config.enabled_features)
    return f"agentinfer ready: {scheme}://{host}:{door.port}  models {names}  features {features}"


def say(text: str) -> None:
    show(f"agentinfer: {text}")
