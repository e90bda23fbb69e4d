//! Pages with code, seen by several processors.

use super::{Bench, PAGE};

fn stale(cpu: &mut crate::Cpu) -> (Vec<u64>, Vec<u64>) {
    let (mut stale, mut compare) = (vec![], vec![]);
    cpu.take_stale(&mut stale, &mut compare);
    (stale, compare)
}

#[test]
fn a_store_to_own_code_is_noticed_once() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    assert!(cpu.store_fast::<u8>(PAGE, 1));
    cpu.mark_code_page(PAGE);
    assert!(!cpu.store_fast::<u8>(PAGE, 2));
    assert!(!cpu.code_changed());
    cpu.store::<u8>(env, PAGE, 3).unwrap();
    cpu.store::<u8>(env, PAGE, 4).unwrap();
    assert!(cpu.code_changed() && cpu.stale_waits());
    assert_eq!(stale(cpu), (vec![PAGE], vec![]));
    assert!(!cpu.code_changed() && !cpu.stale_waits());
    // Without code it is an ordinary page again.
    cpu.store::<u8>(env, PAGE, 5).unwrap();
    assert!(!cpu.code_changed());
    assert!(cpu.store_fast::<u8>(PAGE, 6));
}

#[test]
fn all_ways_to_store_are_noticed() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    type Store<'a> = &'a dyn Fn(&mut crate::Cpu, &mut super::World);
    let stores: [Store; 5] = [
        &|cpu, env| cpu.store::<u64>(env, PAGE + 0xffd, 7).unwrap(),
        &|cpu, env| cpu.write_bytes(env, PAGE, &[1, 2, 3]).unwrap(),
        &|cpu, env| assert!(cpu.change::<u32>(env, PAGE, |old| Some(old + 1)).is_ok()),
        &|cpu, env| assert!(cpu.change::<u32>(env, PAGE + 0xffe, Some).is_ok()),
        &|cpu, env| cpu.set_bits_system(env, PAGE + 5, 1).unwrap(),
    ];
    for store in stores {
        cpu.mark_code_page(PAGE);
        store(cpu, env);
        assert!(cpu.code_changed());
        assert_eq!(stale(cpu).0, [PAGE]);
    }
}

#[test]
fn the_other_processor_hears_of_it() {
    let mut bench = Bench::long();
    let mut other = bench.second();
    other.begin_slice();
    other.mark_code_page(PAGE);
    assert!(other.stale_waits(), "unsettled until all have looked");
    let (cpu, env) = bench.parts();
    cpu.begin_slice();
    assert_eq!(stale(&mut other), (vec![], vec![PAGE]));
    assert!(!other.stale_waits());
    cpu.store::<u8>(env, PAGE + 3, 1).unwrap();
    assert!(!cpu.code_changed(), "it has no code there itself");
    assert!(other.code_changed());
    assert_eq!(stale(&mut other), (vec![PAGE], vec![]));
}

#[test]
fn old_write_tags_go_when_their_holder_looks() {
    let mut bench = Bench::long();
    let mut other = bench.second();
    let (cpu, env) = bench.parts();
    cpu.begin_slice();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    other.begin_slice();
    other.mark_code_page(PAGE);
    // The window: the old tag still serves, so the page has to be compared.
    assert!(cpu.store_fast::<u8>(PAGE, 2));
    assert_eq!(stale(&mut other), (vec![], vec![PAGE]));
    assert_eq!(stale(&mut other), (vec![], vec![PAGE]));
    cpu.sync_code_pages();
    assert!(!cpu.store_fast::<u8>(PAGE, 3));
    assert_eq!(
        stale(&mut other),
        (vec![], vec![PAGE]),
        "once more after all have looked"
    );
    assert_eq!(stale(&mut other), (vec![], vec![]));
}

#[test]
fn a_processor_that_rests_holds_nobody_up() {
    let mut bench = Bench::long();
    let mut other = bench.second();
    let (cpu, env) = bench.parts();
    cpu.begin_slice();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    cpu.end_slice();
    other.begin_slice();
    other.mark_code_page(PAGE);
    assert_eq!(stale(&mut other), (vec![], vec![PAGE]));
    assert_eq!(stale(&mut other), (vec![], vec![]));
    cpu.begin_slice();
    assert!(!cpu.store_fast::<u8>(PAGE, 2));
}

#[test]
fn a_processor_that_goes_away_leaves_no_marks() {
    let mut bench = Bench::long();
    let mut other = bench.second();
    other.mark_code_page(PAGE);
    drop(other);
    let (cpu, env) = bench.parts();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    assert!(cpu.store_fast::<u8>(PAGE, 2));
}

/// A processor drops translations between another one's look at the page's word and its telling.
#[test]
fn a_store_does_not_tell_who_gave_its_code_up_meanwhile() {
    let mut bench = Bench::long();
    let mut other = bench.second();
    other.begin_slice();
    other.mark_code_page(PAGE);
    other.unmark_code_page(PAGE);
    bench.cpu.ram.code().tell((PAGE >> 12) as usize, PAGE);
    other.mark_code_page(PAGE);
    let (cpu, env) = bench.parts();
    cpu.begin_slice();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    assert!(other.code_changed(), "the store after that is told");
}

/// Cross-modifying code: one processor changes a page and says so, the other serialises, then runs
/// what it has translated. It looks also while it waits, as a processor does that yields.
#[test]
fn no_change_is_missed() {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    const ROUNDS: u32 = 20_000;
    let mut bench = Bench::long();
    let mut other = bench.second();
    let (written, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let wait = |word: &AtomicU32, round: u32, look: &mut dyn FnMut()| {
        for looks in 1.. {
            if word.load(SeqCst) == round {
                return;
            }
            look();
            // The other thread may need the processor.
            if looks % 256 == 0 {
                std::thread::yield_now();
            }
        }
    };
    let missed = std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let mut env = super::World::default();
            let mut translated: Option<u32> = None;
            let mut look = |cpu: &mut crate::Cpu, translated: &mut Option<u32>| {
                if !cpu.stale_waits() {
                    return;
                }
                let (stale, suspects) = stale(cpu);
                if stale.contains(&PAGE) {
                    *translated = None;
                }
                let differs = |code| cpu.load(&mut env, PAGE) != Ok(code);
                if suspects.contains(&PAGE) && translated.is_some_and(differs) {
                    *translated = None;
                    cpu.unmark_code_page(PAGE);
                }
            };
            let mut missed = 0;
            other.begin_slice();
            for round in 1..=ROUNDS {
                wait(&written, round, &mut || look(&mut other, &mut translated));
                look(&mut other, &mut translated);
                let code = *translated.get_or_insert_with(|| {
                    other.mark_code_page(PAGE);
                    let mut env = super::World::default();
                    other.load(&mut env, PAGE).unwrap()
                });
                missed += u32::from(code != round);
                done.store(round, SeqCst);
            }
            other.end_slice();
            missed
        });
        let (cpu, env) = (&mut bench.cpu, &mut bench.world);
        cpu.begin_slice();
        for round in 1..=ROUNDS {
            cpu.store::<u32>(env, PAGE, round).unwrap();
            written.store(round, SeqCst);
            wait(&done, round, &mut || cpu.sync_code_pages());
        }
        cpu.end_slice();
        runner.join().unwrap()
    });
    assert_eq!(missed, 0, "old code ran after a serialising instruction");
}

/// One processor changes a value under another's feet, as LOCK does.
#[test]
fn locked_changes_of_two_processors_add_up() {
    const ROUNDS: u32 = 2000;
    let mut bench = Bench::long();
    let mut other = bench.second();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut env = super::World::default();
            for _ in 0..ROUNDS {
                other
                    .change::<u32>(&mut env, PAGE + 1, |old| Some(old + 1))
                    .unwrap();
            }
        });
        let (cpu, env) = (&mut bench.cpu, &mut bench.world);
        for _ in 0..ROUNDS {
            cpu.change::<u32>(env, PAGE + 1, |old| Some(old + 1))
                .unwrap();
        }
    });
    let (cpu, env) = bench.parts();
    assert_eq!(cpu.load::<u32>(env, PAGE + 1), Ok(2 * ROUNDS));
}
