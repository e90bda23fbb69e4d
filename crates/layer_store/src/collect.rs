//! Removal of layers that nothing live needs.
//!
//! No counts are kept. What is live comes from the caller's records, what it needs from the
//! headers on the datastore, so a crash at any point costs nothing but another look.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use disk_layers::chain::ChainError;

use crate::error::StoreError;
use crate::id::LayerId;
use crate::store::{LayerStore, io_error};

/// The layers that existed at one moment.
#[derive(Clone, Debug)]
pub struct Survey {
    layers: Vec<LayerId>,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub removed: Vec<LayerId>,
    /// Bytes they took on the file system.
    pub freed_bytes: u64,
}

impl LayerStore {
    /// Lists the layers, as the first step of a collection. Take the live layers from the records
    /// *after* this: a layer is recorded before it is made, so each one listed here that is in
    /// use is known by then, and one made later is not listed.
    pub fn survey(&self) -> Result<Survey, StoreError> {
        let layers = self.list()?;
        Ok(Survey { layers })
    }

    /// Removes the surveyed layers that are neither live nor below a live one. Live layers that
    /// do not exist (recorded, not made yet) are passed over; if the chain of one that does exist
    /// cannot be followed, nothing is removed.
    pub fn collect(
        &self,
        survey: Survey,
        live: &HashSet<LayerId>,
    ) -> Result<Collected, StoreError> {
        let mut needed = HashSet::new();
        for &id in live {
            if self.layer_path(id).exists() {
                self.mark(id, &mut needed)?;
            }
        }
        let mut dead: Vec<LayerId> = survey
            .layers
            .into_iter()
            .filter(|id| !needed.contains(id))
            .collect();
        self.children_first(&mut dead);
        let mut done = Collected::default();
        for id in dead {
            let bytes = self.allocated_bytes(id).unwrap_or(0);
            let path = self.layer_path(id);
            match fs::remove_file(&path) {
                Ok(()) => {
                    done.removed.push(id);
                    done.freed_bytes += bytes;
                }
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(io_error("remove", &path, source)),
            }
        }
        if !done.removed.is_empty() {
            self.sync_directory()?;
        }
        Ok(done)
    }

    /// Adds a layer and all below it, up to one that is there already.
    fn mark(&self, top: LayerId, needed: &mut HashSet<LayerId>) -> Result<(), StoreError> {
        let mut next = Some(top);
        while let Some(id) = next {
            if !needed.insert(id) {
                break;
            }
            let header = self.header(id).map_err(|err| match err {
                StoreError::UnknownLayer { id } => StoreError::Chain {
                    id: top,
                    source: ChainError::Missing {
                        path: self.layer_path(id),
                        overlay: None,
                    },
                },
                err => err,
            })?;
            next = match header.backing {
                None => None,
                Some(backing) => Some(LayerId::from_file_name(&backing.name).ok_or_else(|| {
                    StoreError::ForeignFile {
                        id: top,
                        path: backing.name.into(),
                    }
                })?),
            };
        }
        Ok(())
    }

    /// Orders layers so that none comes before one built on it: a removal that stops half-way
    /// leaves whole chains.
    fn children_first(&self, layers: &mut [LayerId]) {
        let below: HashMap<LayerId, LayerId> = layers
            .iter()
            .filter_map(|&id| {
                let backing = self.header(id).ok()?.backing?;
                Some((id, LayerId::from_file_name(&backing.name)?))
            })
            .collect();
        let depth = |id: &LayerId| {
            // A loop among garbage must not hold us.
            let chain = std::iter::successors(Some(*id), |id| below.get(id).copied());
            chain.take(disk_layers::MAX_LAYERS * 2).count()
        };
        layers.sort_by_cached_key(|id| std::cmp::Reverse(depth(id)));
    }
}
