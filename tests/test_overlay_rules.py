"""overlay.yaml: what it may say, and what comes of it on a node."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootd.config.source import parse
from bootd.model import Artefact, ConfigError, Image, Node, Overlay, Settings
from bootd.overlay import paths, rules
from bootd.overlay.cpio import Entry, check_path
from bootd.overlay.render import EXAMPLE_SERVER, check, reads, render
from bootd.overlay.tree import OverlayTrees, shadows
from bootd.registry import Registry

Site = Callable[[str], Path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Writes overlay ``own`` with three files and the given overlay.yaml; gives the folder."""
    rootfs = tmp_path / "own/rootfs"
    for path in ("etc/app/key", "etc/app/conf", "srv/www/index"):
        (rootfs / path).parent.mkdir(parents=True, exist_ok=True)
        (rootfs / path).write_text("x")

    def write(text: str) -> Path:
        (tmp_path / "own/overlay.yaml").write_text(text)
        return tmp_path

    return write


def load(folder: Path) -> Overlay:
    return OverlayTrees().load([str(folder)])["own"]


def registry(node: Node, *overlays: Overlay, images: tuple[Image, ...] = ()) -> Registry:
    return Registry(
        Settings(),
        nodes={node.name: node},
        images={image.name: image for image in images},
        overlays={overlay.name: overlay for overlay in overlays},
        templates={},
    )


def made(folder: Path, **node: object) -> dict[str, Entry]:
    """What a node with overlay ``own`` gets."""
    it = Node("n001", overlays_system=("own",), **node)  # type: ignore[arg-type]
    return {e.path: e for e in render(registry(it, load(folder)), it, "system", EXAMPLE_SERVER)}


def faults(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder)
    return str(caught.value)


def test_modes_and_owners_are_as_they_say_the_last_one_winning(site: Site) -> None:
    files = made(
        site(
            "paths:\n"
            "  etc/app/*: {mode: 0640, group: 42}\n"
            "  etc/app/key: {mode: 0600, owner: 33}\n"
            "  etc/app: {mode: 0750}\n"
        )
    )

    key, conf, folder = files["etc/app/key"], files["etc/app/conf"], files["etc/app"]
    assert (stat.S_IMODE(key.mode), key.uid, key.gid) == (0o600, 33, 42)
    assert (stat.S_IMODE(conf.mode), conf.uid, conf.gid) == (0o640, 0, 42)
    assert stat.S_IMODE(folder.mode) == 0o750


ROOT = {"squashfs": Artefact("/images/x", 1, "aa")}
MUNGE = """paths:
  etc/app/key:
    owner: munge
    group: munge
"""


def owned(folder: Path, image: Image | None, **node: object) -> dict[str, tuple[int, int]]:
    """Who owns each path on a node that boots `image`."""
    images = (image,) if image is not None else ()
    it = Node("n001", overlays_system=("own",), image=image.name if image else None, **node)  # type: ignore[arg-type]
    world = registry(it, load(folder), images=images)
    assert not check(world)
    return {e.path: (e.uid, e.gid) for e in render(world, it, "system", EXAMPLE_SERVER)}


def test_an_owners_name_has_the_number_that_it_has_in_the_nodes_image(site: Site) -> None:
    folder = site(f"{MUNGE}directories: {{var/lib/app: {{owner: root, group: _ssh}}}}")
    ids = {"munge": 115, "_ssh": 106}
    twelve = Image("debian-12", "1", ROOT, users={"munge": 107}, groups=ids)
    thirteen = Image("debian-13", "1", ROOT, users={"munge": 997}, groups=ids)

    assert owned(folder, twelve)["etc/app/key"] == (107, 115)
    assert owned(folder, thirteen)["etc/app/key"] == (997, 115)
    assert owned(folder, twelve)["var/lib/app"] == (0, 106)


def test_a_template_and_the_files_that_it_makes_have_owners_by_name_too(site: Site) -> None:
    folder = site(MUNGE)
    (folder / "own/rootfs/etc/app/key").rename(folder / "own/rootfs/etc/app/key.j2")
    (folder / "own/rootfs/etc/app/key.j2").write_text('a{% file "etc/more" %}b{% endfile %}')

    files = owned(folder, Image("debian", "1", ROOT, users={"munge": 1}, groups={"munge": 2}))

    assert files["etc/app/key"] == files["etc/more"] == (1, 2)


@pytest.mark.parametrize(
    ("resources", "owner"),
    [
        ({"users": {"munge": {"uid": 980}}}, (980, 980)),
        ({"users": {"munge": {"uid": 980, "gid": 981}}}, (980, 981)),
        ({"users": {"munge": {"uid": 980, "group": "x"}}, "groups": {"munge": 4}}, (980, 4)),
        ({"users": {"munge": {"uid": 980}}, "groups": {"munge": {"gid": 5}}}, (980, 5)),
    ],
)
def test_users_that_the_node_is_given_have_their_number(
    resources: dict[str, object], owner: tuple[int, int], site: Site
) -> None:
    assert owned(site(MUNGE), None, resources=resources)["etc/app/key"] == owner


def test_a_user_that_the_image_has_keeps_its_number(site: Site) -> None:
    """As systemd-sysusers leaves it."""
    image = Image("debian", "1", ROOT, users={"munge": 107}, groups={"munge": 115})
    resources = {"users": {"munge": {"uid": 980}}}

    assert owned(site(MUNGE), image, resources=resources)["etc/app/key"] == (107, 115)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (None, "no image, so the number of user 'munge' is not known: write the number"),
        (
            Image("debian", "1", ROOT, users={"mungo": 5}, groups={"munge": 115}),
            "image debian has no user 'munge'; did you mean 'mungo'?: install what makes it",
        ),
        (Image("debian", "1", ROOT), "an older bootd imported: import it again, or write"),
        (Image("debian", "1", {}), "a kernel and an initramfs as they are, whose users are not"),
    ],
)
def test_a_name_without_a_number_is_a_fault_with_its_place_node_and_image(
    image: Image | None, says: str, site: Site
) -> None:
    node = Node("n001", overlays_system=("own",), image="debian" if image is not None else None)

    fault = check(registry(node, load(site(MUNGE)), images=(image,) if image is not None else ()))[
        0
    ]

    assert "own/overlay.yaml:3:1: nodes.n001: " in fault
    assert says in fault


def test_a_group_that_a_user_names_is_not_of_its_own(site: Site) -> None:
    node = Node(
        "n001",
        overlays_system=("own",),
        resources={"users": {"munge": {"uid": 980, "group": "hpc"}}},
    )

    (fault,) = check(registry(node, load(site(MUNGE))))

    assert "own/overlay.yaml:4:1: nodes.n001: no image, so the number of group 'munge'" in fault


def test_directories_symlinks_and_devices_are_made(site: Site) -> None:
    files = made(
        site(
            "directories: {var/lib/app: {mode: 1770, owner: 5}, srv/empty: }\n"
            "symlinks: {etc/mtab: /proc/self/mounts}\n"
            "devices:\n"
            "  dev/null2: {type: char, major: 1, minor: 3, mode: 0666}\n"
            "  run/pipe: {type: fifo}\n"
        )
    )

    assert (files["var/lib/app"].mode, files["var/lib/app"].uid) == (stat.S_IFDIR | 0o1770, 5)
    assert files["srv/empty"].mode == stat.S_IFDIR | 0o755
    assert files["etc/mtab"] == Entry("etc/mtab", stat.S_IFLNK | 0o777, b"/proc/self/mounts")
    assert files["dev/null2"] == Entry("dev/null2", stat.S_IFCHR | 0o666, rdev=(1, 3))
    assert files["run/pipe"].mode == stat.S_IFIFO | 0o600


def test_a_path_is_only_on_nodes_that_its_condition_fits(site: Site) -> None:
    folder = site('paths: {"srv/**": {when: tags.role == "web"}}')

    assert "srv/www/index" in made(folder, tags={"role": "web"})
    assert "srv/www/index" not in made(folder, tags={"role": "db"})
    assert "srv/www/index" not in made(folder)  # no such tag: not an error in a condition


def test_a_whole_overlay_is_only_on_nodes_that_its_condition_fits(site: Site) -> None:
    folder = site('when: tags.role != "none" and node.name.startswith("n")\ndelete: [etc/vendor]')

    assert "etc/app/key" in made(folder)
    assert made(folder, tags={"role": "none"}) == {}


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("tag.role", ":1:7: when: 'tag' is undefined; there are node, tags"),
        ("tags.role ==", ":1:7: when: "),
        ("tags.role }} {{ node.name", ":1:7: when: "),
    ],
)
def test_a_condition_with_a_mistake_is_a_fault_with_its_place(
    condition: str, says: str, site: Site
) -> None:
    assert f"own/overlay.yaml{says}" in faults(site(f"when: {condition!r}"))


def test_a_condition_that_fails_for_a_node_is_told_with_its_line(site: Site) -> None:
    overlay = load(site("paths:\n  etc/app/key:\n    when: node.nam == 1\n"))
    node = Node("n001", overlays_system=("own",))

    (fault,) = check(registry(node, overlay))

    assert "own/overlay.yaml:3:1: nodes.n001: " in fault
    assert "'nam'" in fault


def test_a_whole_overlays_condition_that_fails_is_told_and_its_names_are_read(site: Site) -> None:
    overlay = load(site("when: node.nam == 1"))
    node = Node("n001", overlays_system=("own",))

    (fault,) = check(registry(node, overlay))

    assert "own/overlay.yaml:1:1: nodes.n001: " in fault
    assert reads([overlay]) == {"node"}


def test_deleted_paths_reach_hooks_and_systemd(site: Site) -> None:
    files = made(site("delete: [etc/motd.d/vendor, opt/old]"))

    assert files["etc/bootd/delete.d/system"].content == b"/etc/motd.d/vendor\n/opt/old\n"
    assert files["etc/tmpfiles.d/bootd-delete.conf"].content == (
        b"R! /etc/motd.d/vendor\nR! /opt/old\nf! /run/bootd-deleted\n"
    )


def other(tmp_path: Path, rules_text: str, *files: str) -> Path:
    """A second overlay, ``other``, that comes after ``own``."""
    for file in files:
        (tmp_path / "other/rootfs" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other/rootfs" / file).write_text("other")
    (tmp_path / "other").mkdir(exist_ok=True)
    (tmp_path / "other/overlay.yaml").write_text(rules_text)
    return tmp_path


def both(folder: Path) -> Registry:
    loaded = OverlayTrees().load([str(folder)])
    node = Node("n001", overlays_system=("own", "other"))
    return registry(node, loaded["own"], loaded["other"])


def test_a_later_overlay_can_delete_what_an_earlier_one_puts_there(site: Site) -> None:
    world = both(other(site(""), "delete: [etc/app]"))

    entries = render(world, world.nodes["n001"], "system", EXAMPLE_SERVER)

    names = [entry.path for entry in entries]
    assert not [name for name in names if name.startswith("etc/app")]
    assert "etc/bootd/delete.d/system" in names


def test_a_later_overlay_can_put_there_what_an_earlier_one_deletes(site: Site) -> None:
    world = both(other(site("delete: [etc/issue]"), "", "etc/issue"))

    entries = {e.path: e for e in render(world, world.nodes["n001"], "system", EXAMPLE_SERVER)}

    assert entries["etc/issue"].content == b"other"
    assert "etc/bootd/delete.d/system" not in entries


def test_a_file_below_a_deleted_folder_is_a_fault(site: Site) -> None:
    (fault,) = check(both(other(site("delete: [opt/x]"), "", "opt/x/y")))

    assert "/opt/x stands in /opt/x, which overlay own deletes" in fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path: {}", "overlay.yaml:1:1: path: unknown key; did you mean 'paths'?"),
        ("[]", "where a map is expected"),
        ("paths: [etc]", "paths: ['etc'] where a map is expected"),
        ("paths: {etc/app/kee: {mode: 0600}}", "1:9: paths.etc/app/kee: fits no path"),
        ("paths: {../x: {mode: 0600}}", "component '..'"),
        ("paths: {'**/a/**/b/**/c/**': {mode: 0600}}", "more than 3 **"),
        ("paths: {etc/app/key: {mod: 0600}}", "did you mean 'mode'"),
        ("paths: {etc/app/key: {mode: 600}}", ""),
        ("paths: {etc/app/key: {mode: rw}}", "not a mode: octal digits"),
        ("paths: {etc/app/key: {mode: 0888}}", "not a mode"),
        ("paths: {etc/app/key: {owner: 'a b'}}", "paths.etc/app/key.owner: 'a b' is neither"),
        ("paths: {etc/app/key: {owner: '33'}}", "'33' is neither a number nor a name"),
        ("paths: {etc/app/key: {owner: -1}}", "is neither a number nor a name"),
        ("symlinks: {bin/sh: dash}", "/bin is a symlink on the node and would be replaced: use"),
        ("symlinks: {etc/x: }", "is no target"),
        ("symlinks: {etc/app/key: x}", "declares etc/app/key, which"),
        ("devices: {../x: {type: fifo}}", "component '..'"),
        ("directories: {/x: }", "is absolute"),
        ("devices: {dev/x: {type: disk}}", "is not one of char, block, fifo"),
        ("devices: {dev/x: {type: char, major: a, minor: 1}}", "is not a device number"),
        ("delete: etc/x", "where a list of paths"),
        ("delete: ['etc/*']", "is not a plain path"),
        ("delete: ['etc/a b']", "is not a plain path"),
        ("delete: [/etc/x]", "is absolute"),
        ("delete: [etc/app/key]", "deletes etc/app/key, which the overlay has"),
        ("when: &a 1", "anchors"),
        ("paths: {etc/app/key: {mode: 0600}, etc/app/key: {}}", "written twice"),
    ],
)
def test_mistakes_are_faults_that_say_where_and_what(text: str, says: str, site: Site) -> None:
    folder = site(text)
    if says:
        assert says in faults(folder)
    else:
        load(folder)


def test_a_file_that_cannot_be_read_does_not_make_its_rule_fit_nothing(site: Site) -> None:
    folder = site("paths: {etc/app/key: {mode: 0600}}")
    (folder / "own/rootfs/etc/app/key").rename(folder / "own/rootfs/etc/app/key.j2")
    (folder / "own/rootfs/etc/app/key.j2").write_bytes(b"\xff")

    (fault,) = faults(folder).splitlines()

    assert "key.j2: is a template, but not UTF-8" in fault


def test_all_mistakes_are_told_at_once(site: Site) -> None:
    text = "delete: [/x, '*']\npaths: {etc/app/key: {mode: z, owner: q+}}\n"

    assert len(faults(site(text)).splitlines()) == 4


@pytest.mark.parametrize(
    ("path", "better"),
    [
        ("bin/tool", "use usr/bin"),
        ("lib/modules/x", "use usr/lib"),
        ("var/run/x", "use run"),
        ("var/lock/x", "use run/lock"),
    ],
)
def test_a_path_through_a_symlink_of_the_image_is_refused_with_the_right_one(
    path: str, better: str, site: Site
) -> None:
    folder = site("")
    file = folder / "own/rootfs" / path
    file.parent.mkdir(parents=True)
    file.touch()

    (line,) = faults(folder).splitlines()

    assert better in line


def test_a_template_cannot_make_a_file_in_a_merged_folder(site: Site) -> None:
    folder = site("")
    (folder / "own/rootfs/etc/x.j2").write_text('{% file "sbin/x" %}{% endfile %}')
    node = Node("n001", overlays_system=("own",))

    (fault,) = check(registry(node, load(folder)))

    assert "use usr/sbin/x" in fault


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("etc/*", ["etc/a"], ["etc", "etc/a/b", "x/etc/a"]),
        ("etc/**", ["etc/a", "etc/a/b"], ["etc", "etcetera/a"]),
        ("**/a", ["a", "x/a", "x/y/a"], ["xa", "a/b"]),
        ("etc/**/a", ["etc/a", "etc/x/a"], ["etc/xa"]),
        ("etc/ssh_*_key", ["etc/ssh_rsa_key"], ["etc/ssh_rsa_key.pub", "etc/ssh_/_key"]),
        ("etc/[ab]?", ["etc/a1", "etc/bx"], ["etc/c1", "etc/a", "etc/a1/x"]),
        ("etc/[!a]", ["etc/b"], ["etc/a", "etc/"]),
        ("**", ["a", "a/b"], []),
        ("a/**/b/**", ["a/b/c", "a/x/b/y/z"], ["a/b", "a/c"]),
        ("etc/a.b", ["etc/a.b"], ["etc/axb"]),
    ],
)
def test_patterns_stay_within_a_name_unless_they_have_two_stars(
    pattern: str, fits: list[str], fits_not: list[str]
) -> None:
    matches = rules.glob(pattern)

    assert [path for path in fits if not matches(path)] == []
    assert [path for path in fits_not if matches(path)] == []


def test_the_site_can_add_to_what_the_distribution_says(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/overlay.yaml").write_text("paths: {etc/issue: {mode: 0600}}")

    base = OverlayTrees().load([str(tmp_path)])["base"]
    modes = {entry.path: entry.mode for entry in base.entries}

    assert modes["etc/issue"] == 0o600
    assert modes["etc/machine-id"] == 0o444  # the distribution's word still holds


def test_an_edit_of_overlay_yaml_is_seen_by_a_reload(site: Site) -> None:
    trees = OverlayTrees()
    folder = str(site("paths: {etc/app/key: {mode: 0600}}"))
    before = trees.load([folder])["own"]

    site("paths: {etc/app/key: {mode: 0400}}")
    after = trees.load([folder])["own"]

    assert before.digest != after.digest


def test_what_stands_in_front_of_the_distribution_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "base/rootfs/etc/issue"
    file.parent.mkdir(parents=True)
    file.touch()

    (shadow,) = shadows([str(tmp_path)])

    assert (shadow.overlay, shadow.path, shadow.file) == ("base", "etc/issue", file)
    assert shadow.hides.name == "issue.j2"


@given(st.text(max_size=60))
def test_any_text_is_rules_or_faults(text: str) -> None:
    read, found = rules.read(parse(text, "overlay.yaml"))

    assert all(str(fault).startswith("overlay.yaml:") for fault in found)
    assert isinstance(read.delete, list)


KEYS = st.sampled_from(
    ["paths", "directories", "symlinks", "devices", "delete", "when", "etc/x", "mode", "type"]
)
VALUES = st.recursive(
    st.sampled_from(["0600", "char", "../x", "", "{{", "tags.x", "*", "a/**/[!b"]) | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_structure_is_rules_with_safe_paths_or_faults(value: dict[str, object]) -> None:
    read, _ = rules.read(parse(json.dumps(value), "overlay.yaml"))

    for path in (*read.delete, *(entry.path for entry in read.entries)):
        check_path(path)
        assert paths.fault(path) is None
