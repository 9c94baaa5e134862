"""Serves: our configuration, SGLang's arguments, plugins loaded and proved, our HTTP layer, then SGLang's server."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentinfer import models
from agentinfer.config import CONFIG_VARIABLE, DISABLE_VARIABLE, AgentInferConfig, add_flags
from agentinfer.errors import AgentInferError, ConfigError, SeamError
from agentinfer.runtime.arguments import (
    CommandLine,
    QuietParser,
    completing_flags,
    engine_command_line,
    engine_options_given,
    split_command_line,
)
from agentinfer.runtime.device import missing_device, this_device
from agentinfer.runtime.proof import collect_proof, plugin_obstacle, require_proofs
from agentinfer.runtime.seams import CORE, Door, Seam, ledger
from agentinfer.runtime.source_check import installed_sglang

if TYPE_CHECKING:
    from agentinfer.runtime.installation import HttpLayer

# Exit statuses: 1 the server failed, 2 it was asked for something that cannot be, 3 SGLang is not what we extend.
EXIT_FAILED, EXIT_REFUSED, EXIT_SEAM = 1, 2, 3


def _row(target: str, parameters: tuple[str, ...] | None, door: Door, caller: str | None, reason: str) -> Seam:
    return Seam(f"sglang.{target}", parameters, caller and f"sglang.{caller}", reason, CORE, door, ("launcher",))


_HTTP = "srt.entrypoints.http_server"
_ARGS = "srt.server_args"

SEAMS = (
    _row(f"{_ARGS}.prepare_server_args", ("argv",), "call", "launch_server", "SGLang's own reading of its arguments"),
    _row(
        f"{_ARGS}.ServerArgs.add_cli_args", ("parser",), "call", f"{_ARGS}.prepare_server_args", "its options, to ask"
    ),
    _row(f"{_ARGS}.ServerArgs.url", ("self", "port"), "call", None, "the address in the ready line"),
    _row("launch_server.run_server", ("server_args",), "call", None, "every way of serving other than HTTP"),
    _row(
        f"{_HTTP}.launch_server",
        (
            "server_args",
            "init_tokenizer_manager_func",
            "run_scheduler_process_func",
            "run_detokenizer_process_func",
            "execute_warmup_func",
            "launch_callback",
        ),
        "call",
        "launch_server.run_server",
        "takes the callback that run_server does not: it prints the ready line",
    ),
    _row(
        f"{_HTTP}.app", None, "read", f"{_HTTP}._setup_and_run_http_server", "our middleware and routes are added here"
    ),
    _row("srt.runtime_context.get_device", (), "call", None, "the resolved device, for the ready line"),
    _row("srt.runtime_context.get_serving", (), "call", None, "the resolved model name, for the ready line"),
    _row(
        "srt.utils.common.kill_process_tree", None, "call", "launch_server", "takes the child processes down at the end"
    ),
    _row(
        "srt.environ.Envs.SGLANG_RUST_SERVER",
        None,
        "read",
        f"{_HTTP}.launch_server",
        "a server that bypasses our layer",
    ),
    *(
        _row(f"srt.arg_groups.fields.{field}", None, "read", caller, "a way of serving that bypasses our layer")
        for field, caller in (
            ("serving.Serving.tokenizer_worker_num", f"{_HTTP}._setup_and_run_http_server"),
            ("serving.Serving.smg_grpc_mode", "launch_server.run_server"),
            ("serving.Serving.grpc_mode", "launch_server.run_server"),
            ("disagg.Disagg.encoder_only", "launch_server.run_server"),
            ("device.Device.use_ray", "launch_server.run_server"),
        )
    ),
)


def serve(argv: Sequence[str]) -> int:
    """Serves until stopped; returns an exit status. `argv` is without the program's name.

    Must be called under ``if __name__ == "__main__":``: the engine's processes are spawned and import the main module.
    """
    status, error = 0, None
    try:
        wants_help = any(word in ("-h", "--help") for word in argv)
        line = split_command_line([] if wants_help else argv, os.environ)
        if line.resolved.config.collab.enabled and not wants_help:
            # Two engines, each a launcher of its own; nothing of SGLang is loaded here.
            from agentinfer.runtime.collab.supervise import serve_pair

            return serve_pair(argv, line, os.environ)
        if installed_sglang() is None:
            raise SeamError(
                "sglang is not installed. With an NVIDIA GPU: pip install 'agentinfer[engine-cuda]'; without: the two "
                "files requirements/engine-cpu.txt and, with --no-deps, requirements/engine-nodeps.txt (make setup)"
            )
        _serve(line, wants_help)
    except SeamError as raised:
        status, error = EXIT_SEAM, str(raised)
    except AgentInferError as raised:
        status, error = EXIT_REFUSED, str(raised)
    except Exception as raised:
        traceback.print_exc()
        status, error = EXIT_FAILED, f"the server failed: {type(raised).__name__}: {raised}"
    finally:
        _kill_children()
    if error is not None:
        # After everything else has had its say: the last line of the log is the one to read.
        _say(f"error: {error}")
    return status


def refuse_bypassed_http(server_args: Any, is_rust_server: bool, config: AgentInferConfig) -> None:
    """Raises ConfigError where requests would not come through our HTTP layer although a feature lives in it."""
    if not config.enabled_features:
        return
    bypasses = (
        (
            server_args.tokenizer_worker_num > 1,
            "--tokenizer-worker-num above 1",
            "each worker imports SGLang's app anew",
        ),
        (is_rust_server, "SGLANG_RUST_SERVER", "the Rust server takes the place of the Python one"),
        (server_args.smg_grpc_mode or server_args.grpc_mode, "--grpc-mode", "there is no HTTP server"),
        (server_args.encoder_only, "--encoder-only", "an encoder serves no conversations"),
        (server_args.use_ray, "--use-ray", "Ray's actors load no plugins"),
    )
    for is_on, what, why in bypasses:
        if is_on:
            raise ConfigError(
                f"{what} leaves our features ({', '.join(config.enabled_features)}) without effect: {why}. "
                f"Leave it out, or serve without them: {DISABLE_VARIABLE}=all"
            )


def _serve(line: CommandLine, wants_help: bool) -> None:
    config = line.resolved.config
    obstacle = plugin_obstacle(os.environ) if config.enabled_features and not wants_help else None
    if obstacle is not None:
        raise SeamError(f"SGLang will not load our plugin: {obstacle}. Serve without it: {DISABLE_VARIABLE}=all")
    # In the environment before plugins are loaded, and for the child processes.
    os.environ[CONFIG_VARIABLE] = config.to_json()
    ledger().process = "launcher"

    from sglang.srt.plugins import load_plugins

    load_plugins()

    from sglang.srt.server_args import ServerArgs, prepare_server_args

    parser = QuietParser()
    ServerArgs.add_cli_args(parser)
    if wants_help:
        add_flags(parser)
        parser.print_help()
        return
    if config.enabled_features:
        require_proofs([collect_proof()], "launcher", config)
    flags, notes = completing_flags(engine_options_given(line, parser), config, models.resolve)
    for note in notes:
        _say(note)
    with engine_command_line(line, flags) as engine_argv:
        server_args = prepare_server_args(engine_argv)
    server_args._agentinfer = config
    _run(server_args, config)


def _run(server_args: Any, config: AgentInferConfig) -> None:
    from sglang.srt.environ import envs

    is_rust_server = envs.SGLANG_RUST_SERVER.get()
    refuse_bypassed_http(server_args, is_rust_server, config)
    missing = missing_device(this_device(os.environ)) if server_args.device is None else None
    if missing is not None:
        raise ConfigError(missing)
    if server_args.smg_grpc_mode or server_args.grpc_mode or server_args.encoder_only or server_args.use_ray:
        from sglang.launch_server import run_server

        run_server(server_args)
        return
    from sglang.srt.entrypoints import http_server

    layer: HttpLayer | None = None
    if config.enabled_features:
        from agentinfer.runtime import installation

        model = server_args.served_model_name or server_args.model_path
        layer = installation.install(http_server.app, config, model, aliases=(server_args.model_path,))
    try:
        http_server.launch_server(server_args, launch_callback=_when_warm(server_args, config, layer))
    except SystemExit:  # how the HTTP server says that it could not start up
        if layer is None or layer.refused is None:
            raise
    if layer is not None and layer.refused is not None:
        raise layer.refused


def _when_warm(server_args: Any, config: AgentInferConfig, layer: HttpLayer | None) -> Callable[[], None]:
    def announce() -> None:
        if layer is not None:
            layer.follow_turns()

        from sglang.srt.runtime_context import get_device, get_serving

        _say(
            f"ready: {server_args.url()}  model {get_serving().served_model_name}  device {get_device().device}  "
            f"features {','.join(config.enabled_features) or 'none'}"
        )

    return announce


def _kill_children() -> None:
    if "sglang.srt.utils" in sys.modules:
        from sglang.srt.utils import kill_process_tree

        kill_process_tree(os.getpid(), include_parent=False)


def _say(text: str) -> None:
    # Not logging: these lines are for whoever started the server, whatever --log-level says.
    stream = sys.stderr if text.startswith("error") else sys.stdout
    print(f"agentinfer {text}" if text.startswith("ready") else f"agentinfer: {text}", file=stream, flush=True)
