//! Kept fork points: an instant of a VM that outlives the call, the VM and the daemon.
//!
//! ```text
//! seal ─▶ source forks without clones: its disks' old tops are sealed, and its memory is
//!         a layer (never forked before)      ─▶ keeper: a process that holds layer and checkpoint
//!         a process that inherited the view  ─▶ written to files of the datastore, then it ends
//! ```
//!
//! The object is recorded as `sealing` first: a daemon that finds it like this takes it back. The
//! disks' layers are held by the object as by a VM.

mod batch;
mod children;
mod keeper;
mod recover;
mod renew;
mod seal;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_types::ErrorKind;

use crate::error::{OpError, OpResult};
use crate::host::{Host, number_of};
use crate::inventory::{Changes, ForkPoint, NewEvent, Object, ObjectId, PointMemory, VmRow};
use crate::vmm::Link;

pub(super) use self::batch::Ground;
pub use self::batch::PointFork;
pub(in crate::host) use self::seal::SealedMemory;

/// What the daemon has open of a fork point.
#[derive(Clone, Debug, Default)]
struct OpenPoint {
    /// Connection to its keeper.
    link: Option<Arc<Link>>,
    /// Memory layer and checkpoint.
    files: Option<(Arc<OwnedFd>, Arc<OwnedFd>)>,
}

/// What the daemon has open of fork points, by id.
#[derive(Debug, Default)]
pub(in crate::host) struct OpenPoints(Mutex<HashMap<ObjectId, OpenPoint>>);

impl OpenPoints {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectId, OpenPoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> OpenPoint {
        self.lock().get(id).cloned().unwrap_or_default()
    }
}

impl Host {
    /// All fork points, by name.
    pub fn all_fork_points(&self) -> Vec<Object<ForkPoint>> {
        let mut points = self.objects::<ForkPoint>();
        points.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        points
    }

    /// The fork point of an id or a name, or the latest one of a VM of that name.
    pub fn fork_point(&self, reference: &str) -> OpResult<Object<ForkPoint>> {
        match self.object::<ForkPoint>(reference) {
            Err(error) if error.kind == ErrorKind::NotFound => {}
            found => return found,
        }
        self.fork_points_of(reference)
            .into_iter()
            // By number: the clock may have been set back.
            .max_by_key(|point| number_of(&point.id))
            .ok_or_else(|| {
                OpError::new(
                    ErrorKind::NotFound,
                    format!(
                        "there is no fork point {reference:?}; make one with 'mitose prepare VM'"
                    ),
                )
            })
    }

    /// As [`fork_point`](Self::fork_point), for what is to be ended: the name of a VM with several
    /// is refused.
    pub fn only_fork_point(&self, reference: &str) -> OpResult<Object<ForkPoint>> {
        let point = self.fork_point(reference)?;
        if [&*point.id, &*point.name].contains(&reference) {
            return Ok(point);
        }
        let several = self.fork_points_of(reference);
        if several.len() > 1 {
            let named = several.iter().map(|p| format!("{} ({})", p.id, p.name));
            return Err(OpError::conflict(format!(
                "fork point: {reference} has several: {}; give the id of one",
                named.collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(point)
    }

    /// Fork points of the VM that is called `reference`; of one that is gone, by the name that it had.
    fn fork_points_of(&self, reference: &str) -> Vec<Object<ForkPoint>> {
        let vm = self.find(reference).ok();
        let mut points = self.objects::<ForkPoint>();
        points.retain(|point| match &vm {
            Some(vm) => point.doc.row.id == vm.id,
            None => point.doc.row.id == reference || self.parent_of(point) == reference,
        });
        points
    }

    /// Name of a fork point's VM; the one that it had then, where it is gone.
    pub(in crate::host) fn parent_of(&self, point: &Object<ForkPoint>) -> String {
        let vm = self.find(&point.doc.row.id);
        vm.map_or_else(|_| point.doc.row.name.clone(), |vm| vm.name().to_string())
    }

    /// Records a fork point that is being made, and holds its disks' layers.
    pub(in crate::host) fn begin_point(
        &self,
        name: &str,
        mut row: VmRow,
        quiesced: bool,
    ) -> OpResult<Object<ForkPoint>> {
        // What is kept is the machine, not its process.
        row.pid = None;
        row.uid = None;
        row.group = None;
        row.stuns.clear();
        let tops = row.tops();
        self.hold_layers(tops.iter().flatten());
        let doc = ForkPoint {
            labels: Default::default(),
            created_at_ms: crate::clock::now_ms(),
            row: Box::new(row),
            tops,
            memory: PointMemory::Sealing,
            quiesced,
            stun_us: 0,
            io_held_us: 0,
            imported: false,
        };
        let tops = doc.tops.clone();
        self.make_object(None, name, doc, None).inspect_err(|_| {
            for top in tops.iter().flatten() {
                // The VM's disk holds it too.
                let _ = self.layers().release(top);
            }
        })
    }

    /// Removes a fork point and what only it used. Says whether it was there: what it holds is let
    /// go once, also where two want to end it.
    pub(in crate::host) fn end_point(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        told: Option<NewEvent>,
    ) -> bool {
        let mut point = point.clone();
        {
            let turn = &self.object_turn;
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(present) = self.object::<ForkPoint>(&point.id) else {
                return false;
            };
            // Whoever makes it knows of memory that is not on record yet.
            if !matches!(present.doc.memory, PointMemory::Sealing) {
                point.doc.memory = present.doc.memory;
            }
            let changes = Changes {
                removed_objects: vec![point.id.clone()],
                events: told.into_iter().collect(),
                ..Changes::default()
            };
            self.commit_logged(&[], changes);
        }
        self.let_point_go(&point);
        true
    }

    /// Lets go of what a fork point that is off the record held.
    pub(in crate::host) fn let_point_go(self: &Arc<Self>, point: &Object<ForkPoint>) {
        self.drop_layers(point.doc.tops.iter().flatten());
        self.free_memory(point);
        self.forget_tables(&point.doc.row.id);
        if point.doc.row.boot.kernel.starts_with(self.boot_dir()) {
            self.sweep_boot_files();
        }
    }

    /// Memory layer and checkpoint of a fork point, open for reading.
    pub(in crate::host) fn open_point(
        &self,
        point: &Object<ForkPoint>,
    ) -> OpResult<(Arc<OwnedFd>, Arc<OwnedFd>)> {
        let open = self.points.get(&point.id);
        if let Some(files) = open.files {
            return Ok(files);
        }
        let files = match &point.doc.memory {
            PointMemory::Kept { .. } => {
                let link = open.link.filter(|link| !link.is_closed());
                let link = link.ok_or_else(|| lost(point))?;
                keeper::recall(&link)?
            }
            PointMemory::Files { ram, checkpoint } => {
                let open = |path: &std::path::Path| {
                    let file = std::fs::File::open(path).map_err(|error| {
                        let told = OpError::failed(format!(
                            "fork point {}: cannot open {}: {error}",
                            point.name,
                            path.display()
                        ));
                        self.blame_store_of(path, told)
                    });
                    file.map(|file| Arc::new(OwnedFd::from(file)))
                };
                (open(ram)?, open(checkpoint)?)
            }
            PointMemory::Sealing => {
                return Err(OpError::conflict(format!(
                    "fork point {} is still being made; wait for its task",
                    point.name
                )));
            }
            PointMemory::Lost => return Err(lost(point)),
        };
        let mut points = self.points.lock();
        points.entry(point.id.clone()).or_default().files = Some(files.clone());
        Ok(files)
    }
}

fn lost(point: &Object<ForkPoint>) -> OpError {
    OpError::conflict(format!(
        "fork point {0}: its memory is gone with the process that kept it; remove it with \
         'mitose unprepare {0}' and prepare its VM again, with --durable to keep it in files",
        point.name
    ))
}
