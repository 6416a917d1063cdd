"""What every test shares: one hypothesis profile, so that a run is the same on a slow machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping

import pytest
import structlog
import uvloop
from hypothesis import HealthCheck, settings
from structlog.dev import ConsoleRenderer, plain_traceback

settings.register_profile(
    "bootd",
    deadline=None,
    derandomize=True,  # the same cases on every run: a failure is found by its change
    max_examples=int(os.environ.get("BOOTD_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bootd")

_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The daemon runs on uvloop: a module that cares names the loops it wants as `LOOPS`."""
    names = getattr(getattr(item, "module", None), "LOOPS", ("asyncio",))
    return {name: _LOOPS[name] for name in names}


@pytest.fixture(autouse=True, scope="module")
def unconfigured_logs() -> None:
    """A daemon that ran inside the test process has configured the log for the whole process and
    let each module keep its logger: take that back, or the next file's tests see no events."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            *structlog.get_config()["processors"][:-1],
            # Exceptions as Python writes them: to draw a frame around one takes 0.1 s.
            ConsoleRenderer(colors=False, exception_formatter=plain_traceback),
        ]
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("bootd"):
            for value in list(vars(module).values()):
                if isinstance(value, structlog._config.BoundLoggerLazyProxy):
                    vars(value).pop("bind", None)
