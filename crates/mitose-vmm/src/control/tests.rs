//! The agent's side of the main thread.

use agent_protocol::{ToGuest, ToHost};

use super::*;

const HELLO: &str =
    r#"{"type":"hello","protocol":1,"agent_version":"0","reason":"boot","hostname":"h"}"#;
const PING: &str = r#"{"type":"ping"}"#;

fn say(mut agent: &UnixStream, text: &str) {
    let hello = ToHost::decode(text.as_bytes()).expect("a message");
    hello.write(&mut agent).expect("write");
}

fn hear(mut agent: &UnixStream) -> ToGuest {
    let heard = ToGuest::read(&mut agent).expect("read");
    heard.expect("the connection is open")
}

#[test]
fn only_an_agent_that_said_hello_is_told_things() {
    let folder = tempfile::tempdir().expect("folder");
    let listener = UnixListener::bind(folder.path().join("control")).expect("bind");
    let mut control = Control::new(listener).expect("control");
    assert!(!control.tell_agent(PING), "nobody is there");
    let (ours, agent) = UnixStream::pair().expect("pair");
    control.add_agent(ours);
    assert!(!control.tell_agent(PING), "it has not said hello");
    control.set_identity(r#"{"type":"shutdown","reboot":true}"#.into(), true);

    say(&agent, HELLO);
    let message = control.next().expect("message");
    assert!(
        matches!(message, Message::AgentSaid(Event::AgentHello(_))),
        "{message:?}"
    );
    // What was to be told before is told with the answer, once.
    assert!(matches!(hear(&agent), ToGuest::Shutdown { reboot: true }));
    assert!(control.tell_agent(PING));
    assert!(matches!(hear(&agent), ToGuest::Ping));

    // A second connection, such as a clone's agent makes, changes nothing for the first.
    let (ours, other) = UnixStream::pair().expect("pair");
    control.add_agent(ours);
    assert!(control.tell_agent(PING));
    assert!(matches!(hear(&agent), ToGuest::Ping));
    drop(agent);
    assert!(!control.tell_agent(PING), "the one that said hello is gone");
    say(&other, HELLO);
    control.next().expect("message");
    assert!(control.tell_agent(PING));
}

#[test]
fn an_agent_that_says_hello_is_told_the_present_time() {
    let folder = tempfile::tempdir().expect("folder");
    let listener = UnixListener::bind(folder.path().join("control")).expect("bind");
    let mut control = Control::new(listener).expect("control");
    let entropy = "00".repeat(64);
    let identity = format!(
        r#"{{"type":"identity","kind":"boot","vm_name":"a","hostname":"a","instance_uuid":"u",
            "machine_id":"","entropy":"{entropy}","wall_clock_unix_ns":0}}"#
    );
    control.set_identity(identity, false);
    let (ours, agent) = UnixStream::pair().expect("pair");
    control.add_agent(ours);
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("a clock after 1970").as_nanos() as u64
    };
    let before = now();
    say(&agent, HELLO);
    control.next().expect("message");
    let ToGuest::Identity(identity) = hear(&agent) else {
        panic!("not an identity");
    };
    assert!((before..=now()).contains(&identity.wall_clock_unix_ns));
    assert_eq!(identity.vm_name, "a");
}
