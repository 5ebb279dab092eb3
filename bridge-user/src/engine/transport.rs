//! How the engine is reached: one connection for each request, of which only so much is read.
//!
//! Invariant: whatever an engine sends, it costs no more memory than [`MOST_BYTES`] and what is made of them; a stream
//! of events that reaches it ends like a broken connection.

use std::{
    error::Error,
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bollard::{BollardRequest, errors::Error as ApiError};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// A list of thousands of containers has a tenth of this.
const MOST_BYTES: usize = 32 << 20;

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl Endpoint {
    fn of(host: &str) -> Result<Self, ApiError> {
        match host.split_once("://") {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => Ok(Self::Tcp(address.trim_end_matches('/').to_owned())),
            _ => Err(ApiError::UnsupportedURISchemeError { uri: host.to_owned() }),
        }
    }

    async fn request<B>(self, request: Request<B>) -> Result<Response<Incoming>, ApiError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        match self {
            Self::Unix(path) => exchange(UnixStream::connect(path).await?, "localhost", request).await,
            Self::Tcp(address) => exchange(TcpStream::connect(&address).await?, &address, request).await,
        }
    }
}

/// A client of the engine at `host`, in the form of DOCKER_HOST; `seconds`: how long an answer may take to begin.
///
/// # Errors
/// When there is no such socket, or DOCKER_HOST is of another kind.
pub(super) fn client(host: &str, seconds: u64) -> Result<bollard::Docker, ApiError> {
    let endpoint = Endpoint::of(host)?;
    if let Endpoint::Unix(path) = &endpoint
        && !path.exists()
    {
        return Err(ApiError::SocketNotFoundError(path.display().to_string()));
    }
    let transport = move |request: BollardRequest| endpoint.clone().request(request);
    // The name is never looked up: the transport knows where to go.
    let name = Some("http://engine");
    bollard::Docker::connect_with_custom_transport(transport, name, seconds, bollard::API_DEFAULT_VERSION)
}

/// The answer to a GET that bollard has no request for.
///
/// # Errors
/// When the engine cannot be reached, or its answer is no success.
pub(super) async fn get(host: &str, path: &'static str) -> Result<Bytes, ApiError> {
    let request = Request::get(path).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let response = Endpoint::of(host)?.request(request).await?;
    let status_code = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    if status_code == 200 {
        return Ok(body);
    }
    let message = String::from_utf8_lossy(&body).into_owned();
    Err(ApiError::DockerResponseServerError { status_code, message })
}

/// The process that listens on the engine's UNIX socket, where this namespace of processes has it.
pub(super) async fn listening_process(host: &str) -> Option<i32> {
    let Ok(Endpoint::Unix(path)) = Endpoint::of(host) else { return None };
    UnixStream::connect(path).await.ok()?.peer_cred().ok()?.pid().filter(|&pid| pid > 0)
}

async fn exchange<S, B>(
    stream: S,
    name: &str,
    mut request: Request<B>,
) -> Result<Response<Incoming>, ApiError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let bounded = TokioIo::new(Bounded { stream, left: MOST_BYTES });
    let (mut sender, connection) = http1::handshake(bounded).await?;
    // It ends with the answer; what goes wrong on it is the answer's error.
    tokio::spawn(connection);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() =
        path.parse().map_err(|error: hyper::http::uri::InvalidUri| io::Error::other(error))?;
    request.headers_mut().insert(HOST, HeaderValue::from_str(name).map_err(io::Error::other)?);
    Ok(sender.send_request(request).await?)
}

/// A stream of which only so much is read.
struct Bounded<S> {
    stream: S,
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let left = self.left.checked_sub(buffer.filled().len() - before);
        let too_long = || io::Error::other(format!("its answer is longer than {} MiB", MOST_BYTES >> 20));
        self.left = left.ok_or_else(too_long)?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hosts_are_sockets_or_plain_tcp() {
        assert_eq!(Endpoint::of("unix:///run/x.sock").unwrap(), Endpoint::Unix("/run/x.sock".into()));
        assert_eq!(Endpoint::of("tcp://10.0.0.1:2375/").unwrap(), Endpoint::Tcp("10.0.0.1:2375".into()));
        for host in ["ssh://engine", "npipe:////./pipe/docker", "/run/x.sock", ""] {
            assert!(matches!(Endpoint::of(host), Err(ApiError::UnsupportedURISchemeError { .. })), "{host}");
        }
    }
}
