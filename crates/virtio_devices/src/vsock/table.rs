//! The connections of a socket device, and which of them have work.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;

use super::conn::{Conn, Phase};
use super::regs::CONNECTIONS_MAX;
use crate::device::Poller;

/// Epoll token of the listening socket; connections use their index.
pub(super) const LISTENER: u32 = u32::MAX;

/// Host port and guest port: what a packet names.
pub(super) type Key = (u32, u32);

#[derive(Debug, Default)]
pub(super) struct Table {
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    pub(super) host_list: VecDeque<usize>,
    pub(super) guest_list: VecDeque<usize>,
    poller: Option<Poller>,
}

impl Table {
    pub(super) fn set_poller(&mut self, poller: Poller) {
        self.poller = Some(poller);
    }

    pub(super) fn len(&self) -> usize {
        self.conns.len() - self.free.len()
    }

    pub(super) fn get_mut(&mut self, id: usize) -> Option<&mut Conn> {
        self.conns.get_mut(id)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.conns.iter().flatten()
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// Adds a connection and watches its stream; gives it back when there is no place.
    pub(super) fn insert(&mut self, conn: Conn) -> Result<usize, Conn> {
        if self.len() >= CONNECTIONS_MAX && !self.evict() {
            return Err(conn);
        }
        let id = self.free.last().copied().unwrap_or(self.conns.len());
        let token = u32::try_from(id).unwrap_or(LISTENER);
        if let Some(poller) = &self.poller
            && poller.add(&conn.stream, token).is_err()
        {
            return Err(conn);
        }
        if self.free.pop().is_none() {
            self.conns.push(None);
        }
        self.conns[id] = Some(conn);
        self.mark(id);
        Ok(id)
    }

    /// Frees the place of a connection that only waits for the guest's confirmation.
    fn evict(&mut self) -> bool {
        let closing =
            |conn: &Option<Conn>| conn.as_ref().is_some_and(|c| c.phase == Phase::Closing);
        let found = self.conns.iter().position(closing);
        found.inspect(|&id| self.remove(id)).is_some()
    }

    /// Makes packets with the connection's ports find it.
    pub(super) fn bind(&mut self, id: usize, key: Key) {
        self.by_key.insert(key, id);
    }

    /// The guest no longer knows the connection.
    pub(super) fn unbind(&mut self, id: usize) {
        let Some(conn) = self.conns.get(id).and_then(Option::as_ref) else {
            return;
        };
        let key = (conn.host_port, conn.guest_port);
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
    }

    /// Removes a connection and closes its stream.
    pub(super) fn remove(&mut self, id: usize) {
        self.unbind(id);
        if let Some(conn) = self.conns.get_mut(id).and_then(Option::take) {
            self.unwatch(&conn.stream);
            self.free.push(id);
        }
    }

    fn unwatch(&self, stream: &UnixStream) {
        // Closing is not enough where a forked process still holds the descriptor.
        if let Some(poller) = &self.poller {
            poller.remove(stream);
        }
    }

    pub(super) fn clear(&mut self) {
        for id in 0..self.conns.len() {
            self.remove(id);
        }
        self.host_list.clear();
        self.guest_list.clear();
    }

    /// Puts a connection on the lists of those with possible work.
    pub(super) fn mark(&mut self, id: usize) {
        let Some(conn) = self.conns.get_mut(id).and_then(Option::as_mut) else {
            return;
        };
        if !std::mem::replace(&mut conn.in_host_list, true) {
            self.host_list.push_back(id);
        }
        self.mark_guest(id);
    }

    /// Puts a connection on the list of those with a packet for the guest, if it may have one.
    pub(super) fn mark_guest(&mut self, id: usize) {
        let Some(conn) = self.conns.get_mut(id).and_then(Option::as_mut) else {
            return;
        };
        if conn.wants_guest() && !std::mem::replace(&mut conn.in_guest_list, true) {
            self.guest_list.push_back(id);
        }
    }
}
