//! The handle the program around a speaker holds: commands in, snapshots out.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use ipnetwork::IpNetwork;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::config::{ConfigError, SpeakerConfig};
use crate::speaker::Clear;
use crate::view::{Event, Neighbor, OriginAttributes, Route, RouteQuery, Summary};

/// Why the handle could not do it.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The configuration cannot be run; the old one goes on.
    #[error("the BGP configuration cannot be used: {}", join(.0))]
    Config(Vec<ConfigError>),
    /// A listener could not be opened; the rest of the configuration is in force.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The speaker has been shut down.
    #[error("the BGP speaker is not running")]
    Stopped,
}

fn join(errors: &[ConfigError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// What the owner task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Reconfigure(Box<SpeakerConfig>, oneshot::Sender<Result<(), HandleError>>),
    SetOriginated(BTreeMap<IpNetwork, OriginAttributes>),
    Summary(oneshot::Sender<Summary>),
    Neighbors(oneshot::Sender<Vec<Neighbor>>),
    Routes(RouteQuery, oneshot::Sender<Vec<Route>>),
    Dump(oneshot::Sender<Bytes>),
    Drain(bool),
    ReportRoutes(bool),
    Clear(String, Clear, oneshot::Sender<bool>),
    Listening(oneshot::Sender<Vec<SocketAddr>>),
    Shutdown {
        graceful: bool,
        done: oneshot::Sender<()>,
    },
    /// The task of that peer's session panics.
    #[cfg(test)]
    Panic(String),
}

/// A running speaker. Clones speak to the same one; when the last is dropped it stops as if told to gracefully.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    watched: broadcast::Sender<Event>,
}

impl Handle {
    pub(crate) fn new(commands: mpsc::Sender<Command>, watched: broadcast::Sender<Event>) -> Self {
        Self { commands, watched }
    }

    /// What the program around the speaker is told from now on, for onlookers. Who reads too slowly is told that he missed something,
    /// and nobody waits for him. Nothing comes when that program does not listen itself.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.watched.subscribe()
    }

    #[cfg(test)]
    pub(crate) async fn panic(&self, peer: &str) {
        // A speaker that has ended shows in what the test asks next.
        let _ = self.commands.send(Command::Panic(peer.to_owned())).await;
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, HandleError> {
        let (answer, wait) = oneshot::channel();
        self.commands
            .send(make(answer))
            .await
            .map_err(|_| HandleError::Stopped)?;
        wait.await.map_err(|_| HandleError::Stopped)
    }

    /// Takes a whole new configuration and applies the difference; see [`crate::config`].
    ///
    /// # Errors
    /// [`HandleError::Config`] leaves everything as it was; [`HandleError::Listen`] names one listener that failed.
    pub async fn reconfigure(&self, config: SpeakerConfig) -> Result<(), HandleError> {
        self.ask(|answer| Command::Reconfigure(Box::new(config), answer))
            .await?
    }

    /// Declares the full set of prefixes we originate; what is not in it is withdrawn.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn set_originated(
        &self,
        prefixes: BTreeMap<IpNetwork, OriginAttributes>,
    ) -> Result<(), HandleError> {
        self.commands
            .send(Command::SetOriginated(prefixes))
            .await
            .map_err(|_| HandleError::Stopped)
    }

    /// The speaker and its peers at a glance.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn summary(&self) -> Result<Summary, HandleError> {
        self.ask(Command::Summary).await
    }

    /// Every peer in detail.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn neighbors(&self) -> Result<Vec<Neighbor>, HandleError> {
        self.ask(Command::Neighbors).await
    }

    /// Paths, sorted by prefix, best first.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn routes(&self, query: RouteQuery) -> Result<Vec<Route>, HandleError> {
        self.ask(|answer| Command::Routes(query, answer)).await
    }

    /// Every accepted path as an MRT file: see [`crate::speaker::Speaker::dump`].
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn dump(&self) -> Result<Bytes, HandleError> {
        self.ask(Command::Dump).await
    }

    /// Takes the speaker out of service or back in: see [`crate::speaker::Speaker::drain`].
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn drain(&self, drain: bool) -> Result<(), HandleError> {
        self.commands
            .send(Command::Drain(drain))
            .await
            .map_err(|_| HandleError::Stopped)
    }

    /// Whether the program around the speaker wants [`Event::Routes`], which it does unless it says otherwise. A reflector whose
    /// kernel is nobody's concern saves the time and the memory; onlookers ([`Handle::watch`]) are told all the same.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn report_routes(&self, wanted: bool) -> Result<(), HandleError> {
        self.commands
            .send(Command::ReportRoutes(wanted))
            .await
            .map_err(|_| HandleError::Stopped)
    }

    /// Begins anew with the peer of that name; false when there is none.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn clear(&self, peer: &str, what: Clear) -> Result<bool, HandleError> {
        self.ask(|answer| Command::Clear(peer.to_owned(), what, answer))
            .await
    }

    /// The addresses listened on, with the ports the kernel gave.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn listening(&self) -> Result<Vec<SocketAddr>, HandleError> {
        self.ask(Command::Listening).await
    }

    /// Stops the speaker and waits until its sockets are closed. Graceful: TCP is closed without a NOTIFICATION, so that
    /// peers that agreed on graceful restart keep our routes for the next process. Otherwise every peer gets a Cease
    /// (Administrative Shutdown) and forgets them at once.
    ///
    /// # Errors
    /// [`HandleError::Stopped`] when it had stopped before.
    pub async fn shutdown(&self, graceful: bool) -> Result<(), HandleError> {
        self.ask(|done| Command::Shutdown { graceful, done }).await
    }
}
