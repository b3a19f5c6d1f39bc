//! Hubs on loopback, and a wire that can be cut, frozen and laid elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datastore::backend::hub::{Hub as Remote, Options as RemoteOptions};
use datastore::hub::{Hub, Options};
use datastore::{Store, Watch, WatchItem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long something may take that takes milliseconds on a machine with nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("bind")
}

/// A hub over this store that follows everything.
pub(crate) async fn hub(store: Arc<dyn Store>) -> Hub {
    hub_with(store, Options::default()).await
}

pub(crate) async fn hub_with(store: Arc<dyn Store>, options: Options) -> Hub {
    let options = Options {
        root: "/".to_owned(),
        ..options
    };
    Hub::start(store, listener().await, options).expect("hub")
}

/// A client of hubs at these addresses, with waits for tests.
pub(crate) fn client(hubs: &[SocketAddr], query: &str) -> Remote {
    let hubs: Vec<String> = hubs.iter().map(SocketAddr::to_string).collect();
    let address = format!("hub://{}/?{query}", hubs.join(","));
    Remote::new(RemoteOptions::parse(&address, &|_| None).expect("address"))
}

/// The item of a watch that ends it.
pub(crate) async fn end(watch: &mut Watch) -> WatchItem {
    let end = async {
        loop {
            match watch.next().await {
                Some(WatchItem::Batch(_)) => {}
                Some(end) => return end,
                None => panic!("the watch was over before"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the watch goes on")
}

/// The keys of the next events of a watch.
pub(crate) async fn events(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    while keys.len() < count {
        let item = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .expect("the watch is silent");
        let Some(WatchItem::Batch(batch)) = item else {
            panic!("{item:?} after {keys:?}")
        };
        keys.extend(batch.events.iter().map(|event| event.key().to_string()));
    }
    keys
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("never: {what}");
    }
}

/// What a wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Carries to there.
    To(SocketAddr),
    /// Holds everything back, and takes connections.
    Frozen(SocketAddr),
    /// Ends connections, and new ones at once.
    Cut,
}

/// A wire with an end of its own, whatever becomes of the other.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    _task: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn new(to: SocketAddr) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().expect("address");
        let (mode, seen) = watch::channel(Mode::To(to));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                open.spawn(carry(stream, seen.clone()));
            }
        });
        Self {
            address,
            mode,
            _task: task,
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn carry(near: TcpStream, mut mode: watch::Receiver<Mode>) {
    let to = match *mode.borrow_and_update() {
        Mode::To(to) | Mode::Frozen(to) => to,
        Mode::Cut => return,
    };
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
    let there = shovel(&mut near_in, &mut far_out, mode.clone());
    let back = shovel(&mut far_in, &mut near_out, mode.clone());
    tokio::select! {
        () = there => {}
        () = back => {}
        _ = mode.wait_for(|mode| matches!(mode, Mode::Cut) || matches!(mode, Mode::To(other) if *other != to)) => {}
    }
}

async fn shovel(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if mode
            .wait_for(|mode| !matches!(mode, Mode::Frozen(_)))
            .await
            .is_err()
        {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = mode.changed() => continue,
        };
        if read == 0 {
            return;
        }
        if mode
            .wait_for(|mode| !matches!(mode, Mode::Frozen(_)))
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
