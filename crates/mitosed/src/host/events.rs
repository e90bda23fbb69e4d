//! What VM processes say unasked.
//!
//! The handler runs on the reactor's thread: it changes memory and leaves the rest to a thread of
//! its own, which it starts only when something really changed, so a guest cannot keep it busy.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::{Hello, IdentityKind, Ready, ToHost};
use api_types::GuestReply;
use vmm_protocol::{Command, EndReason, Event};

use super::identity::identity_message;
use super::recover::ran;
use super::vm::Live;
use super::{Host, Vm, vm_event};
use crate::clock::random_uuid;
use crate::inventory::{Changes, NewEvent, PowerState};
use crate::vmm::{Link, Notice, wait_gone};

/// A guest that resets itself, or a process that closes its connection, more often is ended.
const MAX_RESETS: usize = 5;
const RESET_WINDOW: Duration = Duration::from_secs(30);
/// Time from the word of a process that it ends to its end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Time from the end of its connection to that of a process that ends.
pub(super) const CLOSES_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two tries to end a process.
const KILL_PAUSE: Duration = Duration::from_secs(1);

impl Host {
    /// Returns the handler of what the process behind `link` says about `vm`.
    pub(super) fn handler(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        link: &Arc<Link>,
    ) -> Box<dyn Fn(Notice) + Send + Sync> {
        let host = Arc::downgrade(self);
        let vm = Arc::clone(vm);
        let link = Arc::downgrade(link);
        Box::new(move |notice| {
            let (Some(host), Some(link)) = (host.upgrade(), link.upgrade()) else {
                return;
            };
            if is_current(&vm.live(), &link) {
                host.notice(&vm, &link, notice);
            }
        })
    }

    fn notice(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, notice: Notice) {
        match notice {
            Notice::Event(Event::Newborn { .. }) => vm.update(|live| live.newborn = true),
            Notice::Event(Event::AgentHello(text)) => {
                if vm.update(|live| take_hello(live, &text)) {
                    let (host, vm, link) = (Arc::clone(self), Arc::clone(vm), Arc::clone(link));
                    spawn("identity", move || host.renew_identity(&vm, &link));
                }
            }
            Notice::Event(Event::AgentReady { at_ns, message }) => {
                if vm.update(|live| take_ready(live, at_ns, &message)) {
                    let (host, vm, link) = (Arc::clone(self), Arc::clone(vm), Arc::clone(link));
                    spawn("agent-ready", move || host.agent_ready(&vm, &link));
                }
            }
            Notice::Event(Event::AgentMessage(text)) => self.agent_message(vm, link, &text),
            Notice::Event(Event::NoSpace { disk }) => {
                if vm.update(|live| pause_for_space(live, disk)) {
                    let (host, vm) = (Arc::clone(self), Arc::clone(vm));
                    spawn("no-space", move || host.no_space(&vm, disk));
                }
            }
            Notice::Event(Event::Ended(reason)) => vm.update(|live| live.ended = Some(reason)),
            Notice::Late => {
                let (host, vm, link) = (Arc::clone(self), Arc::clone(vm), Arc::clone(link));
                spawn("late-answer", move || host.answered_late(&vm, &link));
            }
            Notice::Closed(problem) => {
                let (host, vm, link) = (Arc::clone(self), Arc::clone(vm), Arc::clone(link));
                spawn("vm-ended", move || host.process_ended(&vm, &link, problem));
            }
        }
    }

    /// Does what the guest wishes, within bounds: it may be hostile.
    fn agent_message(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, text: &str) {
        match ToHost::decode(text.as_bytes()) {
            Ok(ToHost::Freeze { token }) => self.freeze_wanted(vm, link, token),
            Ok(ToHost::GuestInfoSet { key, value }) => self.guestinfo_said(vm, &key, &value),
            Ok(_) => {}
            Err(error) => tracing::debug!(vm = &*vm.name(), %error, "odd words of an agent"),
        }
    }

    fn agent_ready(&self, vm: &Arc<Vm>, link: &Arc<Link>) {
        let row = vm.row();
        for (nic, _) in row
            .nics
            .iter()
            .enumerate()
            .filter(|(_, n)| n.has_tap() && !n.disconnected)
        {
            let up = Command::SetLink { nic, up: true };
            if let Err(error) = link.call(up, &[], Duration::from_secs(5)) {
                tracing::warn!(vm = &*vm.name(), nic, "cannot raise the link: {error:#}");
            }
        }
        self.give_host_keys(vm, link);
        let told = vm_event(vm, "vm.ready", "the guest agent is ready");
        self.commit_logged(&[vm], with_event(told));
    }

    /// Images have no SSH host keys: a guest that booted for the first time is given some, in an
    /// identity of another number, since the agent applies each once. The guest of a clone that boots
    /// is told that it is one: its source's keys are replaced.
    fn give_host_keys(&self, vm: &Arc<Vm>, link: &Arc<Link>) {
        let mut row = vm.row();
        let kinds = row.ssh_host_key_kinds.clone();
        if !kinds.is_empty() {
            self.keys.want(&kinds);
        }
        let kind = match row.cold_clone {
            true => IdentityKind::Clone,
            false if row.has_host_keys || kinds.is_empty() => return,
            false => IdentityKind::Boot,
        };
        let keys = self.keys.take(&kinds);
        let has_keys = !keys.is_empty();
        if kind == IdentityKind::Boot {
            if !has_keys {
                return;
            }
            row.uuid = random_uuid();
        }
        let identity = identity_message(&row, kind, keys);
        match link.call(Command::SetIdentity(identity), &[], Duration::from_secs(5)) {
            Ok(_) => vm.update(|live| {
                live.row.cold_clone = false;
                live.row.has_host_keys |= has_keys;
            }),
            Err(error) => tracing::warn!(vm = &*vm.name(), "cannot give SSH host keys: {error:#}"),
        }
    }

    pub(super) fn no_space(&self, vm: &Arc<Vm>, disk: usize) {
        let message = format!(
            "paused: no space for a write to disk {disk}; make space in the datastore, then \
             'mitose resume {}'",
            vm.name()
        );
        vm.update(|live| {
            if live.row.state == PowerState::PausedNoSpace {
                live.row.reason = Some(message.clone());
            }
        });
        self.commit_logged(&[vm], with_event(vm_event(vm, "vm.no_space", message)));
    }

    /// The process behind `link` has ended: the VM is powered off, or boots again after a reset.
    fn process_ended(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        link: &Arc<Link>,
        problem: Option<&'static str>,
    ) {
        if vm.live().unanswered {
            self.wait_settled();
        }
        let is_taken = {
            let live = vm.live();
            live.starting || !is_current(&live, link)
        };
        if is_taken {
            // A process that was taken from its VM is looked after by who took it.
            return;
        }
        let Some(ending) = self.see_the_end(vm, link, problem.is_some()) else {
            return;
        };
        // Processes that were born of others are no children of the daemon.
        let ending = ending.or_else(|| link.ending());
        let words = self.last_words(vm);
        let verdict = self.memory_verdict(&vm.row());
        let by_itself = matches!(
            vm.live().ended,
            Some(EndReason::GuestPowerOff | EndReason::Requested | EndReason::GuestReset)
        );
        if vm.update(|live| std::mem::take(&mut live.unanswered)) {
            // What was under way when the last daemon ended was left for it to tell.
            self.settle_merges_of(vm);
            self.settle_pending_of(vm);
        }
        if !by_itself || !crate::vmm::is_orderly(&ending) {
            self.mend_disks(vm);
        }
        let outcome = {
            let mut live = vm.live();
            is_current(&live, link).then(|| {
                self.forget_sockets(vm);
                let group = live.row.group.take();
                (group, finish(&mut live, problem, ending, words, verdict))
            })
        };
        let Some((group, (uid, reset, told))) = outcome else {
            return;
        };
        self.leave_group(group);
        super::backends::forget_serial_sockets(&vm.row());
        if let Some(uid) = uid {
            self.pool.free_uid(uid);
        }
        self.commit_logged(&[vm], with_event(vm_event(vm, told.0, told.1)));
        // Whoever waits for the end goes on when it is on record.
        vm.update(|_| ());
        // Whoever ended it on purpose has the VM's turn, and gives it back first.
        if reset || vm.row().returns_to_point() {
            let _turn = vm.operate();
            match vm.state().is_off() && !vm.live().removed {
                true if reset => self.boot_after_reset(vm),
                true => self.discard_changes(vm),
                false => {}
            }
        }
    }

    /// Waits until the process behind a connection that closed has ended, and says how. None where it
    /// runs on and goes on with its VM: what it had to say may have found no listener in time. One that
    /// broke the protocol, or with which nothing can be done, is killed.
    fn see_the_end(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        link: &Arc<Link>,
        broke: bool,
    ) -> Option<Option<String>> {
        let (pid, told) = {
            let live = vm.live();
            (
                live.row.pid.or_else(|| link.peer_pid()),
                live.ended.is_some(),
            )
        };
        if !broke {
            let patience = if told { ENDS_WITHIN } else { CLOSES_WITHIN };
            let ending = pid.and_then(|pid| wait_gone(pid, patience));
            if !link.process_lives(pid) {
                return Some(ending);
            }
            let often = vm.update(|live| is_too_often(&mut live.closings));
            if !told && !often && ran(vm) && self.connect_again(vm, link) {
                return None;
            }
            tracing::warn!(vm = &*vm.name(), "it runs on unreachable: it is killed");
        }
        loop {
            let ending = pid.and_then(crate::vmm::kill);
            if !link.process_lives(pid) {
                return Some(ending);
            }
            tracing::warn!(vm = &*vm.name(), "its process does not end yet");
            thread::sleep(KILL_PAUSE);
        }
    }

    fn boot_after_reset(self: &Arc<Self>, vm: &Arc<Vm>) {
        if let Err(error) = self.power_on(vm) {
            let message = format!("cannot start after a reset: {}", error.message());
            vm.update(|live| live.row.reason = Some(message.clone()));
            self.commit_logged(&[vm], with_event(vm_event(vm, "vm.failed", message)));
        }
    }
}

pub(super) fn is_current(live: &Live, link: &Arc<Link>) -> bool {
    live.link.as_ref().is_some_and(|l| Arc::ptr_eq(l, link))
}

fn pause_for_space(live: &mut Live, disk: usize) -> bool {
    if live.starting {
        live.early_no_space = Some(disk);
    }
    let was_running = live.row.state == PowerState::Running && !live.starting;
    if was_running {
        live.row.state = PowerState::PausedNoSpace;
    }
    was_running
}

type Told = (&'static str, String);

/// Marks a VM whose process is gone; returns its user id, whether it is to boot again, and what
/// to tell.
fn finish(
    live: &mut Live,
    problem: Option<&'static str>,
    ending: Option<String>,
    words: Option<String>,
    verdict: Option<String>,
) -> (Option<u32>, bool, Told) {
    let uid = live.row.uid.take();
    let suspended = live.row.state == PowerState::Suspended;
    live.link = None;
    live.row.pid = None;
    live.lodging = None;
    live.ram = None;
    live.ready_at_ns = None;
    live.row.reason = None;
    if suspended {
        // Its memory is on disk: what its process says at its end is of no account.
        live.ended = None;
        return (uid, false, ("vm.stopped", "its process ended".into()));
    }
    live.row.state = PowerState::PoweredOff;
    live.row.freeze = None;
    let (reset, told) = match live.ended.take() {
        Some(EndReason::GuestPowerOff) => (false, ("vm.stopped", "the guest powered off".into())),
        Some(EndReason::Requested) => (false, ("vm.stopped", "powered off".into())),
        Some(EndReason::GuestReset) => guest_reset(live),
        Some(EndReason::EngineFault(fault)) => {
            let message = format!("the engine cannot go on: {}", clean(&fault));
            (false, ("vm.failed", message))
        }
        None if let Some(verdict) = verdict => {
            live.row.state = PowerState::OutOfMemory;
            (false, ("vm.out_of_memory", verdict))
        }
        None => {
            let mut message = "the VM process ended unexpectedly".to_owned();
            for part in [problem.map(str::to_owned), ending, words]
                .into_iter()
                .flatten()
            {
                message = format!("{message}; {part}");
            }
            (false, ("vm.failed", message))
        }
    };
    if matches!(told.0, "vm.failed" | "vm.out_of_memory") {
        live.row.reason = Some(told.1.clone());
    }
    live.row.process_gone(reset);
    (uid, reset, told)
}

/// Notes that something happened again; returns whether it does too often.
fn is_too_often(times: &mut Vec<Instant>) -> bool {
    let now = Instant::now();
    times.retain(|at| now.duration_since(*at) < RESET_WINDOW);
    times.push(now);
    times.len() > MAX_RESETS
}

fn guest_reset(live: &mut Live) -> (bool, Told) {
    if is_too_often(&mut live.resets) {
        let message = format!(
            "powered off: the guest reset itself {} times within {} s",
            live.resets.len(),
            RESET_WINDOW.as_secs()
        );
        live.resets.clear();
        return (false, ("vm.failed", message));
    }
    (true, ("vm.reset", "the guest reset itself".into()))
}

/// Words of the guest: kept only where they have the expected form. Returns whether the agent has
/// just been told outdated guestinfo.
fn take_hello(live: &mut Live, text: &str) -> bool {
    let hello = match ToHost::decode(text.as_bytes()) {
        Ok(ToHost::Hello(hello)) => Some(hello),
        _ => serde_json::from_str::<Hello>(text).ok(),
    };
    live.row.has_agent = true;
    if let Some(hello) = hello {
        let kinds = hello.ssh_host_key_kinds;
        live.row.ssh_host_key_kinds = ["rsa", "ecdsa", "ed25519"]
            .into_iter()
            .filter(|known| kinds.iter().any(|kind| kind == known))
            .map(str::to_owned)
            .collect();
    }
    std::mem::take(&mut live.identity_stale)
}

/// Returns whether this is the first word of this process's agent.
fn take_ready(live: &mut Live, at_ns: u64, text: &str) -> bool {
    live.row.has_agent = true;
    let ready = match ToHost::decode(text.as_bytes()) {
        Ok(ToHost::Ready(ready)) => ready,
        _ => serde_json::from_str::<Ready>(text).unwrap_or_default(),
    };
    live.row.guest = Some(GuestReply {
        hostname: clean(&ready.hostname),
        machine_id: clean(&ready.machine_id),
        macs: ready.macs.iter().take(16).map(|mac| clean(mac)).collect(),
        errors: ready.errors.iter().take(16).map(|e| clean(e)).collect(),
    });
    let first = live.ready_at_ns.is_none();
    if first {
        live.ready_at_ns = Some(at_ns);
    }
    first
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}

/// Changes that only record an event.
pub(super) fn with_event(event: NewEvent) -> Changes {
    Changes {
        events: vec![event],
        ..Changes::default()
    }
}

/// Starts a thread for what a VM process said.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.into()).spawn(work) {
        tracing::error!(%error, name, "cannot start a thread");
    }
}
