//! Images: listing, making and removing them.

use api_types::{BuildKind, Image as ImageAnswer, ImageRequest, InitKind, TaskState};
use images::{
    Builder, BuilderConfig, DebianRecipe, ImportRequest, InitSystem, Suite, TinyRecipe, Watch,
};

use super::Host;
use super::tasks::TaskContext;
use crate::error::{OpError, OpResult};
use crate::image;

/// Images that are made at a time: each takes a processor, and packages from the network.
const MAX_AT_ONCE: usize = 4;
/// Latest tasks among which those in work are.
const RECENT_TASKS: usize = 1000;

impl Host {
    /// Images of the datastore.
    pub fn images(&self) -> OpResult<Vec<ImageAnswer>> {
        let store = image::store(&self.config.home)?;
        let images = store.list().map_err(image::refuse)?;
        Ok(images.iter().map(image::show).collect())
    }

    /// Removes an image that no disk stands on.
    pub fn remove_image(&self, name: &str) -> OpResult<()> {
        self.check_image_removal(name)?;
        let store = image::store(&self.config.home)?;
        store.remove(name).map_err(image::refuse)?;
        self.tell(name, "image.removed", "removed".to_owned());
        Ok(())
    }

    /// Refuses to remove an image that is not there or that something stands on.
    pub fn check_image_removal(&self, name: &str) -> OpResult<()> {
        let store = image::store(&self.config.home)?;
        let found = store.get(name).map_err(image::refuse)?;
        let booted = self.all().iter().find_map(|vm| {
            let live = vm.live();
            (live.row.boot.image.as_deref() == Some(name)).then(|| vm.name().clone())
        });
        if let Some(user) = booted {
            return Err(OpError::conflict(format!(
                "image {name} is used by the VM {user}; remove that first"
            )));
        }
        if self.unlisted_stand_on(&found.dir) {
            return Err(OpError::conflict(format!(
                "image {name} is the base of disks of VMs that the inventory does not name, which was \
                 put back from a backup; remove inventory.restored when these VMs are not needed"
            )));
        }
        if self.layers().any_below(&found.dir) {
            return Err(OpError::conflict(format!(
                "image {name} is the base of a VM's disk; remove the VMs made from it first"
            )));
        }
        Ok(())
    }

    /// Refuses an image that cannot be made, by the task `own` where that is running.
    pub fn check_image(&self, request: &ImageRequest, own: Option<i64>) -> OpResult<()> {
        let (_, subject) = kind_and_name(request);
        if let Some(problem) = api_types::name_problem(subject) {
            return Err(OpError::invalid(problem));
        }
        let store = image::store(&self.config.home)?;
        if store.get(subject).is_ok() {
            return Err(OpError::conflict(format!(
                "name: there is an image {subject:?} already; remove it with 'mitose image rm {subject}'"
            ))
            .about("name"));
        }
        let running = self.list_tasks(i64::MAX, RECENT_TASKS)?;
        let running = running
            .iter()
            .filter(|task| task.state == TaskState::Running && task.kind.starts_with("image."))
            .filter(|task| Some(task.id) != own);
        if running.count() >= MAX_AT_ONCE {
            return Err(OpError::conflict(format!(
                "{MAX_AT_ONCE} images are being made already; wait for one or cancel it"
            )));
        }
        Ok(())
    }

    /// Makes an image, as the work of a task.
    pub fn make_image(&self, request: ImageRequest, context: &TaskContext) -> OpResult<()> {
        self.check_image(&request, Some(context.id()))?;
        let (kind, subject) = kind_and_name(&request);
        let subject = subject.to_owned();
        let reporter = context.clone();
        let progress = move |text: &str, fraction: f32| reporter.progress(fraction, text);
        let made = self.build(request, Watch::new(progress, context.cancel_token()));
        match &made {
            Ok(()) => self.tell(&subject, "image.made", format!("{kind} done")),
            Err(error) => self.tell(&subject, "image.failed", error.message()),
        }
        made
    }

    fn build(&self, request: ImageRequest, watch: Watch) -> OpResult<()> {
        let agent = std::env::current_exe()
            .map(|path| {
                // What a build for this host leaves under the plain name may not be static.
                let installed = path.with_file_name("mitose-guest.static");
                if installed.exists() {
                    installed
                } else {
                    path.with_file_name("mitose-guest")
                }
            })
            .map_err(|error| OpError::failed(format!("cannot find the guest agent: {error}")))?;
        let config = BuilderConfig {
            images: self.config.home.images(),
            cache: self.config.home.root().join("cache"),
            agent: std::env::var_os("MITOSE_GUEST").map_or(agent, Into::into),
            mirror: std::env::var("MITOSE_MIRROR").ok(),
        };
        let builder = Builder::new(config, watch).map_err(image::refuse)?;
        let made = match request {
            ImageRequest::Build {
                name,
                kind: BuildKind::Tiny,
                suite,
                ..
            } => builder.tiny(&TinyRecipe {
                name,
                suite: suite_of(suite)?,
            }),
            ImageRequest::Build {
                name,
                kind: BuildKind::Debian,
                suite,
                include,
                init,
                disk_bytes,
            } => builder.debian(&DebianRecipe {
                name,
                suite: suite_of(suite)?,
                include,
                init: match init {
                    InitKind::Agent => InitSystem::Agent,
                    InitKind::Systemd => InitSystem::Systemd,
                },
                disk_bytes,
            }),
            ImageRequest::Import {
                name,
                file,
                root_partition,
            } => builder.import(&ImportRequest {
                file,
                name,
                suite: Suite::default(),
                disk_bytes: None,
                root_partition,
            }),
        };
        made.map_err(image::refuse)?;
        Ok(())
    }
}

fn suite_of(name: Option<String>) -> OpResult<Suite> {
    match name {
        Some(name) => name.parse().map_err(image::refuse),
        None => Ok(Suite::default()),
    }
}

/// Kind of the task that makes an image, and the image's name.
pub fn kind_and_name(request: &ImageRequest) -> (&'static str, &str) {
    match request {
        ImageRequest::Build { name, .. } => ("image.build", name),
        ImageRequest::Import { name, .. } => ("image.import", name),
    }
}
