//! The caller's half of the local API: one request, one answer, over the daemon's unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ApiError;

/// Longest an answer may take; an attach waits for the kernel, so this is generous.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why the daemon could not be asked, or would not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the daemon is not running, or on another socket.
    #[error(
        "no node daemon answers on {socket}: {}\n  start one with `margay node run`, or name its socket with --socket",
        plain(reason)
    )]
    NotRunning {
        /// The socket tried.
        socket: String,
        /// What the kernel said. Not a `source`: the message has it already, before the advice.
        reason: io::Error,
    },
    /// The socket exists and is not for this user.
    #[error(
        "not allowed to use {socket}: {}\n  the socket belongs to root and its group; try with sudo",
        plain(reason)
    )]
    Forbidden {
        /// The socket tried.
        socket: String,
        /// What the kernel said.
        reason: io::Error,
    },
    /// The daemon took the request and refused it.
    #[error("{0}")]
    Refused(String),
    /// The daemon went away, or spoke something else than HTTP.
    #[error("the node daemon did not answer properly: {0}")]
    Broken(String),
}

/// A client of the daemon on one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `socket`. Nothing is opened before the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket that this client asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    pub async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(&self.request(Method::GET, path, None).await?)
    }

    /// `GET path`, the body as text.
    pub async fn fetch_text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.request(Method::GET, path, None).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// `GET path`, the body as it is.
    pub async fn fetch_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.request(Method::GET, path, None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        decode(&self.request(Method::POST, path, Some(body)).await?)
    }

    /// `POST path` with a JSON body, of which the answer may take `longer` than others.
    pub async fn post_patiently<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        longer: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        decode(
            &self
                .request_within(Method::POST, path, Some(body), TIMEOUT + longer)
                .await?,
        )
    }

    /// `DELETE path`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(&self.request(Method::DELETE, path, None).await?)
    }

    async fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes, ClientError> {
        self.request_within(method, path, body, TIMEOUT).await
    }

    async fn request_within(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(limit, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Broken(format!(
                "no answer within {} s",
                limit.as_secs()
            ))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError> {
        let (response, driver) = self.ask(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        driver.abort();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refusal(status, &body))
        }
    }

    /// `GET path`, whose answer is lines of JSON that go on; `see` gets each, and ends it by saying false.
    pub async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        mut see: impl FnMut(T) -> bool,
    ) -> Result<(), ClientError> {
        let (response, _driver) = self.ask(Method::GET, path, None).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            text.extend_from_slice(&data);
            if !status.is_success() {
                continue;
            }
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if !see(decode(&line)?) {
                    return Ok(());
                }
            }
        }
        if status.is_success() {
            Ok(())
        } else {
            Err(refusal(status, &text))
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(Response<Incoming>, tokio::task::JoinHandle<hyper::Result<()>>), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|reason| self.connect_error(reason))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "margay")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, driver))
    }

    fn connect_error(&self, reason: io::Error) -> ClientError {
        let socket = self.socket.display().to_string();
        if reason.kind() == io::ErrorKind::PermissionDenied {
            ClientError::Forbidden { socket, reason }
        } else {
            ClientError::NotRunning { socket, reason }
        }
    }
}

/// What the kernel said, without the number that only programmers know.
fn plain(reason: &io::Error) -> String {
    let text = reason.to_string();
    let end = text.find(" (os error ").unwrap_or(text.len());
    text.get(..end).unwrap_or(&text).to_owned()
}

fn broken(error: hyper::Error) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(said) => ClientError::Refused(said.error),
        Err(_) => ClientError::Refused(format!("{status}: {}", String::from_utf8_lossy(body).trim())),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Broken(error.to_string()))
}
