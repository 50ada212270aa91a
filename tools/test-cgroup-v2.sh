#!/usr/bin/env bash
# Run tests where the kernel has only cgroup v2: tools/test-cgroup-v2.sh [PYTEST ARGUMENT...]
# Boots a small virtual machine without a network: Debian's cloud kernel, the `base` template as its disk, and on it
# this checkout and the built templates, all as copies. Nothing on this machine is changed but ./build.
set -euo pipefail
cd "$(dirname "$0")/.."

CHECKOUT=$PWD
CACHE=$PWD/build/vm
TESTS=("$@")
[ "${#TESTS[@]}" -gt 0 ] || TESTS=(tests/unit/test_cgroups.py tests/conformance)
MODULES=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk)
DEADLINE=1800

mkdir -p "$CACHE"
WORK=$(mktemp -d "$CACHE/run.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

say() { printf 'vm: %s\n' "$*" >&2; }

# Fetch a package and unpack it in the cache, without installing it here.
fetch() {
    [ -d "$CACHE/$1" ] && return
    say "fetching $1"
    (cd "$WORK" && { apt-get -q download "$1" || { apt-get -q update && apt-get -q download "$1"; }; }) >"$WORK/log" 2>&1 ||
        { cat "$WORK/log" >&2; exit 1; }
    dpkg-deb -x "$WORK/$1"_*.deb "$WORK/unpacked"
    mv "$WORK/unpacked" "$CACHE/$1"
}

make_initramfs() {
    local into=$WORK/initramfs module
    mkdir -p "$into"/{proc,dev,new,modules}
    cp "$CACHE/busybox-static/bin/busybox" "$into/busybox"
    for module in "${MODULES[@]}"; do
        find "$CACHE/$KERNEL/lib/modules" -name "$module.ko" -exec cp {} "$into/modules/" \;
    done
    cat >"$into/init" <<EOF
#!/busybox sh
/busybox mount -t devtmpfs none /dev
for module in ${MODULES[*]}; do /busybox insmod /modules/\$module.ko; done
until /busybox mount -t ext4 /dev/vda /new 2>/dev/null; do /busybox sleep 0.1; done
exec /busybox switch_root /new /vm/init
EOF
    chmod +x "$into/init"
    (cd "$into" && find . | "$CACHE/busybox-static/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$WORK/initramfs.gz"
}

make_disk() {
    local disk=$WORK/disk base
    base=$(.venv/bin/ringfence templates build base --json 2>/dev/null | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["root"])')
    mkdir "$disk"
    cp -a --reflink=auto "$base/." "$disk/"
    mkdir -p "$disk/vm" "$disk$CHECKOUT" "$disk/var/lib/ringfence"
    cp "$CACHE/busybox-static/bin/busybox" "$disk/vm/busybox"
    tar --exclude=./build --exclude=./.git -cf - . | tar -xf - -C "$disk$CHECKOUT"
    cp -a --reflink=auto "$(dirname "$(dirname "$base")")" "$disk/var/lib/ringfence/templates"
    cat >"$disk/vm/init" <<EOF
#!/vm/busybox sh
export PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8
alias mount='/vm/busybox mount'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /tmp /run /root; do mount -t tmpfs tmpfs \$place; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
/vm/busybox ip link set lo up
/vm/busybox hostname vm
cd $CHECKOUT
echo 'vm: up'
.venv/bin/python -m pytest -p no:cacheprovider ${TESTS[*]@Q}
echo "vm: status \$?"
/vm/busybox poweroff -f
EOF
    chmod +x "$disk/vm/init"
    truncate -s "$(($(du -sm "$disk" | cut -f1) + 1024))M" "$WORK/disk.img"
    mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -d "$disk" "$WORK/disk.img"
    rm -rf "$disk"
}

KERNEL=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
[ -n "$KERNEL" ] || { say "apt knows no linux-image-cloud-amd64: apt-get update"; exit 1; }
fetch "$KERNEL"
fetch busybox-static
say "making the disk"
make_initramfs
make_disk
say "booting $KERNEL"
boot() {
    timeout "$DEADLINE" qemu-system-x86_64 -machine "accel=$1" -cpu "$2" -smp 2 -m 4096 -nographic -no-reboot -nic none \
        -kernel "$CACHE/$KERNEL/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$WORK/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" \
        -drive "file=$WORK/disk.img,if=virtio,format=raw,cache=unsafe" </dev/null 2>"$WORK/log" | tee "$WORK/output"
}
# Some machines have KVM and yet cannot start a guest with it: then the processor is emulated, ten times slower.
boot kvm host || true
if ! grep -q '^vm: up' "$WORK/output"; then
    say "no help from the hardware; emulating"
    boot tcg max || cat "$WORK/log" >&2
fi
grep -q '^vm: status 0' "$WORK/output"
