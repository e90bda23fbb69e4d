//! What of a request is to blame where a VM process does not boot.

use crate::error::OpError;

/// Words of the loader's messages, and the member of the request that they are about.
const BLAMED: &[(&str, &str)] = &[
    ("the kernel file", "kernel"),
    ("the kernel's segment", "kernel"),
    ("the kernel of the bzImage", "kernel"),
    ("ELF f", "kernel"),
    ("bzImage f", "kernel"),
    ("entry point", "entry"),
    ("the command line", "cmdline"),
    ("initial RAM disk", "initrd"),
];

/// Names the member of the request, and what to do, where what boots is to blame.
pub(super) fn blame(error: OpError) -> OpError {
    let message = error.message();
    let found = BLAMED.iter().find(|(words, _)| message.contains(words));
    let Some((_, field)) = found else {
        return error;
    };
    let error = error.about(field);
    if error.remedy().is_some() {
        return error;
    }
    // Most of the loader's messages end with what to do.
    let told = message.rsplit_once(": ").map(|(_, told)| told);
    let does = |told: &&str| {
        let verbs = ["give ", "link ", "remove ", "shorten "];
        verbs.iter().any(|verb| told.starts_with(verb))
    };
    error.with_remedy(told.filter(does).unwrap_or("give another file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_messages_have_a_field_and_a_remedy() {
        for (message, field, remedy) in [
            (
                "cannot boot a: the kernel file is neither a bzImage nor an ELF file: give a Linux bzImage",
                Some("kernel"),
                Some("give a Linux bzImage"),
            ),
            (
                "cannot boot a: the ELF file is cut off: it has 7; copy the file again",
                Some("kernel"),
                Some("copy the file again"),
            ),
            (
                "cannot boot a: extracting the kernel of the bzImage: its CRC is wrong",
                Some("kernel"),
                Some("give another file"),
            ),
            (
                "cannot boot a: entry point 0x9 is not in guest RAM below 4 GiB: give another entry",
                Some("entry"),
                Some("give another entry"),
            ),
            ("cannot boot a: the VM process ended", None, None),
        ] {
            let error = blame(OpError::failed(message));
            assert_eq!(
                (error.field(), error.remedy()),
                (field, remedy),
                "{message}"
            );
            assert_eq!(error.message(), message);
        }
    }
}
