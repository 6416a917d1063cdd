"""The example overlay that is installed is one that works."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from bootd.overlay.render import render
from tests.overlay_nodes import PLAIN, SERVER, registry

CONF = Path(__file__).parents[1] / "conf" / "overlays"


def test_the_example_does_what_its_comments_say() -> None:
    plain = replace(PLAIN, overlays_system=("example",))
    gpu = replace(plain, name="gpu", tags={"role": "gpu"})
    out = replace(plain, name="out", tags={"rack": "none"})
    world = registry([plain, gpu, out], [str(CONF)])

    files = {
        node.name: {e.path: e for e in render(world, node, "system", SERVER)}
        for node in (plain, gpu, out)
    }

    example = files["n001"]["etc/bootd/example.conf"]
    assert b"boot = 10.0.0.11 netmask 255.255.255.0\n" in example.content
    assert stat.S_IMODE(example.mode) == 0o640
    assert "etc/profile.d/gpu.sh" in files["gpu"]
    assert "etc/profile.d/gpu.sh" not in files["n001"]
    assert files["n001"]["srv/scratch"].mode == stat.S_IFDIR | 0o1777
    assert files["n001"]["etc/bootd/delete.d/system"].content == b"/etc/motd.d/vendor\n"
    assert files["out"] == {}
