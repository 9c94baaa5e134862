"""Building the native test drivers, and running them under libFuzzer."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "agentinfer" / "spec_sam"


def build_driver(driver: Path, folder: Path, *flags: str, compiler: str | None = None) -> Path:
    """Compile `driver` and the core without its bindings, in checked mode, into `folder`."""
    compiler = compiler or os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++, or CXX)")
    program = folder / driver.stem
    # libFuzzer's own `main` comes with the last step alone.
    core = core_objects(compiler, *(flag.replace("=fuzzer,", "=fuzzer-no-link,") for flag in flags))
    done = compile_with(compiler, *flags, "-o", str(program), str(driver), *map(str, core))
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip(f"{compiler} has no sanitiser runtime here")
    assert done.returncode == 0, done.stderr
    return program


@cache
def core_objects(compiler: str, *flags: str) -> list[Path]:
    """The compiled core without its bindings, made once for all drivers."""
    folder = Path(tempfile.mkdtemp(prefix="agentinfer-core-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    objects = []
    for source in sorted((SOURCES / "csrc").glob("*.cpp")):
        if not source.name.startswith("bindings"):
            objects.append(folder / f"{source.stem}.o")
            done = compile_with(compiler, *flags, "-c", "-o", str(objects[-1]), str(source))
            assert done.returncode == 0, done.stderr
    return objects


def compile_with(compiler: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of the compiler with every warning an error and the checked mode on."""
    flags = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DAGENTINFER_CHECKED")
    command = [compiler, *flags, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", f"-I{SOURCES / 'csrc'}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def run_programmes(driver: Path, folder: Path, runs: int) -> None:
    """Random programmes against the driver's own oracle, under the address and undefined-behaviour sanitisers."""
    program = build_driver(driver, folder, "-fsanitize=address,undefined")
    done = subprocess.run([str(program), "20261123", str(runs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{runs} programmes agree\n"


def run_libfuzzer(driver: Path, folder: Path, runs: int) -> None:
    """The same under libFuzzer; skips where there is no clang."""
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("no clang++, so no libFuzzer; the same driver ran over random bytes under the sanitisers")
    flags = ("-fsanitize=fuzzer,address,undefined", "-DAGENTINFER_LIBFUZZER")
    program = build_driver(driver, folder, *flags, compiler=clang)
    # The peak memory that libFuzzer reads begins at the test process's own, which may hold whole models.
    limits = ("-rss_limit_mb=0", "-malloc_limit_mb=256")
    command = [str(program), "-seed=20261123", f"-runs={runs}", "-max_len=120", *limits]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
