//! A byte stream between a client and a guest.
//!
//! The two directions end by themselves: a guest that answers and closes before the client has sent
//! all of its input makes writing fail while its answer still lies in the socket, and the answer is
//! what the client waits for.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Size of the pieces that are moved, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// How long input is thrown away after the guest's end. Closing a socket that holds unread input
/// makes the network drop what the client has not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// Moves bytes both ways until the guest has ended and the client has all that it sent.
///
/// The end of the client's input is passed on; the guest decides what follows from it. Fails where
/// the guest breaks off or the client takes no more.
pub(super) async fn join(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
) -> io::Result<()> {
    join_and_linger(client, guest, LINGER).await
}

async fn join_and_linger(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
    linger: Duration,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let input = async {
        // An error here is told by the other direction, which ends then too.
        let _ = copy(&mut from_client, &mut to_guest).await;
        let _ = to_guest.shutdown().await;
        let _ = tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await;
    };
    tokio::pin!(input);
    let mut input_ended = false;
    let output = async {
        copy(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(output);
    let ended = loop {
        tokio::select! {
            ended = &mut output => break ended,
            () = &mut input, if !input_ended => input_ended = true,
        }
    };
    if ended.is_ok() && !input_ended {
        let _ = tokio::time::timeout(linger, input).await;
    }
    ended
}

/// Moves bytes one way until their end.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&piece[..length]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    /// A relay between two pairs of sockets; gives the client's and the guest's end.
    fn relay() -> (
        UnixStream,
        UnixStream,
        tokio::task::JoinHandle<io::Result<()>>,
    ) {
        let (client, near) = UnixStream::pair().unwrap();
        let (far, guest) = UnixStream::pair().unwrap();
        (client, guest, tokio::spawn(join(near, far)))
    }

    #[tokio::test]
    async fn an_answer_arrives_though_the_guest_closed_before_all_input_was_sent() {
        for _ in 0..50 {
            let (client, near) = UnixStream::pair().unwrap();
            let (far, mut guest) = UnixStream::pair().unwrap();
            let answer = vec![7; 100_000];
            let (mut from_relay, mut to_relay) = client.into_split();
            // The guest has answered and gone before the relay sees the first byte of input.
            guest.write_all(&answer).await.unwrap();
            drop(guest);
            to_relay
                .write_all(b"input that nobody takes")
                .await
                .unwrap();
            let relay = tokio::spawn(join(near, far));
            let mut got = Vec::new();
            from_relay.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), answer.len());
            drop((from_relay, to_relay));
            relay.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_of_input_is_passed_on_and_the_answer_follows() {
        let (mut client, mut guest, relay) = relay();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        guest.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_guests_connection() {
        let (client, mut guest, relay) = relay();
        drop(client);
        let mut asked = Vec::new();
        guest.read_to_end(&mut asked).await.unwrap();
        // Output that nobody takes ends the relay, and with it the connection.
        let mut sent = 0;
        while guest.write_all(&[0; 4096]).await.is_ok() {
            sent += 1;
            assert!(sent < 10_000, "nobody ends the connection");
        }
        assert!(relay.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_client_that_never_ends_is_not_waited_for() {
        let (client, near) = UnixStream::pair().unwrap();
        let (far, guest) = UnixStream::pair().unwrap();
        drop(guest);
        let linger = Duration::from_millis(1);
        join_and_linger(near, far, linger).await.unwrap();
        drop(client);
    }
}
