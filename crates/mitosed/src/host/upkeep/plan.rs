//! Which layers to merge: few enough copies that a source forked n times costs O(n log n) bytes.
//!
//! Layers right below a top are merged into one as soon as a stack is nearly at its limit: the
//! newest two, and on with each older one that is not much larger than all newer ones together. So
//! sizes rise steeply from the top to the base, and a byte is copied about once for each step.

/// An older layer goes along when it is at most this many times larger than what is merged anyway.
const STEEPNESS: u64 = 3;
/// Layers that a stack may have above those that cannot be merged, whatever its limit says.
const ROOM_MIN: usize = 4;

/// Depth of stacks that the daemon keeps up.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct DepthLimit(pub usize);

impl DepthLimit {
    /// Layers that a stack may have of which `fixed` cannot be merged.
    pub fn for_stack(self, fixed: usize) -> usize {
        self.0.max(fixed + ROOM_MIN)
    }

    /// How many layers right below the top are to be merged. `sizes` are those of the layers that
    /// can be merged, in bytes, newest first; below them are `fixed` others.
    pub fn run_to_merge(self, sizes: &[u64], fixed: usize) -> Option<usize> {
        let limit = self.for_stack(fixed);
        let depth = 1 + sizes.len() + fixed;
        // One place is left for the fork that comes while layers are merged.
        if depth + 1 < limit || sizes.len() < 2 {
            return None;
        }
        let wanted = (depth + 3 - limit).clamp(2, sizes.len());
        let mut run = 0;
        let mut merged = 0u64;
        for &size in sizes {
            if run >= wanted && size > merged.saturating_mul(STEEPNESS) {
                break;
            }
            merged = merged.saturating_add(size);
            run += 1;
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: DepthLimit = DepthLimit(8);

    /// Forks a disk on one base `forks` times; returns the units copied and the greatest depth.
    fn simulate(forks: u64, grow: impl Fn(u64) -> u64) -> (u64, usize) {
        let (mut sizes, mut copied, mut deepest) = (Vec::<u64>::new(), 0, 0);
        for _ in 0..forks {
            sizes.insert(0, 1);
            deepest = deepest.max(sizes.len() + 2);
            if let Some(run) = LIMIT.run_to_merge(&sizes, 1) {
                let merged = grow(sizes[..run].iter().sum());
                copied += merged;
                sizes.splice(..run, [merged]);
            }
        }
        (copied, deepest)
    }

    #[test]
    fn copying_stays_within_n_log_n_and_depth_below_the_limit() {
        for forks in [30u64, 300, 3000] {
            let (copied, deepest) = simulate(forks, |size| size);
            let bound = forks as f64 * (forks as f64).log2() * 1.1;
            assert!(
                (copied as f64) < bound,
                "{forks} forks: {copied} of {bound}"
            );
            assert!(deepest <= 7, "{deepest}");
        }
        // A guest that writes the same blocks again and again.
        let (copied, deepest) = simulate(300, |size| size.min(10));
        assert!(copied < 300 * 6, "{copied}");
        assert!(deepest <= 7, "{deepest}");
    }

    #[test]
    fn short_stacks_are_left_alone() {
        assert_eq!(LIMIT.run_to_merge(&[1; 4], 1), None);
        assert_eq!(LIMIT.run_to_merge(&[1; 5], 1), Some(5));
        assert_eq!(LIMIT.run_to_merge(&[], 20), None);
        assert_eq!(LIMIT.run_to_merge(&[1], 20), None);
    }

    #[test]
    fn large_old_layers_stay_where_they_are() {
        assert_eq!(LIMIT.run_to_merge(&[1, 1, 7, 100, 1000], 1), Some(2));
        assert_eq!(LIMIT.run_to_merge(&[1, 1, 6, 100, 1000], 1), Some(3));
    }

    #[test]
    fn a_stack_far_above_the_limit_comes_down_at_once() {
        let sizes: Vec<u64> = (0..40).map(|at| 1 << at).collect();
        let run = LIMIT.run_to_merge(&sizes, 1).expect("to be merged");
        assert!(1 + 40 - run + 1 + 1 < 8, "{run}");
    }

    #[test]
    fn deep_bases_leave_room_above_them() {
        assert_eq!(LIMIT.for_stack(1), 8);
        assert_eq!(LIMIT.for_stack(20), 24);
        assert_eq!(LIMIT.run_to_merge(&[1], 20), None);
        assert_eq!(LIMIT.run_to_merge(&[1, 1], 20), Some(2));
    }
}
