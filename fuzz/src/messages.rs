//! Messages that cross a wall: from a VM process that a guest may have taken over, and from the
//! guest itself.

use agent_protocol::frame::FrameBuffer;
use agent_protocol::{Reply, Request, ToGuest, ToHost};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_protocol::{FromVmm, Sow, Sown};

/// What was understood is said again in the same words.
fn same_again<T>(bytes: &[u8])
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
{
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let said = serde_json::to_vec(&message).expect("what was read can be written");
        let again: T = serde_json::from_slice(&said).expect("what was written can be read");
        assert_eq!(again, message);
    }
}

/// Messages between daemon and VM process.
pub fn vmm_messages(bytes: &[u8]) {
    same_again::<FromVmm>(bytes);
    same_again::<vmm_protocol::Request>(bytes);
    same_again::<Sow>(bytes);
    same_again::<Sown>(bytes);
}

/// Messages between host and guest agent.
pub fn agent_messages(bytes: &[u8]) {
    let _ = (ToHost::decode(bytes), ToGuest::decode(bytes));
    let (mut control, mut raw) = (FrameBuffer::default(), FrameBuffer::default());
    let piece = bytes.first().map_or(1, |first| usize::from(*first) + 1);
    for part in bytes.chunks(piece) {
        control.push(part);
        while let Ok(Some(payload)) = control.next_control() {
            let _ = (ToHost::decode(&payload), ToGuest::decode(&payload));
        }
        raw.push(part);
        while let Ok(Some(frame)) = raw.next_raw() {
            let _ = Request::decode(frame);
        }
    }
    let mut reader = bytes;
    while let Ok(Some(reply)) = Reply::read(&mut reader) {
        let _ = (reply.name(), reply.is_last(), reply.encode());
    }
    let mut reader = bytes;
    while let Ok(Some(request)) = Request::read(&mut reader) {
        let _ = (request.name(), request.encode());
    }
}
