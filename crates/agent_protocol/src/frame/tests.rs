//! Framing: any cut of the stream, hostile lengths.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn frames_survive_any_cut(
        frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        step in 1usize..64,
    ) {
        let mut stream = Vec::new();
        for (kind, payload) in &frames {
            stream.extend(encode_raw(*kind, payload).unwrap());
        }
        let mut buffer = FrameBuffer::default();
        let mut seen = Vec::new();
        for piece in stream.chunks(step) {
            buffer.push(piece);
            while let Some(frame) = buffer.next_raw().unwrap() {
                seen.push((frame.kind, frame.payload));
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(&seen, &frames);

        let mut reader = stream.as_slice();
        let mut read = Vec::new();
        while let Some(frame) = read_raw(&mut reader).unwrap() {
            read.push((frame.kind, frame.payload));
        }
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn control_frames_round_trip(payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let bytes = encode_control(&payload).unwrap();
        prop_assert_eq!(read_control(&mut bytes.as_slice()).unwrap(), Some(payload.clone()));
        let mut buffer = FrameBuffer::default();
        buffer.push(&bytes);
        prop_assert_eq!(buffer.next_control().unwrap(), Some(payload));
    }

    #[test]
    fn cut_frames_are_truncated_not_shortened(payload in prop::collection::vec(any::<u8>(), 1..200), cut in any::<prop::sample::Index>()) {
        let bytes = encode_control(&payload).unwrap();
        let cut = 1 + cut.index(bytes.len() - 1);
        prop_assert!(matches!(read_control(&mut &bytes[..cut]), Err(FrameError::Truncated)));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read_raw(&mut bytes.as_slice());
        let _ = read_control(&mut bytes.as_slice());
        let mut buffer = FrameBuffer::default();
        buffer.push(&bytes);
        let _ = buffer.next_raw();
        let _ = buffer.next_control();
    }
}

#[test]
fn length_above_the_limit_is_refused_before_reading() {
    let bytes = (FRAME_MAX as u32 + 1).to_le_bytes();
    assert!(matches!(
        read_control(&mut bytes.as_slice()),
        Err(FrameError::TooLong { .. })
    ));
    let mut buffer = FrameBuffer::default();
    buffer.push(&[7, 255, 255, 255, 255]);
    assert!(matches!(buffer.next_raw(), Err(FrameError::TooLong { .. })));
    assert!(matches!(
        encode_raw(1, &vec![0; FRAME_MAX + 1]),
        Err(FrameError::TooLong { .. })
    ));
}

#[test]
fn largest_frame_passes() {
    let payload = vec![5u8; FRAME_MAX];
    let bytes = encode_raw(9, &payload).unwrap();
    assert_eq!(
        read_raw(&mut bytes.as_slice()).unwrap().unwrap().payload,
        payload
    );
}
