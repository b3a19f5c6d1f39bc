//! `margay bgp run`: one file, one speaker, in the foreground.
//!
//! SIGHUP reads the file again and applies the difference; a file that cannot be used changes nothing. SIGTERM and SIGINT close
//! the sessions without a word, so that peers keep the routes for the next process (RFC 4724), and leave the kernel's
//! routes where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::serve::Listener;
use bgpd::Event;
use bgpd::net::Handle;
use felix::sys::memory::let_go_of_code;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::api::{self, HasSpeaker};
use super::file::{self, Speaker};
use super::kernel::Kernel;
use super::metrics;
use crate::api::DEFAULT_SOCKET;
use crate::node::api::bind_socket;

/// What the command line says.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The file.
    pub(crate) config: PathBuf,
    /// Where to listen for the command line.
    pub(crate) socket: PathBuf,
}

#[derive(Clone)]
struct Alone(Arc<Handle>);

impl HasSpeaker for Alone {
    fn speaker(&self) -> Option<Arc<Handle>> {
        Some(Arc::clone(&self.0))
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut speaker = read(&options.config)?;
    // Command line, log and file: none of that code is needed for months.
    let_go_of_code();
    let (listener, _lock) = bind_socket(&options.socket)?;
    let metrics_listener = match speaker.metrics_listen {
        None => None,
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("metrics.listen: cannot serve on {address}"))?,
        ),
    };
    let kernel = if speaker.install {
        alone_on_this_machine(&options.socket)?;
        Some(Kernel::open()?)
    } else {
        None
    };
    // Where others write the routes, or nobody does, forwarding does not depend on this process: nothing was lost while it
    // was away, whoever restarts it.
    let restarting = kernel.as_ref().is_none_or(|kernel| kernel.restarting);
    speaker.config.graceful_restart.restarting = restarting;
    let (handle, events) = bgpd::net::spawn(speaker.config.clone()).context("cannot start")?;
    handle.report_routes(kernel.is_some()).await?;
    let mut stopped = match kernel {
        Some(kernel) => kernel.follow(events)?,
        None => unheard(events),
    };
    handle.set_originated(speaker.originate.clone()).await?;
    let handle = Arc::new(handle);
    tracing::info!(
        router_id = %speaker.config.router_id,
        asn = speaker.config.asn,
        peers = speaker.config.peers.len(),
        ranges = speaker.config.ranges.len(),
        install = speaker.install,
        "speaker started"
    );
    if let Some(listener) = metrics_listener {
        let routes: Router = metrics::router().with_state(Alone(Arc::clone(&handle)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }
    let mut served = tokio::spawn(serve(listener, Alone(Arc::clone(&handle))));
    let_go_of_code();
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => reload(&options.config, &mut speaker, &handle, restarting).await,
            ended = &mut served => {
                break Err(anyhow::anyhow!("the API socket failed: {ended:?}"));
            }
            _ = &mut stopped => break Err(anyhow::anyhow!("the speaker has stopped")),
        }
    };
    tracing::info!("speaker is stopping; peers that agreed on graceful restart keep its routes");
    // Whether it stopped by itself is what `ended` says.
    let _ = handle.shutdown(true).await;
    let _ = std::fs::remove_file(&options.socket);
    ended
}

/// Lets events go by; says when there will be no more.
fn unheard(mut events: mpsc::Receiver<Event>) -> oneshot::Receiver<()> {
    let (ending, ended) = oneshot::channel();
    tokio::spawn(async move {
        while events.recv().await.is_some() {}
        drop(ending);
    });
    ended
}

/// Answers the command line. What that needs is made, and its code touched, only when somebody asks: most speakers run for
/// months before.
async fn serve(mut listener: UnixListener, speaker: Alone) -> std::io::Result<()> {
    let first = Listener::accept(&mut listener).await;
    let routes: Router = api::router().with_state(speaker);
    let first = Some(first);
    axum::serve(Begun { first, listener }, routes).await
}

/// A listener whose first connection was taken before it was served.
struct Begun {
    first: Option<(UnixStream, SocketAddr)>,
    listener: UnixListener,
}

impl Listener for Begun {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        match self.first.take() {
            Some(first) => first,
            None => Listener::accept(&mut self.listener).await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn read(path: &Path) -> anyhow::Result<Speaker> {
    let speaker = file::load(path)?;
    for warning in &speaker.warnings {
        tracing::warn!("{warning}");
    }
    Ok(speaker)
}

async fn reload(path: &Path, running: &mut Speaker, handle: &Handle, restarting: bool) {
    let mut new = match read(path) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the configuration stays as it was");
            return;
        }
    };
    new.config.graceful_restart.restarting = restarting;
    if new.install != running.install {
        tracing::warn!("kernel.install takes effect when the speaker is started again");
        new.install = running.install;
    }
    if new.metrics_listen != running.metrics_listen {
        tracing::warn!("metrics.listen takes effect when the speaker is started again");
        new.metrics_listen = running.metrics_listen;
    }
    if let Err(error) = handle.reconfigure(new.config.clone()).await {
        tracing::error!(%error, "the configuration is not in force wholly");
    }
    if new.originate != running.originate
        && let Err(error) = handle.set_originated(new.originate.clone()).await
    {
        tracing::error!(%error, "cannot say what to announce");
    }
    *running = new;
    tracing::info!("configuration read again");
}

/// Two programs that write routes under one protocol number would delete each other's.
fn alone_on_this_machine(socket: &Path) -> anyhow::Result<()> {
    let other = Path::new(DEFAULT_SOCKET);
    if other != socket && std::os::unix::net::UnixStream::connect(other).is_ok() {
        anyhow::bail!(
            "kernel.install: a margay daemon answers on {DEFAULT_SOCKET}, and two programs must not write the same routes; \
             stop it, or set install = false"
        );
    }
    Ok(())
}
