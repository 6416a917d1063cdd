# Method squashfs: gets this boot's root file system and makes it the root to come, inside the
# image's own initramfs (Debian's initramfs-tools, or dracut). POSIX sh; sourced by the two hooks.
#
# What it needs came with it in the second initrd: /etc/bootd/boot.env (URLs with this boot's token),
# /bootd/squashfs.env (its size and digest), and the node's overlay as /bootd/system.cpio.
#
# What it leaves: the root mounted, and below /run/bootd-root (0700) what the root is made of:
# image/root.squashfs in RAM, lower (the squashfs), layer (what is written; half of the memory).

BOOTD_PLACE=${BOOTD_PLACE:-/run/bootd-root}
BOOTD_CONSOLE=${BOOTD_CONSOLE:-/dev/console}
BOOTD_AUTHORITY=${BOOTD_AUTHORITY:-/etc/bootd/ca.pem}
BOOTD_TRIES=5

bootd_pause() {
    sleep 1
}

bootd_say() {
    echo "bootd: $*" >> "$BOOTD_CONSOLE"
}

# Seconds, then what comes: shown as it passes, so that nobody thinks the machine hangs.
bootd_countdown() {
    bootd_left=$1
    bootd_line="bootd: $2 in $1 s:"
    while [ "$bootd_left" -gt 0 ]; do
        bootd_line="$bootd_line $bootd_left..."
        printf '\r%s' "$bootd_line" >> "$BOOTD_CONSOLE"
        bootd_pause
        bootd_left=$((bootd_left - 1))
    done
    echo >> "$BOOTD_CONSOLE"
}

# One GET: $1 to the file $2, going on where an earlier try ended. The tool's words go to $3. The
# shell ends in it. By HTTPS it takes curl: busybox's wget asks for no certificate, if it gets there.
bootd_get() {
    if command -v curl > /dev/null; then
        bootd_to=$2
        bootd_told=$3
        set -- "$1"
        [ ! -s "$BOOTD_AUTHORITY" ] || set -- --cacert "$BOOTD_AUTHORITY" "$1"
        exec curl --fail --silent --show-error --user-agent bootd/1 --connect-timeout 10 \
            --continue-at - --output "$bootd_to" "$@" 2> "$bootd_told"
    fi
    exec wget -c -q -U bootd/1 -O "$2" "$1" 2> "$3"
}

# Bytes of a file, without reading it.
bootd_size() {
    bootd_bytes=0
    if [ -e "$1" ]; then
        set -- $(ls -ln "$1")
        bootd_bytes=$5
    fi
    echo "$bootd_bytes"
}

# Megabytes of the bytes $1, with one decimal.
bootd_mb() {
    echo "$(($1 / 1000000)).$(($1 / 100000 % 10))"
}

# Fetches $1 (of $3 bytes) to the file $2, and says how far it is every two seconds. Whoever sends
# nothing for 30 s is let go of. Status 0: all of it is there.
bootd_fetch() {
    (bootd_get "$1" "$2" "$BOOTD_PLACE/words") &
    bootd_getter=$!
    bootd_before=$(bootd_size "$2")
    bootd_idle=0
    bootd_ticks=0
    while kill -0 $bootd_getter 2> /dev/null; do
        bootd_pause
        bootd_ticks=$((bootd_ticks + 1))
        [ $((bootd_ticks % 2)) = 0 ] || continue
        bootd_now=$(bootd_size "$2")
        if [ "$bootd_now" = "$bootd_before" ]; then
            bootd_idle=$((bootd_idle + 2))
            if [ $bootd_idle -ge 30 ]; then
                kill $bootd_getter 2> /dev/null
                echo "nothing came for 30 s" > "$BOOTD_PLACE/words"
            fi
            continue
        fi
        bootd_idle=0
        bootd_say "$(bootd_mb "$bootd_now") of $(bootd_mb "$3") MB," \
            "$((bootd_now / ($3 / 100 + 1))) %, $(bootd_mb $(((bootd_now - bootd_before) / 2))) MB/s"
        bootd_before=$bootd_now
    done
    wait $bootd_getter
    bootd_status=$?
    [ $bootd_status = 0 ] && [ "$(bootd_size "$2")" = "$3" ]
}

# The SHA-256 of the file $1 in hex, or nothing where this initramfs cannot tell.
bootd_digest() {
    if command -v sha256sum > /dev/null; then
        set -- $(sha256sum "$1")
        echo "$1"
    fi
}

# Tells the server that this boot failed: step $1, in letters and -.
bootd_report() {
    bootd_get "$BOOTD_URL/fail?step=$1" "$BOOTD_PLACE/answer.$1" "$BOOTD_PLACE/words" &
    wait $!
}

# The end: says why ($2), tells the server ($1), and starts the machine again after a minute.
bootd_die() {
    bootd_say "$BOOTD_NODE cannot boot: $2"
    (bootd_report "$1")
    bootd_countdown 60 "starting this machine again"
    echo 1 > /proc/sys/kernel/sysrq
    echo b > /proc/sysrq-trigger
    while :; do sleep 60; done
}

# Waits before another try, or gives up: $1 the step's name, then what went wrong.
bootd_again() {
    bootd_step=$1
    shift
    bootd_say "$*"
    bootd_tried=$((bootd_tried + 1))
    [ $bootd_tried -lt $BOOTD_TRIES ] || bootd_die "$bootd_step" "$* ($BOOTD_TRIES tries)"
    bootd_countdown $((4 + bootd_tried + ${RANDOM:-$$} % 4)) "trying again"
}

# The squashfs, whole and right, as the file $1.
bootd_squashfs() {
    bootd_tried=0
    while :; do
        bootd_say "fetching the root file system," \
            "$(bootd_mb "$BOOTD_SIZE") MB, from ${BOOTD_URL%/b/*}"
        if [ "$(bootd_size "$1")" != "$BOOTD_SIZE" ] &&
            ! bootd_fetch "$BOOTD_URL/squashfs" "$1" "$BOOTD_SIZE"; then
            bootd_words=$(cat "$BOOTD_PLACE/words" 2> /dev/null)
            case $bootd_words in
                *" 503"*)
                    # Others are served first; that is no failure, so it is no try.
                    bootd_say "the server has many transfers under way"
                    bootd_countdown $((3 + ${RANDOM:-$$} % 5)) "asking again"
                    ;;
                *)
                    [ "$(bootd_size "$1")" -le "$BOOTD_SIZE" ] || rm -f "$1"
                    bootd_again squashfs-fetch \
                        "the root file system did not come whole: ${bootd_words:-it was cut short}"
                    ;;
            esac
            continue
        fi
        bootd_found=$(bootd_digest "$1")
        [ -n "$bootd_found" ] || bootd_say "no sha256sum in this initramfs: checked after mounting"
        if [ -z "$bootd_found" ] || [ "$bootd_found" = "$BOOTD_SHA256" ]; then
            return
        fi
        rm -f "$1"
        bootd_again squashfs-digest "the root file system is damaged: its SHA-256 is" \
            "$bootd_found, not $BOOTD_SHA256"
    done
}

# Whether the machine has the memory for it: the squashfs and something to work with.
bootd_memory() {
    bootd_free=0
    while read -r bootd_key bootd_value _; do
        [ "$bootd_key" = MemAvailable: ] && bootd_free=$((bootd_value / 1024))
    done < /proc/meminfo
    bootd_needed=$((BOOTD_SIZE / 1048576 + 64))
    [ $bootd_free -ge $bootd_needed ] || bootd_die squashfs-memory \
        "the root file system takes $bootd_needed MiB of memory, $bootd_free MiB are free"
}

# The overlay in the archive $1, in the new root: what it deletes, and what it adds.
bootd_overlay() {
    cpio -idmu < "$1" 2> "$BOOTD_PLACE/words" ||
        bootd_die squashfs-overlay "its overlay does not unpack: $(cat "$BOOTD_PLACE/words")"
    if [ -s etc/bootd/delete.d/system ]; then
        while IFS= read -r bootd_path; do
            [ -z "$bootd_path" ] || rm -rf "./$bootd_path"
        done < etc/bootd/delete.d/system
        cpio -idmu < "$1" 2> /dev/null
    fi
}

# All of it: the root file system at $1.
bootd_root() {
    . /etc/bootd/boot.env
    . /bootd/squashfs.env
    mkdir -p -m 0700 "$BOOTD_PLACE"
    cd "$BOOTD_PLACE" || return 1
    bootd_memory
    modprobe -a -q loop squashfs overlay 2> /dev/null
    mkdir -p image lower layer
    mount -t tmpfs -o "size=$((BOOTD_SIZE / 1024 + 1024))k,mode=0700" bootd-image image
    bootd_squashfs "$BOOTD_PLACE/image/root.squashfs"
    mount -t squashfs -o ro,loop image/root.squashfs lower ||
        bootd_die squashfs-mount "the squashfs does not mount: has its initramfs loop and squashfs?"
    if ! command -v sha256sum > /dev/null; then
        set -- "$1" $(chroot lower sha256sum < image/root.squashfs)
        [ "$2" = "$BOOTD_SHA256" ] || bootd_die squashfs-digest \
            "the root file system is damaged: its SHA-256 is $2, not $BOOTD_SHA256"
    fi
    mount -t tmpfs -o mode=0755 bootd-layer layer
    mkdir layer/upper layer/work
    bootd_layers=lowerdir=$BOOTD_PLACE/lower,upperdir=$BOOTD_PLACE/layer/upper
    mount -t overlay -o "$bootd_layers,workdir=$BOOTD_PLACE/layer/work" bootd-root "$1" ||
        bootd_die squashfs-mount "no writable layer: has its initramfs the module overlay?"
    (cd "$1" && bootd_overlay /bootd/system.cpio)
    rm -f words answer.*
    cd /
    bootd_say "$BOOTD_NODE has its root file system; starting its init"
}
