#!/bin/sh
# What the guest of the rows soft.mips.* and tcg.mips.* does; /speed is the program of bare_guests.
# Each program checks its own result: one that fails is told with the time 0.
mount -t proc proc /proc
mount -t devtmpfs dev /dev
/speed int 8000000
/speed mem 10000000
/speed branch 8000000
/speed call 9000000
/speed run awk /bin/busybox awk 'BEGIN {
    for (i = 0; i < 15000; i++) {
        s += i * i % 7
        a[i % 50] = a[i % 50] + s
    }
    exit s != 30001
}'
/speed run sh /bin/busybox sh -c '
i=0
while [ $i -lt 10000 ]; do
    case $i in
    *7) x=$((x + i)) ;;
    *) x=$((x ^ i)) ;;
    esac
    i=$((i + 1))
done
[ $i = 10000 ]'
insmod /lib/modules/virtio_mmio.ko
insmod /lib/modules/virtio_blk.ko
mkdir -p /debian
mount -t ext4 -o ro,noload /dev/vda /debian
python() {
    PYTHONHASHSEED=0 /speed run "$1" /bin/busybox chroot /debian /usr/bin/python3 -S -s -c '
d = {}
for i in range(60000):
    k = "%d" % (i % 512)
    d[k] = d.get(k, 0) + i * 3 % 7
assert sum(d.values()) == 180000'
}
# The first run reads the files from the disk, and the kernel has work from it during the second.
python cold
python warm
python python
/speed now done
sleep 1000
