//! Users and groups from `/etc/passwd` and `/etc/group`: a static program has no name services.

use std::fs;

use anyhow::{Result, bail};
use rustix::fs::Gid;
use rustix::process::Uid;

use crate::Root;

/// A user that a command can run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl User {
    /// Looks up `name`, `uid`, `name:group` or `uid:gid`.
    pub(crate) fn find(root: &Root, spec: &str) -> Result<Self> {
        let passwd = fs::read_to_string(root.path("/etc/passwd")).unwrap_or_default();
        let group = fs::read_to_string(root.path("/etc/group")).unwrap_or_default();
        let (wanted, wanted_group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let mut user = match find_passwd(&passwd, wanted) {
            Some(user) => user,
            None => Self::unnamed(wanted)?,
        };
        if let Some(wanted) = wanted_group {
            user.gid = find_group(&group, wanted)?;
        }
        user.groups = memberships(&group, &user.name);
        user.groups.push(user.gid);
        user.groups.sort_unstable();
        user.groups.dedup();
        Ok(user)
    }

    /// A number without an entry, or root where there is no `/etc/passwd`.
    fn unnamed(wanted: &str) -> Result<Self> {
        let uid = match wanted.parse::<u32>() {
            Ok(uid) if uid != u32::MAX => uid,
            _ if wanted == "root" => 0,
            _ => bail!("no user {wanted:?} in the guest's /etc/passwd"),
        };
        let (home, name) = if uid == 0 {
            ("/root", "root")
        } else {
            ("/", wanted)
        };
        Ok(Self {
            name: name.into(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: home.into(),
            shell: "/bin/sh".into(),
        })
    }

    /// What a child sets before it runs the command.
    pub(crate) fn ids(&self) -> (Uid, Gid, Vec<Gid>) {
        let groups = self.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid), groups)
    }
}

fn find_passwd(text: &str, wanted: &str) -> Option<User> {
    let number = wanted.parse::<u32>().ok();
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else {
            return None;
        };
        let uid = uid.parse().ok()?;
        if *name != wanted && number != Some(uid) {
            return None;
        }
        let or = |value: &str, default: &str| {
            if value.is_empty() {
                default.to_owned()
            } else {
                value.to_owned()
            }
        };
        Some(User {
            name: (*name).to_owned(),
            uid,
            gid: gid.parse().ok()?,
            groups: Vec::new(),
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    })
}

fn find_group(text: &str, wanted: &str) -> Result<u32> {
    let named = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(wanted))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    match named.or_else(|| wanted.parse().ok().filter(|&gid| gid != u32::MAX)) {
        Some(gid) => Ok(gid),
        None => bail!("no group {wanted:?} in the guest's /etc/group"),
    }
}

fn memberships(text: &str, name: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = fields.as_slice() else {
                return None;
            };
            members
                .split(',')
                .any(|m| m == name)
                .then(|| gid.parse().ok())
                .flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/bash\nred:x:101:102::/var/lib/red:\nbroken\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("etc/group"),
            "root:x:0:\nred:x:102:\nssl:x:103:a,red\n",
        )
        .unwrap();
        let root = Root::files(dir.path());
        (dir, root)
    }

    #[test]
    fn names_numbers_and_groups_are_found() {
        let (_dir, root) = root();
        let red = User::find(&root, "red").unwrap();
        assert_eq!(
            (red.uid, red.gid, red.groups.as_slice()),
            (101, 102, [102, 103].as_slice())
        );
        assert_eq!(
            (red.home.as_str(), red.shell.as_str()),
            ("/var/lib/red", "/bin/sh")
        );
        assert_eq!(User::find(&root, "101").unwrap().name, "red");
        assert_eq!(User::find(&root, "red:ssl").unwrap().gid, 103);
        assert_eq!(User::find(&root, "7:8").unwrap().gid, 8);
        assert!(User::find(&root, "nobody").is_err());
        assert!(User::find(&root, "red:none").is_err());
        assert!(User::find(&root, "4294967295").is_err());
    }

    #[test]
    fn root_exists_without_passwd() {
        let dir = tempfile::tempdir().unwrap();
        let user = User::find(&Root::files(dir.path()), "root").unwrap();
        assert_eq!((user.uid, user.home.as_str()), (0, "/root"));
    }
}
