//! Which memory layer shows below each part of a view.
//!
//! A view has one layer, until it is flattened: then what was moved shows the new one.

use std::fs::File;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// A part of the RAM, from the end of the part before it on.
#[derive(Clone, Debug)]
struct Part {
    /// Offset of the first byte behind it.
    end: u64,
    file: Arc<File>,
}

/// Layers that may have lost their last part: drop it when nobody waits.
#[derive(Debug)]
#[must_use = "dropping it may take long"]
pub struct Displaced(#[expect(dead_code, reason = "it is there to be dropped")] Vec<Part>);

/// Parts of all RAM in order; none is empty, and neighbours have different layers.
#[derive(Clone, Debug)]
pub(crate) struct Layers(Vec<Part>);

impl Layers {
    /// One layer below `len` bytes.
    pub(crate) fn one(file: File, len: u64) -> Self {
        let file = Arc::new(file);
        Self(vec![Part { end: len, file }])
    }

    /// Returns the layer below the byte at `offset`, and where its part ends.
    pub(crate) fn at(&self, offset: u64) -> (&File, u64) {
        let found = self.0.iter().find(|part| offset < part.end);
        let part = found.or(self.0.last()).expect("there is RAM");
        (&part.file, part.end)
    }

    /// Puts `file` below the bytes of `range`, which lies in the RAM. Returns the parts as they were:
    /// the last user of a layer that is dropped gives back all of its memory, which takes long.
    pub(crate) fn put(&mut self, range: Range<u64>, file: &Arc<File>) -> Displaced {
        let mut parts: Vec<Part> = Vec::with_capacity(self.0.len() + 2);
        let mut add = |start: u64, end: u64, file: &Arc<File>| {
            if start >= end {
                return;
            }
            match parts.last_mut() {
                Some(last) if Arc::ptr_eq(&last.file, file) => last.end = end,
                _ => parts.push(Part {
                    end,
                    file: Arc::clone(file),
                }),
            }
        };
        let mut start = 0;
        let mut new = Some(&range);
        for part in &self.0 {
            add(start, part.end.min(range.start), &part.file);
            if part.end > range.start
                && let Some(range) = new.take()
            {
                add(range.start, range.end, file);
            }
            add(start.max(range.end), part.end, &part.file);
            start = part.end;
        }
        Displaced(mem::replace(&mut self.0, parts))
    }

    /// Returns the number of different layers.
    pub(crate) fn count(&self) -> usize {
        let mut files: Vec<_> = self.0.iter().map(|part| Arc::as_ptr(&part.file)).collect();
        files.sort_unstable();
        files.dedup();
        files.len()
    }

    /// Returns each layer, some of them more than once.
    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.0.iter().map(|part| &*part.file)
    }

    /// Returns the number of parts.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> File {
        File::open("/dev/null").expect("open")
    }

    proptest! {
        #[test]
        fn each_byte_has_the_layer_that_was_put_there_last(
            puts in proptest::collection::vec((0u64..40, 1u64..40, 0usize..4), 0..30),
        ) {
            const LEN: u64 = 40;
            let mut layers = Layers::one(file(), LEN);
            let first = Arc::clone(&layers.0[0].file);
            let files: Vec<_> = (0..4).map(|_| Arc::new(file())).collect();
            let mut model = vec![&first; LEN as usize];
            for (start, len, index) in puts {
                let end = LEN.min(start + len);
                drop(layers.put(start..end, &files[index]));
                model[start as usize..end as usize].fill(&files[index]);
            }
            for (offset, wanted) in model.iter().enumerate() {
                let (found, end) = layers.at(offset as u64);
                prop_assert!(std::ptr::eq(found, &raw const ***wanted));
                prop_assert!(end > offset as u64);
                let last = &model[end as usize - 1];
                prop_assert!(Arc::ptr_eq(last, wanted));
            }
            let runs = model.chunk_by(|one, next| Arc::ptr_eq(one, next)).count();
            prop_assert_eq!(layers.len(), runs);
            prop_assert_eq!(layers.0.last().map(|part| part.end), Some(LEN));
        }
    }
}
