# Method squashfs in an initramfs of initramfs-tools (Debian, Ubuntu): /init sources this file for
# boot=bootd, and calls mountroot.

. /bootd/root.sh

mountroot() {
    configure_networking
    bootd_root "$rootmnt"
    # The image's own network service begins with a card that has no address.
    for bootd_card in /sys/class/net/*; do
        bootd_card=${bootd_card##*/}
        [ "$bootd_card" = lo ] || { ip addr flush dev "$bootd_card"; ip link set "$bootd_card" down; }
    done
}
