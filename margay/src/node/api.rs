//! The daemon's half of the local API: routes of the unix socket, and of the metrics port.
//!
//! The socket is for root and its group (mode 0660): whoever may write to it may give a network namespace an
//! address. The TCP port serves metrics and health only.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path as FilePath;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use tokio::net::{TcpListener, UnixListener};

use super::Daemon;
use super::workloads::WorkloadError;
use crate::api::{ApiError, AttachRequest};

/// Largest request body; an attach is far smaller.
const MAX_BODY: usize = 256 * 1024;

type Shared = State<Arc<Daemon>>;

/// An error on its way to the caller.
pub(crate) struct Failure(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { error: self.1 })).into_response()
    }
}

impl From<WorkloadError> for Failure {
    fn from(error: WorkloadError) -> Self {
        let status = match &error {
            WorkloadError::Invalid(_) => StatusCode::BAD_REQUEST,
            WorkloadError::NotFound(_) => StatusCode::NOT_FOUND,
            WorkloadError::Conflict(_) => StatusCode::CONFLICT,
            WorkloadError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            WorkloadError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

fn socket_router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/workloads", get(list).post(attach))
        .route("/v1/workloads/{namespace}/{name}/{interface}", delete(detach))
        .route("/v1/routes", get(kernel_routes))
        .route("/v1/flows", get(super::flows::serve))
        .route("/v1/trace", post(super::trace::serve))
        .route("/v1/policy/counters", get(super::counters::serve))
        .merge(crate::bgp::api::router())
        .merge(public_routes())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(daemon)
}

fn public_routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/liveness", get(liveness))
        .route("/readiness", get(readiness))
}

/// Serves the socket at `path` until the task is dropped.
pub(super) async fn serve_socket(daemon: Arc<Daemon>, listener: UnixListener) -> anyhow::Result<()> {
    axum::serve(listener, socket_router(daemon))
        .await
        .context("the API socket failed")
}

/// Serves metrics and health on a TCP port until the task is dropped.
pub(super) async fn serve_metrics(daemon: Arc<Daemon>, listener: TcpListener) -> anyhow::Result<()> {
    axum::serve(listener, public_routes().with_state(daemon))
        .await
        .context("the metrics port failed")
}

/// Opens the socket. A socket that a dead daemon left is replaced; one that answers is somebody's.
///
/// The file that comes with it is locked, and has to be kept as long as the socket: of two daemons that start at once,
/// and of one that ends while the next one starts, only one may touch the socket's name.
pub(crate) fn bind_socket(path: &FilePath) -> anyhow::Result<(UnixListener, std::fs::File)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let lock_path = path.with_extension("lock");
    let lock = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .with_context(|| format!("cannot open {}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another node daemon runs on {}", path.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
        }
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        anyhow::ensure!(
            found.file_type().is_socket(),
            "{} exists and is not a socket",
            path.display()
        );
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    // The mode is set before anybody can have connected: the name appears with the bind, so bind elsewhere first.
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener =
        UnixListener::bind(&hidden).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&hidden, path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok((listener, lock))
}

async fn status(State(daemon): Shared) -> Response {
    Json(daemon.status().await).into_response()
}

async fn list(State(daemon): Shared) -> Response {
    Json(daemon.workloads()).into_response()
}

async fn attach(State(daemon): Shared, body: axum::body::Bytes) -> Result<Response, Failure> {
    let request: AttachRequest = serde_json::from_slice(&body).map_err(|error| {
        Failure(
            StatusCode::BAD_REQUEST,
            format!("the request is not understood: {error}"),
        )
    })?;
    let done = uncut(async move { daemon.attach(request).await }).await?;
    Ok(Json(done).into_response())
}

async fn detach(
    State(daemon): Shared,
    Path((namespace, name, interface)): Path<(String, String, String)>,
) -> Result<Response, Failure> {
    let done = uncut(async move { daemon.detach(&namespace, &name, &interface).await }).await?;
    Ok(Json(done).into_response())
}

/// Brings work to its end even when the caller goes away: a handler is dropped with its connection, and half an attach
/// would be left, with its next step still running on another thread.
async fn uncut<T: Send + 'static>(
    work: impl Future<Output = Result<T, WorkloadError>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the work was cut short: {error}"),
        )),
    }
}

async fn kernel_routes(State(daemon): Shared) -> Response {
    Json(daemon.agent().routes().as_ref().clone()).into_response()
}

async fn metrics(State(daemon): Shared) -> Response {
    let text = daemon.metrics().await;
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

async fn liveness() -> &'static str {
    "alive\n"
}

/// Ready: the store was read whole and the kernel has what follows from it.
async fn readiness(State(daemon): Shared) -> (StatusCode, &'static str) {
    let status = daemon.agent().status();
    if status.in_sync && status.applied {
        (StatusCode::OK, "ready\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the kernel does not have the store's state yet\n",
        )
    }
}
