//! Long operations: image builds. Each is a row that tells its progress; one that was in work when
//! the daemon ended is `failed: interrupted`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::{
    BuildKind, ErrorKind, Image as ImageAnswer, ImageRequest, InitKind, Task, TaskState,
};
use images::{
    Builder, BuilderConfig, CancelToken, DebianRecipe, ImportRequest, InitSystem, Suite,
    TinyRecipe, Watch,
};
use tokio::sync::watch;

use super::Host;
use crate::error::{OpError, OpResult};
use crate::image;

/// Live tasks by number.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    live: Mutex<HashMap<i64, TaskHandle>>,
}

/// A task in work.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    /// Its progress.
    pub progress: watch::Receiver<Task>,
    cancel: CancelToken,
}

impl Host {
    /// Images of the datastore.
    pub fn images(&self) -> OpResult<Vec<ImageAnswer>> {
        let store = image::store(&self.config.home)?;
        let images = store.list().map_err(image::refuse)?;
        Ok(images.iter().map(image::show).collect())
    }

    /// Removes an image that no disk stands on.
    pub fn remove_image(&self, name: &str) -> OpResult<()> {
        let store = image::store(&self.config.home)?;
        let found = store.get(name).map_err(image::refuse)?;
        let booted = self.all().iter().find_map(|vm| {
            let live = vm.live();
            (live.row.boot.image.as_deref() == Some(name)).then(|| vm.name.clone())
        });
        if let Some(user) = booted {
            return Err(OpError::conflict(format!(
                "image {name} is used by the VM {user}; remove that first"
            )));
        }
        if self.layers().any_below(&found.dir) {
            return Err(OpError::conflict(format!(
                "image {name} is the base of a VM's disk; remove the VMs made from it first"
            )));
        }
        store.remove(name).map_err(image::refuse)?;
        self.tell(name, "image.removed", "removed".to_owned());
        Ok(())
    }

    /// Starts making an image.
    pub fn make_image(self: &Arc<Self>, request: ImageRequest) -> OpResult<Task> {
        let (kind, subject) = match &request {
            ImageRequest::Build { name, .. } => ("image.build", name),
            ImageRequest::Import { name, .. } => ("image.import", name),
        };
        if let Some(problem) = api_types::name_problem(subject) {
            return Err(OpError::invalid(problem));
        }
        let store = image::store(&self.config.home)?;
        if store.get(subject).is_ok() {
            return Err(OpError::conflict(format!(
                "name: there is an image {subject:?} already; remove it with 'mitose image rm {subject}'"
            )));
        }
        let mut task = Task {
            id: 0,
            kind: kind.to_owned(),
            subject: subject.clone(),
            state: TaskState::Running,
            percent: Some(0),
            message: "starting".to_owned(),
            error: None,
        };
        task.id = self.put_task(&task)?;
        let (sender, progress) = watch::channel(task.clone());
        let cancel = CancelToken::default();
        let handle = TaskHandle {
            progress,
            cancel: cancel.clone(),
        };
        self.live_tasks().insert(task.id, handle);
        let host = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("image-task".into())
            .spawn(move || host.work(request, &sender, cancel));
        if let Err(error) = spawned {
            self.live_tasks().remove(&task.id);
            return Err(OpError::failed(format!("cannot start a thread: {error}")));
        }
        Ok(task)
    }

    /// A task in work, to be followed.
    pub fn live_task(&self, id: i64) -> Option<TaskHandle> {
        self.live_tasks().get(&id).cloned()
    }

    /// A task's present state.
    pub fn task(&self, id: i64) -> OpResult<Task> {
        if let Some(handle) = self.live_task(id) {
            return Ok(handle.progress.borrow().clone());
        }
        let found = self.inventory.task(id);
        let found = found.map_err(|error| OpError::caused(ErrorKind::Failed, error))?;
        found.ok_or_else(|| OpError::new(ErrorKind::NotFound, format!("there is no task {id}")))
    }

    /// Stops a task; it fails as cancelled.
    pub fn cancel_task(&self, id: i64) -> OpResult<()> {
        match self.live_task(id) {
            Some(handle) => handle.cancel.cancel(),
            None => drop(self.task(id)?),
        }
        Ok(())
    }

    fn work(&self, request: ImageRequest, sender: &watch::Sender<Task>, cancel: CancelToken) {
        let reported = sender.clone();
        let progress = move |text: &str, fraction: f32| {
            let percent = (fraction.clamp(0.0, 1.0) * 100.0) as u8;
            reported.send_modify(|task| {
                task.percent = Some(percent);
                task.message = text.to_owned();
            });
        };
        let made = self.build(request, Watch::new(progress, cancel));
        let mut task = sender.borrow().clone();
        match made {
            Ok(()) => {
                task.state = TaskState::Success;
                task.percent = Some(100);
                task.message = "done".to_owned();
                self.tell(&task.subject, "image.made", format!("{} done", task.kind));
            }
            Err(error) => {
                task.state = TaskState::Failed;
                task.error = Some(error.message());
                self.tell(&task.subject, "image.failed", error.message());
            }
        }
        if let Err(error) = self.put_task(&task) {
            tracing::error!("{}", error.message());
        }
        let id = task.id;
        sender.send_replace(task);
        self.live_tasks().remove(&id);
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
            ImageRequest::Import { name, file } => builder.import(&ImportRequest {
                file,
                name,
                suite: Suite::default(),
                disk_bytes: None,
            }),
        };
        made.map_err(image::refuse)?;
        Ok(())
    }

    pub(super) fn fail_interrupted_tasks(&self) {
        for mut task in self.inventory.running_tasks().unwrap_or_default() {
            task.state = TaskState::Failed;
            task.error = Some("interrupted: the daemon ended".to_owned());
            if let Err(error) = self.put_task(&task) {
                tracing::error!("{}", error.message());
            }
        }
    }

    fn put_task(&self, task: &Task) -> OpResult<i64> {
        self.inventory
            .put_task(task)
            .map_err(|error| OpError::caused(ErrorKind::Failed, error))
    }

    fn live_tasks(&self) -> std::sync::MutexGuard<'_, HashMap<i64, TaskHandle>> {
        self.tasks
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn suite_of(name: Option<String>) -> OpResult<Suite> {
    match name {
        Some(name) => name.parse().map_err(image::refuse),
        None => Ok(Suite::default()),
    }
}
