//! Why an archive is not written or not taken.

use std::io;

/// Writing or reading an archive failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive itself cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("the file is no archive; give one that 'mitose export' made")]
    Foreign,
    /// The archive itself cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A file that goes into an archive or comes out of it failed.
    #[error("cannot {action} {member}")]
    File {
        /// "read", "write".
        action: &'static str,
        /// Name of its member.
        member: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Another member than the one that the manifest tells.
    #[error("the archive has {found:?} where {expected} belongs")]
    Unexpected {
        /// What belongs there.
        expected: String,
        /// What is there: a name, shortened.
        found: String,
    },
    /// A member is no plain file.
    #[error("{member} is a link, a directory or a device in the archive, not a file")]
    NoFile {
        /// Its name.
        member: String,
    },
    /// The archive ends early.
    #[error("the archive is cut off: {member} is missing or not whole")]
    Cut {
        /// The first member that is not whole.
        member: String,
    },
    /// A member has another size than the manifest tells.
    #[error("{member} has {found} bytes in the archive, {expected} in its manifest")]
    Size {
        /// Its name.
        member: String,
        /// Size by the manifest.
        expected: u64,
        /// Size by the archive.
        found: u64,
    },
    /// A member's content is not what was written.
    #[error("{member} is damaged: its SHA-256 is not that of the manifest")]
    Damaged {
        /// Its name.
        member: String,
    },
    /// The manifest is no valid document.
    #[error("manifest.json cannot be understood")]
    Document(#[source] serde_json::Error),
    /// The manifest describes what cannot be.
    #[error("manifest.json: {field}: {problem}")]
    Manifest {
        /// Its member.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The caller ended it.
    #[error("cancelled")]
    Cancelled,
}
