//! HTTP/1.1 as far as one client of one server needs it: a request with a JSON body, an answer
//! whose body has a length, comes in chunks, or ends with the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use api_types::{ErrorKind, Problem, STREAM_PROTOCOL};

use crate::ClientError;
use crate::connect::{Connection, Target};

/// Most bytes of one line, and most lines, of the head of an answer.
const MAX_LINE_BYTES: u64 = 8 << 10;
const MAX_HEAD_LINES: usize = 128;
/// Most bytes of an answer that is taken into memory.
const MAX_BODY_BYTES: u64 = 256 << 20;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub method: &'static str,
    pub path: &'a str,
    pub body: Option<Vec<u8>>,
    pub accept: &'static str,
    /// Version that the object must have.
    pub if_match: Option<u64>,
}

/// Status of an answer about a task that is still in work.
pub(crate) const ACCEPTED: u16 = 202;

/// Body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    Length(io::Take<BufReader<Connection>>),
    Chunked(Chunked),
    Rest(BufReader<Connection>),
}

/// Sends a request and reads the head of its answer; a refusal is an error.
pub(crate) fn ask(target: &Target, ask: &Ask<'_>) -> Result<Body, ClientError> {
    ask_status(target, ask).map(|(_, body)| body)
}

/// As [`ask`], with the status of the answer.
pub(crate) fn ask_status(target: &Target, ask: &Ask<'_>) -> Result<(u16, Body), ClientError> {
    let stream = send(target, ask, "Connection: close\r\n")?;
    let mut reader = BufReader::new(stream);
    let head = read_head(|line| {
        let mut bytes = reader.by_ref().take(MAX_LINE_BYTES);
        bytes.read_line(line)
    })?;
    let body = if head.status == 204 {
        Body::Length(reader.take(0))
    } else if let Some(length) = head.length {
        Body::Length(reader.take(length))
    } else if head.chunked {
        Body::Chunked(Chunked::new(reader))
    } else {
        Body::Rest(reader)
    };
    if (200..300).contains(&head.status) {
        return Ok((head.status, body));
    }
    Err(refusal(head.status, body))
}

/// Sends a request that turns the connection into a byte stream.
pub(crate) fn ask_stream(target: &Target, path: &str) -> Result<UnixStream, ClientError> {
    let ask = Ask {
        method: "GET",
        path,
        body: None,
        accept: "application/json",
        if_match: None,
    };
    let headers = format!("Connection: upgrade\r\nUpgrade: {STREAM_PROTOCOL}\r\n");
    let mut stream = send(target, &ask, &headers)?;
    // Byte by byte: what follows the head belongs to the stream.
    let head = read_head(|line| {
        let mut bytes = Vec::new();
        while bytes.last() != Some(&b'\n') && (bytes.len() as u64) < MAX_LINE_BYTES {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                break;
            }
            bytes.push(byte[0]);
        }
        line.push_str(&String::from_utf8_lossy(&bytes));
        Ok(bytes.len())
    })?;
    if head.status == 101 {
        return stream.into_socket().map_err(broken("take over a stream"));
    }
    let reader = BufReader::new(stream);
    Err(refusal(
        head.status,
        Body::Length(reader.take(head.length.unwrap_or(0))),
    ))
}

fn send(target: &Target, ask: &Ask<'_>, headers: &str) -> Result<Connection, ClientError> {
    let mut stream = target.connect()?;
    let body = ask.body.as_deref().unwrap_or_default();
    let mut message = format!(
        "{} {} HTTP/1.1\r\n{}Accept: {}\r\n{headers}",
        ask.method,
        ask.path,
        target.headers(),
        ask.accept
    );
    if ask.body.is_some() {
        message.push_str("Content-Type: application/json\r\n");
    }
    if let Some(version) = ask.if_match {
        message.push_str(&format!("If-Match: \"{version}\"\r\n"));
    }
    if ask.method != "GET" {
        message.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    message.push_str("\r\n");
    let mut bytes = message.into_bytes();
    bytes.extend_from_slice(body);
    stream
        .write_all(&bytes)
        .and_then(|()| stream.flush())
        .map_err(broken("send a request"))?;
    Ok(stream)
}

fn refusal(status: u16, body: Body) -> ClientError {
    let text = read_all(body).unwrap_or_default();
    let problem = serde_json::from_slice(&text).unwrap_or_else(|_| {
        let told = format!("the daemon answered with HTTP status {status}");
        Problem::new(ErrorKind::Failed, told)
    });
    ClientError::Refused(Box::new(problem))
}

/// Reads a whole body.
pub(crate) fn read_all(body: Body) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    body.take(MAX_BODY_BYTES)
        .read_to_end(&mut bytes)
        .map_err(broken("read an answer"))?;
    Ok(bytes)
}

pub(crate) fn broken(doing: &'static str) -> impl Fn(io::Error) -> ClientError {
    move |source| ClientError::Broken { doing, source }
}

#[derive(Debug, Default)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

fn read_head(
    mut next_line: impl FnMut(&mut String) -> io::Result<usize>,
) -> Result<Head, ClientError> {
    let mut head = Head::default();
    for _ in 0..MAX_HEAD_LINES {
        let mut line = String::new();
        next_line(&mut line).map_err(broken("read an answer"))?;
        if !line.ends_with('\n') {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(broken("read an answer")(source));
        }
        let line = line.trim_end();
        if head.status == 0 {
            let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
            head.status = status.ok_or_else(|| ClientError::Answer("it is not HTTP".to_owned()))?;
            continue;
        }
        if line.is_empty() {
            return Ok(head);
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.trim().parse().ok(),
            "transfer-encoding" => head.chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    Err(ClientError::Answer("its head has no end".to_owned()))
}

/// Body in chunks (RFC 9112 7.1), without trailers.
#[derive(Debug)]
pub(crate) struct Chunked {
    reader: BufReader<Connection>,
    left: u64,
    first: bool,
    ended: bool,
}

impl Chunked {
    fn new(reader: BufReader<Connection>) -> Self {
        Self {
            reader,
            left: 0,
            first: true,
            ended: false,
        }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            self.line()?;
        }
        let line = self.line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        self.left = u64::from_str_radix(digits, 16)
            .map_err(|_| io::Error::other("an answer has a chunk without a length"))?;
        self.ended = self.left == 0;
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.by_ref().take(256).read_line(&mut line)?;
        if line.ends_with('\n') {
            Ok(line)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.next_chunk()?;
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Length(body) => body.read(buffer),
            Self::Chunked(body) => body.read(buffer),
            Self::Rest(body) => body.read(buffer),
        }
    }
}
