//! Compressed streams, read as the plain bytes inside: gzip with any number of members, zstd with
//! any number of frames (RFC 8878), or neither.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{OciResult, refuse};
use crate::Watch;

/// Most bytes that a layer or an archive unpacks to.
const PLAIN_BYTES_MAX: u64 = 256 << 30;

/// Largest window of a zstd frame, in bytes: what `zstd -d` takes without being asked.
const WINDOW_MAX: u64 = 128 << 20;

pub(super) type Source = Box<dyn Read + Send>;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
    /// A form that is not read, with its name.
    Foreign(&'static str),
}

/// Bytes that tell a form.
const MAGIC_LEN: u64 = 6;

fn form(magic: &[u8]) -> Form {
    match magic {
        [0x1f, 0x8b, ..] => Form::Gzip,
        // A frame, or a frame to be skipped.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Form::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Form::Foreign("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Form::Foreign("bzip2"),
        _ => Form::Plain,
    }
}

/// Whether data is compressed in a form that [`decompress`] reads.
pub(crate) fn is_compressed(magic: &[u8]) -> bool {
    matches!(form(magic), Form::Gzip | Form::Zstd)
}

/// Returns the plain form of a stream.
pub(super) fn decompress(mut source: Source) -> OciResult<Source> {
    let mut magic = Vec::new();
    (&mut source).take(MAGIC_LEN).read_to_end(&mut magic)?;
    let form = form(&magic);
    let whole = BufReader::with_capacity(1 << 18, io::Cursor::new(magic).chain(source));
    Ok(match form {
        Form::Plain => Box::new(whole),
        Form::Gzip => Box::new(Gzip::Member(GzDecoder::new(whole))),
        Form::Zstd => Box::new(Zstd::new(whole)),
        Form::Foreign(name) => {
            return refuse(format!(
                "it is compressed with {name}: layers are plain, gzip or zstd; save the image \
                 anew with one of these"
            ));
        }
    })
}

/// Reads all members of a gzip stream; zeros behind them are padding, as gzip(1) has it.
enum Gzip<R> {
    Member(GzDecoder<R>),
    /// No member follows.
    Ended,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let Self::Member(decoder) = self else {
                return Ok(0);
            };
            let damaged =
                |e: io::Error| io::Error::new(e.kind(), format!("a gzip stream is damaged: {e}"));
            let n = decoder.read(out).map_err(damaged)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            let Self::Member(decoder) = std::mem::replace(self, Self::Ended) else {
                return Ok(0);
            };
            let mut rest = decoder.into_inner();
            match rest.fill_buf()?.first() {
                None => {}
                Some(0x1f) => *self = Self::Member(GzDecoder::new(rest)),
                Some(_) => check_padding(rest)?,
            }
        }
    }
}

fn check_padding(mut rest: impl BufRead) -> io::Result<()> {
    loop {
        let bytes = rest.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|&b| b != 0) {
            return Err(io::Error::other(
                "a gzip stream has other bytes behind its end",
            ));
        }
        let len = bytes.len();
        rest.consume(len);
    }
}

/// Reads all frames of a zstd stream.
struct Zstd<R> {
    decoder: FrameDecoder,
    source: R,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_MAX);
        Self {
            decoder,
            source,
            in_frame: false,
        }
    }

    /// Starts the next frame; returns false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(damaged("it is cut off"));
                    }
                }
                Err(FrameDecoderError::ReadFrameHeaderError(
                    ReadFrameHeaderError::BadMagicNumber(_),
                )) => return Err(damaged("other bytes are behind its end")),
                Err(error) => return Err(damaged(error)),
            }
        }
        Ok(false)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(wanted) if self.decoder.get_calculated_checksum() != Some(wanted) => {
                Err(damaged("a frame does not have its checksum"))
            }
            _ => Ok(()),
        }
    }
}

fn damaged(problem: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("a zstd stream is damaged: {problem}"))
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            let n = self.decoder.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            if self.decoder.is_finished() {
                self.end_frame()?;
            } else {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder
                    .decode_blocks(&mut self.source, one)
                    .map_err(damaged)?;
            }
        }
    }
}

/// A reader that ends with an error when the work is cancelled or grows beyond all measure.
pub(super) struct Watched<R> {
    inner: R,
    watch: Watch,
    left: u64,
}

impl<R> Watched<R> {
    pub(super) fn new(inner: R, watch: Watch) -> Self {
        Self {
            inner,
            watch,
            left: PLAIN_BYTES_MAX,
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.watch.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let n = self.inner.read(out)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than 256 GiB"))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    /// A frame that decoders pass over.
    fn skipped(kind: u8, len: u32) -> Vec<u8> {
        let mut frame = vec![0x50 | kind, 0x2a, 0x4d, 0x18];
        frame.extend(len.to_le_bytes());
        frame.resize(frame.len() + len as usize, 0xaa);
        frame
    }

    fn plain(stream: &[u8]) -> Result<Vec<u8>, String> {
        let mut reader =
            decompress(Box::new(io::Cursor::new(stream.to_vec()))).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        reader
            .read_to_end(&mut bytes)
            .map_err(|e| e.to_string())
            .map(|_| bytes)
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 77) as u8).collect()
    }

    #[test]
    fn all_frames_and_members_are_read() {
        let all = text(700_000);
        let (one, rest) = all.split_at(1);
        let (two, three) = rest.split_at(300_000);
        assert_eq!(plain(&all), Ok(all.clone()));
        let members = [gzip(one), gzip(b""), gzip(two), gzip(three)].concat();
        assert_eq!(plain(&members), Ok(all.clone()));
        assert_eq!(plain(&[members, vec![0; 5000]].concat()), Ok(all.clone()));
        let frames = [
            skipped(0, 8),
            zstd(one),
            zstd(b""),
            skipped(15, 100_000),
            zstd(two),
            zstd(three),
            skipped(3, 0),
        ];
        assert_eq!(plain(&frames.concat()), Ok(all));
    }

    #[test]
    fn what_follows_or_lacks_is_named() {
        let check = |stream: &[u8], word: &str| {
            let problem = plain(stream).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        };
        let (gz, zst) = (gzip(&text(9000)), zstd(&text(9000)));
        check(&[&gz[..], b"JUNK"].concat(), "other bytes behind its end");
        check(&[&gz[..], b"\0\0J"].concat(), "other bytes behind its end");
        check(&gz[..gz.len() / 2], "gzip");
        check(&[&gz[..], &gz[..12]].concat(), "gzip");
        check(&[&zst[..], b"JUNKJUNK"].concat(), "behind its end");
        check(&zst[..zst.len() / 2], "zstd");
        check(&[&zst[..], &zst[..3]].concat(), "zstd");
        let mut skip = skipped(1, 50);
        skip.truncate(40);
        check(&[&zst[..], &skip[..]].concat(), "cut off");
        check(b"\xfd7zXZ\0rest", "xz");
        check(b"BZh9rest", "bzip2");
    }
}
