//! Where requests come in: the Unix socket, and a TCP port with TLS where one is asked for.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, StatusCode, header};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::Peer;
use super::group;
use super::newcomers::{Newcomer, Newcomers};
use crate::config::Config;

/// Longest time that a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long clients are waited for.
pub const PATIENCE: Patience = Patience {
    first: Duration::from_secs(10),
    head: Duration::from_secs(30),
};
/// Connections on TCP at a time, those in their handshake among them.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after the host refused to accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest times that a client may take. What a request began, an answer that waits or a stream, may
/// last.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For its first request, where it comes from the network.
    pub first: Duration,
    /// For the head of a request, its first or the next one.
    pub head: Duration,
}

/// The group that may use the Unix socket, where one is to, and its id.
pub fn check_group(config: &Config) -> anyhow::Result<Option<(&str, u32)>> {
    let Some(group) = config.listen.group.as_deref() else {
        return Ok(None);
    };
    match group::id(group) {
        Some(id) => Ok(Some((group, id))),
        None => {
            bail!("group: there is no group {group:?} on this host; make it or leave --group out")
        }
    }
}

/// Listens on the Unix socket of the data directory.
pub fn unix(config: &Config) -> anyhow::Result<UnixListener> {
    let path = config.home.socket();
    // The lock of the data directory is held: what is there was left by a daemon that ended.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let mode = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot protect {}", path.display()))
    };
    let Some((group, id)) = check_group(config)? else {
        mode(&path, 0o600)?;
        return Ok(listener);
    };
    for (path, bits) in [
        (config.home.root(), 0o710),
        (config.home.run().as_path(), 0o710),
        (path.as_path(), 0o660),
    ] {
        std::os::unix::fs::chown(path, None, Some(id))
            .with_context(|| format!("cannot give {} to the group {group}", path.display()))?;
        mode(path, bits)?;
    }
    Ok(listener)
}

/// Serves what comes in at `listener` for ever; a connection ends where its client has no patience.
///
/// `newcomer` tells those that come from the network. They count as such until their first request,
/// and end with a request that has no token that is known.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    peer: fn(&L::Io, &L::Addr) -> Peer,
    newcomer: fn(&L::Io) -> Option<Newcomer>,
    patience: Patience,
) {
    let app = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(patience.head);
    loop {
        let (stream, address) = listener.accept().await;
        let (app, peer) = (app.clone(), peer(&stream, &address));
        let newcomer = newcomer(&stream);
        let is_remote = newcomer.is_some();
        let silent = Arc::new(Mutex::new(newcomer));
        let asking = Arc::clone(&silent);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            drop(take(&asking));
            request.extensions_mut().insert(ConnectInfo(peer.clone()));
            let answer = app.call(request);
            async move {
                let mut answer = answer.await?;
                if is_remote && answer.status() == StatusCode::UNAUTHORIZED {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            if is_remote {
                let first = tokio::time::timeout(patience.first, &mut connection).await;
                match (first, take(&silent)) {
                    (Ok(_), _) => return,
                    (Err(_), Some(newcomer)) => return newcomer.was_late(),
                    (Err(_), None) => {}
                }
            }
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

fn take(newcomer: &Mutex<Option<Newcomer>>) -> Option<Newcomer> {
    newcomer
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

/// A local client is no newcomer.
pub fn nobody<S>(_: &S) -> Option<Newcomer> {
    None
}

/// Who is at the other end of the Unix socket; a peer that the kernel does not tell is nobody.
pub fn local_peer<A>(stream: &UnixStream, _: &A) -> Peer {
    let peer = stream.peer_cred();
    let (uid, gid) = peer.map_or((u32::MAX, u32::MAX), |peer| (peer.uid(), peer.gid()));
    Peer::Local { uid, gid }
}

/// A port that takes TLS connections. Handshakes run beside each other, so that a client that does
/// not go on holds nobody up.
#[derive(Debug)]
pub struct Tls {
    accepted: mpsc::Receiver<(Io, SocketAddr)>,
    address: SocketAddr,
}

/// A connection, which counts for as long as it lives.
type Io = Counted<TlsStream<TcpStream>>;

impl Tls {
    /// Listens on `address`.
    pub async fn bind(
        config: &Config,
        address: SocketAddr,
        newcomers: Arc<Newcomers>,
    ) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(tls_config(config, address)?));
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen: cannot listen on {address}; choose another port"))?;
        let address = listener.local_addr().context("cannot tell the port")?;
        let (sender, accepted) = mpsc::channel(16);
        tokio::spawn(accept(listener, acceptor, newcomers, sender));
        Ok(Self { accepted, address })
    }

    /// Who is at the other end of a connection.
    pub fn peer<S>(_: &S, address: &SocketAddr) -> Peer {
        Peer::Remote(*address)
    }

    /// A connection that has asked for nothing yet.
    pub fn newcomer(io: &Io) -> Option<Newcomer> {
        take(&io.newcomer)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    newcomers: Arc<Newcomers>,
    accepted: mpsc::Sender<(Io, SocketAddr)>,
) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(newcomer) = newcomers.enter(address.ip()) else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let io = Counted {
                        stream,
                        newcomer: Mutex::new(Some(newcomer)),
                        _seat: seat,
                    };
                    let _ = accepted.send((io, address)).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, %address, "a TLS handshake failed"),
                Err(_) => newcomer.was_late(),
            }
        });
    }
}

impl Listener for Tls {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.accepted.recv().await {
            Some(taken) => taken,
            // The accepting task has ended with the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn tls_config(config: &Config, address: SocketAddr) -> anyhow::Result<ServerConfig> {
    let (cert, key) = match (&config.listen.tls_cert, &config.listen.tls_key) {
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => self_signed(config, address)?,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("tls cert: cannot read {}; give a PEM file", cert.display()))?;
    let Some(first) = chain.first() else {
        bail!(
            "tls cert: {} has no certificate; give a PEM file",
            cert.display()
        );
    };
    let print = Sha256::digest(first);
    let print: Vec<String> = print.iter().map(|byte| format!("{byte:02X}")).collect();
    tracing::info!(fingerprint = print.join(":"), certificate = %cert.display(), "TLS");
    let key = PrivateKeyDer::from_pem_file(&key)
        .with_context(|| format!("tls key: cannot read {}; give a PEM file", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot use TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("tls: certificate and key do not belong together; give a pair that does")?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// A certificate of our own, made once and kept in the data directory.
fn self_signed(
    config: &Config,
    address: SocketAddr,
) -> anyhow::Result<(std::path::PathBuf, std::path::PathBuf)> {
    let dir = config.home.root().join("tls");
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.push(address.ip().to_string());
    if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
        names.push(host.trim().to_owned());
    }
    names.sort();
    names.dedup();
    let CertifiedKey {
        cert: made,
        signing_key,
    } = generate_simple_self_signed(names).context("cannot make a certificate")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (path, text, bits) in [
        (&key, signing_key.serialize_pem(), 0o600),
        (&cert, made.pem(), 0o644),
    ] {
        write_new(path, &text, bits).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((cert, key))
}

/// Writes a file that appears whole or not at all.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)
}

/// A stream that holds a seat for as long as it lives.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    newcomer: Mutex<Option<Newcomer>>,
    _seat: OwnedSemaphorePermit,
}

impl<S: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Counted<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
