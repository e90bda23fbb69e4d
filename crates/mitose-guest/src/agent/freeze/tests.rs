//! Freezing against a host at the other end of a socket pair.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::*;

/// Short enough for a test, long enough to tell a repetition from the first request.
const SOON: Duration = Duration::from_millis(20);

/// A call of `freeze` under way, with both its ends.
struct Call {
    freezing: Arc<Freezing>,
    link: Arc<HostLink>,
    host: UnixStream,
    caller: Option<UnixStream>,
    thread: JoinHandle<Result<Thawed>>,
}

impl Call {
    fn start(identified: bool) -> Self {
        let freezing = Arc::new(Freezing::default());
        let link = Arc::new(HostLink::default());
        let host = connect(&link);
        if identified {
            freezing.identified(IdentityKind::Boot, true, "web");
        }
        let (caller, theirs) = UnixStream::pair().unwrap();
        let (run, with) = (freezing.clone(), link.clone());
        let thread =
            thread::spawn(move || run.run_with(&with, &theirs, SOON, Duration::from_secs(20)));
        Self {
            freezing,
            link,
            host,
            caller: Some(caller),
            thread,
        }
    }

    /// Reads the next request of the guest.
    fn token(&mut self) -> String {
        match ToHost::read(&mut self.host).unwrap() {
            Some(ToHost::Freeze { token }) => token,
            other => panic!("{other:?}"),
        }
    }

    /// The connection breaks, as by a fork, and there is a new one.
    fn reconnect(&mut self) {
        self.link.note_broken();
        self.freezing.connection_broke();
        self.host = connect(&self.link);
    }

    /// Whether nothing came from the guest for many repetitions.
    fn is_silent(&self) -> bool {
        self.host.set_read_timeout(Some(SOON * 10)).unwrap();
        let silent = ToHost::read(&mut &self.host).is_err();
        self.host.set_read_timeout(None).unwrap();
        silent
    }

    fn end(self) -> Result<Thawed> {
        self.thread.join().unwrap()
    }
}

fn connect(link: &HostLink) -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    link.set(Some(File::from(OwnedFd::from(guest))));
    host
}

fn source() -> Thawed {
    Thawed {
        clone: false,
        name: "web".into(),
    }
}

#[test]
fn the_source_goes_on_when_the_host_says_so() {
    let mut call = Call::start(true);
    let token = call.token();
    assert_eq!(call.token(), token, "the request is repeated as it was");
    call.freezing.thawed("of-another-call", "x".into());
    assert_eq!(call.token(), token);
    call.freezing.thawed(&token, "web".into());
    assert_eq!(call.end().unwrap(), source());
}

#[test]
fn a_clone_goes_on_with_its_own_identity_and_asks_nothing_of_its_host() {
    let mut call = Call::start(true);
    call.token();
    call.reconnect();
    assert!(call.is_silent(), "a clone must not be frozen in turn");
    call.freezing.identified(IdentityKind::Clone, true, "web-2");
    let expect = Thawed {
        clone: true,
        name: "web-2".into(),
    };
    assert_eq!(call.end().unwrap(), expect);
}

#[test]
fn a_request_that_was_never_sent_waits_for_the_host() {
    let mut call = Call::start(false);
    assert!(call.is_silent());
    call.freezing.identified(IdentityKind::Clone, true, "web");
    let token = call.token();
    call.freezing.thawed(&token, "web".into());
    assert_eq!(call.end().unwrap(), source());
}

#[test]
fn a_new_connection_to_the_same_host_repeats_the_request() {
    let mut call = Call::start(true);
    let token = call.token();
    call.reconnect();
    call.freezing.identified(IdentityKind::Boot, false, "web");
    assert_eq!(call.token(), token);
    // New keys come as another identity of a guest that booted.
    call.freezing.identified(IdentityKind::Boot, true, "web");
    assert_eq!(call.token(), token);
    call.freezing.thawed(&token, "web".into());
    assert_eq!(call.end().unwrap(), source());
}

#[test]
fn a_refusal_is_the_callers_error() {
    let mut call = Call::start(true);
    let token = call.token();
    call.freezing.refused(&token, "web is being removed".into());
    let error = call.end().unwrap_err();
    assert_eq!(error.to_string(), "web is being removed");
}

#[test]
fn a_host_that_hangs_up_on_the_request_does_not_know_it() {
    let mut call = Call::start(true);
    for _ in 0..BREAKS_MAX {
        call.token();
        call.reconnect();
        call.freezing.identified(IdentityKind::Boot, false, "web");
    }
    assert!(
        call.end()
            .unwrap_err()
            .to_string()
            .contains("does not know")
    );
}

#[test]
fn a_caller_that_goes_withdraws_the_request() {
    let mut call = Call::start(true);
    let withdrawn = call.token();
    call.caller = None;
    let (freezing, link) = (call.freezing.clone(), call.link.clone());
    let mut host = call.host.try_clone().unwrap();
    assert!(call.end().unwrap_err().to_string().contains("has gone"));
    // The next one may ask.
    let (_caller, theirs) = UnixStream::pair().unwrap();
    let thaw = freezing.clone();
    let next = thread::spawn(move || freezing.run(&link, &theirs));
    let other = loop {
        match ToHost::read(&mut host).unwrap() {
            Some(ToHost::Freeze { token }) if token != withdrawn => break token,
            Some(_) => {}
            None => panic!("no request"),
        }
    };
    thaw.thawed(&other, "web".into());
    assert_eq!(next.join().unwrap().unwrap(), source());
}

#[test]
fn one_at_a_time_and_none_without_a_host() {
    let mut call = Call::start(true);
    call.token();
    let (_caller, theirs) = UnixStream::pair().unwrap();
    let second = call.freezing.run(&call.link, &theirs).unwrap_err();
    assert!(second.to_string().contains("already"), "{second}");
    let token = call.token();
    call.freezing.refused(&token, "enough".into());
    call.end().unwrap_err();

    let alone = Freezing::default();
    let error = alone.run_with(&HostLink::default(), &theirs, SOON, SOON * 2);
    assert!(error.unwrap_err().to_string().contains("no host"));
}
