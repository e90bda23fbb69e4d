//! What only one VM has, asked for by many at the same time: hardware and static addresses, UUIDs, files of
//! serial ports.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::sync::Barrier;

use api_types::{ErrorKind, ReconfigureRequest, RunRequest};
use bed::Bed;
use client::ClientError;
use serde_json::{Value, json};

/// Calls at the same time.
const CALLS: usize = 16;

/// Makes all calls at once, and asserts that one of them, and only one, has succeeded.
fn one_of_all<T: Send>(call: impl Fn(usize) -> Result<T, ClientError> + Sync, words: &str) -> T {
    let start = Barrier::new(CALLS);
    let made = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..CALLS)
            .map(|number| {
                let (start, call) = (&start, &call);
                scope.spawn(move || {
                    start.wait();
                    call(number)
                })
            })
            .collect();
        let ended = asked.into_iter().map(|asked| asked.join().unwrap());
        ended.collect::<Vec<_>>()
    });
    let (good, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    for refused in refused.into_iter().filter_map(Result::err) {
        let kinds = [ErrorKind::Conflict, ErrorKind::Invalid];
        assert!(refused.kind().is_some_and(|kind| kinds.contains(&kind)));
        assert!(refused.to_string().contains(words), "{refused}");
    }
    assert_eq!(good.len(), 1, "{words}");
    good.into_iter().next().unwrap().unwrap()
}

fn machine(bed: &Bed, name: &str, members: &Value) -> RunRequest {
    let mut request = bed.request(name, "");
    request.powered_off = true;
    let mut all = serde_json::to_value(request).unwrap();
    let given = members.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(given);
    serde_json::from_value(all).unwrap()
}

#[test]
fn many_calls_at_the_same_time_get_one_address_once() {
    let bed = Bed::new();
    let file = bed.file("serial");
    let alone = |round: usize| {
        [
            (
                json!({ "nets": [{ "mac": format!("52:54:00:01:00:{round:02x}") }] }),
                "belongs to another NIC",
            ),
            (
                json!({ "uuid": format!("00000000-0000-4000-8000-{round:012x}") }),
                "belongs to",
            ),
            (
                json!({
                    "nets": [{ "network": "VM Network" }],
                    "addresses": [{ "nic": 0, "address": format!("10.1.1.{}/24", round + 1) }],
                }),
                "already",
            ),
            (
                json!({ "serial": { "file": file.with_extension(round.to_string()) } }),
                "belongs to the VM",
            ),
        ]
    };
    for round in 0..4 {
        for (members, words) in alone(round) {
            let call = |number: usize| {
                let request = machine(&bed, &format!("m{number}"), &members);
                bed.client.run(&request)
            };
            let made = one_of_all(call, words);
            bed.client.remove(&made.vm.name, false).unwrap();
        }
    }
    assert!(bed.names().is_empty());
}

#[test]
fn many_vms_that_are_changed_at_the_same_time_get_one_address_once() {
    let bed = Bed::new();
    let file = bed.file("serial");
    for number in 0..CALLS {
        let request = machine(&bed, &format!("m{number}"), &json!({}));
        bed.client.run(&request).unwrap();
    }
    for round in 0..4 {
        let wishes = [
            json!({ "uuid": format!("00000000-0000-4000-8000-{round:012x}") }),
            json!({ "add_nics": [{ "mac": format!("52:54:00:01:00:{round:02x}") }] }),
            json!({ "serial": [{ "port": 0, "backend": { "file": file.with_extension(round.to_string()) } }] }),
        ];
        for wish in wishes {
            let change: ReconfigureRequest = serde_json::from_value(wish).unwrap();
            let call = |number: usize| {
                let name = format!("m{number}");
                bed.client.reconfigure(&name, None, &change)
            };
            one_of_all(call, "belongs to");
        }
    }
    let nics = (0..CALLS).map(|number| bed.detail(&format!("m{number}")).nics.len());
    assert_eq!(nics.sum::<usize>(), 4);
}
