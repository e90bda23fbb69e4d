//! Request messages: round trips and malformed frames.

use proptest::prelude::*;

use super::*;

fn requests() -> impl Strategy<Value = Request> {
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    let size = (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| WindowSize { rows, cols });
    prop_oneof![
        bytes.clone().prop_map(Request::Stdin),
        bytes.prop_map(Request::Data),
        Just(Request::StdinEof),
        Just(Request::Eof),
        any::<i32>().prop_map(|signal| Request::Signal(Signal { signal })),
        size.clone().prop_map(Request::Resize),
        (
            prop::collection::vec(".*", 0..4),
            prop::option::of(size),
            prop::option::of(".*")
        )
            .prop_map(|(argv, tty, cwd)| Request::Start(Start {
                argv,
                tty,
                cwd,
                ..Start::default()
            })),
        (".*", any::<u32>()).prop_map(|(path, mode)| Request::Put(Put {
            path,
            name: None,
            mode,
            kind: EntryKind::Tar
        })),
        ".*".prop_map(|path| Request::Get(Get { path })),
    ]
}

fn replies() -> impl Strategy<Value = Reply> {
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        Just(Reply::Started),
        Just(Reply::Done),
        Just(Reply::Eof),
        bytes.clone().prop_map(Reply::Stdout),
        bytes.clone().prop_map(Reply::Stderr),
        bytes.prop_map(Reply::Data),
        any::<i32>().prop_map(|code| Reply::Exit(Exit::Code(code))),
        any::<i32>().prop_map(|signal| Reply::Exit(Exit::Signal(signal))),
        "[ -~]{0,50}".prop_map(Reply::Error),
        any::<u64>().prop_map(|size| Reply::Stat(Entry {
            kind: EntryKind::File,
            size,
            mode: 0o600
        })),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in requests()) {
        let bytes = request.encode().unwrap();
        prop_assert_eq!(Request::read(&mut bytes.as_slice()).unwrap(), Some(request));
    }

    #[test]
    fn replies_round_trip(reply in replies()) {
        let bytes = reply.encode().unwrap();
        prop_assert_eq!(Reply::read(&mut bytes.as_slice()).unwrap(), Some(reply));
    }

    #[test]
    fn any_frame_is_decoded_without_panic(kind in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Request::decode(RawFrame { kind, payload: payload.clone() });
        let _ = Reply::decode(RawFrame { kind, payload });
    }
}

#[test]
fn error_text_is_printable() {
    let reply = Reply::decode(RawFrame {
        kind: ERROR,
        payload: b"a\x1b[2J\xff".to_vec(),
    })
    .unwrap();
    assert_eq!(reply, Reply::Error("a [2J\u{fffd}".into()));
}

#[test]
fn directions_do_not_mix() {
    let bytes = Reply::Started.encode().unwrap();
    assert!(matches!(
        Request::read(&mut bytes.as_slice()),
        Err(FrameError::UnknownKind { .. })
    ));
}

#[test]
fn exit_has_the_form_of_the_protocol() {
    assert_eq!(
        &Reply::Exit(Exit::Code(3)).encode().unwrap()[5..],
        br#"{"code":3}"#
    );
    assert_eq!(
        &Reply::Exit(Exit::Signal(9)).encode().unwrap()[5..],
        br#"{"signal":9}"#
    );
    assert_eq!(Exit::Signal(9).shell_code(), 137);
}
