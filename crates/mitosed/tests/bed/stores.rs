//! Datastores for tests: directories, and small file systems in memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use api_types::{Datastore, DatastoreAddRequest};

use super::Bed;

impl Bed {
    /// Adds a datastore in the directory of its name, which is made where it is missing.
    pub fn add_store(&self, name: &str) -> Datastore {
        let path = self.file(name);
        let _ = std::fs::create_dir(&path);
        let request = DatastoreAddRequest {
            name: name.to_owned(),
            path,
            ..DatastoreAddRequest::default()
        };
        self.client.add_datastore(&request).unwrap()
    }

    /// Runs a VM with one disk of 1 MiB on a datastore.
    pub fn run_on(&self, name: &str, store: &str) {
        let mut request = self.with_disk(self.request(name, ""));
        request.datastore = Some(store.to_owned());
        self.client.run(&request).unwrap();
    }

    /// Makes an image with a disk of `bytes`.
    pub fn make_image(&self, name: &str, bytes: usize) {
        let dir = self.home().join("images").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("vmlinux"), b"kernel").unwrap();
        std::fs::write(dir.join("disk.raw"), vec![5; bytes]).unwrap();
        let manifest = serde_json::json!({
            "version": 1, "name": name, "kind": "debian", "suite": "trixie",
            "kernel_release": "6.12", "kernel": "vmlinux", "initrd": null, "disk": "disk.raw",
            "disk_format": "raw", "disk_bytes": bytes, "cmdline": "", "arch": "x86_64",
            "created": 0, "min_memory": 1 << 20, "agent": false, "recipe_hash": "0",
        });
        std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    }

    /// State of a VM, empty where there is none.
    pub fn state_of(&self, name: &str) -> String {
        let vm = self.client.vm(name);
        vm.map_or_else(|_| String::new(), |detail| detail.vm.state)
    }

    /// Waits for an event of a kind.
    pub fn until_event(&self, kind: &str) {
        self.until(&format!("event {kind}"), || {
            let events = self.client.events(None).unwrap();
            events.iter().any(|event| event.kind == kind)
        });
    }

    /// Has `qemu-img` check a disk and walk its chain, where it is installed.
    pub fn check_chain(&self, top: &Path) {
        for args in [&["check"][..], &["info", "--backing-chain"]] {
            let run = Command::new("qemu-img").args(args).arg(top).output();
            let Ok(done) = run else { return };
            let words = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{args:?} {}: {words}", top.display());
        }
    }
}

/// A file system in memory; unmounted when it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts one of `bytes` at `path`; none where that is not permitted.
    pub fn tmpfs(path: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "mitose-test"])
            .arg(&path)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
