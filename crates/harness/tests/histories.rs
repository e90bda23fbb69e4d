//! Sources whose guests write other pages before each fork: the daemon puts them on new memory
//! layers, and neither they nor their clones notice.

use std::fs;
use std::time::{Duration, Instant};

use api_types::{Event, ForkRequest};
use client::Client;
use harness::{Cli, kvm_present};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time until a source was put on a new layer twice.
const FLATTEN_PATIENCE: Duration = Duration::from_secs(400);
/// What the guest touches; a tenth of it is written before each fork.
const TOUCHED_KIB: u64 = 40 << 10;

struct Bed {
    folder: TempDir,
    cli: Cli,
    client: Client,
}

impl Bed {
    fn new() -> Self {
        // Short, for sockets below it.
        let folder = tempfile::Builder::new().prefix("mh").tempdir_in("/tmp");
        let folder = folder.expect("folder");
        let home = folder.path().join("h");
        fs::write(folder.path().join("guest.elf"), bare_guests::guest_elf()).expect("guest");
        Self {
            cli: Cli::new(&home).expect("mitose is built"),
            client: Client::new(&home),
            folder,
        }
    }

    fn run(&self, name: &str, engine: &str) {
        let kernel = self.folder.path().join("guest.elf").display().to_string();
        let words = format!(
            "mode=dirty touch={} percent=10 scatter=1 idle=1",
            TOUCHED_KIB >> 10
        );
        let args = ["run", name, "--kernel", &kernel, "--memory", "64M"];
        let more = ["--engine", engine, "--cmdline", &words];
        self.cli.run(&[&args[..], &more].concat()).expect("run");
        self.cli
            .wait_said(name, "M", 1, PATIENCE)
            .expect("it touched its RAM");
    }

    /// Types a command and waits for its answer.
    fn command(&self, name: &str, byte: u8, answer: &str) {
        let answered = self.cli.ask(name, byte, answer, PATIENCE);
        answered.expect("an answer");
    }

    fn fork(&self, source: &str, clone: &str) -> u64 {
        let request = ForkRequest {
            names: vec![clone.to_owned()],
            ..ForkRequest::default()
        };
        let cloned = self.client.fork(source, &request).expect("fork");
        assert_eq!(cloned.clones[0].error, None);
        cloned.stun_us
    }

    fn flattened(&self, name: &str) -> Vec<Event> {
        let (mut after, mut found) = (0, vec![]);
        loop {
            let page = self.client.events(Some(after)).expect("events");
            let Some(last) = page.last() else {
                return found;
            };
            after = last.id;
            let of = |event: &Event| event.kind == "vm.flattened" && event.subject == name;
            found.extend(page.into_iter().filter(of));
        }
    }

    /// Anonymous memory of a VM's process, KiB.
    fn own_kib(&self, name: &str) -> u64 {
        let pid = self.client.vm(name).expect("detail").pid.expect("pid");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse().ok()).expect("KiB")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.cli.clean_up();
    }
}

fn a_history_is_flattened(engine: &str) {
    let bed = Bed::new();
    bed.run("src", engine);
    bed.fork("src", "c0");
    let (mut kept, mut stuns, mut most) = (vec!["c0".to_owned()], vec![], 0);
    let deadline = Instant::now() + FLATTEN_PATIENCE;
    for round in 1.. {
        bed.command("src", b'd', "D");
        most = most.max(bed.own_kib("src"));
        let clone = format!("c{round}");
        stuns.push(bed.fork("src", &clone));
        // Written between the fork and the change of the layer, or after it.
        bed.command("src", b'1', "D");
        if round % 4 == 0 && kept.len() < 4 {
            kept.push(clone);
        } else {
            bed.cli.run(&["rm", &clone, "--force"]).expect("rm");
        }
        bed.command("src", b'v', "V");
        if bed.flattened("src").len() >= 2 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "not flattened after {round} forks"
        );
    }
    let events = bed.flattened("src");
    for event in &events {
        println!("{}", event.message);
        let data = event.data.as_ref().expect("figures");
        let kib = |name: &str| data[name].as_u64().expect("a figure");
        assert!(kib("layer_kib") >= TOUCHED_KIB, "{data}");
        assert!(kib("moved_kib") >= kib("layer_kib"), "{data}");
    }
    println!("{engine}: stuns {stuns:?} us, at most {most} KiB of its own");
    // What was moved is its own no more.
    let settled = Instant::now() + PATIENCE;
    while bed.own_kib("src") > most / 2 {
        assert!(Instant::now() < settled, "{} KiB", bed.own_kib("src"));
        std::thread::sleep(Duration::from_millis(20));
    }
    bed.command("src", b'v', "V");
    for clone in &kept {
        bed.command(clone, b'A', "D");
        bed.command(clone, b'v', "V");
    }
    // A clone of a source with another layer, and a clone of that.
    bed.fork("src", "next");
    bed.fork("next", "last");
    for name in ["src", "next", "last"] {
        bed.command(name, b'A', "D");
        bed.command(name, b'v', "V");
    }
}

#[test]
fn a_source_with_a_history_is_forked_as_one_without() {
    a_history_is_flattened("soft");
    if kvm_present() {
        a_history_is_flattened("kvm");
    } else {
        eprintln!("skipped on KVM: no /dev/kvm here");
    }
}
