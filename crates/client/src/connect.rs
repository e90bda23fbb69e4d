//! Ways to a daemon: its Unix socket, or TLS on TCP with a token.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::ClientError;

/// Where the authorities are that this host trusts.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where a daemon is.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Its Unix socket.
    Socket(PathBuf),
    /// A TCP port.
    Tls(Arc<Remote>),
}

/// A daemon on the network.
#[derive(Debug)]
pub(crate) struct Remote {
    url: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    token: String,
    config: Arc<ClientConfig>,
}

/// A connection to a daemon.
#[derive(Debug)]
pub(crate) enum Connection {
    Plain(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Remote {
    /// Reads an address such as `https://host:8443`, and the authorities to trust.
    pub fn new(url: &str, token: &str, ca: Option<&Path>) -> Result<Self, ClientError> {
        let wrong = |what: &str, remedy: &str| ClientError::Address {
            url: url.to_owned(),
            reason: format!("{what}; {remedy}"),
        };
        let form = "give https://HOST:PORT";
        let rest = url
            .strip_prefix("https://")
            .ok_or_else(|| wrong("it is not https", form))?;
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (
                host,
                port.parse()
                    .map_err(|_| wrong("its port is no number", form))?,
            ),
            _ => (rest, 443),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host.clone())
            .map_err(|_| wrong("its host is no name or address", form))?;
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("there is no token for it", "set MITOSE_TOKEN"));
        }
        let file = ca.unwrap_or(Path::new(SYSTEM_CERTIFICATES));
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| {
            let remedy = "set MITOSE_CA to the daemon's certificate";
            wrong(&format!("cannot read {}: {error}", file.display()), remedy)
        })?;
        let (taken, _) = roots.add_parsable_certificates(certificates.flatten());
        if taken == 0 {
            let what = format!("{} has no certificate in it", file.display());
            let remedy = "set MITOSE_CA to a PEM file with the daemon's certificate";
            return Err(wrong(&what, remedy));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error.to_string(), "use another build"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            url: url.to_owned(),
            token: token.to_owned(),
            config: Arc::new(config),
            host,
            port,
            name,
        })
    }

    fn connect(&self) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut tcp = TcpStream::connect((self.host.as_str(), self.port))?;
        tcp.set_nodelay(true)?;
        let mut tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        Ok(StreamOwned::new(tls, tcp))
    }
}

impl Target {
    /// Opens a connection.
    pub fn connect(&self) -> Result<Connection, ClientError> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path) {
                Ok(stream) => Ok(Connection::Plain(stream)),
                Err(source) => Err(ClientError::Connect {
                    path: path.clone(),
                    source,
                }),
            },
            Self::Tls(remote) => match remote.connect() {
                Ok(stream) => Ok(Connection::Tls(Box::new(stream))),
                Err(source) => Err(ClientError::Connect {
                    path: PathBuf::from(&remote.url),
                    source,
                }),
            },
        }
    }

    /// Headers that name the daemon and who asks.
    pub fn headers(&self) -> String {
        match self {
            Self::Socket(_) => "Host: mitosed\r\n".to_owned(),
            Self::Tls(remote) => format!(
                "Host: {}:{}\r\nAuthorization: Bearer {}\r\n",
                remote.host, remote.port, remote.token
            ),
        }
    }
}

impl Connection {
    /// The connection as a socket of this host, which can be shared between threads.
    pub fn into_socket(self) -> io::Result<UnixStream> {
        match self {
            Self::Plain(stream) => Ok(stream),
            Self::Tls(stream) => {
                let (ours, theirs) = UnixStream::pair()?;
                thread::Builder::new()
                    .name("tls".into())
                    .spawn(move || drop(pass_on(*stream, &ours)))?;
                Ok(theirs)
            }
        }
    }
}

/// Passes bytes on between a TLS connection and a socket until one of them ends.
fn pass_on(stream: StreamOwned<ClientConnection, TcpStream>, local: &UnixStream) -> io::Result<()> {
    let (mut tls, mut tcp) = stream.into_parts();
    let mut buffer = vec![0; 16 << 10];
    let mut local_reader = local;
    let mut local_writer = local;
    loop {
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let most = left.min(buffer.len());
            let count = tls.reader().read(&mut buffer[..most])?;
            local_writer.write_all(&buffer[..count])?;
            left -= count;
        }
        while tls.wants_write() {
            tls.write_tls(&mut tcp)?;
        }
        if state.peer_has_closed() {
            return local.shutdown(std::net::Shutdown::Write);
        }
        let mut ready = [
            PollFd::from_borrowed_fd(tcp.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(local.as_fd(), PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        let [remote, typed] = ready.map(|fd| !fd.revents().is_empty());
        if remote && tls.read_tls(&mut tcp)? == 0 {
            return local.shutdown(std::net::Shutdown::Write);
        }
        if typed {
            match local_reader.read(&mut buffer)? {
                0 => {
                    tls.send_close_notify();
                    while tls.wants_write() {
                        tls.write_tls(&mut tcp)?;
                    }
                    return Ok(());
                }
                count => tls.writer().write_all(&buffer[..count])?,
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => match stream.read(buffer) {
                // Lengths and chunks tell the end of a body; a daemon that ended says no farewell.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                read => read,
            },
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
