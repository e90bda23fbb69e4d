//! Repeated forks of a source that wrote scattered pages since the last one.

use crate::first::tell_steps;
use crate::host::POOL;
use crate::source::Source;
use crate::{Bench, Limit};

const MIB: u64 = 2048;

/// Stun and first run after 1 and 10 % of the pages were written.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let mut source = Source::boot(&bench.host, MIB, "mode=dirty scatter=1")?;
    source.fork(1)?;
    source.remove_clones()?;
    for (command, percent, samples) in [(b'1', 1, 11), (b'T', 10, 15)] {
        let (mut stuns, mut runs) = (vec![], vec![]);
        for _ in 0..bench.samples(samples) {
            if limit.reached() {
                break;
            }
            source.command(command, "D")?;
            bench.host.settle()?;
            let fork = source.fork(1)?;
            tell_steps(&fork.cloned);
            stuns.push(fork.cloned.stun_us as f64);
            runs.extend(fork.first_runs()?);
            source.remove_clones()?;
        }
        let conditions = format!(
            "guest runs, wrote {percent} % of 2024 MiB in scattered pages since the last fork, disk and TAP, 1 clone with a TAP"
        );
        let name = format!("fork.repeat.stun_us.2048MiB.dirty{percent}pct");
        bench.report.add(&name, "us", &stuns, &conditions);
        let name = format!("clone.repeat.first_run_us.dirty{percent}pct");
        bench.report.add(&name, "us", &runs, &conditions);
    }
    Ok(())
}
