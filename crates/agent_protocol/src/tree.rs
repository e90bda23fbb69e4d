//! Directories as tar streams, for both ends of a copy.
//!
//! Files, directories and links travel. Named pipes, sockets and device nodes belong to the system
//! that they are in: they are left out and named.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::{Builder, Entry, EntryType, Header};

/// What stands in a stream for a socket, for which tar has no letter.
const SOCKET: EntryType = EntryType::__Nonexhaustive(b's');

/// What a packer does with pipes, sockets and devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are no part of the stream.
    LeftOut,
    /// They are marked in the stream, so that who unpacks it can name them.
    Marked,
}

/// What becomes of set-user-ID, set-group-ID and sticky bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetIds {
    /// They are kept: who unpacks believes who packed.
    Kept,
    /// They are dropped: a program of the other side's making gets nobody's rights.
    Dropped,
}

/// Files up to this length are read before they are announced: in /proc and /sys the length that
/// a file is said to have says nothing.
const READ_AHEAD: u64 = 64 << 10;

/// Most that is read of such a file.
const READ_AHEAD_MAX: u64 = 16 << 20;

/// Writes the content of a directory as a tar stream; what goes away meanwhile is left out, what
/// changes its length is as long as it was. Returns the names, relative to it, of what
/// cannot travel.
pub fn pack(from: &Path, writer: impl Write, specials: Specials) -> io::Result<Vec<PathBuf>> {
    let mut archive = Builder::new(writer);
    archive.follow_symlinks(false);
    let mut left_out = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let named = |e: io::Error| at(&from.join(&directory), e);
        let name = Path::new(".").join(&directory);
        let place = from.join(&directory);
        let entries = match fs::read_dir(&place) {
            Err(error) if gone(&error) && !directory.as_os_str().is_empty() => continue,
            entries => entries.map_err(named)?,
        };
        archive.append_dir(&name, &place).map_err(named)?;
        for entry in entries {
            let entry = entry.map_err(named)?;
            let kind = entry.file_type().map_err(named)?;
            let inside = directory.join(entry.file_name());
            let name = Path::new(".").join(&inside);
            if kind.is_dir() {
                directories.push(inside);
            } else if kind.is_file() || kind.is_symlink() {
                let path = entry.path();
                match append(&mut archive, &path, &name) {
                    Err(error) if gone(&error) => {}
                    added => added.map_err(|e| at(&path, e))?,
                }
            } else {
                if specials == Specials::Marked {
                    let marked = if kind.is_fifo() {
                        EntryType::Fifo
                    } else if kind.is_char_device() {
                        EntryType::Char
                    } else if kind.is_block_device() {
                        EntryType::Block
                    } else {
                        SOCKET
                    };
                    let mut header = Header::new_gnu();
                    header.set_entry_type(marked);
                    header.set_size(0);
                    header.set_mode(0o600);
                    archive.append_data(&mut header, name, io::empty())?;
                }
                left_out.push(inside);
            }
        }
    }
    archive.into_inner()?.flush()?;
    Ok(left_out)
}

/// Appends a file or a link. A file has exactly the length that is announced for it: zeros
/// take the place of what went away, as in GNU tar.
fn append(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let has_holes = meta.blocks() * 512 < meta.len();
    if !meta.is_file() || (has_holes && meta.len() > READ_AHEAD) {
        // The library knows holes.
        return archive.append_path_with_name(path, name);
    }
    let file = File::open(path)?;
    let mut header = Header::new_gnu();
    header.set_metadata(&meta);
    if meta.len() <= READ_AHEAD {
        let mut content = Vec::new();
        file.take(READ_AHEAD_MAX).read_to_end(&mut content)?;
        header.set_size(content.len() as u64);
        return archive.append_data(&mut header, name, &content[..]);
    }
    let body = file.chain(io::repeat(0)).take(meta.len());
    archive.append_data(&mut header, name, body)
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Unpacks a tar stream into a directory, which is made when it is missing; returns the names of
/// what is left out. Nothing is written outside the directory.
pub fn unpack(reader: impl Read, into: &Path, set_ids: SetIds) -> io::Result<Vec<PathBuf>> {
    let mask = match set_ids {
        SetIds::Kept => 0,
        SetIds::Dropped => 0o7000,
    };
    let is_new = !into.exists();
    fs::create_dir_all(into)?;
    let into = into.canonicalize()?;
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_mask(mask);
    archive.set_overwrite(true);
    let mut left_out = Vec::new();
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::Directory => directories.push(entry),
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {
                if !entry.unpack_in(&into)? {
                    left_out.push(plain(&entry)?);
                }
            }
            EntryType::XGlobalHeader => {}
            _ => left_out.push(plain(&entry)?),
        }
    }
    // Their permissions must not keep out what comes into them: the deepest is the first.
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut directory in directories {
        if is_new && plain(&directory)?.as_os_str().is_empty() {
            let mode = directory.header().mode()? & 0o7777 & !mask;
            fs::set_permissions(&into, Permissions::from_mode(mode))?;
        }
        directory.unpack_in(&into)?;
    }
    Ok(left_out)
}

/// Whether a source says that its content alone is meant: `DIR/.`, and names without a last part.
pub fn means_content(source: &str) -> bool {
    source == "." || source.ends_with("/.") || Path::new(source).file_name().is_none()
}

/// The path of an entry without a leading `./`.
fn plain<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let path = entry.path()?;
    let parts = path.components().filter(|c| *c != Component::CurDir);
    Ok(parts.collect())
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    fn tree(dir: &Path) {
        fs::create_dir_all(dir.join("a/empty")).unwrap();
        fs::write(dir.join("a/file"), "text").unwrap();
        fs::write(dir.join("closed"), "x").unwrap();
        fs::set_permissions(dir.join("closed"), Permissions::from_mode(0o400)).unwrap();
        symlink("a/file", dir.join("link")).unwrap();
        let fifo = Command::new("mkfifo").arg(dir.join("a/pipe")).status();
        assert!(fifo.unwrap().success());
        UnixListener::bind(dir.join("socket")).unwrap();
        fs::set_permissions(dir, Permissions::from_mode(0o750)).unwrap();
    }

    fn sorted(mut names: Vec<PathBuf>) -> Vec<PathBuf> {
        names.sort();
        names
    }

    #[test]
    fn files_travel_and_what_cannot_is_named() {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("from");
        tree(&from);
        let special = ["a/pipe", "socket"].map(PathBuf::from);
        for specials in [Specials::LeftOut, Specials::Marked] {
            let mut stream = Vec::new();
            let packed = pack(&from, &mut stream, specials).unwrap();
            assert_eq!(sorted(packed), special);
            let into = home.path().join(format!("{specials:?}/new"));
            let left_out = sorted(unpack(&stream[..], &into, SetIds::Kept).unwrap());
            match specials {
                Specials::LeftOut => assert!(left_out.is_empty()),
                Specials::Marked => assert_eq!(left_out, special),
            }
            assert_eq!(fs::read(into.join("a/file")).unwrap(), b"text");
            assert_eq!(
                fs::read_link(into.join("link")).unwrap(),
                Path::new("a/file")
            );
            assert!(into.join("a/empty").is_dir());
            assert!(!into.join("a/pipe").exists() && !into.join("socket").exists());
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&into), mode(&into.join("closed"))), (0o750, 0o400));
            // Again over what is there, whose own permissions stay.
            fs::set_permissions(&into, Permissions::from_mode(0o700)).unwrap();
            unpack(&stream[..], &into, SetIds::Kept).unwrap();
            assert_eq!(mode(&into), 0o700);
        }
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let home = tempfile::tempdir().unwrap();
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..10].copy_from_slice(b"../escaped");
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, &b"x"[..]).unwrap();
        let stream = archive.into_inner().unwrap();
        let left_out = unpack(&stream[..], &home.path().join("in"), SetIds::Kept).unwrap();
        assert_eq!(left_out, [Path::new("../escaped")]);
        assert!(!home.path().join("escaped").exists());
    }

    #[test]
    fn set_ids_are_dropped_where_asked() {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("from");
        fs::create_dir_all(from.join("d")).unwrap();
        fs::write(from.join("d/program"), "x").unwrap();
        for (name, mode) in [("d/program", 0o6755), ("d", 0o3775), ("", 0o3775)] {
            fs::set_permissions(from.join(name), Permissions::from_mode(mode)).unwrap();
        }
        let mut stream = Vec::new();
        pack(&from, &mut stream, Specials::LeftOut).unwrap();
        for (set_ids, mask) in [(SetIds::Kept, 0o7777), (SetIds::Dropped, 0o777)] {
            let into = home.path().join(format!("{set_ids:?}"));
            unpack(&stream[..], &into, set_ids).unwrap();
            for (name, mode) in [("d/program", 0o6755), ("d", 0o3775), ("", 0o3775)] {
                let found = fs::metadata(into.join(name)).unwrap().permissions().mode();
                assert_eq!(found & 0o7777, mode & mask, "{name:?} {set_ids:?}");
            }
        }
    }

    /// A tar stream in which one file changes whenever a piece has been written.
    struct Changing<F>(Vec<u8>, F);

    impl<F: FnMut()> Write for Changing<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1();
            let n = bytes.len().min(4096);
            self.0.write(&bytes[..n])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn files_may_grow_and_shrink_while_they_are_copied() {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("from");
        for (name, after) in [("grows", 700 << 10), ("shrinks", 100 << 10)] {
            fs::remove_dir_all(&from).unwrap_or_default();
            fs::create_dir(&from).unwrap();
            let file = from.join(name);
            let length = 300 << 10;
            fs::write(&file, vec![1; length]).unwrap();
            let mut pieces = 0;
            let mut stream = Changing(Vec::new(), || {
                pieces += 1;
                if pieces == 10 {
                    fs::write(&file, vec![1; after]).unwrap();
                }
            });
            pack(&from, &mut stream, Specials::LeftOut).unwrap();
            let stream = stream.0;
            let into = home.path().join(name);
            assert!(unpack(&stream[..], &into, SetIds::Kept).unwrap().is_empty());
            let found = fs::read(into.join(name)).unwrap();
            assert_eq!(found.len(), length, "{name}");
            assert_eq!(found.contains(&0), after < length);
        }
    }

    #[test]
    fn files_whose_length_says_nothing_are_copied() {
        let home = tempfile::tempdir().unwrap();
        let mut stream = Vec::new();
        // In /proc files are said to be empty.
        pack(
            Path::new("/proc/sys/kernel/random"),
            &mut stream,
            Specials::LeftOut,
        )
        .unwrap();
        unpack(&stream[..], home.path(), SetIds::Dropped).unwrap();
        let found = fs::read(home.path().join("poolsize")).unwrap();
        assert_eq!(found, fs::read("/proc/sys/kernel/random/poolsize").unwrap());
    }

    #[test]
    fn a_dot_means_the_content() {
        for (source, content) in [
            ("dir", false),
            ("/a/dir/", false),
            ("./dir", false),
            ("dir/.", true),
            (".", true),
            ("/", true),
            ("..", true),
        ] {
            assert_eq!(means_content(source), content, "{source}");
        }
    }
}
