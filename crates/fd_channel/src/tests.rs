//! Frames arrive whole with their descriptors, and limits hold.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    let (mut inner, passed) = UnixStream::pair().expect("socket pair");
    let text = "x".repeat(300_000);
    let writer = std::thread::spawn(move || {
        send(&near, &text, &[passed.as_fd()]).expect("send");
    });
    let frame: Frame<String> = receive(&far).expect("receive");
    writer.join().expect("writer");
    assert_eq!(frame.message.len(), 300_000);
    let mut end = UnixStream::from(frame.fds.into_iter().next().expect("one descriptor"));
    inner.write_all(b"!").expect("write");
    let mut byte = [0];
    end.read_exact(&mut byte)
        .expect("the passed descriptor works");
    assert_eq!(&byte, b"!");
}

#[test]
fn the_kernel_names_the_sender_when_asked() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    rustix::net::sockopt::set_socket_passcred(&far, true).expect("SO_PASSCRED");
    send(&near, &1u32, &[]).expect("send");
    let frame: Frame<u32> = receive(&far).expect("receive");
    assert_eq!(frame.sender_pid, Some(std::process::id() as i32));
}

#[test]
fn a_closed_peer_and_a_cut_frame_differ() {
    let (near, far) = UnixStream::pair().expect("socket pair");
    drop(near);
    assert!(matches!(receive::<u32>(&far), Err(ChannelError::Closed)));
    let (mut near, far) = UnixStream::pair().expect("socket pair");
    near.write_all(&[9, 0, 0, 0, b'1']).expect("write");
    drop(near);
    assert!(matches!(receive::<u32>(&far), Err(ChannelError::Io { .. })));
}

#[test]
fn oversized_and_malformed_frames_are_refused() {
    let (mut near, far) = UnixStream::pair().expect("socket pair");
    near.write_all(&u32::MAX.to_le_bytes()).expect("write");
    assert!(matches!(
        receive::<u32>(&far),
        Err(ChannelError::TooLarge { .. })
    ));
    let (mut near, far) = UnixStream::pair().expect("socket pair");
    near.write_all(&[1, 0, 0, 0, b'{']).expect("write");
    assert!(matches!(
        receive::<u32>(&far),
        Err(ChannelError::Malformed(_))
    ));
    let (near, _far) = UnixStream::pair().expect("socket pair");
    let long = "x".repeat(MAX_FRAME_BYTES);
    assert!(matches!(
        send(&near, &long, &[]),
        Err(ChannelError::TooLarge { .. })
    ));
}
