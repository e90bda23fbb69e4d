//! The documents of a container archive: which layers, and what the container runs.
//!
//! `docker save` writes `manifest.json`; an OCI layout has `index.json`, which names manifests by
//! digest (image-spec: image-layout, image-index, manifest, config).

use std::collections::BTreeSet;

use agent_protocol::Start;
use serde::Deserialize;

use super::archive::{Archive, Blob};
use super::{OciResult, refuse};

/// Deepest nesting of indices.
const INDEX_DEPTH_MAX: usize = 4;

/// Most names that are told of images of which one is to be chosen.
const NAMES_MAX: usize = 8;

/// Most layers of an image.
const LAYERS_MAX: usize = 512;

/// What a container would run; the part of the image's configuration that is used.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ContainerConfig {
    #[serde(default)]
    config: Execution,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    rootfs: RootFs,
}

/// The digests of the plain layers.
#[derive(Debug, Clone, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl ContainerConfig {
    /// Returns the command that the agent starts; its `argv` is empty when the image names none.
    pub(crate) fn start(&self) -> Start {
        let parts = [&self.config.entrypoint, &self.config.cmd];
        let cwd = self
            .config
            .working_dir
            .clone()
            .filter(|dir| dir.starts_with('/'));
        Start {
            argv: parts.into_iter().flatten().flatten().cloned().collect(),
            env: Vec::new(),
            cwd: cwd.or_else(|| Some("/".into())),
            tty: None,
            user: self.config.user.clone().filter(|user| !user.is_empty()),
        }
    }

    /// Returns the image's variables as `NAME=VALUE` lines; those that do not fit a line are left
    /// out.
    pub(crate) fn environment(&self) -> Vec<String> {
        let all = self.config.env.clone().unwrap_or_default();
        all.into_iter()
            .filter(|line| line.contains('=') && !line.contains(['\n', '\0']))
            .collect()
    }
}

/// An image inside an archive.
#[derive(Debug)]
pub(super) struct ImageInArchive {
    pub(super) config: ContainerConfig,
    pub(super) layers: Vec<Blob>,
    /// SHA-256 of each layer's plain form, in hexadecimal; empty when the configuration has none.
    pub(super) diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

/// What an index says about an entry; the part that is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
    /// buildkit's mark of what is about an image, as an attestation is.
    #[serde(rename = "vnd.docker.reference.type")]
    about: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Descriptor {
    /// Whether it can be an image for guests: many tools name no platform.
    fn may_fit(&self) -> bool {
        let fits = self
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64");
        let about = self.annotations.as_ref().and_then(|a| a.about.as_ref());
        fits && about.is_none()
    }

    fn name(&self) -> &str {
        let name = self.annotations.as_ref().and_then(|a| a.name.as_deref());
        name.unwrap_or(&self.digest)
    }
}

/// An index or a manifest: they differ in which fields they have.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Finds the x86-64 Linux image of an archive.
pub(super) fn find_image(archive: &mut Archive) -> OciResult<ImageInArchive> {
    let (config, layers) = if archive.has("manifest.json") {
        docker(archive)?
    } else if archive.has("index.json") {
        layout(archive)?
    } else {
        return refuse(
            "it is not a container image: it has neither manifest.json (docker save) nor \
             index.json (OCI layout)",
        );
    };
    if layers.len() > LAYERS_MAX {
        return refuse(format!(
            "it has {} layers, at most {LAYERS_MAX} are taken",
            layers.len()
        ));
    }
    let config: ContainerConfig = archive.json(&config)?;
    let fits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
    if !fits(&config.architecture, "amd64") || !fits(&config.os, "linux") {
        return refuse(format!(
            "it is for {}/{}, and guests are linux/amd64",
            config.os, config.architecture
        ));
    }
    let diff_ids = diff_ids(&config.rootfs, layers.len())?;
    Ok(ImageInArchive {
        config,
        layers,
        diff_ids,
    })
}

fn diff_ids(rootfs: &RootFs, layers: usize) -> OciResult<Vec<String>> {
    let ids = &rootfs.diff_ids;
    if !ids.is_empty() && ids.len() != layers {
        return refuse(format!(
            "its configuration names {} layers (rootfs.diff_ids), and it has {layers}",
            ids.len()
        ));
    }
    let id = |id: &String| match sha256(id) {
        Some(digest) => Ok(digest.to_owned()),
        None => refuse(format!("diff_id {id:?} is not SHA-256")),
    };
    ids.iter().map(id).collect()
}

fn docker(archive: &mut Archive) -> OciResult<(Blob, Vec<Blob>)> {
    let name = "manifest.json".to_owned();
    let manifests: Vec<DockerManifest> = archive.json(&Blob { name, digest: None })?;
    let [manifest] = manifests.as_slice() else {
        return refuse_several(manifests.len(), "", "docker save NAME:TAG");
    };
    let blob = |name: &String| {
        let digest = name.strip_prefix("blobs/sha256/").filter(|d| is_digest(d));
        Blob {
            name: name.clone(),
            digest: digest.map(str::to_owned),
        }
    };
    Ok((
        blob(&manifest.config),
        manifest.layers.iter().map(blob).collect(),
    ))
}

fn layout(archive: &mut Archive) -> OciResult<(Blob, Vec<Blob>)> {
    let mut blob = Blob {
        name: "index.json".into(),
        digest: None,
    };
    for depth in 0..INDEX_DEPTH_MAX {
        let document: Document = archive.json(&blob)?;
        if let Some(config) = &document.config {
            let layers = document
                .layers
                .iter()
                .map(blob_of)
                .collect::<OciResult<_>>()?;
            return Ok((blob_of(config)?, layers));
        }
        let fitting: Vec<_> = document.manifests.iter().filter(|d| d.may_fit()).collect();
        let Some(next) = fitting.first() else {
            return refuse("it has no image for linux/amd64");
        };
        // The first index is a list of images; one below is a single image in its variants.
        if depth == 0 {
            check_one(&fitting)?;
        }
        blob = blob_of(next)?;
    }
    refuse("its indices are nested too deeply")
}

/// Refuses to choose between images: which one is wanted only the user knows.
fn check_one(images: &[&Descriptor]) -> OciResult<()> {
    let digests: BTreeSet<&str> = images.iter().map(|d| d.digest.as_str()).collect();
    if digests.len() < 2 {
        return Ok(());
    }
    let mut names: Vec<_> = images.iter().map(|d| format!("{:?}", d.name())).collect();
    if names.len() > NAMES_MAX {
        names.truncate(NAMES_MAX);
        names.push("…".into());
    }
    refuse_several(
        digests.len(),
        &format!(" ({})", names.join(", ")),
        "skopeo copy oci-archive:FILE:NAME oci-archive:NEW",
    )
}

fn refuse_several<T>(count: usize, names: &str, command: &str) -> OciResult<T> {
    refuse(format!(
        "it has {count} images{names}: save one of them alone with {command}"
    ))
}

fn blob_of(descriptor: &Descriptor) -> OciResult<Blob> {
    match sha256(&descriptor.digest) {
        Some(digest) => Ok(Blob {
            name: format!("blobs/sha256/{digest}"),
            digest: Some(digest.to_owned()),
        }),
        None => refuse(format!("digest {:?} is not SHA-256", descriptor.digest)),
    }
}

/// The hexadecimal digits of `sha256:DIGITS`.
fn sha256(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|d| is_digest(d))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
