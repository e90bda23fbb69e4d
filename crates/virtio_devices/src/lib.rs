//! virtio_devices: filled in by its first commit.
