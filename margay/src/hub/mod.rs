//! `margay hub`: the fan-out between a cluster's store and its nodes. The hub itself is [`datastore::hub`]; here are
//! its configuration, its signals, and its metrics.

pub mod file;
mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use datastore::hub::{Hub, Options as HubOptions, Status};
use datastore::{Client, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What a hub is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the store.
    pub datastore: String,
    /// Where to listen for nodes.
    pub listen: SocketAddr,
    /// Where to serve metrics and health.
    pub metrics_listen: Option<SocketAddr>,
    /// Within which time clients go when the hub stops.
    pub drain: Duration,
    /// The hub's own.
    pub hub: HubOptions,
}

type Look = Arc<dyn Fn() -> Status + Send + Sync>;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let metrics = match options.metrics_listen {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot serve metrics on {address}"))?,
        ),
    };
    let store = tokio::select! {
        opened = crate::node::open(&options.datastore) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let secure = options.hub.tls.is_some();
    let hub = Hub::start(store.clone(), listener, options.hub).context("cannot start the hub")?;
    tracing::info!(address = %hub.local_addr(), datastore = options.datastore, tls = secure, "hub started");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(describe_cluster(store));
    let draining = Arc::new(AtomicBool::new(false));
    if let Some(listener) = metrics {
        let router = router(Arc::new(hub.status_of()), draining.clone());
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the metrics port failed");
            }
        });
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    draining.store(true, Ordering::Relaxed);
    let clients = hub.status().clients.len();
    tracing::info!(clients, "hub is stopping; its clients go elsewhere");
    hub.drain(if clients == 0 {
        Duration::ZERO
    } else {
        options.drain
    })
    .await;
    tasks.shutdown().await;
    Ok(())
}

/// The object that says what cluster this is: nodes look for it and may not write it.
async fn describe_cluster(store: Arc<dyn Store>) {
    let client = Client::new(store);
    let mut wait = Duration::from_millis(100);
    while let Err(error) = client.cluster_information().await {
        tracing::debug!(%error, "cannot write the cluster's information yet");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(10));
    }
    // The task ends with the others: a set of tasks in which one has ended is no sign of trouble here.
    std::future::pending().await
}

fn router(look: Look, draining: Arc<AtomicBool>) -> Router {
    let scraped = look.clone();
    let metrics = move || {
        let status = scraped();
        async move { text(metrics::render(&status)) }
    };
    let ready = move || {
        let (synced, draining) = (look().synced, draining.load(Ordering::Relaxed));
        async move {
            match (synced, draining) {
                (true, false) => (StatusCode::OK, "ready\n"),
                (false, _) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not ready: the datastore was not read yet\n",
                ),
                (true, true) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not ready: the hub is stopping\n",
                ),
            }
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/liveness", get(|| async { "alive\n" }))
        .route("/readiness", get(ready))
}

fn text(metrics: String) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics,
    )
        .into_response()
}
