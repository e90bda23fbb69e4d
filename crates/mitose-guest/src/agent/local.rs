//! What programs inside the guest may ask of the agent: a Unix socket, one JSON line each way, and
//! the commands that use it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use agent_protocol::ToHost;
use agent_protocol::guestinfo::VALUE_MAX;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::freeze::{Freezing, Thawed};
use super::guestinfo::GuestInfo;
use super::links::HostLink;
use crate::Root;

const SOCKET: &str = "/run/mitose/agent.sock";

/// Longest line: a value of the largest size with every byte escaped.
const LINE_MAX: u64 = 8 * VALUE_MAX as u64;

/// How long a local program may take to send its line.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Get { key: String },
    Set { key: String, value: String },
    List,
    Freeze,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Value(Option<String>),
    Values(BTreeMap<String, String>),
    Done,
    Thawed(Thawed),
    Error(String),
}

/// How `freeze` tells where it went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON object.
    Json,
    /// `clone` or `source`, for scripts.
    Word,
}

/// What the local socket gives access to.
#[derive(Debug, Clone, Default)]
pub(super) struct Desk {
    pub(super) info: Arc<GuestInfo>,
    pub(super) link: Arc<HostLink>,
    pub(super) freezing: Arc<Freezing>,
}

/// Serves the socket on a thread of its own; only root may connect.
pub(super) fn start(root: &Root, desk: Desk) -> Result<()> {
    let path = root.path(SOCKET);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    thread::Builder::new().name("local".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve(stream, &desk);
        }
    })?;
    Ok(())
}

fn serve(stream: UnixStream, desk: &Desk) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match read_line::<Question>(&stream) {
        Ok(Question::Get { key }) => Answer::Value(desk.info.get(&key)),
        Ok(Question::List) => Answer::Values(desk.info.all()),
        Ok(Question::Set { key, value }) => match set(desk, key, value) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Error(format!("{error:#}")),
        },
        Ok(Question::Freeze) => return serve_freeze(stream, desk.clone()),
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    write_line(&stream, &answer)
}

/// Freezing takes as long as the guest stands still and longer: others are served meanwhile.
fn serve_freeze(stream: UnixStream, desk: Desk) -> Result<()> {
    let work = move || {
        let answer = match desk.freezing.run(&desk.link, &stream) {
            Ok(thawed) => Answer::Thawed(thawed),
            Err(error) => Answer::Error(format!("{error:#}")),
        };
        let _ = write_line(&stream, &answer);
    };
    thread::Builder::new().name("freeze".into()).spawn(work)?;
    Ok(())
}

fn set(desk: &Desk, key: String, value: String) -> Result<()> {
    desk.info.check(&key, &value)?;
    desk.link
        .send(&ToHost::GuestInfoSet {
            key: key.clone(),
            value: value.clone(),
        })
        .context("cannot tell the host")?;
    desk.info.set(&key, &value)?;
    Ok(())
}

fn ask(root: &Root, question: &Question) -> Result<Answer> {
    let stream = UnixStream::connect(root.path(SOCKET)).context("the agent is not running")?;
    write_line(&stream, question)?;
    match read_line(&stream)? {
        Answer::Error(reason) => bail!("{reason}"),
        answer => Ok(answer),
    }
}

/// `guestinfo get`: prints the value, fails when there is none.
pub(crate) fn print_value(root: &Root, key: &str) -> Result<()> {
    match ask(
        root,
        &Question::Get {
            key: key.to_owned(),
        },
    )? {
        Answer::Value(Some(value)) => {
            println!("{value}");
            Ok(())
        }
        Answer::Value(None) => bail!("{key} is not set"),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// `guestinfo set`: stores the value here and at the host.
pub(crate) fn set_value(root: &Root, key: &str, value: &str) -> Result<()> {
    let (key, value) = (key.to_owned(), value.to_owned());
    ask(root, &Question::Set { key, value }).map(drop)
}

/// `guestinfo ls`: prints all values as `key=value` lines.
pub(crate) fn print_all(root: &Root) -> Result<()> {
    if let Answer::Values(values) = ask(root, &Question::List)? {
        for (key, value) in values {
            println!("{key}={value}");
        }
    }
    Ok(())
}

/// `freeze`: returns in a clone or in the thawed source, and prints which.
pub(crate) fn freeze(root: &Root, form: Form) -> Result<()> {
    let thawed = match ask(root, &Question::Freeze)? {
        Answer::Thawed(thawed) => thawed,
        other => bail!("unexpected answer {other:?}"),
    };
    match form {
        Form::Json => println!("{}", serde_json::to_string(&thawed)?),
        Form::Word if thawed.clone => println!("clone"),
        Form::Word => println!("source"),
    }
    Ok(())
}

fn read_line<T: for<'de> Deserialize<'de>>(stream: &UnixStream) -> Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).context("malformed line")
}

fn write_line(mut stream: &UnixStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use agent_protocol::IdentityKind;

    use super::*;

    /// A served socket in a directory, and the host's end of the connection.
    fn desk() -> (tempfile::TempDir, Root, Desk, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/mitose")).unwrap();
        let root = Root::files(dir.path());
        let file = dir.path().join("run/mitose/guestinfo.json");
        let desk = Desk {
            info: Arc::new(GuestInfo::open(file)),
            ..Desk::default()
        };
        start(&root, desk.clone()).unwrap();
        let (host, guest) = UnixStream::pair().unwrap();
        desk.link
            .set(Some(std::os::fd::OwnedFd::from(guest).into()));
        (dir, root, desk, host)
    }

    #[test]
    fn values_are_read_and_set_goes_to_the_host() {
        let (dir, root, desk, mut host) = desk();
        let values = BTreeMap::from([("guestinfo.a".into(), "1".into())]);
        desk.info.replace(values);
        print_value(&root, "guestinfo.a").unwrap();
        assert!(print_value(&root, "guestinfo.b").is_err());

        set_value(&root, "guestinfo.b", "two words").unwrap();
        let told = ToHost::read(&mut host).unwrap();
        let (key, value) = ("guestinfo.b".to_owned(), "two words".to_owned());
        assert_eq!(told, Some(ToHost::GuestInfoSet { key, value }));
        assert_eq!(desk.info.get("guestinfo.b").as_deref(), Some("two words"));
        assert!(set_value(&root, "other.b", "2").is_err());
        let long = "v".repeat(VALUE_MAX + 1);
        assert!(set_value(&root, "guestinfo.b", &long).is_err());
        set_value(&root, "guestinfo.a", "").unwrap();
        assert_eq!(desk.info.get("guestinfo.a"), None);

        let reopened = GuestInfo::open(dir.path().join("run/mitose/guestinfo.json"));
        assert_eq!(reopened.all(), desk.info.all());
        print_all(&root).unwrap();
        desk.link.note_broken();
        let error = set_value(&root, "guestinfo.b", "2").unwrap_err();
        assert!(error.to_string().contains("cannot tell the host"));
        assert_eq!(desk.info.get("guestinfo.b").as_deref(), Some("two words"));
    }

    #[test]
    fn freeze_returns_when_thawed_and_others_are_served_meanwhile() {
        let (_dir, root, desk, mut host) = desk();
        desk.freezing.identified(IdentityKind::Boot, true, "web");
        let asking = thread::spawn({
            let root = root.clone();
            move || freeze(&root, Form::Json)
        });
        let Some(ToHost::Freeze { token }) = ToHost::read(&mut host).unwrap() else {
            panic!("no request");
        };
        set_value(&root, "guestinfo.step", "frozen").unwrap();
        let second = freeze(&root, Form::Word).unwrap_err();
        assert!(second.to_string().contains("already"), "{second}");
        desk.freezing.thawed(&token, "web".into());
        asking.join().unwrap().unwrap();
    }
}
