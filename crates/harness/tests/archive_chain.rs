//! A guest that runs on is exported again and again as what changed; another home puts it together,
//! and it goes on there from the last instant with all that it had in memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use api_types::{ExportRequest, Exported, ImportRequest, PointForkRequest, PrepareRequest};
use client::Client;
use harness::{Cli, kvm_present};

const PATIENCE: Duration = Duration::from_secs(120);
const TOUCHED: u64 = 32 << 20;

/// One home with its daemon.
struct Home {
    cli: Cli,
    client: Client,
}

impl Home {
    fn new(folder: &Path, name: &str) -> Self {
        let home = folder.join(name);
        let cli = Cli::new(&home).expect("mitose is built");
        // Its first command starts the daemon.
        cli.run(&["ls"]).expect("a daemon");
        Self {
            cli,
            client: Client::new(&home),
        }
    }

    /// Types a command and waits for its answer.
    fn command(&self, name: &str, byte: u8, answer: &str) {
        let answered = self.cli.ask(name, byte, answer, PATIENCE);
        answered.expect("an answer");
    }

    fn ram(&self, file: &str) -> Vec<u8> {
        let memory = self.cli.home().join("datastore1/memory");
        let files = fs::read_dir(memory).expect("memory").flatten();
        let mut rams = files
            .map(|entry| entry.path())
            .filter(|path| path.display().to_string().ends_with(file));
        let ram = rams.next().expect("a file of RAM");
        assert!(rams.next().is_none(), "one file of RAM");
        fs::read(ram).expect("RAM")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for point in self.client.fork_points().unwrap_or_default() {
            let _ = self.client.unprepare(&point.id, true);
        }
        self.cli.clean_up();
    }
}

fn chain(engine: &str) {
    let folder = tempfile::Builder::new().prefix("mc").tempdir_in("/tmp");
    let folder = folder.expect("folder");
    let path = |file: &str| folder.path().join(file);
    fs::write(path("guest.elf"), bare_guests::guest_elf()).expect("guest");
    let (from, to) = (Home::new(folder.path(), "h"), Home::new(folder.path(), "i"));
    let words = format!(
        "mode=dirty touch={} percent=10 scatter=1 idle=1",
        TOUCHED >> 20
    );
    let kernel = path("guest.elf").display().to_string();
    let args = ["run", "a", "--kernel", &kernel, "--memory", "64M"];
    let more = ["--engine", engine, "--cmdline", &words];
    from.cli.run(&[&args[..], &more].concat()).expect("run");
    from.cli
        .wait_said("a", "M", 1, PATIENCE)
        .expect("it touched its RAM");
    let mut since: Option<Exported> = None;
    let mut archives = Vec::new();
    for number in 0..4 {
        let request = ExportRequest {
            path: path(&format!("{number}.tar")),
            snapshot: None,
            since: since.map(|earlier| earlier.id),
            without_base: false,
        };
        archives.push(request.path.clone());
        let exported = from.client.export("a", &request, |_| ()).expect("export");
        println!(
            "{engine} {number}: {} bytes, memory {} and {} left out",
            exported.archive_bytes, exported.memory_bytes, exported.memory_left_out_bytes
        );
        assert_eq!(exported.memory_whole_because, None);
        if number == 0 {
            assert!(exported.memory_bytes >= TOUCHED);
        } else {
            // A tenth of what it touched, and some pages of its own.
            let most = TOUCHED / 10 + (1 << 20);
            assert!(exported.memory_bytes < most, "{exported:?}");
            assert!(exported.memory_bytes >= TOUCHED / 20, "{exported:?}");
            assert!(exported.memory_left_out_bytes > TOUCHED / 2);
        }
        since = Some(exported);
        from.command("a", b'd', "D");
    }
    // The whole RAM of the same instant, to compare with.
    from.client.suspend("a", |_| ()).expect("suspend");
    let request = ExportRequest {
        path: path("last.tar"),
        snapshot: None,
        since: since.map(|earlier| earlier.id),
        without_base: false,
    };
    from.client.export("a", &request, |_| ()).expect("export");
    let before = from.ram(".ram");
    from.client.remove("a", true).expect("remove");
    let mut earlier = archives;
    earlier.reverse();
    let request = ImportRequest {
        path: path("last.tar"),
        import_as: None,
        earlier,
        name: Some("b".into()),
        datastore: None,
        new_identity: false,
        replace: false,
    };
    to.client.import(&request, |_| ()).expect("import");
    assert!(to.ram(".ram") == before, "the RAM is not what it was");
    to.client.start("b").expect("start");
    to.command("b", b'v', "V");
    to.command("b", b'd', "D");
    move_parent(&to, &from, &path("parent.tar"));
}

/// Makes a parent of the VM `b`, and forks it on another home.
fn move_parent(from: &Home, to: &Home, archive: &Path) {
    let prepare = PrepareRequest::default();
    from.client.prepare("b", &prepare, |_| ()).expect("prepare");
    let archive = archive.display().to_string();
    from.cli.run(&["export", "b", &archive]).expect("a VM");
    fs::remove_file(&archive).expect("archive");
    from.client.remove("b", true).expect("remove");
    // No VM has the name any more, so that it is the fork point's.
    from.cli.run(&["export", "b", &archive]).expect("export");
    let told = to.cli.run(&["import", &archive, "--name", "p"]);
    assert!(told.expect("import").contains("fork point p"));
    let children = PointForkRequest {
        count: 3,
        ..PointForkRequest::default()
    };
    let forked = to.client.fork_children("p", &children, |_| ());
    for child in forked.expect("fork").cloned.clones {
        assert_eq!(child.error, None);
        to.command(&child.name, b'v', "V");
        to.command(&child.name, b'd', "D");
    }
}

#[test]
fn a_guest_moves_as_a_chain_of_changes() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    chain("kvm");
}

#[test]
fn a_guest_of_the_software_engine_moves_as_a_chain_of_changes() {
    chain("soft");
}
