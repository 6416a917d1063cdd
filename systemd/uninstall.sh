#!/bin/sh
# Takes away what install.sh put in place (`make uninstall`). /etc/bootd, /var/lib/bootd and the user
# that owns their files stay; `--purge` removes those too.
set -eu

purge=no
case "${1:-}" in
    --purge) purge=yes ;;
    '') ;;
    *) printf '%s\n' "usage: $0 [--purge]" >&2; exit 2 ;;
esac

say() { printf '%s\n' "uninstall: $*"; }

[ "$(id -u)" = 0 ] || { printf '%s\n' "uninstall: run it as root" >&2; exit 1; }

if [ -d /run/systemd/system ] && systemctl cat bootd.service >/dev/null 2>&1; then
    systemctl --quiet disable --now bootd.service || true
fi
rm -f /etc/systemd/system/bootd.service /etc/sysusers.d/bootd.conf
if [ -L /usr/local/bin/bootd ] && [ "$(readlink /usr/local/bin/bootd)" = /opt/bootd/bin/bootd ]; then
    rm -f /usr/local/bin/bootd
fi
rm -rf /opt/bootd /run/bootd
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed bootd.service 2>/dev/null || true
fi
say "removed the daemon and its unit"

if [ "$purge" = yes ]; then
    rm -rf /etc/bootd /var/lib/bootd
    if getent passwd bootd >/dev/null; then userdel bootd; fi
    if getent group bootd >/dev/null; then groupdel bootd; fi
    say "removed /etc/bootd, /var/lib/bootd and user bootd"
else
    say "kept /etc/bootd, /var/lib/bootd and user bootd, who owns files there; --purge removes them"
fi
