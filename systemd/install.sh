#!/bin/sh
# Installs bootd on this machine: daemon, unit, user, folders, example files. Run as root, from a
# checkout (`make install`); run again to upgrade. Edited files under /etc/bootd are kept: a new
# version of such a file is put beside it as FILE.new.
#
# PIP_NO_INDEX and PIP_FIND_LINKS are honoured, for a machine that has no Internet.
set -eu

source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=/usr/bin/python3   # the system's: one under /root cannot be read by the service's user
prefix=/opt/bootd
conf=/etc/bootd
state=/var/lib/bootd
unit=/etc/systemd/system/bootd.service
sysusers=/etc/sysusers.d/bootd.conf
command=/usr/local/bin/bootd

say() { printf '%s\n' "install: $*"; }
fail() { printf '%s\n' "install: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run it as root: it writes $prefix, $conf and $unit"
[ "$(uname -s)" = Linux ] || fail "bootd runs on Linux only"
[ -x "$python" ] || fail "$python is missing: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1), and bootd needs 3.11 or newer"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python's venv module is missing: apt-get install python3-venv"

umask 022
cd /   # a `bootd` or `src` folder here must not be what Python imports

# --- the program -------------------------------------------------------------------------------
"$python" -m venv "$prefix"
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$prefix/bin/python" -m pip --quiet "$@"; }
pip install -r "$source/requirements/runtime.txt" ||
    fail "the libraries could not be installed; without Internet set PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER"
pip install --no-deps --force-reinstall "$source" || fail "bootd itself could not be built"
"$prefix/bin/python" -m compileall -q "$prefix/lib" >/dev/null || true
install -d "$prefix/share/doc" "$prefix/share/conf" "$(dirname "$command")"
for page in "$source"/docs/*.md; do
    [ ! -f "$page" ] || install -m 0644 "$page" "$prefix/share/doc/"
done
ln -sfn "$prefix/bin/bootd" "$command"
say "$("$prefix/bin/bootd" --version) is in $prefix, the command is $command"

# --- the user and its folders ------------------------------------------------------------------
install -d "$(dirname "$sysusers")" "$(dirname "$unit")"
install -m 0644 "$source/systemd/bootd.sysusers" "$sysusers"
if ! getent passwd bootd >/dev/null; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$sysusers"
    else
        useradd --system --user-group --home-dir "$state" --shell /usr/sbin/nologin bootd
    fi
    say "made user and group bootd"
fi
install -d -o root -g bootd -m 0750 "$conf"
for folder in nodes.d overlays templates; do
    [ -d "$conf/$folder" ] || install -d -o root -g bootd -m 0750 "$conf/$folder"
done
[ -d "$state" ] || install -d -o bootd -g bootd -m 0750 "$state"
for folder in images tftp; do
    [ -d "$state/$folder" ] || install -d -o bootd -g bootd -m 0755 "$state/$folder"
done

# --- example files -----------------------------------------------------------------------------
# The version installed last is kept in $prefix/share/conf: a file that still equals it was not
# edited, and is renewed.
(cd "$source/conf" && find . -type f ! -name '.*' ! -name '*.new') | sed 's|^\./||' | sort |
while IFS= read -r file; do
    new=$source/conf/$file old=$prefix/share/conf/$file there=$conf/$file
    install -d -o root -g bootd -m 0750 "$(dirname "$there")"
    if [ ! -e "$there" ]; then
        install -o root -g bootd -m 0640 "$new" "$there"
        say "wrote $there"
    elif cmp -s "$new" "$there"; then
        rm -f "$there.new"
    elif [ -e "$old" ] && cmp -s "$old" "$there"; then
        install -o root -g bootd -m 0640 "$new" "$there"
        say "renewed $there, which had not been edited"
    elif [ ! -e "$old" ] || ! cmp -s "$old" "$new"; then
        install -o root -g bootd -m 0640 "$new" "$there.new"
        say "kept $there, which was edited; the new version is $there.new"
    fi
    install -D -m 0644 "$new" "$old"
done

# --- the unit ----------------------------------------------------------------------------------
install -m 0644 "$source/systemd/bootd.service" "$unit"
say "the unit is $unit"
running=no
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    ! systemctl --quiet is-active bootd || running=yes
fi

if [ "$running" = yes ]; then
    say "next: bootd check && systemctl restart bootd"
else
    say "next: edit $conf/bootd.yaml and $conf/nodes.yaml, then"
    say "      bootd check && systemctl enable --now bootd"
    [ -d /usr/lib/ipxe ] || say "      (boot loaders: apt-get install ipxe, or put them into $state/tftp)"
fi
