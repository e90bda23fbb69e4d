//! ELF notes: the PVH entry point and the marks of a Linux kernel.

use super::{u32_at, u64_at};

const HEADER_BYTES: usize = 12;
/// Xen note type of the 32-bit physical entry point.
const XEN_PHYS32_ENTRY: u32 = 18;
/// Xen note type of the guest operating system's name.
const XEN_GUEST_OS: u32 = 6;
/// First of the note types that Linux defines for itself (build salt).
const LINUX_BUILD_SALT: u32 = 0x100;

/// What the notes of a file say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// 32-bit PVH entry point.
    pub(crate) pvh_entry: Option<u64>,
    /// The kernel calls itself Linux.
    pub(crate) linux: bool,
}

impl Notes {
    /// Adds what one note segment says; damaged notes end the reading, as they end the segment.
    pub(super) fn read(&mut self, segment: &[u8], align: u64) {
        let align = if align == 8 { 8 } else { 4 };
        let mut rest = segment;
        while let Some((note, after)) = split_note(rest, align) {
            self.take(&note);
            rest = after;
        }
    }

    fn take(&mut self, note: &Note<'_>) {
        match (note.name, note.kind) {
            (b"Xen", XEN_PHYS32_ENTRY) => match note.content.len() {
                4 => self.pvh_entry = Some(u32_at(note.content, 0).into()),
                8 => self.pvh_entry = Some(u64_at(note.content, 0)),
                _ => {}
            },
            (b"Xen", XEN_GUEST_OS) => self.linux |= note.content.starts_with(b"linux"),
            (b"Linux", kind) => self.linux |= kind >= LINUX_BUILD_SALT,
            _ => {}
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    content: &'a [u8],
}

fn split_note(bytes: &[u8], align: usize) -> Option<(Note<'_>, &[u8])> {
    let header = bytes.get(..HEADER_BYTES)?;
    let name_bytes = usize::try_from(u32_at(header, 0)).ok()?;
    let content_bytes = usize::try_from(u32_at(header, 4)).ok()?;
    let name = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(name_bytes)?)?;
    let content_start = (HEADER_BYTES + name_bytes).next_multiple_of(align);
    let content_end = content_start.checked_add(content_bytes)?;
    let content = bytes.get(content_start..content_end)?;
    let after = bytes
        .get(content_end.checked_next_multiple_of(align)?..)
        .unwrap_or(&[]);
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Some((
        Note {
            name,
            kind: u32_at(header, 8),
            content,
        },
        after,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn check(segment: &[u8], pvh_entry: Option<u64>, linux: bool) {
        let mut notes = Notes::default();
        notes.read(segment, 4);
        assert_eq!(notes, Notes { pvh_entry, linux });
    }

    #[test]
    fn known_notes_are_read() {
        check(
            &note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()),
            Some(0x10_0000),
            false,
        );
        check(
            &note(b"Xen\0", 18, &0x20_0000u64.to_le_bytes()),
            Some(0x20_0000),
            false,
        );
        check(&note(b"Xen\0", 18, b"bad"), None, false);
        check(&note(b"Xen\0", 6, b"linux\0"), None, true);
        check(&note(b"Linux\0", 0x100, b"salt"), None, true);
        check(&note(b"GNU\0", 3, &[1; 20]), None, false);
        let both = [
            note(b"GNU\0", 3, &[1; 19]),
            note(b"Xen\0", 18, &[0, 0, 16, 0]),
        ]
        .concat();
        check(&both, Some(0x10_0000), false);
    }

    #[test]
    fn damaged_notes_end_the_reading() {
        let good = note(b"Xen\0", 18, &[0, 0, 16, 0]);
        for cut in 0..good.len() {
            check(&good[..cut], None, false);
        }
        let mut huge = good.clone();
        huge[4..8].fill(0xff);
        check(&huge, None, false);
        huge[0..4].fill(0xff);
        check(&huge, None, false);
    }
}
