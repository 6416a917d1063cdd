# Method squashfs in an initramfs of initramfs-tools (Debian, Ubuntu): /init sources this file for
# boot=bootd, and calls mountroot.

. /bootd/root.sh

# Every card up, and a second for the switch: ipconfig does not ask again before ten are over, and
# its first question is lost on a link that is just coming up.
bootd_links() {
    wait_for_udev 10
    for bootd_card in /sys/class/net/*; do
        ip link set "${bootd_card##*/}" up
    done
    sleep 1
}

mountroot() {
    IP=${IP:-dhcp}
    bootd_links
    configure_networking
    bootd_root "$rootmnt"
    # The image's own network service begins with a card that has no address.
    for bootd_card in /sys/class/net/*; do
        bootd_card=${bootd_card##*/}
        [ "$bootd_card" = lo ] || { ip addr flush dev "$bootd_card"; ip link set "$bootd_card" down; }
    done
}
