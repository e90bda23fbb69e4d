//! Looking into ext2, ext3 and ext4 file systems: their size, and what their directories hold.
//!
//! The file system is somebody else's: all numbers are bounded, and what does not make sense is
//! the same as what is not there.

use std::fs::File;
use std::io;

use super::{le, read_at};

/// Where the superblock is, and where in it the magic number.
const SUPERBLOCK: u64 = 1024;
const MAGIC: usize = 0x38;

/// Directory blocks that are read for one look at a file system.
const BLOCKS_MAX: u32 = 4096;

/// Deepest tree of extents (the format has no deeper ones).
const DEPTH_MAX: u16 = 5;

const META_BG: u64 = 0x10;
const WIDE: u64 = 0x80;
const EXTENTS: u64 = 0x8_0000;
const INLINE: u64 = 0x1000_0000;
const ROOT_INODE: u64 = 2;

/// Whether there is an ext file system at `start`.
pub(super) fn is_here(disk: &File, start: u64) -> io::Result<bool> {
    let mut magic = [0u8; 2];
    let at = start.saturating_add(SUPERBLOCK + MAGIC as u64);
    Ok(read_at(disk, &mut magic, at)? == 2 && magic == [0x53, 0xef])
}

/// An opened file system.
pub(super) struct Ext<'a> {
    disk: &'a File,
    start: u64,
    block: u64,
    blocks: u64,
    first_block: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor: u64,
    features: u64,
    budget: u32,
}

impl<'a> Ext<'a> {
    pub(super) fn open(disk: &'a File, start: u64) -> io::Result<Self> {
        let mut sb = [0u8; 1024];
        read_at(disk, &mut sb, start.saturating_add(SUPERBLOCK))?;
        let field = |at: usize, len: usize| le(&sb[at..at + len]);
        let features = field(0x60, 4);
        let wide = features & WIDE != 0;
        Ok(Self {
            disk,
            start,
            block: 1024 << field(0x18, 4).min(6),
            blocks: field(4, 4) | if wide { field(0x150, 4) << 32 } else { 0 },
            first_block: field(0x14, 4),
            inodes_per_group: field(0x28, 4),
            inode_size: if field(0x4c, 4) == 0 {
                128
            } else {
                field(0x58, 2)
            },
            descriptor: if wide { field(0xfe, 2).max(32) } else { 32 },
            features,
            budget: BLOCKS_MAX,
        })
    }

    /// Size that the file system says it has, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block)
    }

    /// Whether a path names something; symbolic links are not followed.
    pub(super) fn has(&mut self, path: &str) -> io::Result<bool> {
        let mut inode = ROOT_INODE;
        for name in path.split('/') {
            match self.find(inode, name.as_bytes())? {
                Some(found) => inode = found,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn find(&mut self, directory: u64, name: &[u8]) -> io::Result<Option<u64>> {
        let Some(inode) = self.inode(directory)? else {
            return Ok(None);
        };
        let is_directory = le(&inode[..2]) & 0xf000 == 0x4000;
        let flags = le(&inode[0x20..0x24]);
        if !is_directory || flags & INLINE != 0 {
            return Ok(None);
        }
        let map: &[u8; 60] = inode[0x28..0x64].as_array().unwrap_or(&[0; 60]);
        if flags & EXTENTS != 0 {
            return self.find_in_extents(map, name, DEPTH_MAX);
        }
        self.find_in_map(map, name)
    }

    /// The first 128 bytes of an inode.
    fn inode(&self, number: u64) -> io::Result<Option<[u8; 128]>> {
        let index = number.wrapping_sub(1);
        if self.inodes_per_group == 0 || self.inode_size < 128 || self.features & META_BG != 0 {
            return Ok(None);
        }
        let (group, slot) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let mut descriptor = [0u8; 64];
        let len = self.descriptor.min(64) as usize;
        let table = (self.first_block + 1) * self.block;
        let at = table.saturating_add(group.saturating_mul(self.descriptor));
        if self.read(&mut descriptor[..len], at)? < len {
            return Ok(None);
        }
        let table = le(&descriptor[8..12]) | le(&descriptor[0x28..0x2c]) << 32;
        let at = table
            .saturating_mul(self.block)
            .saturating_add(slot.saturating_mul(self.inode_size));
        let mut inode = [0u8; 128];
        let whole = self.read(&mut inode, at)? == inode.len();
        Ok(whole.then_some(inode))
    }

    fn find_in_extents(&mut self, node: &[u8], name: &[u8], left: u16) -> io::Result<Option<u64>> {
        let depth = le(&node[6..8]) as u16;
        if le(&node[..2]) != 0xf30a || depth > left {
            return Ok(None);
        }
        let entries = node[12..].chunks_exact(12).take(le(&node[2..4]) as usize);
        for entry in entries {
            if depth > 0 {
                let child = le(&entry[4..8]) | le(&entry[8..10]) << 32;
                let child = self.block_at(child)?;
                let found = match child {
                    Some(child) if left > 0 => self.find_in_extents(&child, name, left - 1)?,
                    _ => None,
                };
                if found.is_some() {
                    return Ok(found);
                }
                continue;
            }
            let first = le(&entry[8..12]) | le(&entry[6..8]) << 32;
            // Longer ones are allocated but not written.
            let len = le(&entry[4..6]);
            for block in (first..).take(if len <= 0x8000 { len as usize } else { 0 }) {
                if let Some(found) = self.find_in_block(block, name)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// ext2 and ext3: twelve blocks, and a block of further ones.
    fn find_in_map(&mut self, map: &[u8; 60], name: &[u8]) -> io::Result<Option<u64>> {
        let mut blocks: Vec<u64> = map[..48].chunks_exact(4).map(le).collect();
        let further = le(&map[48..52]);
        if further != 0 {
            let further = self.block_at(further)?.unwrap_or_default();
            blocks.extend(further.chunks_exact(4).map(le));
        }
        for block in blocks.into_iter().filter(|&block| block != 0) {
            if let Some(found) = self.find_in_block(block, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Hashed directories keep their entries in blocks of the plain form; the blocks of the hash
    /// tree look like empty ones.
    fn find_in_block(&mut self, number: u64, name: &[u8]) -> io::Result<Option<u64>> {
        let block = self.block_at(number)?.unwrap_or_default();
        let mut rest = &block[..];
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let inode = le(&head[..4]);
            let len = le(&head[4..6]) as usize;
            if inode != 0 && tail.get(..head[6].into()) == Some(name) {
                return Ok(Some(inode));
            }
            match rest.get(len.max(8)..) {
                Some(next) => rest = next,
                None => break,
            }
        }
        Ok(None)
    }

    fn block_at(&mut self, number: u64) -> io::Result<Option<Vec<u8>>> {
        if self.budget == 0 || number == 0 {
            return Ok(None);
        }
        self.budget -= 1;
        let mut block = vec![0; self.block as usize];
        let n = self.read(&mut block, number.saturating_mul(self.block))?;
        Ok((n == block.len()).then_some(block))
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        read_at(self.disk, buffer, self.start.saturating_add(at))
    }
}
