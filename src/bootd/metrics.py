"""Counters and gauges, in one registry of their own (``/metrics``).

Labels come from our own enumerations and reason words, never off the wire, so their number is
bounded. Names follow Prometheus' conventions: base units, ``_total`` for counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

# When a counter was made would be a series more for each, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
REGISTRY = CollectorRegistry()


class Tally(Collector):
    """A counter for what comes often: a dict, read when somebody asks.

    prometheus-client's own takes a lock and two look-ups, 2 us a packet: a tenth of an answer.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: dict[tuple[str, ...], int] = {}
        REGISTRY.register(self)

    def inc(self, *values: str) -> None:
        """Count one for these labels' values."""
        self._counts[values] = self._counts.get(values, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts as they are now."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        yield family


DHCP_OFFERS = Tally("bootd_dhcp_offers", "DHCP answers sent", ["kind", "message"])
DHCP_IGNORED = Tally("bootd_dhcp_ignored", "DHCP packets not answered", ["reason"])
DHCP_KERNEL_DROPS = Gauge(
    "bootd_dhcp_kernel_drops", "DHCP packets lost in the kernel's receive queue", registry=REGISTRY
)
TFTP_TRANSFERS = Counter(
    "bootd_tftp_transfers", "TFTP reads by how they ended", ["outcome"], registry=REGISTRY
)
TFTP_BYTES = Counter("bootd_tftp_sent_bytes", "File bytes sent by TFTP", registry=REGISTRY)
TFTP_RETRANSMITS = Counter(
    "bootd_tftp_retransmits", "TFTP DATA packets sent again", registry=REGISTRY
)
TFTP_IGNORED = Counter(
    "bootd_tftp_ignored", "TFTP packets not served", ["reason"], registry=REGISTRY
)
HTTP_REQUESTS = Tally(
    "bootd_http_requests", "HTTP requests by route and status", ["route", "status"]
)
HTTP_BYTES = Counter("bootd_http_sent_bytes", "HTTP body bytes sent", registry=REGISTRY)
HTTP_REFUSED = Counter("bootd_http_refused", "HTTP requests refused", ["reason"], registry=REGISTRY)
HTTP_UNAVAILABLE = Counter(
    "bootd_http_unavailable", "HTTP answers with status 503", ["reason"], registry=REGISTRY
)
HTTP_ABORTED = Counter(
    "bootd_http_aborted", "HTTP transfers that the client left", ["route"], registry=REGISTRY
)
TRANSFERS = Gauge(
    "bootd_transfers_in_flight", "Transfers under way", ["protocol"], registry=REGISTRY
)
for _protocol in ("http", "tftp"):
    TRANSFERS.labels(_protocol)  # 0 is said before the first one, too
ADMISSION_LIMIT = Gauge(
    "bootd_admission_limit", "Large transfers that may be under way", registry=REGISTRY
)
ADMISSION_ACTIVE = Gauge("bootd_admission_active", "Large transfers under way", registry=REGISTRY)
ADMISSION_WAITING = Gauge(
    "bootd_admission_waiting", "Machines that were told to ask again", registry=REGISTRY
)
BOOT_SECONDS = Histogram(
    "bootd_boot_seconds",
    "Seconds from the first DHCP packet to a stage",
    ["stage"],
    buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
RELOADS = Counter("bootd_reloads", "Reloads by result", ["result"], registry=REGISTRY)
REFRESHES = Tally(
    "bootd_node_refreshes",
    "Refreshes of runtime overlays by how they ended on the node",
    ["result"],
)
TEMPLATE_FAULTS = Gauge(
    "bootd_template_faults", "Faults of overlay templates found after a load", registry=REGISTRY
)
NODES = Gauge("bootd_nodes", "Nodes in the registry", registry=REGISTRY)
LOADED_AT = Gauge(
    "bootd_registry_loaded_timestamp_seconds", "When the registry was loaded", registry=REGISTRY
)
REGISTRY_AGE = Gauge(
    "bootd_registry_age_seconds", "Seconds since the registry was loaded", registry=REGISTRY
)
LOOP_LAG = Gauge("bootd_loop_lag_seconds", "How late the event loop's timer was", registry=REGISTRY)
EXCEPTIONS = Counter("bootd_exceptions", "Faults of bootd itself", ["where"], registry=REGISTRY)
