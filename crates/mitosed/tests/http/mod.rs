//! Plain HTTP over the daemon's socket: what no well-behaved client sends.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::bed::{Bed, PATIENCE};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Path of the next page.
    pub fn next(&self) -> Option<String> {
        let link = self.header("link")?;
        let (path, rest) = link.strip_prefix('<')?.split_once('>')?;
        assert_eq!(rest, "; rel=\"next\"");
        Some(path.to_owned())
    }
}

/// Sends a request; a body without a content type among `headers` is JSON.
pub fn ask(bed: &Bed, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut reader = send(bed, method, path, headers, body);
    let (status, headers) = read_head(&mut reader);
    let mut body = Vec::new();
    reader.read_to_end(&mut body).unwrap();
    Answer {
        status,
        headers,
        body,
    }
}

/// The first data line of a stream of events.
pub fn first_data(bed: &Bed, path: &str, headers: &[(&str, &str)]) -> String {
    let mut reader = send(bed, "GET", path, headers, "");
    read_head(&mut reader);
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if let Some(data) = line.strip_prefix("data:") {
            return data.trim().to_owned();
        }
    }
}

fn send(
    bed: &Bed,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(bed.home().join("run/mitosed.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0: the answer ends with the connection and comes without chunks.
    let mut head = format!("{method} {path} HTTP/1.0\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let kind = headers.iter().any(|(name, _)| *name == "Content-Type");
    if !body.is_empty() && !kind {
        head.push_str("Content-Type: application/json\r\n");
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).unwrap();
    // A daemon that has seen enough of a body answers and closes.
    let _ = stream.write_all(body.as_bytes());
    BufReader::new(stream)
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines.first().expect("an answer").split(' ').nth(1).unwrap();
    let headers = lines[1..].iter().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    (status.parse().unwrap(), headers.collect())
}
