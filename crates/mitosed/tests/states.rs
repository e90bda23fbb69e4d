//! Random operations on a few VMs, compared with a model: what the model refuses is refused by name
//! and changes nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{
    CloneMode, ErrorKind, ForkRequest, NetRequest, NicChange, ReconfigureRequest, StopRequest,
    VmDetail,
};
use bed::{Bed, clones};
use client::ClientError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Operations of one run.
const STEPS: usize = 220;
/// VMs that the operations are done to.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// What the model knows of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Gone,
    Off,
    Running,
    Paused,
    Template,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Create,
    Start,
    ShutDown,
    PowerOff,
    Reset,
    Pause,
    Resume,
    Fork,
    Copy,
    Adjust,
    Reconfigure,
    Describe,
    Mark,
    Unmark,
    Remove,
    RemoveByForce,
}

const OPS: [Op; 16] = [
    Op::Create,
    Op::Start,
    Op::ShutDown,
    Op::PowerOff,
    Op::Reset,
    Op::Pause,
    Op::Resume,
    Op::Fork,
    Op::Copy,
    Op::Adjust,
    Op::Reconfigure,
    Op::Describe,
    Op::Mark,
    Op::Unmark,
    Op::Remove,
    Op::RemoveByForce,
];

/// What becomes of a VM; none where it is refused.
fn expected(model: Model, op: Op) -> Option<Model> {
    use Model::{Gone, Off, Paused, Running, Template};
    let off = matches!(model, Off | Template);
    let lives = matches!(model, Running | Paused);
    match op {
        Op::Create => (model == Gone).then_some(Off),
        _ if model == Gone => None,
        Op::Start => (model == Off).then_some(Running),
        Op::ShutDown if off => Some(model),
        Op::ShutDown => (model == Running).then_some(Off),
        Op::PowerOff => Some(if off { model } else { Off }),
        Op::Reset => lives.then_some(Running),
        Op::Pause => lives.then_some(Paused),
        Op::Resume => lives.then_some(Running),
        Op::Fork => lives.then_some(model),
        Op::Copy => Some(model),
        Op::Adjust => (model != Template).then_some(model),
        Op::Reconfigure => (model == Off).then_some(model),
        Op::Describe => Some(model),
        Op::Mark => off.then_some(Template),
        Op::Unmark => Some(if model == Template { Off } else { model }),
        Op::Remove => off.then_some(Gone),
        Op::RemoveByForce => Some(Gone),
    }
}

fn seen(bed: &Bed, name: &str) -> Model {
    let Ok(detail) = bed.client.vm(name) else {
        return Model::Gone;
    };
    match (detail.vm.state.as_str(), detail.vm.template) {
        ("poweredOff", true) => Model::Template,
        ("poweredOff", false) => Model::Off,
        ("running", false) => Model::Running,
        ("paused", false) => Model::Paused,
        other => panic!("{name} is {other:?}"),
    }
}

fn act(bed: &Bed, name: &str, op: Op, step: usize) -> Result<(), ClientError> {
    let client = &bed.client;
    let set = |request: ReconfigureRequest| client.reconfigure(name, None, &request).map(drop);
    match op {
        Op::Create => {
            let mut request = bed.with_disk(bed.request(name, ""));
            request.powered_off = true;
            request.nets = vec![NetRequest {
                network: Some("VM Network".to_owned()),
                ..NetRequest::default()
            }];
            client.run(&request).map(drop)
        }
        Op::Start => client.start(name).map(drop),
        Op::ShutDown => client.stop(name, &StopRequest::default()).map(drop),
        Op::PowerOff => {
            let request = StopRequest {
                force: true,
                ..StopRequest::default()
            };
            client.stop(name, &request).map(drop)
        }
        Op::Reset => client.reset(name).map(drop),
        Op::Pause => client.pause(name).map(drop),
        Op::Resume => client.resume(name).map(drop),
        Op::Fork | Op::Copy => {
            let clone = format!("{name}-{step}");
            let mode = match op {
                Op::Fork => CloneMode::Instant,
                _ => CloneMode::Linked,
            };
            let request = ForkRequest {
                mode,
                ..clones(&[&clone])
            };
            client.fork(name, &request)?;
            client.remove(&clone, true)
        }
        Op::Adjust => set(ReconfigureRequest {
            nics: vec![NicChange {
                nic: 0,
                connected: Some(step.is_multiple_of(2)),
                ..NicChange::default()
            }],
            ..ReconfigureRequest::default()
        }),
        Op::Reconfigure => set(ReconfigureRequest {
            cpus: Some(1 + (step % 4) as u32),
            ..ReconfigureRequest::default()
        }),
        Op::Describe => set(ReconfigureRequest {
            annotation: Some(format!("step {step}")),
            ..ReconfigureRequest::default()
        }),
        Op::Mark | Op::Unmark => set(ReconfigureRequest {
            template: Some(op == Op::Mark),
            ..ReconfigureRequest::default()
        }),
        Op::Remove => client.remove(name, false),
        Op::RemoveByForce => client.remove(name, true),
    }
}

/// A VM without what changes by itself.
fn still(bed: &Bed, name: &str) -> Option<VmDetail> {
    let mut detail = bed.client.vm(name).ok()?;
    detail.memory = api_types::MemoryUse::default();
    detail.disk = api_types::DiskUse::default();
    Some(detail)
}

#[test]
fn random_operations_agree_with_the_table() {
    let seed: u64 = match std::env::var("MITOSE_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    println!("MITOSE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = Bed::new();
    let mut models = [Model::Gone; NAMES.len()];
    for step in 0..STEPS {
        let which = random.random_range(0..NAMES.len());
        let op = OPS[random.random_range(0..OPS.len())];
        let (name, model) = (NAMES[which], models[which]);
        let before = still(&bed, name);
        let done = act(&bed, name, op, step);
        match (expected(model, op), done) {
            (Some(next), Ok(())) => models[which] = next,
            (None, Err(error)) => {
                let kind = match model {
                    Model::Gone => ErrorKind::NotFound,
                    _ => ErrorKind::Conflict,
                };
                let text = error.to_string();
                assert_eq!(error.kind(), Some(kind), "{step} {op:?} {model:?}: {text}");
                assert!(text.contains(name) && text.contains("; "), "{text}");
                assert_eq!(still(&bed, name), before, "{step} {op:?} {model:?}");
            }
            (wanted, got) => panic!("{step} {op:?} {model:?}: {wanted:?}, but {got:?}"),
        }
        assert_eq!(seen(&bed, name), models[which], "{step} {op:?}");
        if step % 70 == 69 {
            bed.restart();
            for (name, model) in NAMES.iter().zip(models) {
                assert_eq!(seen(&bed, name), model, "{step}: after a restart");
            }
        }
    }
    let there: Vec<&str> = NAMES
        .into_iter()
        .zip(models)
        .filter(|(_, model)| *model != Model::Gone)
        .map(|(name, _)| name)
        .collect();
    bed.assert_only(&there);
}
