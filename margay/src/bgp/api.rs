//! The questions about a speaker, the same for the node daemon and for a speaker that runs alone.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bgpd::net::Handle;
use bgpd::view::{PrefixQuery, RouteQuery, RouteViewKind};
use serde::Deserialize;

use crate::node::api::Failure;

/// Whoever has a speaker, or has none at the moment.
pub(crate) trait HasSpeaker: Clone + Send + Sync + 'static {
    /// The speaker.
    fn speaker(&self) -> Option<Arc<Handle>>;
}

/// The routes below `/v1/bgp`.
pub(crate) fn router<S: HasSpeaker>() -> Router<S> {
    Router::new()
        .route("/v1/bgp/summary", get(summary::<S>))
        .route("/v1/bgp/neighbors", get(neighbors::<S>))
        .route("/v1/bgp/routes", get(routes::<S>))
}

fn speaker<S: HasSpeaker>(source: &S) -> Result<Arc<Handle>, Failure> {
    source.speaker().ok_or_else(|| {
        Failure(
            StatusCode::CONFLICT,
            "BGP is off on this node; `margay node status` says why".into(),
        )
    })
}

fn stopped(error: impl std::fmt::Display) -> Failure {
    Failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn summary<S: HasSpeaker>(State(source): State<S>) -> Result<Response, Failure> {
    let speaker = speaker(&source)?;
    Ok(Json(speaker.summary().await.map_err(stopped)?).into_response())
}

async fn neighbors<S: HasSpeaker>(State(source): State<S>) -> Result<Response, Failure> {
    let speaker = speaker(&source)?;
    Ok(Json(speaker.neighbors().await.map_err(stopped)?).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutesQuery {
    view: Option<String>,
    peer: Option<String>,
    prefix: Option<String>,
}

async fn routes<S: HasSpeaker>(
    State(source): State<S>,
    Query(query): Query<RoutesQuery>,
) -> Result<Response, Failure> {
    let speaker = speaker(&source)?;
    let bad = |text: String| Failure(StatusCode::BAD_REQUEST, text);
    let view = match query.view.as_deref().unwrap_or("all") {
        "all" => RouteViewKind::All,
        "received" => RouteViewKind::Received,
        "accepted" => RouteViewKind::Accepted,
        "best" => RouteViewKind::Best,
        "advertised" => RouteViewKind::Advertised,
        other => return Err(bad(format!("{other:?} is not a view of routes"))),
    };
    let prefix = match query.prefix {
        None => None,
        Some(text) if text.contains('/') => Some(PrefixQuery::Within(
            text.parse()
                .map_err(|_| bad(format!("{text:?} is not a prefix")))?,
        )),
        Some(text) => Some(PrefixQuery::Longest(
            text.parse::<IpAddr>()
                .map_err(|_| bad(format!("{text:?} is not an address")))?,
        )),
    };
    let query = RouteQuery {
        view,
        peer: query.peer,
        prefix,
        limit: 0,
    };
    Ok(Json(speaker.routes(query).await.map_err(stopped)?).into_response())
}
