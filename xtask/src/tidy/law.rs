//! The law in tables. A change here is a design decision, so it is reviewed as one.

/// Edges between crates of one level that are allowed: who, on what.
pub const SIDEWAYS: &[(&str, &str)] = &[
    ("api_types", "vm_spec"),
    ("vmm_protocol", "vm_spec"),
    ("vcpu_kvm", "vcpu"),
    ("vcpu_soft", "vcpu"),
    ("virtio_devices", "chipset"),
];

/// Who must never be built with what, directly or through others, and why.
pub const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("vcpu_kvm", "vcpu_soft", "engines know only the seam `vcpu`"),
    ("vcpu_soft", "vcpu_kvm", "engines know only the seam `vcpu`"),
    ("mitosed", "machine", "the daemon speaks vmm_protocol only"),
    ("mitosed", "vcpu", "the daemon speaks vmm_protocol only"),
    ("mitosed", "jail", "VM processes jail themselves"),
    (
        "mitose",
        "vmm_protocol",
        "the CLI is a client of the daemon",
    ),
    ("mitose", "images", "the CLI is a client of the daemon"),
    ("mitose", "disk_layers", "the CLI is a client of the daemon"),
    ("mitose", "machine", "the CLI is a client of the daemon"),
    ("mitose-vmm", "api_types", "a VM process has no HTTP"),
    ("client", "vmm_protocol", "clients speak HTTP"),
];

/// Packages that only the named crates depend on, tests aside.
pub const CONFINED: &[(&str, &[&str])] = &[
    ("kvm-ioctls", &["vcpu_kvm", "lab"]),
    ("kvm-bindings", &["vcpu_kvm", "lab"]),
    ("tokio", &["mitosed"]),
    ("axum", &["mitosed"]),
    ("rusqlite", &["mitosed"]),
    ("seccompiler", &["jail"]),
    ("landlock", &["jail"]),
];

/// What nothing of levels 0 to 3, no VM process and no guest agent is built with.
pub const CONTROL_PLANE_ONLY: &[&str] =
    &["tokio", "axum", "hyper", "async-std", "smol", "rusqlite"];

/// Programs that are held to [`CONTROL_PLANE_ONLY`] although their level is above 3.
pub const DATA_PLANE_PROGRAMS: &[&str] = &["mitose-vmm", "mitose-guest"];

/// Crates of the project that the guest agent may use.
pub const GUEST_AGENT_MAY_USE: &[&str] = &["agent_protocol"];

/// Crates that may opt in to `unsafe`; the others forbid it. `None`: anywhere in the crate,
/// otherwise in the named files.
pub const UNSAFE: &[(&str, Option<&[&str]>)] = &[
    ("guest_memory", None),
    ("vcpu_kvm", None),
    ("x86_fp", None),
    ("x86_cpu", None),
    ("x86_judge", None),
    ("jail", None),
    ("linux_sys", None),
    ("machine", Some(&["src/fork/split.rs"])),
    ("lab", Some(&["src/probe.rs"])),
    ("mitose-guest", Some(&["src/linux.rs"])),
];

/// What opens code that the compiler does not check.
pub const UNSAFE_FORMS: &[&str] = &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
/// Files that quote what they forbid.
pub const QUOTES_THE_LAW: &[&str] = &["xtask/src/tidy/law.rs", "xtask/src/tidy/tests.rs"];

/// Highest number of packages in `Cargo.lock`.
pub const LOCKFILE_PACKAGES_MAX: usize = 350;
/// Highest number of packages that a program is built with.
pub const PROGRAM_PACKAGES_MAX: &[(&str, usize)] = &[("mitose-vmm", 120), ("mitose-guest", 60)];
/// Highest number of crates in the workspace.
pub const CRATES_MAX: usize = 32;
/// Highest number of crates of the project that a crate below level 3 depends on directly.
pub const FAN_OUT_MAX: usize = 8;
/// Longest chain of crates of the project.
pub const DEPTH_MAX: usize = 6;

/// Lines of a file, tests excluded, from which on it needs an entry in the ratchet.
pub const FILE_LINES_WARN: usize = 600;
/// Lines of a file, tests excluded, that no entry excuses.
pub const FILE_LINES_MAX: usize = 1000;
/// Lines of a function, tests excluded, from which on it needs an entry in the ratchet.
pub const FUNCTION_LINES: usize = 70;
/// Lines of an inline `mod tests` from which on it goes into a file of its own.
pub const INLINE_TEST_LINES_MAX: usize = 200;
/// Macros that a crate may define.
pub const MACROS_MAX: usize = 4;

/// Names that no crate and no module has.
pub const BANNED_NAMES: &[&str] = &[
    "util", "utils", "common", "misc", "helper", "helpers", "base", "core", "manager", "managers",
];

/// Endings that no type has. `GuestInfo` is the product's term.
pub const BANNED_SUFFIXES: &[&str] = &["Manager", "Helper", "Info", "Data"];
/// Types that keep a banned ending, because it is a term of the field.
pub const SUFFIX_EXEMPT: &[&str] = &["GuestInfo"];

/// Words in comments that tell a change instead of the thing.
pub const NARRATION: &[&str] = &[
    "moved from",
    "moved here",
    "formerly",
    "previously",
    "used to be",
    "refactored",
    "anymore",
    "old version",
    "new version of",
    "legacy code",
];

/// Marks of unfinished work.
pub const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX:", "todo!(", "unimplemented!("];

/// Beginnings of paths that exist only on somebody's machine.
pub const BUILD_MACHINE_PATHS: &[&str] = &["/home/", "/Users/", "/builds/", "/workspace/"];
