//! What a daemon is told when it starts, and the layout of its data directory.
//!
//! ```text
//! $MITOSE_HOME/  mitosed.lock  inventory.db  inventory.db.bak  inventory.epoch
//!     images/    one directory per image
//!     exports/   page digests of exported memory, see `host::archive`
//!     datastore1/          the first datastore, see `datastore`
//!     run/       mitosed.sock, <id>.sock, <id>.vsock, sh-<n>.sock
//!     logs/      mitosed.log, logs of shells, of VM processes whose home is on another file system
//!     .new/      what is being made there and has no name yet, see `nursery`
//! ```

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::cgroup::Choice;

/// Longest path of a Unix socket, bytes (unix(7): 108 with its NUL).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest name of a socket below `run/`.
const LONGEST_SOCKET_NAME: &str = "run/vm-0123456789.vsock";
/// User ids of one data directory.
pub const UIDS_PER_HOME: u32 = 1 << 16;
/// Limits of the wanted depth of disk stacks.
const DISK_LAYERS: std::ops::RangeInclusive<usize> = 4..=60;
/// First of all user ids that are given to VMs by default.
const FIRST_UID: u32 = 0x6d00_0000;

/// Runs virtual machines on this host and forks them while they run.
#[derive(Clone, Debug, Parser)]
#[command(name = "mitosed", version)]
pub struct Args {
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Data directory [default: /var/lib/mitose for root, ~/.local/share/mitose otherwise]
    #[arg(long, env = "MITOSE_HOME")]
    pub home: Option<OsString>,
    /// VM processes to start ahead of time; 0 starts each when it is needed
    #[arg(long, env = "MITOSE_SHELLS", default_value_t = 16)]
    pub shells: usize,
    /// Program of the VM process [default: mitose-vmm beside mitosed]
    #[arg(long, env = "MITOSE_VMM")]
    pub vmm: Option<PathBuf>,
    /// First user id given to VM processes; 65536 are used
    #[arg(long, env = "MITOSE_UID_BASE")]
    pub uid_base: Option<u32>,
    /// Host memory that is kept free, bytes with an optional unit
    #[arg(long, env = "MITOSE_MEMORY_RESERVE", default_value = "256M")]
    pub memory_reserve: String,
    /// Layers that a disk has at most while the daemon keeps up with merging them; 4 to 60
    #[arg(long, env = "MITOSE_DISK_LAYERS", default_value_t = 8)]
    pub disk_layers: usize,
    /// Bytes per second, with an optional unit, that a merge of disk layers copies; 0 is unlimited
    #[arg(long, env = "MITOSE_MERGE_RATE", default_value = "128M")]
    pub merge_rate: String,
    /// Memory, bytes with an optional unit, that a VM has of its own when its history of forks is
    /// first worth being flattened in the background; 0 is never
    #[arg(long, env = "MITOSE_FLATTEN_FROM", default_value = "16M")]
    pub flatten_from: String,
    /// Device of the KVM engine
    #[arg(long, env = "MITOSE_KVM_DEVICE", default_value = "/dev/kvm")]
    pub kvm_device: PathBuf,
    /// Directory of the memory cgroups of VMs, or none [default: mitose at the top of the memory
    /// controller's hierarchy]
    #[arg(
        long,
        env = "MITOSE_CGROUP",
        value_name = "DIR",
        default_value = "",
        hide_default_value = true
    )]
    pub cgroup: Choice,
    /// Where else requests come in
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Where requests come in beside the daemon's own socket.
#[derive(Clone, Debug, clap::Args)]
pub struct ListenArgs {
    /// Also serve the API with TLS on this address, such as 127.0.0.1:8443
    #[arg(long = "listen", env = "MITOSE_LISTEN", value_name = "ADDRESS:PORT")]
    pub address: Option<SocketAddr>,
    /// Certificate chain, PEM [default: a self-signed one, kept in the data directory]
    #[arg(
        long,
        env = "MITOSE_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(
        long,
        env = "MITOSE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Group of the host whose members may use the daemon's socket as operators
    #[arg(long, env = "MITOSE_GROUP", value_name = "GROUP")]
    pub group: Option<String>,
    /// Requests a second that a client may send; 0 for any number. The daemon's own user is not
    /// held back
    #[arg(long = "rate-limit", env = "MITOSE_RATE_LIMIT", default_value_t = 500)]
    pub requests_per_second: u32,
}

/// What the program does beside serving.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Print the OpenAPI document of the HTTP interface
    Openapi,
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data directory.
    pub home: Home,
    /// Pre-started shells to keep.
    pub shells: usize,
    /// Program of the VM process.
    pub vmm: PathBuf,
    /// User ids for VM processes: first and last.
    pub uids: (u32, u32),
    /// Host memory that is kept free, bytes.
    pub memory_reserve_bytes: u64,
    /// Layers that a disk should have at most.
    pub disk_layers: usize,
    /// Bytes per second that a merge copies at most.
    pub merge_rate: Option<NonZeroU64>,
    /// Own memory of a VM from which its history of forks is flattened; 0 is never.
    pub flatten_from_bytes: u64,
    /// Device of the KVM engine.
    pub kvm_device: PathBuf,
    /// Where the memory cgroups of VMs are.
    pub cgroup: Choice,
    /// Where else requests come in.
    pub listen: ListenArgs,
}

impl Args {
    /// Checks the arguments and makes the data directory.
    pub fn check(self) -> anyhow::Result<Config> {
        // A variable that is empty counts as not set.
        let given = self.home.filter(|home| !home.is_empty());
        let home = Home::open(given.map(PathBuf::from))?;
        let vmm = match self.vmm {
            Some(path) => path,
            None => std::env::current_exe()
                .context("cannot find mitosed's own program file")?
                .with_file_name("mitose-vmm"),
        };
        let first = self
            .uid_base
            .unwrap_or_else(|| default_uid_base(home.root()));
        let Some(last) = first
            .checked_add(UIDS_PER_HOME - 1)
            .filter(|l| *l <= i32::MAX as u32)
        else {
            bail!(
                "uid base: {first} is above {}",
                i32::MAX as u32 - UIDS_PER_HOME
            );
        };
        if first == 0 {
            bail!("uid base: 0 is root; give one that no account uses");
        }
        let memory_reserve_bytes =
            vm_spec::parse_size(&self.memory_reserve).context("memory reserve")?;
        let merge_rate = vm_spec::parse_size(&self.merge_rate).context("merge rate")?;
        let flatten_from_bytes = vm_spec::parse_size(&self.flatten_from).context("flatten from")?;
        if !DISK_LAYERS.contains(&self.disk_layers) {
            bail!(
                "disk layers: {} is not between {} and {}",
                self.disk_layers,
                DISK_LAYERS.start(),
                DISK_LAYERS.end()
            );
        }
        Ok(Config {
            home,
            disk_layers: self.disk_layers,
            merge_rate: NonZeroU64::new(merge_rate),
            flatten_from_bytes,
            shells: self.shells.min(1024),
            vmm,
            uids: (first, last),
            memory_reserve_bytes,
            kvm_device: self.kvm_device,
            cgroup: self.cgroup,
            listen: self.listen,
        })
    }
}

/// Two daemons on one host use different data directories; a range chosen by the directory's name
/// keeps their VMs' users apart.
fn default_uid_base(root: &Path) -> u32 {
    let hash = hash_of(root);
    let ranges = u64::from((i32::MAX as u32 - FIRST_UID) / UIDS_PER_HOME);
    FIRST_UID + (hash % ranges) as u32 * UIDS_PER_HOME
}

/// A number that tells data directories apart (FNV-1a of the path).
pub fn hash_of(root: &Path) -> u64 {
    let bytes = root.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The data directory.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Makes the directory and what belongs in it, readable by its owner alone.
    fn open(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let root = match given {
            Some(path) => path,
            None => api_types::default_home()
                .context("cannot tell the data directory: set MITOSE_HOME")?,
        };
        make_dir(&root)?;
        let root = fs::canonicalize(&root)
            .with_context(|| format!("cannot open the data directory {}", root.display()))?;
        let longest = root.join(LONGEST_SOCKET_NAME);
        if longest.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            bail!(
                "data directory {} is too long for Unix sockets in it by {} bytes; set MITOSE_HOME to a shorter path",
                root.display(),
                longest.as_os_str().len() - MAX_SOCKET_PATH_BYTES
            );
        }
        let home = Self { root };
        let dirs = [
            home.images(),
            home.exports(),
            home.datastore(),
            home.run(),
            home.logs(),
        ];
        for dir in dirs {
            make_dir(&dir)?;
        }
        Ok(home)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Inventory file.
    pub fn inventory(&self) -> PathBuf {
        self.root.join("inventory.db")
    }

    /// Images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Page digests of exported memory.
    pub fn exports(&self) -> PathBuf {
        self.root.join("exports")
    }

    /// The first datastore.
    pub fn datastore(&self) -> PathBuf {
        self.root.join("datastore1")
    }

    /// Sockets.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Socket of the daemon.
    pub fn socket(&self) -> PathBuf {
        self.run().join(api_types::SOCKET_NAME)
    }

    /// Control socket of a VM.
    pub fn vm_socket(&self, id: &str) -> PathBuf {
        self.run().join(format!("{id}.sock"))
    }

    /// Socket to the vsock ports of a VM.
    pub fn vm_vsock(&self, id: &str) -> PathBuf {
        self.run().join(format!("{id}.vsock"))
    }

    /// Logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
}

/// Makes a directory that its owner alone can read.
pub fn make_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_too_long_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        let error = Home::open(Some(long)).unwrap_err().to_string();
        assert!(error.contains("MITOSE_HOME to a shorter path"), "{error}");
    }

    #[test]
    fn user_id_ranges_of_homes_stay_in_bounds() {
        for name in ["/var/lib/mitose", "/tmp/a", "/tmp/b"] {
            let first = default_uid_base(Path::new(name));
            assert!(first >= FIRST_UID);
            assert!(first.checked_add(UIDS_PER_HOME).unwrap() <= i32::MAX as u32);
        }
    }
}
