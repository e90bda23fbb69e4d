//! New files are born in directories of their own and then get their names.
//!
//! ext4 puts a new inode into the block group of its directory, and does not give away inodes that
//! were freed in the last minutes: it looks at each of them first (`recently_deleted` in
//! `fs/ext4/ialloc.c`). Where hundreds of VMs come and go, a directory that all of them share makes each
//! new file wait for the traces of all that went. So a file is made in one of [`PLACES`] directories
//! that lie in different groups, and renamed.
//!
//! ```text
//! <root>/.new/<0..f>/   empty but for files that are being made; emptied at start
//! <root>/layers/x       made as <root>/.new/7/1f, then renamed
//! ```
//! A directory takes longest, and a clone waits for its home, so that some are made ahead.
//!
//! Where there is no such directory, or the file system cannot rename without overwriting, files are
//! made where they belong.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, IFlags, RenameFlags, ioctl_getflags, ioctl_setflags, renameat_with};

use crate::config::make_dir;

/// Name of the directory of places.
pub const NAME: &str = ".new";
/// Number of places.
const PLACES: u64 = 16;

/// Empty directories that are made ahead below each root.
const SPARES: usize = 8;

static NEXT: AtomicU64 = AtomicU64::new(0);
/// The empty directories that wait, each with its root.
static SPARE: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());

/// Makes the places below `root`, and empties them. Nothing may be being made there.
pub fn lay(root: &Path) -> anyhow::Result<()> {
    clear(root)?;
    let nursery = root.join(NAME);
    make_dir(&nursery)?;
    // Directories in it are put into groups far from each other; of use on ext4 only.
    if let Ok(dir) = File::open(&nursery)
        && let Ok(flags) = ioctl_getflags(&dir)
    {
        let _ = ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
    (0..PLACES).try_for_each(|place| make_dir(&nursery.join(format!("{place:x}"))))
}

/// Removes the places below `root` and what was being made there.
pub fn clear(root: &Path) -> io::Result<()> {
    spares().retain(|(of, _)| of != root);
    match fs::remove_dir_all(root.join(NAME)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Has `make` make a file, socket or directory, and gives it the name `target`, which is free:
/// `<root>/<directory>/<name>`. Fails with [`ErrorKind::AlreadyExists`] where it is not.
pub fn bear<T>(target: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let Some(place) = place(target) else {
        return make(target);
    };
    let made = match make(&place) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
            return make(target);
        }
        made => made?,
    };
    match renameat_with(CWD, &place, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(made),
        Err(error) => {
            drop(made);
            let _ = fs::remove_file(&place).or_else(|_| fs::remove_dir(&place));
            match io::Error::from(error) {
                taken if taken.kind() == ErrorKind::AlreadyExists => Err(taken),
                _ => make(target),
            }
        }
    }
}

/// Makes empty directories below `root` ahead, until there are some; those that cannot be made now are
/// made when they are needed.
pub fn lay_spares(root: &Path) {
    let enough = |spares: &[(PathBuf, PathBuf)]| {
        let waiting = spares.iter().filter(|(of, _)| of == root);
        waiting.count() >= SPARES
    };
    while !enough(&spares()) {
        let place = new_place(root);
        if fs::create_dir(&place).is_err() {
            return;
        }
        let mut spares = spares();
        if !enough(&spares) {
            spares.push((root.to_owned(), place));
            continue;
        }
        // Somebody else has made some meanwhile.
        drop(spares);
        let _ = fs::remove_dir(&place);
    }
}

/// As [`bear`] for a directory, which may have been made ahead.
pub fn bear_dir(target: &Path) -> io::Result<()> {
    let spare = target.parent().and_then(Path::parent).and_then(|root| {
        let mut spares = spares();
        let at = spares.iter().position(|(of, _)| of == root)?;
        Some(spares.swap_remove(at).1)
    });
    if let Some(spare) = spare {
        if renameat_with(CWD, &spare, CWD, target, RenameFlags::NOREPLACE).is_ok() {
            return Ok(());
        }
        let _ = fs::remove_dir(&spare);
    }
    bear(target, |path| fs::create_dir(path))
}

fn spares() -> MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where something is made that gets the name `target`.
fn place(target: &Path) -> Option<PathBuf> {
    Some(new_place(target.parent()?.parent()?))
}

fn new_place(root: &Path) -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let place = format!("{:x}", number % PLACES);
    root.join(NAME).join(place).join(format!("{number:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = walk(dir).collect();
        names.sort();
        names
    }

    /// Files below `dir`, with their names.
    fn walk(dir: &Path) -> Box<dyn Iterator<Item = String>> {
        let entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
        Box::new(entries.into_iter().flat_map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path())
            } else {
                Box::new(std::iter::once(entry.file_name().into_string().unwrap()))
            }
        }))
    }

    fn create(path: &Path) -> io::Result<File> {
        File::create_new(path)
    }

    #[test]
    fn what_is_made_has_its_name_and_nothing_stays_behind() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("layers")).unwrap();
        lay(root.path()).unwrap();
        for number in 0..40 {
            bear(&root.path().join(format!("layers/f{number}")), create).unwrap();
        }
        bear(&root.path().join("layers/dir"), |path| fs::create_dir(path)).unwrap();
        assert!(root.path().join("layers/dir").is_dir());
        assert_eq!(names(&root.path().join("layers")).len(), 40);
        assert_eq!(names(&root.path().join(NAME)), [""; 0]);
    }

    #[test]
    fn a_name_that_is_taken_is_kept() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("layers")).unwrap();
        lay(root.path()).unwrap();
        let target = root.path().join("layers/f");
        fs::write(&target, b"mine").unwrap();
        let error = bear(&target, create).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"mine");
        assert_eq!(names(&root.path().join(NAME)), [""; 0]);
    }

    #[test]
    fn directories_are_made_ahead_and_used_once() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("vms")).unwrap();
        lay(root.path()).unwrap();
        let waiting = || spares().iter().filter(|(of, _)| of == root.path()).count();
        lay_spares(root.path());
        lay_spares(root.path());
        assert_eq!(waiting(), SPARES);
        let taken = root.path().join("vms/0");
        bear_dir(&taken).unwrap();
        fs::write(taken.join("mine"), b"").unwrap();
        let error = bear_dir(&taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(waiting(), SPARES - 2);
        // One that somebody removed is made anew, and so are those beyond what waits.
        spares()
            .iter()
            .filter(|(of, _)| of == root.path())
            .for_each(|(_, spare)| {
                fs::remove_dir(spare).unwrap();
            });
        for number in 1..2 * SPARES {
            bear_dir(&root.path().join(format!("vms/{number}"))).unwrap();
        }
        assert_eq!(waiting(), 0);
        assert_eq!(
            fs::read_dir(root.path().join("vms")).unwrap().count(),
            2 * SPARES
        );
        assert!(taken.join("mine").exists());
        lay_spares(root.path());
        clear(root.path()).unwrap();
        assert_eq!(waiting(), 0);
    }

    #[test]
    fn without_places_files_are_made_where_they_belong() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        let target = root.path().join("run/s");
        bear(&target, create).unwrap();
        assert!(target.is_file());
        assert!(bear(&root.path().join("none/s"), create).is_err());
    }

    #[test]
    fn what_was_being_made_goes_at_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        lay(root.path()).unwrap();
        fs::write(root.path().join(".new/3/1f"), b"half").unwrap();
        lay(root.path()).unwrap();
        assert_eq!(names(&root.path().join(NAME)), [""; 0]);
        clear(root.path()).unwrap();
        assert!(!root.path().join(NAME).exists());
    }
}
