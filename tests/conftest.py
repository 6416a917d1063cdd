"""What every test shares: one hypothesis profile, so that a run is the same on a slow machine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "bootd",
    deadline=None,
    derandomize=True,  # the same cases on every run: a failure is found by its change
    max_examples=int(os.environ.get("BOOTD_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bootd")
