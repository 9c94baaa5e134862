"""What a metric is, and how the client library gets to know it.

`prometheus_client` is imported when live metrics are built, not with this package: SGLang sets its multiprocess folder
first, and the client reads that variable at import.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

OTHER: Final = "other"
"""The label value of everything beyond the first few distinct ones."""

LATENCY_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `name` is as exposed, unit and ``_total`` included; `buckets` are upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def live(specs: Iterable[MetricSpec], registry: CollectorRegistry | None) -> dict[str, Any]:
    """The client library's objects by name, in `registry` or its default one."""
    import prometheus_client

    kinds: dict[str, Any] = {
        "counter": prometheus_client.Counter,
        # Only the process that serves HTTP sets our gauges, so the newest value is the value.
        "gauge": partial(prometheus_client.Gauge, multiprocess_mode="mostrecent"),
        "histogram": prometheus_client.Histogram,
    }
    live: dict[str, Any] = {}
    for spec in specs:
        options: dict[str, Any] = {"registry": registry or prometheus_client.REGISTRY}
        if spec.kind == "histogram":
            options["buckets"] = spec.buckets
        live[spec.name] = kinds[spec.kind](spec.name, spec.help, spec.labels, **options)
    return live


class CappedLabel:
    """Lets the first `limit` distinct values through, because every label value is a time series for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def value(self, text: str) -> str:
        if text not in self._values:
            if len(self._values) >= self._limit:
                return OTHER
            self._values.add(text)
        return text
