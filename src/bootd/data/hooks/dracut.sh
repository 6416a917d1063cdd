# Method squashfs in an initramfs of dracut with its module livenet (Rocky, Fedora, SUSE, Debian's
# dracut-network): a cmdline hook. root=bootd is ours; dracut brings the network up and calls
# /sbin/bootdroot when it is, and the mount hook finds the root mounted.

if [ "$(getarg root=)" = bootd ]; then
    root=bootd
    rootok=1
    netroot=bootd
    cat > /bootd/root << 'END'
#!/bin/sh
# dracut: the interface, netroot=, and where the root goes.
[ -e /bootd/done ] && exit 0
. /bootd/root.sh
bootd_root "${3:-/sysroot}" && : > /bootd/done
END
    chmod 0755 /bootd/root
    ln -sf /bootd/root /sbin/bootdroot
    # dracut waits until this is true.
    echo '[ -e /bootd/done ]' > "${hookdir:-/lib/dracut/hooks}/initqueue/finished/bootd.sh"
fi
