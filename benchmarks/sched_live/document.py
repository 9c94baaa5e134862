"""The sections on live scheduling of the measurements page."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import conditions, table

_NAMES = {
    "fcfs": "FCFS, LRU",
    "lpm": "longest prefix, LRU",
    "hrrn": "highest response ratio, LRU",
    "sjf": "shortest prefill first, LRU",
    "fcfs_tlru": "FCFS, T-LRU",
    "lpm_tlru": "longest prefix, T-LRU",
    "lpm_sessions": "longest prefix, session radix cache",
    "agent": "AgentSched",
    "agent_bounded": "AgentSched, waits bounded",
}


def comparison(run: Any) -> str:
    """The closed loop at several sizes of the cache."""
    rows = []
    for row in run["rows"]:
        for name, figures in row["policies"].items():
            rows.append(
                [
                    f"{row['oversubscription']:g}x",
                    _NAMES[name],
                    _mean(figures["completion_mean_s"]),
                    _mean(figures["completion_p95_s"]),
                    _mean(figures["worst_turn_s"]),
                    _mean(figures["ttft_mean_s"], 2),
                    f"{100 * figures['hit_rate']['mean']:.1f}%",
                    f"{figures['recomputed_tokens']['mean']:,.0f}",
                    f"{figures['sessions_per_hour']['mean']:.0f}",
                ]
            )
    heads = [
        *("oversubscribed", "policy", "session mean s", "p95 s", "worst turn s", "TTFT mean s"),
        *("cached, turn 2 on", "tokens recomputed", "sessions an hour"),
    ]
    work = run["workload"]
    repeats = 1 + max(cell["repeat"] for cell in run["cells"])
    text = (
        f"{work['sessions']} sessions of `{run['trace']['name']}`, {work['live_sessions']} live at once, cut to "
        f"{work['turns']} turns and {work['context_tokens_mean']:,.0f} tokens of context in the mean; forced replies, "
        f"{run['dtype']}, threads a server: {run['threads']}. Oversubscribed: live sessions times mean context by the "
        f"tokens of the cache. Recomputed: prompt tokens that an earlier turn of the session had computed. "
        f"Waits bounded: `{run['flags']['agent_bounded'].partition('agent ')[2]}`. Runs of each: up to {repeats}, "
        "with least and most where there are several.\n\n"
        "The cut was chosen in the simulator, for turns that add little to their contexts, as recorded ones do, and "
        "for caches of several contexts: where a cache holds one or two contexts only, there is little to gain "
        "(simulated: 1.1 times longest prefix match), and the more a turn adds, the lower the highest hit rate that "
        "anybody can reach."
    )
    return (
        f"## Scheduling on a live server\n\n{text}\n\n{table(heads, rows)}\n{_against(run)}\n\n"
        f"`{run['command']}`{conditions(run)}\n"
    )


def mixed(run: Any) -> str:
    """Sessions with short questions beside them, in the form of the paper's table 10."""
    heads = [
        *("policy", "LLM call latency", "end to end", "KV hit rate", "call mean s", "question mean s", "p95 s"),
        *("session mean s", "worst turn s"),
    ]
    rows = [
        [
            _NAMES[row["policy"]],
            f"{row['call_latency']:.3f}x",
            f"{row['end_to_end']:.3f}x",
            f"{100 * row['call_hit_rate']:.0f}%",
            f"{row['call_mean_s']:.2f}",
            f"{row['question_mean_s']:.2f}",
            f"{row['question_p95_s']:.2f}",
            f"{row['completion_mean_s']:.1f}",
            f"{row['worst_turn_s']:.1f}",
        ]
        for row in run["table_10"]
    ]
    work = run["workload"]
    levels = ", ".join(f"{row['oversubscription']:g}x" for row in run["rows"])
    text = (
        f"The same sessions ({work['live_sessions']} live, {levels} oversubscribed) with questions of one turn about "
        f"documents of 300 to 600 tokens beside them, {work['questions_per_s']:g} a second. A call is a turn or a "
        "question; end to end is a session's completion; ratios are to FCFS."
    )
    made = f"`{run['command']}`{conditions(run)}"
    return f"## Scheduling, sessions and short questions\n\n{text}\n\n{table(heads, rows)}\n{made}\n"


def parity(run: Any) -> str:
    """Token for token."""
    text = (
        f"Free greedy replies in float32 at {run['oversubscription']:g}x: of {run['requests']} requests "
        f"({run['tokens']:,} tokens) {len(run['different'])} differ between FCFS and AgentSched, while "
        f"{run['requests_with_other_cached_tokens']} found another part of their prompt in the cache."
    )
    return f"### Output\n\n{text}\n\n`{run['command']}`\n"


def _against(run: Any) -> str:
    parts = [
        f"at {row['oversubscription']:g}x {_NAMES[name]} {ratio['of_means']:.2f} (quartiles over sessions "
        f"{ratio['q1']:.2f} to {ratio['q3']:.2f}; best stock: {_NAMES[row['best_stock']]})"
        for row in run["rows"]
        for name, ratio in row["completion_of_best_stock_by"].items()
    ]
    return f"Mean completion of the best stock policy in the table by ours: {'; '.join(parts)}."


def _mean(figure: dict[str, float], digits: int = 1) -> str:
    mean = f"{figure['mean']:.{digits}f}"
    if figure["least"] == figure["most"]:
        return mean
    return f"{mean} ({figure['least']:.{digits}f} to {figure['most']:.{digits}f})"
