//! Forks of a guest that writes memory and disk and talks on the network.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::guest::{Place, Tap, wait_for};

/// Writes memory with a sum beside it, again and again; each round is checked by the next.
const MEMORY: &str = r#"mkdir -p /dev/shm; cat >/tmp/memory.sh <<'X'
n=0
while :; do
  dd if=/dev/urandom of=/dev/shm/data.new bs=64k count=8 2>/dev/null
  sha256sum </dev/shm/data.new >/dev/shm/sum.new
  mv /dev/shm/data.new /dev/shm/data; mv /dev/shm/sum.new /dev/shm/sum
  sha256sum </dev/shm/data | cmp -s - /dev/shm/sum || echo memory >>/tmp/errors
  n=$((n+1)); echo $n >/tmp/memory.new; mv /tmp/memory.new /tmp/memory.n; sleep 0.2
done
X
setsid sh /tmp/memory.sh >/dev/null 2>&1 </dev/null &"#;

/// Writes numbered blocks with a flush after each; notes what was acknowledged. The pauses leave
/// room for several guests on a slow host.
const DISK: &str = r#"cat >/tmp/disk.sh <<'X'
n=0
while :; do
  n=$((n+1))
  printf 'block %09d\n' $n | dd of=/dev/vda bs=4096 seek=$((n%512)) conv=sync,fsync,notrunc 2>/dev/null || echo disk >>/tmp/errors
  echo $n >/tmp/disk.new; mv /tmp/disk.new /tmp/disk.n; sleep 0.1
done
X
setsid sh /tmp/disk.sh >/dev/null 2>&1 </dev/null &"#;

/// Checks, past the guest's own cache, that every block lies in its place and that the newest
/// acknowledged ones are there.
const VERIFY: &str = r#"kill $(pgrep -f disk.sh) 2>/dev/null; sleep 1; n=$(cat /tmp/disk.n)
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=4096 count=512 2>/dev/null | tr '\000' '\n' | grep block >/tmp/blocks
awk -v n=$n '{ have[$2+0]=1 } END { for (i=(n>256?n-255:1); i<=n; i++)
  if (!have[i] && !have[i+512]) print "block " i " is lost" }' /tmp/blocks
cat /tmp/errors 2>/dev/null; echo verified $n"#;

/// Gives the guest an address and lets it ping the host.
fn network(tap: &Tap) -> String {
    format!(
        "ip addr add {}/24 dev eth0; ip link set eth0 up\n\
         setsid ping -i 0.5 {} >/tmp/ping.log 2>&1 </dev/null &",
        tap.address(2),
        tap.address(1)
    )
}

fn number(place: &Place, name: &str, file: &str) -> anyhow::Result<u64> {
    let text = place.sh(name, &format!("cat {file} 2>/dev/null || echo 0"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{name}: {file} holds {text:?}"))
}

fn wait_progress(place: &Place, name: &str) -> anyhow::Result<()> {
    for file in ["/tmp/memory.n", "/tmp/disk.n"] {
        let before = number(place, name, file)?;
        wait_for(
            &format!("{file} of {name}"),
            Duration::from_secs(120),
            || Ok(number(place, name, file)? > before),
        )?;
    }
    Ok(())
}

fn start_work(place: &Place, name: &str, cpus: &str, tap: &Tap) -> anyhow::Result<()> {
    let disk = place.scratch_disk(&format!("{name}.raw"), 16)?;
    let disk = format!("{},format=raw", disk.to_str().context("path")?);
    let net = format!("tap={}", tap.name());
    let memory = ["--memory", "384M", "--cpus", cpus];
    place.run(
        name,
        &[&memory[..], &["--disk", &disk, "--net", &net]].concat(),
    )?;
    place.sh(name, &network(tap))?;
    place.sh(name, MEMORY)?;
    place.sh(name, DISK)?;
    wait_progress(place, name)
}

fn verify(place: &Place, name: &str) -> anyhow::Result<()> {
    let said = place.sh(name, VERIFY)?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == 1 && lines[0].starts_with("verified"),
        "{name}: {said}"
    );
    Ok(())
}

fn pings(place: &Place, name: &str) -> anyhow::Result<usize> {
    Ok(place
        .sh(name, "grep -c 'bytes from' /tmp/ping.log || true")?
        .trim()
        .parse()?)
}

fn busy(place: &Place, cpus: &str, clones: u32) -> anyhow::Result<()> {
    let tap = Tap::add()?;
    start_work(place, "b0", cpus, &tap)?;
    place.clone("b0", clones, "b")?;
    let names: Vec<String> = (0..=clones).map(|n| format!("b{n}")).collect();
    let before = pings(place, "b0")?;
    for name in &names {
        wait_progress(place, name)?;
    }
    wait_for("pings of the source", Duration::from_secs(60), || {
        Ok(pings(place, "b0")? > before)
    })?;
    let mut addresses = BTreeSet::new();
    for name in &names {
        let address = place.sh(name, "cat /sys/class/net/eth0/address")?;
        ensure!(
            addresses.insert(address.clone()),
            "{name} shares the address {address}"
        );
    }
    let count = place.sh("b1", "nproc")?;
    ensure!(count == cpus, "the clone has {count} CPUs");
    for name in &names {
        verify(place, name)?;
    }
    place.check_logs()?;
    place.check_disks()
}

/// One vCPU: memory, disk and network go on in the source and in each clone.
pub(crate) fn forked_while_busy(place: &Place) -> anyhow::Result<()> {
    busy(place, "1", 2)
}

/// The same on four vCPUs.
pub(crate) fn forked_while_busy_on_four_cpus(place: &Place) -> anyhow::Result<()> {
    busy(place, "4", 1)
}

/// One busy source is forked twenty times; each clone works, the source is whole at the end.
pub(crate) fn forked_twenty_times(place: &Place) -> anyhow::Result<()> {
    forked_repeatedly(place, 20)
}

/// As many times as a disk can have layers, less a few.
pub(crate) fn forked_fifty_times(place: &Place) -> anyhow::Result<()> {
    forked_repeatedly(place, 50)
}

fn forked_repeatedly(place: &Place, rounds: u32) -> anyhow::Result<()> {
    let tap = Tap::add()?;
    start_work(place, "r0", "1", &tap)?;
    for round in 1..=rounds {
        place.clone("r0", 1, &format!("r{round}-"))?;
        let clone = format!("r{round}-1");
        ensure!(place.sh(&clone, "hostname")? == clone, "round {round}");
        if round % 5 == 0 {
            verify(place, &clone)?;
        }
        if round < rounds {
            place.cli.run(&["rm", &clone, "--force"])?;
        }
    }
    wait_progress(place, "r0")?;
    verify(place, "r0")?;
    place.check_logs()?;
    place.check_disks()
}
