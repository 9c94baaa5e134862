"""``agentinfer doctor``: what is installed, what would run, what is wrong with it, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from agentinfer import __version__
from agentinfer.config import resolve_config
from agentinfer.errors import ConfigError, ModelError
from agentinfer.models import DEFAULT_MODEL, EmbeddedModel, catalogue
from agentinfer.models.store import ModelStore, cache_root
from agentinfer.runtime.device import Device, missing_device, this_device
from agentinfer.runtime.proof import plugin_obstacle
from agentinfer.runtime.seams import SUPPORTED_SGLANG, Seam, seams
from agentinfer.runtime.source_check import check_source

# The converted embedded models take 0.3 GB (bfloat16) to 1.1 GB (float32) each, and twice that while converting.
_WANTED_DISK_BYTES = 3 * 10**9

_ENGINE_ADVICE = "run make setup (or install requirements/engine-cuda.txt; without a GPU see the README)"

# By package: whether the engine needs it always, with an NVIDIA GPU only, or can do without.
_PACKAGES: Mapping[str, Literal["always", "cuda", "optional"]] = {
    "sglang": "always",
    "torch": "always",
    "transformers": "always",
    "xgrammar": "always",
    "triton": "cuda",
    "flashinfer-python": "cuda",
    "sglang-kernel": "cuda",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. `advice` says what to do; only a problem makes the examination fail."""

    topic: str
    state: Literal["ok", "warning", "problem"]
    seen: str
    advice: str | None = None


def examine(environ: Mapping[str, str], port: int) -> list[Finding]:
    """Everything we can tell without starting the engine. Imports torch, but not sglang."""
    device = this_device(environ)
    topics: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: version_findings(_installed_version, has_cuda=device.kind == "cuda"),
        lambda: device_findings(device),
        lambda: plugin_findings(environ),
        lambda: seam_findings(seams(), check_source(seams())),
        lambda: model_findings(ModelStore()),
        lambda: feature_findings(environ),
        lambda: port_findings(port),
        lambda: disk_findings(cache_root(), _free_bytes(cache_root())),
    )
    findings: list[Finding] = []
    for topic in topics:
        try:
            findings += topic()
        except ModuleNotFoundError as error:  # it is reported as missing above; what needs it cannot be checked
            findings.append(Finding("unchecked", "warning", f"a topic needs {error.name}, which is not installed"))
        except Exception as error:  # one broken topic must not hide the others
            findings.append(Finding("doctor", "problem", f"{type(error).__name__}: {error}", "report this as a bug"))
    return findings


def version_findings(version_of: Callable[[str], str | None], has_cuda: bool) -> Iterator[Finding]:
    """`version_of` gives the installed version of a package, or None."""
    yield Finding("agentinfer", "ok", __version__)
    yield Finding("python", "ok", sys.version.split()[0])
    for package, need in _PACKAGES.items():
        version = version_of(package)
        if version is None:
            is_needed = need == "always" or (need == "cuda" and has_cuda)
            why = "not needed without an NVIDIA GPU" if need == "cuda" else "not needed"
            yield (
                Finding(package, "problem", "not installed", _ENGINE_ADVICE)
                if is_needed
                else Finding(package, "ok", f"not installed ({why})")
            )
        elif package == "sglang" and version not in SUPPORTED_SGLANG:
            advice = f"install sglang=={SUPPORTED_SGLANG[-1]}; the seams below say whether {version} fits nevertheless"
            yield Finding(package, "warning", f"{version}, tested: {', '.join(SUPPORTED_SGLANG)}", advice)
        else:
            yield Finding(package, "ok", version)


def device_findings(device: Device) -> Iterator[Finding]:
    yield Finding("device", "ok", device.summary)
    missing = missing_device(device)
    if missing is None:
        yield Finding("platform", "ok", device.platform)
    else:
        seen, _, advice = missing.partition(". ")
        yield Finding("platform", "problem", seen, advice)
    if device.kind == "cpu" and "avx512f" not in device.cpu_flags:
        yield Finding("processor", "warning", "no AVX-512", "expect the engine to be slower than the README says")
    threads = device.omp_threads
    if device.kind == "cpu" and threads is not None and threads > device.cores:
        advice = f"set OMP_NUM_THREADS to {device.cores} or less: threads that wait for a core stall every operation"
        yield Finding("threads", "warning", f"OMP_NUM_THREADS={threads} on {device.cores} cores", advice)


def plugin_findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    obstacle = plugin_obstacle(environ)
    if obstacle is None:
        yield Finding("plugin", "ok", "SGLang will load it")
    else:
        seen, _, advice = obstacle.rpartition(": ")
        yield Finding("plugin", "problem", seen, advice)


def seam_findings(rows: tuple[Seam, ...], problems: list[str]) -> Iterator[Finding]:
    """`problems` as `check_source` gives them."""
    if not problems:
        yield Finding("seams", "ok", f"{len(rows)} of SGLang's names are as expected")
    for problem in problems:
        yield Finding("seams", "problem", problem, f"install sglang=={SUPPORTED_SGLANG[-1]}, or AGENTINFER_DISABLE=all")


def model_findings(store: ModelStore) -> Iterator[Finding]:
    """An embedded model that is not there is no problem: it is fetched when first asked for."""
    for model in catalogue():
        prepared = ", ".join(path.name for path in store.prepared(model))
        state = prepared or f"not prepared (agentinfer models prepare {model.name})"
        yield Finding("model", "ok", f"{model.name}{_default_mark(model)}: {state}")


def feature_findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        resolved = resolve_config({}, environ, {})
    except (ConfigError, ModelError) as error:
        yield Finding("features", "problem", str(error), "correct the environment variable")
        return
    for feature in resolved.config.features():
        values = [
            f"{each.name}={getattr(feature, each.name)}"
            + ("" if resolved.sources[each.name] == "default" else f" (from {resolved.sources[each.name]})")
            for each in feature.options()
        ]
        yield Finding("feature", "ok", f"{feature.feature} {'on' if feature.enabled else 'off'}: {', '.join(values)}")


def port_findings(port: int) -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = "stop what listens there, or serve on another port: --port N"
            yield Finding("port", "warning", f"{port} cannot be bound: {error.strerror}", advice)
        else:
            yield Finding("port", "ok", f"{port} is free")


def disk_findings(folder: Path, free_bytes: int) -> Iterator[Finding]:
    seen = f"{free_bytes / 1e9:.1f} GB free for {folder}"
    if free_bytes < _WANTED_DISK_BYTES:
        wanted = f"{_WANTED_DISK_BYTES / 1e9:.0f} GB"
        advice = f"free some, or point AGENTINFER_CACHE elsewhere: converting a model wants {wanted}"
        yield Finding("disk", "warning", seen, advice)
    else:
        yield Finding("disk", "ok", seen)


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``doctor``: exit status 1 when there is a problem; warnings alone leave it 0."""
    parser = subparsers.add_parser("doctor", help="check versions, device, seams, models and settings; say what to do")
    parser.add_argument("--json", action="store_true", help="a list of findings as JSON")
    parser.add_argument("--port", type=int, default=30000, help="the port to be served on (default: %(default)s)")
    parser.set_defaults(run=_run)


def as_text(findings: Iterable[Finding]) -> str:
    findings = list(findings)
    width = max(len(each.topic) for each in findings)
    marks = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
    lines = []
    for each in findings:
        lines.append(f"{marks[each.state]}  {each.topic:<{width}}  {each.seen}")
        if each.advice:
            lines.append(f"{'':7}  {'':<{width}}  -> {each.advice}")
    problems = sum(each.state == "problem" for each in findings)
    warnings = sum(each.state == "warning" for each in findings)
    lines.append(f"{problems} problems, {warnings} warnings" if problems or warnings else "all is well")
    return "\n".join(lines)


def _run(args: argparse.Namespace) -> int:
    findings = examine(os.environ, args.port)
    text = json.dumps([dataclasses.asdict(each) for each in findings], indent=2) if args.json else as_text(findings)
    sys.stdout.write(text + "\n")
    return int(any(each.state == "problem" for each in findings))


def _default_mark(model: EmbeddedModel) -> str:
    return " (default)" if model.name == DEFAULT_MODEL else ""


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free_bytes(folder: Path) -> int:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(existing).free
