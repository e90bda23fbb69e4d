//! The host: all VMs of one daemon, and what they share.
//!
//! Operations are plain blocking functions; the HTTP side runs them on threads of their own.
//! Order of locks: a VM's `operation`, then `object_turn`, then `store`, then `vms` and `objects`, then a
//! VM's `live`, then `layers`, then those of `stores` and `disk_pools`.

mod archive;
mod backends;
mod begun;
mod check;
mod commit;
mod datastores;
mod describe;
mod disk_pools;
mod events;
mod exec;
mod folders;
mod fork;
mod freeze;
mod full;
mod guestinfo;
mod identity;
mod image_store;
mod interrupted;
mod late;
mod limits;
mod lineage;
mod listing;
mod media;
mod memory;
mod memory_files;
mod mend;
mod networks;
mod numbers;
mod objects;
mod pools;
mod power;
mod probe;
mod reconfigure;
mod recover;
mod remove;
mod restored;
mod run;
mod shell;
mod show;
mod snapshot;
mod sound;
mod states;
mod static_net;
mod suspend;
mod tasks;
mod tokens;
mod unlisted;
mod upkeep;
mod vm;
mod wait;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use api_types::{Consistency, DaemonStatus, ErrorKind, Event};
use tokio::sync::broadcast;

use crate::cgroup::Groups;
use crate::config::Config;
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, Inventory, NewEvent, PowerState, VM_FOLDER};
use crate::keys::HostKeys;
use crate::layers::Layers;
use crate::vmm::{Pool, Reactor};

use self::fork::{OpenPoints, Recorders};
use self::identity::check_own_among;
use self::listing::Listing;
use self::objects::Objects;

pub use exec::LOOK_INTERVAL;
pub use fork::PointFork;
pub use full::clone_task;
pub use image_store::kind_and_name;
pub use memory::host_memory;
pub use objects::{check_version, row_of};
pub use probe::KvmSpeed;
pub use restored::refuse_lost;
use snapshot::number_of;
pub use states::Operation;
pub use tasks::{TaskContext, TaskHandle, TaskSpec};
pub use tokens::TokenRecord;
pub use vm::Vm;

/// Everything that the daemon runs.
pub struct Host {
    /// How it was started.
    pub config: Config,
    inventory: Box<dyn Inventory>,
    numbers: numbers::Numbers,
    /// Taken around "read rows, write them"; holds what could not be written yet.
    store: Mutex<commit::Backlog>,
    vms: RwLock<Listing>,
    objects: RwLock<Objects>,
    /// Taken around "read an object, change it, write it".
    object_turn: Mutex<()>,
    layers: Mutex<Layers>,
    stores: Arc<datastores::Stores>,
    disk_pools: disk_pools::SharedPools,
    pool: Arc<Pool>,
    /// Memory cgroups of VM processes, or why there are none.
    groups: Result<Arc<Groups>, String>,
    /// Processes that live in the group of another VM, by group.
    lodgers: Mutex<HashMap<String, usize>>,
    points: OpenPoints,
    recorders: Recorders,
    successions: archive::Successions,
    reactor: Reactor,
    keys: Arc<HostKeys>,
    news: broadcast::Sender<Event>,
    tasks: tasks::Tasks,
    upkeep: Arc<upkeep::Upkeep>,
    /// Whether the RAM of a source is being moved onto a new layer.
    flattening: fork::AtWork,
    kvm_speed: Mutex<Option<KvmSpeed>>,
    /// Whether the inventory is older than what it lists.
    keeps_unlisted: AtomicBool,
    /// Set when recovery has settled what it found.
    settled: OnceLock<()>,
}

impl Host {
    /// Makes a host of an inventory, before recovery.
    fn new(
        config: Config,
        inventory: Box<dyn Inventory>,
        reactor: Reactor,
        uids: HashSet<u32>,
    ) -> Arc<Self> {
        let groups = Groups::open(&config.cgroup, config.home.root())
            .map(Arc::new)
            .map_err(|error| crate::error::chain_line(&error));
        let pool = Pool::new(&config, &reactor, uids, groups.clone().ok());
        let stores = datastores::Stores::new(config.home.datastore());
        let keys = HostKeys::new(config.home.run().join("keys"));
        Arc::new(Self {
            config,
            inventory,
            numbers: numbers::Numbers::default(),
            store: Mutex::default(),
            vms: RwLock::default(),
            objects: RwLock::default(),
            object_turn: Mutex::new(()),
            layers: Mutex::default(),
            stores,
            disk_pools: Arc::default(),
            pool,
            groups,
            lodgers: Mutex::default(),
            points: OpenPoints::default(),
            recorders: Recorders::default(),
            successions: archive::Successions::default(),
            reactor,
            keys,
            news: broadcast::channel(1024).0,
            tasks: tasks::Tasks::default(),
            upkeep: Arc::default(),
            flattening: fork::AtWork::default(),
            kvm_speed: Mutex::new(None),
            keeps_unlisted: AtomicBool::new(false),
            settled: OnceLock::new(),
        })
    }

    /// State of the daemon.
    pub fn status(&self) -> DaemonStatus {
        let vms = self.all();
        let running = |vm: &&Arc<Vm>| vm.state().has_process();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            home: self.config.home.root().display().to_string(),
            shells_ready: self.pool.ready(),
            shells_wanted: self.config.shells,
            vms_running: vms.iter().filter(running).count(),
            vms: vms.len(),
        }
    }

    /// Ends what does not outlive the daemon: empty shells. VMs run on.
    pub fn stop(&self) {
        self.upkeep.end();
        self.pool.stop();
        if let Ok(groups) = &self.groups {
            groups.remove_root();
        }
        let inventory = self.inventory.as_ref();
        let written = [self.numbers.give_back(inventory), inventory.sync()];
        for error in written.into_iter().filter_map(Result::err) {
            tracing::error!("{:#}", anyhow::Error::from(error));
        }
    }

    /// Refuses what needs a running guest where there is none.
    pub fn check_running(&self, vm: &Vm) -> OpResult<()> {
        self.check_answers(vm)?;
        match vm.state() {
            PowerState::Paused | PowerState::PausedNoSpace => Err(OpError::conflict(format!(
                "{0} is paused; 'mitose resume {0}' first",
                vm.name()
            ))),
            PowerState::Frozen => Err(OpError::conflict(format!(
                "{0} is frozen; clone it with 'mitose clone {0}', or 'mitose resume {0}' first",
                vm.name()
            ))),
            state => needs_process(&vm.name(), state),
        }
    }

    /// Refuses what needs a VM's process where there is none.
    pub fn check_process(&self, vm: &Vm) -> OpResult<()> {
        needs_process(&vm.name(), vm.state())
    }

    /// All VMs by name.
    pub fn all(&self) -> Vec<Arc<Vm>> {
        self.listing().all().cloned().collect()
    }

    /// The VM of an id, or of a name: alone (`web`) where one VM has it, or behind its folders
    /// (`lab/web`).
    pub fn find(&self, reference: &str) -> OpResult<Arc<Vm>> {
        if let Some(vm) = self.listing().get(reference) {
            return Ok(Arc::clone(vm));
        }
        let (folders, name) = match reference.rsplit_once('/') {
            Some((folders, name)) => (Some(folders), name),
            None => (None, reference),
        };
        let mut found: Vec<_> = self.listing().named(name).cloned().collect();
        if let Some(folders) = folders {
            let folders = folders.trim_matches('/');
            let first = self.first_folder();
            found.retain(|vm| {
                let folder = vm.place().folder;
                // The first folder has a name too, for VMs whose name is also in another.
                *folder == *VM_FOLDER && folders == first || self.folder_path(&folder) == folders
            });
        }
        match &found[..] {
            [vm] => Ok(Arc::clone(vm)),
            [] => Err(OpError::new(
                ErrorKind::NotFound,
                format!("there is no VM {reference:?}; 'mitose ls' lists them"),
            )),
            several => {
                let path = |vm: &Arc<Vm>| match self.path_of(vm) {
                    name if name.contains('/') => name,
                    name => format!("{}/{name}", self.first_folder()),
                };
                let paths: Vec<_> = several.iter().map(path).collect();
                Err(OpError::conflict(format!(
                    "name: {name:?} is the name of several VMs; give one of {}",
                    paths.join(", ")
                )))
            }
        }
    }

    /// Name of the first folder of VMs, which paths leave out.
    fn first_folder(&self) -> String {
        let objects = self.objects_read();
        objects
            .get(VM_FOLDER)
            .map(|row| row.name.clone())
            .unwrap_or_default()
    }

    /// Names of the folders that lead to a folder of VMs, joined by `/`; empty for the first one.
    pub fn folder_path(&self, folder: &str) -> String {
        let objects = self.objects_read();
        let mut names = Vec::new();
        let mut next = Some(folder);
        while let Some(row) = next
            .filter(|id| *id != VM_FOLDER)
            .and_then(|id| objects.get(id))
        {
            names.push(row.name.as_str());
            next = row.parent.as_deref();
        }
        names.reverse();
        names.join("/")
    }

    /// A VM's name behind those of its folders.
    pub fn path_of(&self, vm: &Vm) -> String {
        let place = vm.place();
        match self.folder_path(&place.folder) {
            folders if folders.is_empty() => place.name.to_string(),
            folders => format!("{folders}/{}", place.name),
        }
    }

    /// Lists new VMs, all or none, where their pool takes them. Their rows name the task at work,
    /// where their memory is from, and what their disks hold.
    fn reserve(
        &self,
        new: &[Arc<Vm>],
        memory: &'static str,
        consistency: Consistency,
    ) -> OpResult<()> {
        let making = tasks::making(memory, consistency);
        new.iter()
            .for_each(|vm| vm.update(|live| live.row.making.clone_from(&making)));
        self.reserve_where(new, |_| Ok(()))
    }

    /// Lists new VMs, all or none, where their pool takes them, no other VM has what is to be theirs
    /// alone, and `check` has nothing against it: nobody else is listed between both.
    fn reserve_where(
        &self,
        new: &[Arc<Vm>],
        check: impl FnOnce(&[Arc<Vm>]) -> OpResult<()>,
    ) -> OpResult<()> {
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = new.first() {
            let pool = describe::pool_of(&first.live().row.pool).to_owned();
            let bytes = new.iter().map(|vm| vm.live().row.spec.memory_bytes);
            let bytes = bytes.fold(0u64, u64::saturating_add);
            let count = u32::try_from(new.len()).unwrap_or(u32::MAX);
            let members: Vec<_> = vms.all().cloned().collect();
            check(&members)?;
            self.check_pool_among(&members, &pool, count, bytes)?;
            let rows: Vec<_> = new.iter().map(|vm| vm.row()).collect();
            self.check_addresses_among(members.iter(), &rows)?;
            check_own_among(members.iter(), &rows)?;
        }
        vms.insert(new).map_err(|taken| {
            let name = taken.name();
            OpError::conflict(format!(
                "name: there is a VM {name:?} already; choose another name or remove it with 'mitose rm {name}'"
            ))
            .about("name")
        })
    }

    /// Lists VMs of the inventory.
    fn list_known(&self, known: &[Arc<Vm>]) {
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        if vms.insert(known).is_err() {
            // Places are unique in the store.
            tracing::error!("two VMs of the inventory have one name");
        }
    }

    fn unlist(&self, vm: &Vm) {
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        vms.remove(vm);
    }

    fn listing(&self) -> std::sync::RwLockReadGuard<'_, Listing> {
        self.vms.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of disk layers.
    pub fn layer_count(&self) -> usize {
        self.layers().count()
    }

    fn layers(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events after the number `after`.
    pub fn events(&self, after: i64, limit: usize) -> OpResult<Vec<Event>> {
        self.inventory.events(after, limit).map_err(OpError::from)
    }

    /// The latest events.
    pub fn latest_events(&self, limit: usize) -> OpResult<Vec<Event>> {
        let last = self.inventory.last_event().map_err(OpError::from)?;
        self.events(last.saturating_sub(limit as i64), limit)
    }

    /// Events from here on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.news.subscribe()
    }

    /// Records an event that goes with no change of a row.
    pub fn tell(&self, subject: &str, kind: &'static str, message: String) {
        let changes = Changes {
            events: vec![event(subject, kind, message)],
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("home", &self.config.home.root())
            .finish_non_exhaustive()
    }
}

fn event(subject: &str, kind: &'static str, message: impl Into<String>) -> NewEvent {
    NewEvent {
        subject: subject.to_owned(),
        kind,
        message: message.into(),
        object: None,
        task: None,
        user: None,
        data: None,
    }
}

/// An event about a VM.
fn vm_event(vm: &Vm, kind: &'static str, message: impl Into<String>) -> NewEvent {
    event(&vm.name(), kind, message).about(&vm.id)
}

/// Whether a VM in `state` takes commands for running VMs, or why not.
fn needs_process(name: &str, state: PowerState) -> OpResult<()> {
    match state {
        PowerState::Creating => Err(OpError::conflict(format!(
            "{name} is still being made; try again when 'mitose ls' shows it running"
        ))),
        PowerState::Suspended => Err(OpError::conflict(format!(
            "{name} is suspended; 'mitose resume {name}' first"
        ))),
        PowerState::PoweredOff | PowerState::OutOfMemory => Err(OpError::conflict(format!(
            "{name} is powered off; start it with 'mitose start {name}'"
        ))),
        _ => Ok(()),
    }
}
