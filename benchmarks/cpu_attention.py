"""The attention of one forward pass (30 layers of SmolLM2-135M's shape), ours against upstream's `torch_native`, alone.

    python benchmarks/cpu_attention.py --out benchmarks/results/cpu_attention.json

In one process, on random keys in scattered slots, the two in turn; no model and no server. Verify has no upstream
figure: upstream's backend does not know it. `cpu_engine.py` measures whole servers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cpu_engine import machine, spread

LAYERS, HEADS, KV_HEADS, DIM = 30, 9, 3, 64
NUM_SLOTS = 20_000

# name, mode, (cached tokens, new tokens) of each sequence
CASES = (
    ("prefill 128", "EXTEND", [(0, 128)]),
    ("prefill 1024", "EXTEND", [(0, 1024)]),
    ("prefill 128 behind 1024 cached", "EXTEND", [(1024, 128)]),
    ("decode 1 at 64", "DECODE", [(63, 1)]),
    ("decode 1 at 1024", "DECODE", [(1023, 1)]),
    ("decode 1 at 4096", "DECODE", [(4095, 1)]),
    ("decode 8 at 64", "DECODE", [(60 + i, 1) for i in range(8)]),
    ("decode 8 at 200 to 1600", "DECODE", [(200 * (i + 1) - 1, 1) for i in range(8)]),
    ("verify 8 at 1024", "TARGET_VERIFY", [(1023, 8)]),
)


class Pool:
    """One KV pool that all layers share: their contents do not matter, their sizes do."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        self.keys = torch.randn(NUM_SLOTS, KV_HEADS, DIM, generator=generator).to(dtype)
        self.values = torch.randn(NUM_SLOTS, KV_HEADS, DIM, generator=generator).to(dtype)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        self.keys[where.loc], self.values[where.loc] = k.view(-1, KV_HEADS, DIM), v.view(-1, KV_HEADS, DIM)


def forward_pass(backend: Any, batch: Any, layers: list[Any], q: torch.Tensor, k: torch.Tensor) -> float:
    start = time.perf_counter()
    backend.init_forward_metadata(batch)
    for layer in layers:
        backend.forward(q, k, k, layer, batch)
    return time.perf_counter() - start


def measure(dtype: torch.dtype, mode: str, spans: list[tuple[int, int]], repeats: int, seed: int) -> dict[str, Any]:
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from agentinfer.runtime.cpu.attention import CpuAttnBackend

    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(NUM_SLOTS, generator=generator)
    table = torch.zeros(len(spans), max(sum(span) for span in spans), dtype=torch.int32)
    taken, written = 0, []
    for row, (cached, new) in enumerate(spans):
        table[row, : cached + new] = slots[taken : taken + cached + new].int()
        written.append(slots[taken + cached : taken + cached + new])
        taken += cached + new
    runner = SimpleNamespace(
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        token_to_kv_pool=Pool(dtype, generator),
    )
    forward_mode = ForwardMode[mode]
    new_lens = torch.tensor([new for _, new in spans])
    batch = SimpleNamespace(
        forward_mode=forward_mode,
        req_pool_indices=torch.arange(len(spans)),
        seq_lens=torch.tensor([cached + (0 if mode == "TARGET_VERIFY" else new) for cached, new in spans]),
        extend_seq_lens=new_lens,
        extend_prefix_lens=torch.tensor([cached for cached, _ in spans]),
        out_cache_loc=torch.cat(written),
        encoder_lens=None,
        spec_info=SimpleNamespace(draft_token_num=spans[0][1], custom_mask=None, tree_topk=1),
    )
    num_tokens = int(new_lens.sum())
    q = torch.randn(num_tokens, HEADS * DIM, generator=generator).to(dtype)
    k = torch.randn(num_tokens, KV_HEADS * DIM, generator=generator).to(dtype)
    layers = [RadixAttention(HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=0) for _ in range(LAYERS)]

    backends: dict[str, Any] = {"ours": CpuAttnBackend(runner)}
    if mode != "TARGET_VERIFY":
        backends["stock"] = TorchNativeAttnBackend(runner)
    samples: dict[str, list[float]] = {name: [] for name in backends}
    for repeat in range(-1, repeats):  # the first round warms up
        for name in list(backends)[:: 1 if repeat % 2 else -1]:
            seconds = forward_pass(backends[name], batch, layers, q, k)
            if repeat >= 0:
                samples[name].append(seconds)
    result: dict[str, Any] = {
        "seconds": {name: spread(values) for name, values in samples.items()},
        "samples_s": samples,
    }
    if "stock" in samples:
        result["speedup"] = spread([b / a for a, b in zip(samples["ours"], samples["stock"], strict=True)])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_attention.json"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    results = []
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            for name, mode, spans in CASES:
                measured = measure(dtype, mode, spans, arguments.repeats, arguments.seed)
                short = str(dtype).rpartition(".")[2]
                results.append({"dtype": short, "case": {"name": name, "mode": mode, "spans": spans}, **measured})
                medians = {k: statistics.median(v) * 1e3 for k, v in measured["samples_s"].items()}
                gain = measured.get("speedup")
                versus = f"stock {medians['stock']:8.1f} ms  {gain['median']:5.2f}x" if gain else ""
                print(f"{short:9} {name:32} ours {medians['ours']:8.1f} ms  {versus}", flush=True)
    report = {
        "format": "agentinfer.benchmark.cpu_attention",
        "version": 1,
        "command": " ".join(["python", *sys.argv]),
        "shape": {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "dim": DIM},
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "load_average": os.getloadavg(),
        "machine": machine(),
        "results": results,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
