//! Users and groups of the host, as its files tell them.

use std::fs;

/// Name of a user id.
pub fn user_name(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    line_of(&text, uid).map(str::to_owned)
}

/// Id of a group.
pub fn id(group: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/group").ok()?;
    let fields = fields_of(&text, group)?;
    fields.get(2)?.parse().ok()
}

/// Whether a user with this primary group is in a group.
pub fn has(group: &str, user: &str, gid: u32) -> bool {
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(fields) = fields_of(&text, group) else {
        return false;
    };
    let primary = fields.get(2).and_then(|id| id.parse().ok()) == Some(gid);
    let members = fields.get(3).copied().unwrap_or_default();
    primary || members.split(',').any(|member| member == user)
}

/// Name in the line of `/etc/passwd` that has a user id.
fn line_of(text: &str, uid: u32) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

fn fields_of<'a>(text: &'a str, group: &str) -> Option<Vec<&'a str>> {
    let lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines
        .into_iter()
        .find(|fields| fields.first() == Some(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_field() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/:/bin/false\n";
        assert_eq!(line_of(passwd, 33), Some("web"));
        assert_eq!(line_of(passwd, 3), None);
        let group = "root:x:0:\nmitose:x:77:ann,bob\n";
        let fields = fields_of(group, "mitose").unwrap();
        assert_eq!(fields[2..], ["77", "ann,bob"]);
        assert!(fields_of(group, "mit").is_none());
    }

    #[test]
    fn root_is_in_its_group() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(id("root"), Some(0));
        assert!(has("root", "root", 0));
        assert!(!has("root", "nobody", 65534));
        assert!(!has("no-such-group", "root", 0));
    }
}
