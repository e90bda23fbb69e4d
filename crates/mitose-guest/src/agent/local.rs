//! guestinfo for programs inside the guest: a Unix socket, one JSON line each way, and the
//! commands that use it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use agent_protocol::ToHost;
use agent_protocol::control::{GUESTINFO_VALUE_MAX, is_guestinfo_key};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::guestinfo::GuestInfo;
use super::links::HostLink;
use crate::Root;

const SOCKET: &str = "/run/mitose/agent.sock";

/// Longest line: a value of the largest size with every byte escaped.
const LINE_MAX: u64 = 8 * GUESTINFO_VALUE_MAX as u64;

/// How long a local program may take to send its line.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Get { key: String },
    Set { key: String, value: String },
    List,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Value(Option<String>),
    Values(BTreeMap<String, String>),
    Done,
    Error(String),
}

/// Serves the socket on a thread of its own; only root may connect.
pub(super) fn start(root: &Root, info: Arc<GuestInfo>, link: Arc<HostLink>) -> Result<()> {
    let path = root.path(SOCKET);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    thread::Builder::new().name("local".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve(&stream, &info, &link);
        }
    })?;
    Ok(())
}

fn serve(stream: &UnixStream, info: &GuestInfo, link: &HostLink) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match read_line::<Question>(stream) {
        Ok(Question::Get { key }) => Answer::Value(info.get(&key)),
        Ok(Question::List) => Answer::Values(info.all()),
        Ok(Question::Set { key, value }) => match set(info, link, key, value) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Error(format!("{error:#}")),
        },
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    write_line(stream, &answer)
}

fn set(info: &GuestInfo, link: &HostLink, key: String, value: String) -> Result<()> {
    ensure!(is_guestinfo_key(&key), "{key:?} is not guestinfo.NAME");
    ensure!(
        value.len() <= GUESTINFO_VALUE_MAX,
        "a value has at most {GUESTINFO_VALUE_MAX} bytes"
    );
    link.send(&ToHost::GuestInfoSet {
        key: key.clone(),
        value: value.clone(),
    })
    .context("cannot tell the host")?;
    info.set(key, value);
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

/// `info get`: prints the value, fails when there is none.
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

/// `info set`: stores the value here and at the host.
pub(crate) fn set_value(root: &Root, key: &str, value: &str) -> Result<()> {
    let (key, value) = (key.to_owned(), value.to_owned());
    ask(root, &Question::Set { key, value }).map(drop)
}

/// `info list`: prints all values as `key=value` lines.
pub(crate) fn print_all(root: &Root) -> Result<()> {
    if let Answer::Values(values) = ask(root, &Question::List)? {
        for (key, value) in values {
            println!("{key}={value}");
        }
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
    use super::*;

    #[test]
    fn values_are_read_and_set_goes_to_the_host() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/mitose")).unwrap();
        let root = Root::files(dir.path());
        let info = Arc::new(GuestInfo::open(
            dir.path().join("run/mitose/guestinfo.json"),
        ));
        info.replace(BTreeMap::from([("guestinfo.a".into(), "1".into())]));
        let link = Arc::new(HostLink::default());
        start(&root, info.clone(), link.clone()).unwrap();

        print_value(&root, "guestinfo.a").unwrap();
        assert!(print_value(&root, "guestinfo.b").is_err());
        assert!(
            set_value(&root, "guestinfo.b", "2").is_err(),
            "there is no host yet"
        );

        let (mut host, guest) = UnixStream::pair().unwrap();
        link.set(Some(std::os::fd::OwnedFd::from(guest).into()));
        set_value(&root, "guestinfo.b", "two words").unwrap();
        let told = ToHost::read(&mut host).unwrap();
        let (key, value) = ("guestinfo.b".to_owned(), "two words".to_owned());
        assert_eq!(told, Some(ToHost::GuestInfoSet { key, value }));
        assert_eq!(info.get("guestinfo.b").as_deref(), Some("two words"));
        assert!(set_value(&root, "other.b", "2").is_err());

        let reopened = GuestInfo::open(dir.path().join("run/mitose/guestinfo.json"));
        assert_eq!(reopened.all(), info.all());
        print_all(&root).unwrap();
    }
}
