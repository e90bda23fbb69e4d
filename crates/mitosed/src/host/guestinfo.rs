//! guestinfo of a VM: set by its user and by its guest, kept in its row, told to the other side.
//!
//! The guest's part is bounded: what it may set by [`agent_protocol::guestinfo`], how often that is
//! written by [`WRITE_PAUSE`], how many threads it costs by one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use agent_protocol::guestinfo::{self, NET_PREFIX};
use agent_protocol::{IdentityKind, ToGuest};
use api_types::DryRun;
use vmm_protocol::Command;

use super::check::Problems;
use super::events::{spawn, with_event};
use super::identity::identity_message;
use super::{Host, Vm, check_version, vm_event};
use crate::error::{OpError, OpResult};
use crate::vmm::Link;

/// Least time between two writes of what one guest sets.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// Keys that one event names.
const NAMED_MAX: usize = 8;
/// Time that a VM process has to pass a message on.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Host {
    /// Sets and removes values of a VM, all or none, and tells its guest where it runs. `expected`
    /// is the version of the VM that the caller knows, where it names one.
    pub fn set_guestinfo(
        &self,
        vm: &Arc<Vm>,
        patch: &BTreeMap<String, Option<String>>,
        expected: Option<u64>,
    ) -> OpResult<BTreeMap<String, String>> {
        let _turn = self.turn(vm)?;
        let row = vm.row();
        check_version("VM", &row.name, expected, row.version)?;
        let changed = vm.update(|live| {
            // Tried on a copy: the guest may set others at the same time.
            let mut values = live.row.guestinfo.clone();
            let mut changed = Vec::new();
            for (key, value) in patch {
                let value = value.as_deref().unwrap_or("");
                if set(&mut values, key, value)? {
                    changed.push((key.clone(), value.to_owned()));
                }
            }
            if !changed.is_empty() {
                live.row.guestinfo = values;
                live.row.version += 1;
                live.identity_stale = true;
            }
            OpResult::Ok(changed)
        })?;
        if changed.is_empty() {
            return Ok(vm.row().guestinfo);
        }
        let keys: Vec<_> = changed.iter().map(|(key, _)| key.clone()).collect();
        let message = format!("{} set from outside", named(&keys));
        self.commit(&[vm], with_event(vm_event(vm, "vm.guestinfo", message)))?;
        if let Some(link) = vm.link() {
            tell_values(vm, &link, changed);
        }
        Ok(vm.row().guestinfo)
    }

    /// Tries a change of values out.
    pub fn check_guestinfo(
        &self,
        vm: &Vm,
        patch: &BTreeMap<String, Option<String>>,
        expected: Option<u64>,
    ) -> DryRun {
        let mut problems = Problems::default();
        let row = vm.row();
        problems.take(check_version("VM", &row.name, expected, row.version));
        let mut values = row.guestinfo;
        for (key, value) in patch {
            problems.take(set(&mut values, key, value.as_deref().unwrap_or("")));
        }
        problems.dry_run()
    }

    /// The guest sets a value; runs on the reactor's thread.
    pub(super) fn guestinfo_said(self: &Arc<Self>, vm: &Arc<Vm>, key: &str, value: &str) {
        let write = vm.update(|live| {
            let changed = guestinfo::set(&mut live.row.guestinfo, key, value);
            if !changed.unwrap_or(false) {
                return false;
            }
            live.identity_stale = true;
            let idle = live.guestinfo_news.is_none();
            let news = live.guestinfo_news.get_or_insert_default();
            if news.len() <= NAMED_MAX && !news.iter().any(|known| known == key) {
                news.push(key.to_owned());
            }
            idle
        });
        if write {
            let (host, vm) = (Arc::clone(self), Arc::clone(vm));
            spawn("guestinfo", move || host.write_guestinfo(&vm));
        }
    }

    /// Writes what the guest has set, at once and then with pauses until there is nothing new.
    fn write_guestinfo(&self, vm: &Arc<Vm>) {
        loop {
            let news = vm.update(|live| {
                let news = live.guestinfo_news.take().filter(|news| !news.is_empty());
                // An empty list says that a writer is there.
                live.guestinfo_news = news.as_ref().map(|_| Vec::new());
                news.filter(|_| !live.removed)
            });
            let Some(keys) = news else { return };
            let message = format!("{} set by the guest", named(&keys));
            self.commit_logged(&[vm], with_event(vm_event(vm, "vm.guestinfo", message)));
            thread::sleep(WRITE_PAUSE);
        }
    }

    /// Gives the VM's process an identity message with the present guestinfo, and the agent too.
    pub(super) fn renew_identity(&self, vm: &Arc<Vm>, link: &Arc<Link>) {
        let identity = identity_message(&vm.row(), IdentityKind::Boot, Vec::new());
        let told = link.call(Command::SetIdentity(identity), &[], TIMEOUT);
        if let Err(error) = told {
            vm.update(|live| live.identity_stale = true);
            tracing::info!(vm = &*vm.name(), "the identity was not renewed: {error:#}");
        }
    }
}

/// guestinfo of a new VM: what it inherits, but for what belongs to one VM, then what was given,
/// with `{name}` and `{index}` (from 1) replaced in its values.
pub(super) fn guestinfo_of_new(
    inherited: &BTreeMap<String, String>,
    given: &BTreeMap<String, String>,
    name: &str,
    index: usize,
) -> OpResult<BTreeMap<String, String>> {
    let own = |key: &str| key.starts_with(NET_PREFIX);
    let mut values = inherited.clone();
    values.retain(|key, _| !own(key));
    let index = index.to_string();
    for (key, template) in given {
        let value = template.replace("{name}", name).replace("{index}", &index);
        set(&mut values, key, &value)?;
    }
    Ok(values)
}

/// Sets a value; an error names the field of the request.
fn set(values: &mut BTreeMap<String, String>, key: &str, value: &str) -> OpResult<bool> {
    guestinfo::set(values, key, value)
        .map_err(|problem| OpError::invalid(format!("guestinfo: {problem}")))
}

fn tell_values(vm: &Vm, link: &Arc<Link>, changed: Vec<(String, String)>) {
    for (key, value) in changed {
        let message = ToGuest::GuestInfoSet { key, value };
        let told = serde_json::to_string(&message)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(link.call(Command::TellAgent(text), &[], TIMEOUT)?));
        if let Err(error) = told {
            // It gets all values when it says hello.
            tracing::info!(vm = &*vm.name(), "the agent was not told: {error:#}");
            return;
        }
    }
}

fn named(keys: &[String]) -> String {
    let mut text = keys[..keys.len().min(NAMED_MAX)].join(", ");
    if keys.len() > NAMED_MAX {
        text.push_str(" and more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_clone_inherits_and_its_own_values_are_filled_in() {
        let source = map(&[
            ("guestinfo.role", "source"),
            ("guestinfo.kept", "yes"),
            ("guestinfo.dropped", "yes"),
            ("guestinfo.mitose.net.0.address", "192.0.2.7/24"),
        ]);
        let given = map(&[
            ("guestinfo.role", "{name} is {index}, {other}"),
            ("guestinfo.dropped", ""),
        ]);
        let values = guestinfo_of_new(&source, &given, "web-3", 3).unwrap();
        let expect = map(&[
            ("guestinfo.role", "web-3 is 3, {other}"),
            ("guestinfo.kept", "yes"),
        ]);
        assert_eq!(values, expect);
    }

    #[test]
    fn an_error_names_the_field() {
        let given = map(&[("role", "x")]);
        let error = guestinfo_of_new(&BTreeMap::new(), &given, "a", 1).unwrap_err();
        assert!(error.message().starts_with("guestinfo: key"), "{error:?}");
    }

    #[test]
    fn an_event_names_few_keys() {
        let keys: Vec<_> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(named(&keys[..2]), "0, 1");
        assert_eq!(named(&keys), "0, 1, 2, 3, 4, 5, 6, 7 and more");
    }
}
