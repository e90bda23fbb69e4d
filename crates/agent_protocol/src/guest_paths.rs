//! Files by which an image and the agent in it agree on what to do.

/// Where an image has the agent.
pub const AGENT: &str = "/usr/local/sbin/mitose-guest";

/// List of kernel modules for process 1 to load, one path a line.
pub const MODULES: &str = "/etc/mitose/modules";

/// Present in an initramfs whose job is to mount `root=` and leave.
pub const INITRAMFS: &str = "/etc/mitose/initramfs";

/// The image's main program as JSON of a [`crate::Start`].
pub const SERVICE: &str = "/etc/mitose/service.json";

/// Variables for every command that the agent runs, one `NAME=VALUE` a line.
pub const ENVIRONMENT: &str = "/etc/mitose/env";

/// Scripts that process 1 runs at start.
pub const START_SCRIPTS: &str = "/etc/mitose/init.d";

/// Scripts that run in a new clone before it is ready.
pub const CLONE_SCRIPTS: &str = "/etc/mitose/clone.d";

/// When present, interfaces without a static address ask a DHCP server.
pub const DHCP: &str = "/etc/mitose/dhcp";

/// systemd unit of the agent; it names [`AGENT`].
pub const SYSTEMD_UNIT: &str = "\
[Unit]
Description=Mitose guest agent
DefaultDependencies=no
After=systemd-remount-fs.service local-fs.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/local/sbin/mitose-guest agent
Restart=always
RestartSec=1
KillMode=process
TasksMax=infinity

[Install]
WantedBy=sysinit.target
";
