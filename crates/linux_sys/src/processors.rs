//! Which processors a thread runs on (sched_setaffinity(2)).
//!
//! A thread that lands on the processor of a vCPU whose guest computes may wait there for the next
//! tick of the clock, 4 ms, also beside an idle processor: one that slept for a moment is woken where
//! it was, one that used more than its share must let the vCPU in, and a processor that goes idle often
//! does not look for work elsewhere. What has to be done soon had better not come there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the last thread that stepped onto a processor runs, and where it ran.
#[derive(Clone, Copy, Debug)]
struct Stepped {
    onto: CpuSet,
    before: CpuSet,
}

/// Of this process, and of one that is born of it meanwhile.
static STEPPED: Mutex<Option<Stepped>> = Mutex::new(None);

fn stepped() -> MutexGuard<'static, Option<Stepped>> {
    STEPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of the processor that the calling thread is on.
pub fn current_processor() -> Option<usize> {
    // SAFETY: takes nothing and returns a number.
    let number = unsafe { libc::sched_getcpu() };
    usize::try_from(number).ok()
}

/// Has the calling thread, and the threads and processes that it starts, run on `processor` alone until
/// [`step_back`]; where it may not run there, nothing changes.
pub fn step_onto(processor: usize) {
    let Ok(before) = sched_getaffinity(None) else {
        return;
    };
    if processor >= CpuSet::MAX_CPU || !before.is_set(processor) {
        return;
    }
    let mut onto = CpuSet::new();
    onto.set(processor);
    if sched_setaffinity(None, &onto).is_ok() {
        *stepped() = Some(Stepped { onto, before });
    }
}

/// Lets the calling thread run again where it may, if it stepped onto a processor or was started by
/// one that had. One that somebody has sent elsewhere since then stays there.
pub fn step_back() {
    if let Some(step) = *stepped() {
        step.back();
    }
}

/// As [`step_back`], when all threads that were started meanwhile have stepped back.
pub fn end_step() {
    if let Some(step) = stepped().take() {
        step.back();
    }
}

impl Stepped {
    /// A refusal leaves the thread where it runs.
    fn back(self) {
        let Self { onto, before } = self;
        if !sched_getaffinity(None).is_ok_and(|now| now == onto) {
            return;
        }
        // As one that never was anywhere else, it also runs on processors that come later.
        let mut all = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|number| all.set(number));
        let _ = sched_setaffinity(None, &all);
        if !sched_getaffinity(None).is_ok_and(|now| now == before) {
            let _ = sched_setaffinity(None, &before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn mine() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    /// One test, since what was stepped onto is known of the whole process.
    #[test]
    fn threads_step_onto_a_processor_and_back() {
        let (before, onto, of_child, back) = thread::spawn(|| {
            let before = mine();
            for nowhere in [CpuSet::MAX_CPU, CpuSet::MAX_CPU - 1, usize::MAX] {
                step_onto(nowhere);
                step_back();
                assert_eq!(mine(), before, "{nowhere}");
            }
            let last = (0..CpuSet::MAX_CPU).rfind(|number| before.is_set(*number));
            let last = last.unwrap();
            step_onto(last);
            assert_eq!(current_processor(), Some(last));
            let onto = mine();
            let of_child = thread::spawn(|| {
                let inherited = mine();
                step_back();
                (inherited, mine())
            });
            let of_child = of_child.join().unwrap();
            end_step();
            (before, onto, of_child, mine())
        })
        .join()
        .unwrap();
        assert_eq!(onto.count(), 1);
        assert_eq!(back, before);
        assert_eq!(of_child, (onto, before));
        // What somebody else has said holds: of fewer processors, also when a step ends, and of others.
        let fewer = onto;
        thread::spawn(move || {
            sched_setaffinity(None, &fewer).unwrap();
            step_onto(current_processor().unwrap());
            end_step();
            assert_eq!(mine(), fewer);
            step_back();
            assert_eq!(mine(), fewer, "the step has ended");
        })
        .join()
        .unwrap();
        let Some(other) = (0..CpuSet::MAX_CPU).find(|n| before.is_set(*n) && !onto.is_set(*n))
        else {
            return;
        };
        thread::spawn(move || {
            let mut one = CpuSet::new();
            one.set(other);
            step_onto(current_processor().unwrap());
            if mine() == one {
                return;
            }
            sched_setaffinity(None, &one).unwrap();
            end_step();
            assert_eq!(mine(), one);
        })
        .join()
        .unwrap();
    }
}
