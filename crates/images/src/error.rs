//! What can go wrong with an image.

use std::io;
use std::path::PathBuf;

/// Why an image could not be built, imported, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be used.
    #[error(
        "image name {name:?} is not allowed: use 1 to 64 of a-z, 0-9, '.', '_' and '-', \
         beginning with a letter or digit"
    )]
    BadName {
        /// What was given.
        name: String,
    },
    /// There is an image of this name.
    #[error("image {name:?} exists already: remove it first or choose another name")]
    Exists {
        /// Its name.
        name: String,
    },
    /// There is no image of this name.
    #[error("there is no image {name:?}")]
    Missing {
        /// What was asked for.
        name: String,
    },
    /// The manifest does not fit this program or the directory it lies in.
    #[error("image {name:?} is damaged: {problem}")]
    Damaged {
        /// Name of the image.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// A parameter of a recipe has a bad value.
    #[error("{field}: {problem}")]
    BadParameter {
        /// Which one.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A program that does part of the work is not installed.
    #[error("{program} is not installed: install the package {package}")]
    ToolMissing {
        /// Name of the program.
        program: &'static str,
        /// Debian package that has it.
        package: &'static str,
    },
    /// Such a program failed.
    #[error("{program} failed ({status}): {output}")]
    ToolFailed {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A file of the host could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A package does not contain what it should.
    #[error("package {package}: {problem}")]
    Package {
        /// Name of the package.
        package: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// The kernel cannot be extracted.
    #[error("kernel of package {package} cannot be extracted")]
    Kernel {
        /// Name of the package.
        package: String,
        /// Why.
        source: boot::KernelError,
    },
    /// A file to import is refused.
    #[error("cannot import {}: {problem}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it is or lacks, and what to do.
        problem: String,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl ImageError {
    /// Makes the error of a file operation.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
