//! The directory of images: finding, removing, and publishing new ones as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::ImageError;
use crate::manifest::{MANIFEST_VERSION, Manifest};

const MANIFEST_FILE: &str = "manifest.json";

/// What the names of unfinished images begin with; the number of the building process follows.
const BUILDING: &str = ".building-";

/// Largest manifest that is read, in bytes.
const MANIFEST_MAX: u64 = 1 << 20;

/// All images of one directory.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its directory.
    pub dir: PathBuf,
    /// Its description.
    pub manifest: Manifest,
}

impl Image {
    /// Path of the kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel)
    }

    /// Path of the initramfs.
    pub fn initrd(&self) -> Option<PathBuf> {
        self.manifest
            .initrd
            .as_ref()
            .map(|name| self.dir.join(name))
    }

    /// Path of the disk.
    pub fn disk(&self) -> Option<PathBuf> {
        self.manifest.disk.as_ref().map(|name| self.dir.join(name))
    }
}

impl ImageStore {
    /// Opens the directory, making it when it is missing, and removes what builds that were
    /// killed have left.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(ImageError::file("make directory", &dir))?;
        let store = Self { dir };
        store.remove_leftovers();
        Ok(store)
    }

    /// Lists all images by name; damaged ones are left out.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let entries = fs::read_dir(&self.dir).map_err(ImageError::file("read", &self.dir))?;
        let mut images: Vec<Image> = entries
            .flatten()
            .filter_map(|entry| self.get(entry.file_name().to_str()?).ok())
            .collect();
        images.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        Ok(images)
    }

    /// Finds an image by name.
    pub fn get(&self, name: &str) -> Result<Image, ImageError> {
        check_name(name)?;
        let dir = self.dir.join(name);
        if !dir.is_dir() {
            return Err(ImageError::Missing { name: name.into() });
        }
        let manifest = read_manifest(&dir, name)?;
        Ok(Image { dir, manifest })
    }

    /// Removes an image. Its name is free at once, even when removing its files takes long.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        check_name(name)?;
        let dir = self.dir.join(name);
        if !dir.is_dir() {
            return Err(ImageError::Missing { name: name.into() });
        }
        let trash = self.staging()?;
        let target = trash.path().join("image");
        fs::rename(&dir, target).map_err(ImageError::file("remove", dir))?;
        trash.close().map_err(ImageError::file("remove", &self.dir))
    }

    /// Fails when a new image cannot have this name.
    pub(crate) fn check_free(&self, name: &str) -> Result<(), ImageError> {
        check_name(name)?;
        if self.dir.join(name).exists() {
            return Err(ImageError::Exists { name: name.into() });
        }
        Ok(())
    }

    /// Makes a directory for an unfinished image; it disappears when dropped.
    pub(crate) fn staging(&self) -> Result<TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(&format!("{BUILDING}{}-", std::process::id()))
            .tempdir_in(&self.dir)
            .map_err(ImageError::file("make a directory in", &self.dir))
    }

    /// Gives a finished image its name: content durable first, then one rename.
    pub(crate) fn publish(
        &self,
        staging: TempDir,
        manifest: &Manifest,
    ) -> Result<Image, ImageError> {
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|e| ImageError::file("encode", MANIFEST_FILE)(io::Error::other(e)))?;
        let path = staging.path().join(MANIFEST_FILE);
        fs::write(&path, text).map_err(ImageError::file("write", &path))?;
        sync_files(staging.path()).map_err(ImageError::file("write back", staging.path()))?;
        self.check_free(&manifest.name)?;
        let dir = self.dir.join(&manifest.name);
        fs::rename(staging.path(), &dir).map_err(ImageError::file("publish", &dir))?;
        // The directory has moved: there is nothing left for the guard to remove.
        let _ = staging.keep();
        let parent = fs::File::open(&self.dir).and_then(|d| d.sync_all());
        parent.map_err(ImageError::file("write back", &self.dir))?;
        Ok(Image {
            dir,
            manifest: manifest.clone(),
        })
    }

    fn remove_leftovers(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|n| n.strip_prefix(BUILDING)?.split('-').next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), ImageError> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(plain) {
        return Ok(());
    }
    Err(ImageError::BadName {
        name: name.chars().take(80).collect(),
    })
}

fn read_manifest(dir: &Path, name: &str) -> Result<Manifest, ImageError> {
    let damaged = |problem: String| ImageError::Damaged {
        name: name.into(),
        problem,
    };
    let path = dir.join(MANIFEST_FILE);
    let meta = fs::metadata(&path).map_err(|e| damaged(format!("{MANIFEST_FILE}: {e}")))?;
    if meta.len() > MANIFEST_MAX {
        return Err(damaged(format!("{MANIFEST_FILE} has {} bytes", meta.len())));
    }
    let text = fs::read(&path).map_err(ImageError::file("read", &path))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| damaged(format!("{MANIFEST_FILE}: {e}")))?;
    if manifest.version != MANIFEST_VERSION || manifest.name != name {
        return Err(damaged(format!(
            "{MANIFEST_FILE} is of version {} and for {:?}",
            manifest.version, manifest.name
        )));
    }
    let files = [
        Some(&manifest.kernel),
        manifest.initrd.as_ref(),
        manifest.disk.as_ref(),
    ];
    for file in files.into_iter().flatten() {
        // A name, not a path: an image's files are its own.
        if Path::new(file)
            .file_name()
            .is_none_or(|f| f != file.as_str())
        {
            return Err(damaged(format!("{file:?} is not a file name")));
        }
        if !dir.join(file).is_file() {
            return Err(damaged(format!("{file} is missing")));
        }
    }
    Ok(manifest)
}

fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::manifest::{DISK_FILE, DiskFormat, INITRD_FILE, ImageKind, KERNEL_FILE};

    pub(crate) fn manifest(name: &str) -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            name: name.into(),
            kind: ImageKind::Tiny,
            suite: "trixie".into(),
            kernel_release: "6.12".into(),
            kernel: KERNEL_FILE.into(),
            initrd: Some(INITRD_FILE.into()),
            disk: Some(DISK_FILE.into()),
            disk_format: DiskFormat::Raw,
            disk_bytes: 0,
            cmdline: String::new(),
            arch: "x86_64".into(),
            created: 1,
            min_memory: 1,
            agent: true,
            recipe_hash: "00".into(),
        }
    }

    fn publish(store: &ImageStore, manifest: &Manifest) -> Result<Image, ImageError> {
        let staging = store.staging().unwrap();
        for file in [KERNEL_FILE, INITRD_FILE, DISK_FILE] {
            fs::write(staging.path().join(file), b"x").unwrap();
        }
        store.publish(staging, manifest)
    }

    fn entries(store: &ImageStore) -> usize {
        fs::read_dir(&store.dir).unwrap().count()
    }

    #[test]
    fn images_are_published_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path().join("images")).unwrap();
        let image = publish(&store, &manifest("b")).unwrap();
        publish(&store, &manifest("a")).unwrap();
        assert_eq!(store.get("b").unwrap(), image);
        assert!(image.kernel().is_file() && image.disk().unwrap().is_file());
        let names: Vec<_> = store
            .list()
            .unwrap()
            .into_iter()
            .map(|i| i.manifest.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert!(matches!(
            publish(&store, &manifest("a")),
            Err(ImageError::Exists { .. })
        ));
        store.remove("a").unwrap();
        assert!(matches!(store.get("a"), Err(ImageError::Missing { .. })));
        assert!(matches!(store.remove("a"), Err(ImageError::Missing { .. })));
        assert_eq!(entries(&store), 1);
    }

    #[test]
    fn unfinished_images_disappear() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        drop(store.staging().unwrap());
        assert_eq!(entries(&store), 0);
        // Process numbers end below this one.
        fs::create_dir(dir.path().join(format!("{BUILDING}999999999-x"))).unwrap();
        let running = store.staging().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        assert_eq!(entries(&store), 1);
        assert!(running.path().exists());
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        for name in [
            "",
            "..",
            ".hidden",
            "a/b",
            "A",
            "-a",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(
                matches!(store.get(name), Err(ImageError::BadName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn damaged_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let image = publish(&store, &manifest("a")).unwrap();
        let check = |problem: &str| match store.get("a") {
            Err(ImageError::Damaged { problem: got, .. }) => {
                assert!(got.contains(problem), "{got}")
            }
            other => panic!("{problem}: {other:?}"),
        };
        let write = |manifest: &Manifest| {
            let text = serde_json::to_vec(manifest).unwrap();
            fs::write(image.dir.join(MANIFEST_FILE), text).unwrap();
        };
        let mut bad = manifest("a");
        bad.disk = Some("../../etc/passwd".into());
        write(&bad);
        check("not a file name");
        write(&manifest("other"));
        check("other");
        write(&manifest("a"));
        fs::remove_file(image.dir.join(KERNEL_FILE)).unwrap();
        check("missing");
        fs::write(image.dir.join(MANIFEST_FILE), "{").unwrap();
        check("manifest.json");
    }
}
