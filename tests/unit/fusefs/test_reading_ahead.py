"""Which device a mount is, as the kernel lists them."""

from __future__ import annotations

from fusefs.operations.reading_ahead import device_of

MOUNTS = [
    b"22 1 253:0 / / rw,relatime - ext4 /dev/vda rw\n",
    b"42 22 0:39 / /mnt/a\\040disk rw,nosuid,nodev - fuse.quorumfs quorumfs rw,user_id=0\n",
    b"43 22 0:40 / /mnt/q rw - fuse.quorumfs quorumfs rw\n",
    b"44 22 0:41 / /mnt/q rw - fuse.quorumfs quorumfs rw\n",
]


def test_the_device_of_a_mount_is_found_by_its_place() -> None:
    assert device_of(b"/", MOUNTS) == "253:0"
    assert device_of(b"/mnt/a disk", MOUNTS) == "0:39"


def test_of_two_mounts_at_one_place_the_last_one_counts() -> None:
    assert device_of(b"/mnt/q", MOUNTS) == "0:41"


def test_where_nothing_is_mounted_there_is_no_device() -> None:
    assert device_of(b"/mnt", MOUNTS) is None
