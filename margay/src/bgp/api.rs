//! The questions about a speaker, the same for the node daemon and for a speaker that runs alone.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bgpd::net::Handle;
use bgpd::speaker::Clear;
use bgpd::view::{PeerSummary, PrefixQuery, RouteQuery, RouteViewKind};
use bgpd::{Event, NextHop};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

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
        .route("/v1/bgp/dump", get(dump::<S>))
        .route("/v1/bgp/watch", get(watch::<S>))
        .route("/v1/bgp/clear", post(clear::<S>))
        .route("/v1/bgp/drain", post(drain::<S>))
}

fn speaker<S: HasSpeaker>(source: &S) -> Result<Arc<Handle>, Failure> {
    source.speaker().ok_or_else(|| {
        Failure(
            StatusCode::CONFLICT,
            "BGP does not run on this node, or not yet; `margay node status` says why".into(),
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

/// Names in an error, not more than a person reads.
const NAMED: usize = 12;

/// The peer that is called so, is at that address, or on that interface.
async fn peer_called(speaker: &Handle, wanted: &str) -> Result<PeerSummary, Failure> {
    let peers = speaker.summary().await.map_err(stopped)?.peers;
    if let Some(found) = peers.iter().find(|peer| is_called(peer, wanted)) {
        return Ok(found.clone());
    }
    let names: Vec<String> = peers.into_iter().map(|peer| peer.name).collect();
    Err(Failure(StatusCode::NOT_FOUND, nobody_called(wanted, &names)))
}

/// Whether a peer is meant: by name, by address, or by the link that it is on.
pub(crate) fn is_called(peer: &PeerSummary, wanted: &str) -> bool {
    let on_link =
        |interface: &String| interface == wanted || format!("{}%{interface}", peer.address) == wanted;
    peer.name == wanted || wanted.parse() == Ok(peer.address) || peer.interface.as_ref().is_some_and(on_link)
}

/// Nobody is called so; and who there is.
pub(crate) fn nobody_called(wanted: &str, names: &[String]) -> String {
    let shown = names.get(..NAMED).unwrap_or(names).join(", ");
    let there = match names.len() {
        0 => return format!("no peer is called or has the address {wanted}: none is configured"),
        count if count > NAMED => format!("{shown} and {} more", count - NAMED),
        _ => shown,
    };
    format!("no peer is called or has the address {wanted}; there are: {there}")
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
        "withheld" => RouteViewKind::Withheld,
        "rejected" => RouteViewKind::Rejected,
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
    let peer = match &query.peer {
        Some(wanted) => Some(peer_called(&speaker, wanted).await?.name),
        None => None,
    };
    let query = RouteQuery {
        view,
        peer,
        prefix,
        limit: 0,
    };
    Ok(Json(speaker.routes(query).await.map_err(stopped)?).into_response())
}

/// The table as an MRT file.
async fn dump<S: HasSpeaker>(State(source): State<S>) -> Result<Response, Failure> {
    let file = speaker(&source)?.dump().await.map_err(stopped)?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], file).into_response())
}

/// Begins anew with a peer (`POST /v1/bgp/clear`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClearRequest {
    /// Name or address of the peer; all of them when absent.
    pub(crate) peer: Option<String>,
    /// How much of it.
    pub(crate) what: ClearWhat,
}

/// How much is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClearWhat {
    /// The session.
    Session,
    /// What the peer told us.
    In,
    /// What we told the peer.
    Out,
}

async fn clear<S: HasSpeaker>(
    State(source): State<S>,
    Json(request): Json<ClearRequest>,
) -> Result<Response, Failure> {
    let speaker = speaker(&source)?;
    let what = match request.what {
        ClearWhat::Session => Clear::Session,
        ClearWhat::In => Clear::In,
        ClearWhat::Out => Clear::Out,
    };
    let meant = match &request.peer {
        Some(wanted) => vec![peer_called(&speaker, wanted).await?],
        None => speaker.summary().await.map_err(stopped)?.peers,
    };
    let mut cleared = Vec::new();
    for peer in meant {
        if speaker.clear(&peer.name, what).await.map_err(stopped)? {
            cleared.push(peer.name);
        }
    }
    Ok(Json(cleared).into_response())
}

/// Takes the speaker out of service or back in (`POST /v1/bgp/drain`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    /// Out of service.
    pub(crate) drain: bool,
}

async fn drain<S: HasSpeaker>(
    State(source): State<S>,
    Json(request): Json<DrainRequest>,
) -> Result<Response, Failure> {
    let speaker = speaker(&source)?;
    speaker.drain(request.drain).await.map_err(stopped)?;
    Ok(Json(speaker.summary().await.map_err(stopped)?).into_response())
}

/// One line of `GET /v1/bgp/watch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum Change {
    /// A session changed its state.
    Peer {
        /// The peer's name.
        peer: String,
        /// Its address.
        address: IpAddr,
        /// The new state.
        state: bgpd::State,
        /// Why, when it went down.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A destination is reached in another way, or no longer.
    Route {
        /// Which.
        prefix: IpNetwork,
        /// How; empty: not at all.
        next_hops: Vec<NextHop>,
    },
    /// A peer gives more prefixes than its limit, which warns only.
    OverMaxPrefix {
        /// The peer's name.
        peer: String,
        /// Its address.
        address: IpAddr,
        /// Which prefixes.
        family: bgpd::Family,
        /// The limit.
        limit: u32,
    },
    /// Everybody who came up has told everything.
    InSync,
    /// The onlooker was too slow for so many batches of changes.
    Missed {
        /// How many.
        batches: u64,
    },
}

fn changes(event: Event) -> Vec<Change> {
    match event {
        Event::Routes(changes) => changes
            .into_iter()
            .map(|change| Change::Route {
                prefix: change.prefix,
                next_hops: change.next_hops,
            })
            .collect(),
        Event::PeerState {
            peer,
            address,
            state,
            reason,
        } => vec![Change::Peer {
            peer,
            address,
            state,
            reason,
        }],
        Event::OverMaxPrefix {
            peer,
            address,
            family,
            limit,
        } => vec![Change::OverMaxPrefix {
            peer,
            address,
            family,
            limit,
        }],
        Event::InitialSync => vec![Change::InSync],
    }
}

/// Lines of JSON for as long as somebody reads them.
async fn watch<S: HasSpeaker>(State(source): State<S>) -> Result<Response, Failure> {
    let watched = speaker(&source)?.watch();
    let lines = futures_util::stream::unfold(watched, |mut watched| async move {
        let batch = match watched.recv().await {
            Ok(event) => changes(event),
            Err(RecvError::Lagged(batches)) => vec![Change::Missed { batches }],
            Err(RecvError::Closed) => return None,
        };
        let mut text = String::new();
        for change in batch {
            text.push_str(&serde_json::to_string(&change).unwrap_or_default());
            text.push('\n');
        }
        Some((Ok::<_, std::convert::Infallible>(text), watched))
    });
    let header = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((header, Body::from_stream(lines)).into_response())
}
