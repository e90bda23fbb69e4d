//! Trying a request out: all that is in its way at once, and what it would make. Nothing is made,
//! and no id is used up.

use api_types::{CloneMode, DryRun, ForkRequest, MAX_CLONES, Problem, RunRequest, WouldMake};

use super::fork::{extra_disks_at, past_of};
use super::run::plan::Plan;
use super::states::Operation;
use super::{Host, Vm};
use crate::error::{OpError, OpResult};

/// Errors of the parts of one request.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<OpError>,
}

impl Problems {
    /// Takes what a check gave, and notes its error.
    pub fn take<T>(&mut self, result: OpResult<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.found.push(error);
                None
            }
        }
    }

    /// Notes an error.
    pub fn note(&mut self, error: OpError) {
        self.found.push(error);
    }

    /// Whether nothing is in the way.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All errors.
    pub fn into_errors(self) -> Vec<OpError> {
        self.found
    }

    /// The first error, for a request that is to be carried out.
    pub fn finish(self) -> OpResult<()> {
        self.found.into_iter().next().map_or(Ok(()), Err)
    }

    /// What was planned, or the first error. Whoever gives no plan has noted why.
    pub fn end<T>(self, planned: Option<T>) -> OpResult<T> {
        self.finish()?;
        planned.ok_or_else(|| OpError::failed("the request could not be planned"))
    }

    /// The answer to a dry run.
    pub fn dry_run(&self) -> DryRun {
        DryRun {
            problems: self.shown(),
            would_make: Vec::new(),
        }
    }

    /// All errors as a user sees them, each once.
    fn shown(&self) -> Vec<Problem> {
        let mut all: Vec<Problem> = Vec::new();
        for error in &self.found {
            let problem = shown(error);
            if !all.contains(&problem) {
                all.push(problem);
            }
        }
        all
    }
}

impl Host {
    /// Tries a request for a VM out.
    pub fn check_run(&self, request: &RunRequest) -> DryRun {
        let mut problems = Problems::default();
        let plan = self.plan(request, &mut problems);
        let would_make = plan.iter().map(|plan| self.would_make(request, plan));
        DryRun {
            would_make: would_make.collect(),
            problems: problems.shown(),
        }
    }

    fn would_make(&self, request: &RunRequest, plan: &Plan) -> WouldMake {
        let row = &plan.row;
        WouldMake {
            path: self.path_in(row.folder.as_deref(), &row.name),
            macs: given_macs(&request.nets),
            memory_bytes: row.spec.memory_bytes,
            disk_bytes: DELTA_BYTES * plan.bases.iter().filter(|b| !b.read_only).count() as u64,
        }
    }

    /// Tries a request for clones out.
    pub fn check_fork(&self, source: &Vm, request: &ForkRequest) -> DryRun {
        let mut problems = Problems::default();
        let operation = match request.mode {
            CloneMode::Instant => Operation::Fork,
            CloneMode::Linked => Operation::Copy,
            CloneMode::Full => Operation::CopyWhole,
        };
        let mut row = source.row();
        match &request.snapshot {
            Some(name) => {
                let snapshot = problems.take(self.find_snapshot(source, name));
                row = snapshot.map_or(row, |snapshot| past_of(source, &snapshot).row());
            }
            None => {
                problems.take(self.allow(source, operation));
            }
        }
        self.check_clones(&row, request, MAX_CLONES as usize, &mut problems);
        if request.mode == CloneMode::Full && problems.is_empty() {
            let store = request.datastore.as_deref();
            problems.take(self.check_full_space(&row, store, request.names.len()));
        }
        let mut would_make = Vec::new();
        if problems.is_empty() {
            let disk_bytes = |index| match request.mode {
                CloneMode::Full => self.content_of(&row).map_or(0, |content| content.bytes),
                _ => {
                    let extra = extra_disks_at(request, index).len();
                    DELTA_BYTES * (row.deltas_of_fork() + extra) as u64
                }
            };
            for (index, name) in request.names.iter().enumerate() {
                let edit = request.each.get(index);
                let folder = edit.and_then(|e| e.folder.as_deref());
                let folder = folder.or(request.folder.as_deref());
                let folder = folder.and_then(|folder| self.folder_id(Some(folder)).ok());
                let nets = edit.map(|e| &e.nets).filter(|nets| !nets.is_empty());
                would_make.push(WouldMake {
                    path: self.path_in(folder.as_deref().or(row.folder.as_deref()), name),
                    macs: given_macs(nets.unwrap_or(&request.nets)),
                    memory_bytes: row.spec.memory_bytes,
                    disk_bytes: disk_bytes(index),
                });
            }
        }
        DryRun {
            problems: problems.shown(),
            would_make,
        }
    }

    /// Tries a change of a VM's power out.
    pub fn check_power(&self, vm: &Vm, operation: Operation) -> DryRun {
        let mut problems = Problems::default();
        let starts = matches!(operation, Operation::Start | Operation::Reset);
        let allowed = problems.take(self.allow(vm, operation));
        if allowed == Some(true) && starts {
            let row = vm.row();
            problems.take(self.check_stores_of(&row));
            if !row.returns_to_point() && !row.state.has_process() {
                problems.take(self.check_memory("the VM", row.spec.memory_bytes));
            }
        }
        problems.dry_run()
    }

    /// A name behind those of its folders.
    pub(super) fn path_in(&self, folder: Option<&str>, name: &str) -> String {
        match folder.map(|folder| self.folder_path(folder)) {
            Some(path) if !path.is_empty() => format!("{path}/{name}"),
            _ => name.to_owned(),
        }
    }
}

/// Space that a new delta takes: header, one table of each kind, rounded up.
pub(super) const DELTA_BYTES: u64 = 256 << 10;

/// Hardware addresses that a request names.
pub(super) fn given_macs(nets: &[api_types::NetRequest]) -> Vec<Option<String>> {
    let macs = nets.iter().map(|net| net.mac);
    macs.map(|mac| mac.map(|mac| mac.to_string())).collect()
}

/// An error as a user sees it among others.
fn shown(error: &OpError) -> Problem {
    let mut problem = Problem::new(error.kind, error.message());
    problem.field = error.field().map(str::to_owned);
    problem.remedy = error.remedy().map(str::to_owned);
    problem
}
