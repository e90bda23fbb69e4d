//! What a host program says first: `CONNECT <port>\n`.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

use super::regs::GREETING_BYTES_MAX;

/// How far a greeting has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The line is not complete.
    Partial,
    /// The program wants this port of the guest.
    Connect(u32),
    /// The line is wrong, too long, or the program went away.
    Wrong,
}

/// Takes the greeting from `stream`, and not one byte more.
pub(super) fn read(stream: &UnixStream) -> io::Result<Greeting> {
    let mut bytes = [0; GREETING_BYTES_MAX];
    let (_, seen) = recv(stream, &mut bytes[..], RecvFlags::PEEK)?;
    let Some(end) = bytes[..seen].iter().position(|&b| b == b'\n') else {
        let partial = seen > 0 && seen < GREETING_BYTES_MAX;
        return Ok(if partial {
            Greeting::Partial
        } else {
            Greeting::Wrong
        });
    };
    let (_, taken) = recv(stream, &mut bytes[..=end], RecvFlags::empty())?;
    if taken != end + 1 {
        return Ok(Greeting::Wrong);
    }
    Ok(parse(&bytes[..end]).map_or(Greeting::Wrong, Greeting::Connect))
}

fn parse(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let port = line
        .strip_suffix('\r')
        .unwrap_or(line)
        .strip_prefix("CONNECT ")?;
    if port.bytes().all(|b| b.is_ascii_digit()) {
        port.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn greet(text: &[u8]) -> (Greeting, Vec<u8>) {
        let (mut client, mut server) = UnixStream::pair().expect("pair");
        client.write_all(text).expect("write");
        drop(client);
        let greeting = read(&server).expect("read");
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).expect("rest");
        (greeting, rest)
    }

    #[test]
    fn bytes_after_the_line_stay_in_the_socket() {
        assert_eq!(
            greet(b"CONNECT 1025\nhello\n"),
            (Greeting::Connect(1025), b"hello\n".to_vec())
        );
        assert_eq!(greet(b"CONNECT 7\r\n").0, Greeting::Connect(7));
    }

    #[test]
    fn wrong_lines_are_refused() {
        for text in [
            "CONNECT\n",
            "CONNECT +5\n",
            "CONNECT 4294967296\n",
            "connect 5\n",
            "\n",
            "",
        ] {
            assert_eq!(greet(text.as_bytes()).0, Greeting::Wrong, "{text:?}");
        }
        assert_eq!(greet(&[b'x'; 64]).0, Greeting::Wrong);
        assert_eq!(greet(b"CONNECT 10").0, Greeting::Partial);
    }
}
