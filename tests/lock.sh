#!/bin/sh
# Renew the pinned requirements: what bootd runs with, and what its developers use.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
for set in runtime dev; do
    "$python" -m venv "$work/$set"
    if [ "$set" = dev ]; then what=".[dev]"; else what="."; fi
    "$work/$set/bin/pip" install --quiet --disable-pip-version-check "$what"
    {
        echo "# Made by \`make lock\` from pyproject.toml; do not edit."
        "$work/$set/bin/pip" freeze --exclude bootd --exclude-editable | grep -v '^bootd'
    } >"requirements/$set.txt"
done
