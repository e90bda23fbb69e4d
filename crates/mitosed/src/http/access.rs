//! Who asks, and what they may.
//!
//! On the Unix socket the kernel tells the user; a token in the request, which every request on TCP
//! needs, counts instead.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use api_types::{ErrorKind, Role, Token};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast::error::RecvError;

use super::answer::HttpError;
use super::document::LOCAL_ONLY;
use super::group;
use crate::error::{OpError, OpResult};
use crate::host::Host;

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process of this host, by the Unix socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A client on the network.
    Remote(SocketAddr),
}

impl Peer {
    /// What strangers from one place share.
    fn key(&self) -> String {
        match self {
            Self::Local { uid, .. } => format!("uid {uid}"),
            Self::Remote(address) => address.ip().to_string(),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// Name that tasks show.
    pub name: String,
    /// What they may.
    pub role: Role,
    /// Id of the token that says so, where one does.
    pub token: Option<String>,
}

impl From<Token> for User {
    fn from(token: Token) -> Self {
        Self {
            name: token.name,
            role: token.role,
            token: Some(token.id),
        }
    }
}

impl User {
    fn local(name: String, role: Role) -> Self {
        let token = None;
        Self { name, role, token }
    }

    /// Refuses files of the host in requests of those who could not read them themselves; `member`
    /// finds where a request names one.
    pub fn may_name_files(&self, member: impl FnOnce() -> Option<String>) -> OpResult<()> {
        if self.role >= Role::Admin {
            return Ok(());
        }
        match member() {
            Some(member) => Err(OpError::told(
                ErrorKind::Forbidden,
                &member,
                "names a file or device of the host, which only an admin may",
                "use an image and a network, or ask an admin",
            )),
            None => Ok(()),
        }
    }

    /// Refuses a failure on purpose in requests of those who do not answer for the host.
    pub fn may_have_fail(&self, step: Option<&str>) -> OpResult<()> {
        match step {
            Some(_) if self.role < Role::Admin => Err(OpError::told(
                ErrorKind::Forbidden,
                "fail_at",
                "has a clone fail on purpose, which only an admin may ask for",
                "leave it out, or use a token with the role admin",
            )),
            _ => Ok(()),
        }
    }
}

/// Lets those in who may come in.
#[derive(Debug)]
pub struct Gate {
    host: Arc<Host>,
    limits: Limits,
}

impl Gate {
    /// The gate of a host.
    pub fn new(host: Arc<Host>) -> Arc<Self> {
        let per_second = host.config.listen.requests_per_second;
        Arc::new(Self {
            host,
            limits: Limits::new(per_second),
        })
    }

    fn user(&self, peer: &Peer, headers: &HeaderMap) -> OpResult<User> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let text = value.to_str().unwrap_or_default();
            let (scheme, secret) = text.split_once(' ').unwrap_or((text, ""));
            let token = scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| self.host.bearer(secret.trim()))
                .flatten();
            return token.map(User::from).ok_or_else(|| {
                unknown("the token is not known; make one with 'mitose token create'")
            });
        }
        match peer {
            Peer::Local { uid, gid } => self.local_user(*uid, *gid),
            Peer::Remote(_) => Err(unknown(
                "the request has no token; send 'Authorization: Bearer TOKEN', see 'mitose token create'",
            )),
        }
    }

    fn local_user(&self, uid: u32, gid: u32) -> OpResult<User> {
        let own = rustix::process::geteuid().as_raw();
        let name = || group::user_name(uid).unwrap_or_else(|| format!("uid-{uid}"));
        if uid == own {
            // The daemon's own user asks most, and a fork waits for the answer.
            static OWN: OnceLock<String> = OnceLock::new();
            return Ok(User::local(OWN.get_or_init(name).clone(), Role::Admin));
        }
        let name = name();
        if uid == 0 {
            return Ok(User::local(name, Role::Admin));
        }
        let group = self.host.config.listen.group.as_deref();
        if group.is_some_and(|group| group::has(group, &name, gid)) {
            return Ok(User::local(name, Role::Operator));
        }
        Err(OpError::new(
            ErrorKind::Forbidden,
            format!("user {name} may not use this daemon; ask its owner for a token or a group"),
        ))
    }
}

fn unknown(message: &str) -> OpError {
    OpError::new(ErrorKind::Unauthorized, message)
}

/// Finds out who asks, whether they ask too often, and whether they may.
pub async fn enter(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let Some(ConnectInfo(peer)) = peer.cloned() else {
        return HttpError::from(unknown("the connection tells no peer")).into_response();
    };
    let user = match gate.user(&peer, request.headers()) {
        Ok(user) => user,
        Err(error) => {
            let limited = gate.limits.take(&peer.key());
            let mut response = limited.unwrap_or_else(|| refuse(error));
            // A stranger who sends more and takes no answers would keep the connection for ever.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return response;
        }
    };
    // The daemon's own user is not held back.
    let own = matches!(peer, Peer::Local { .. }) && user.role == Role::Admin;
    if let Some(limited) = (!own).then(|| gate.limits.take(&user.name)).flatten() {
        return limited;
    }
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str);
    let route = route.unwrap_or_default();
    if LOCAL_ONLY.contains(&route) && matches!(peer, Peer::Remote(_)) {
        return refuse(OpError::new(
            ErrorKind::Forbidden,
            "the daemon is ended on its own host alone; use 'mitose daemon stop' there",
        ));
    }
    let needed = role_for(request.method(), route);
    if user.role < needed {
        let error = OpError::new(
            ErrorKind::Forbidden,
            format!(
                "{} has the role {:?}, this needs {needed:?}; use a token with that role",
                user.name, user.role
            )
            .to_lowercase(),
        );
        return refuse(error);
    }
    request.extensions_mut().insert(user);
    next.run(request).await
}

/// Ends when the token that a user came in with is removed, and never where there is none: what goes
/// on for longer than an answer ends with it.
pub async fn revoked(host: Arc<Host>, user: Option<User>) {
    let Some(token) = user.and_then(|user| user.token) else {
        return std::future::pending().await;
    };
    let mut news = host.subscribe();
    while host.knows_token(&token) {
        loop {
            match news.recv().await {
                Ok(event) if event.object.as_ref() != Some(&token) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
            }
        }
    }
}

fn refuse(error: OpError) -> Response {
    let unknown = error.kind == ErrorKind::Unauthorized;
    let mut response = HttpError::from(error).into_response();
    if unknown {
        let scheme = HeaderValue::from_static("Bearer realm=\"mitose\"");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

/// Paths below the prefix where an operator changes things: VMs and what is made of them. All else
/// is an admin's: what the host gives (datastores, networks, images, archives that are imported),
/// what bounds operators (resource pools), and any object by its id, which may be one of these.
const OPERATED: &[&str] = &["vms", "tasks", "forkpoints", "folders", "diskpools"];
/// Paths where even looking is more than looking.
const OPERATED_BY_GET: &[&str] = &["/console", "/vsock/{port}", "/log/follow"];
/// Paths that are an admin's in every way.
const ADMIN_ONLY: &[&str] = &["tokens"];

/// Role that an operation needs.
fn role_for(method: &Method, route: &str) -> Role {
    let below = route.strip_prefix(api_types::API_PREFIX).unwrap_or(route);
    let first = below
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    let looking = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if ADMIN_ONLY.contains(&first) {
        return Role::Admin;
    }
    if looking && !OPERATED_BY_GET.iter().any(|end| below.ends_with(end)) {
        return Role::Viewer;
    }
    if OPERATED.contains(&first) || route.is_empty() {
        return Role::Operator;
    }
    Role::Admin
}

/// Requests of each client: a bucket that fills steadily.
#[derive(Debug)]
struct Limits {
    per_second: u32,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

/// Clients whose buckets are kept; full ones are forgotten when there are more.
const MAX_BUCKETS: usize = 4096;
/// Seconds' worth of requests that a client may send at once.
const BURST_S: f64 = 2.0;

impl Limits {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            buckets: Mutex::default(),
        }
    }

    /// Counts a request; returns the answer to one too many.
    fn take(&self, client: &str) -> Option<Response> {
        if self.per_second == 0 {
            return None;
        }
        let rate = f64::from(self.per_second);
        let most = (rate * BURST_S).max(1.0);
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > MAX_BUCKETS {
            buckets.retain(|_, (left, at)| *left + at.elapsed().as_secs_f64() * rate < most);
        }
        let (left, at) = buckets.entry(client.to_owned()).or_insert((most, now));
        *left = (*left + now.duration_since(*at).as_secs_f64() * rate).min(most);
        *at = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return None;
        }
        let error = OpError::new(
            ErrorKind::Limited,
            format!(
                "more than {} requests a second; wait, or start mitosed with a higher --rate-limit",
                self.per_second
            ),
        );
        let mut response = refuse(error);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_path_and_method() {
        let role = |method: Method, path: &str| role_for(&method, &format!("/api/v1{path}"));
        assert_eq!(role(Method::GET, "/vms"), Role::Viewer);
        assert_eq!(role(Method::POST, "/vms"), Role::Operator);
        assert_eq!(role(Method::POST, "/tasks/{task}/cancel"), Role::Operator);
        assert_eq!(role(Method::GET, "/vms/{vm}/console"), Role::Operator);
        assert_eq!(role(Method::GET, "/vms/{vm}/log/follow"), Role::Operator);
        assert_eq!(role(Method::GET, "/vms/{vm}/log"), Role::Viewer);
        assert_eq!(role(Method::GET, "/tokens"), Role::Admin);
        assert_eq!(role(Method::POST, "/daemon/stop"), Role::Admin);
        assert_eq!(role(Method::POST, "/images"), Role::Admin);
        for operated in [
            "/vms/{vm}/snapshots",
            "/vms/{vm}/export",
            "/forkpoints/{fork_point}/fork",
            "/folders",
            "/diskpools",
        ] {
            assert_eq!(role(Method::POST, operated), Role::Operator, "{operated}");
        }
        for kept in [
            "/datastores",
            "/import",
            "/networks",
            "/respools",
            "/objects/{object}",
        ] {
            assert_eq!(role(Method::PATCH, kept), Role::Admin, "{kept}");
            assert_eq!(role(Method::GET, kept), Role::Viewer, "{kept}");
        }
        assert_eq!(role(Method::PATCH, "/something/new"), Role::Admin);
        assert_eq!(role_for(&Method::GET, "/metrics"), Role::Viewer);
    }

    #[test]
    fn a_client_that_asks_too_often_waits_and_others_do_not() {
        let limits = Limits::new(5);
        let taken = (0..100).filter(|_| limits.take("a").is_none()).count();
        assert!((10..20).contains(&taken), "{taken}");
        assert!(limits.take("b").is_none());
        assert!(Limits::new(0).take("a").is_none());
    }
}
