//! Connections to BMP stations: one task each, which connects, writes what it is given, and begins anew when it fails.
//!
//! The owner of the speaker gives and never waits. What a station has not taken is counted; one that leaves more than its
//! queue untaken is cut off, and told everything anew when it can be reached again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::bmp::{self, GivenTable, Part, Parts, Station};

/// An attempt to connect is given up after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts: doubled from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A connection that lasted so long was a good one: the next attempt comes soon.
const LASTED: Duration = Duration::from_secs(30);
/// Between two reports of statistics.
const STATISTICS: Duration = Duration::from_secs(60);
/// A station that is left has this long to take the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A station can be written to.
#[derive(Debug)]
pub(super) struct Connected {
    /// Which connection task.
    life: u64,
    feed: Feed,
}

/// A piece of what a station is told.
#[derive(Debug)]
enum Chunk {
    /// What happened, and so many bytes of it count as waiting.
    Bytes(Bytes, usize),
    /// What a peer had been given, written out as the station takes it: it costs next to nothing while it waits.
    Given(Box<GivenTable>),
    /// No more.
    End,
}

/// What goes to a connection.
#[derive(Debug)]
struct Feed {
    chunks: mpsc::UnboundedSender<Chunk>,
    /// Bytes given and not yet written, the first telling apart.
    waiting: Arc<AtomicUsize>,
    /// Dropped to end the connection at once.
    _alive: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Link {
    station: Station,
    life: u64,
    feed: Option<Feed>,
    task: tokio::task::JoinHandle<()>,
}

/// The stations of a speaker.
#[derive(Debug)]
pub(super) struct Stations {
    links: Vec<Link>,
    lives: u64,
    connected: mpsc::Sender<Connected>,
    statistics: Option<Instant>,
}

impl Stations {
    pub(super) fn new(connected: mpsc::Sender<Connected>) -> Self {
        Self {
            links: Vec::new(),
            lives: 0,
            connected,
            statistics: None,
        }
    }

    /// Begins with new stations and ends with those that are gone or changed.
    pub(super) fn set(&mut self, wanted: &[Station], runtime: &tokio::runtime::Handle) {
        self.links.retain_mut(|link| {
            let stays = wanted.contains(&link.station);
            if !stays {
                link.leave();
            }
            stays
        });
        for station in wanted {
            if self.links.iter().any(|link| link.station == *station) {
                continue;
            }
            self.lives += 1;
            let task = runtime.spawn(keep_connected(
                station.clone(),
                self.lives,
                self.connected.clone(),
            ));
            self.links.push(Link {
                station: station.clone(),
                life: self.lives,
                feed: None,
                task,
            });
        }
    }

    /// What the connected stations want; nothing while there is none.
    pub(super) fn parts(&self) -> Option<Parts> {
        let connected = self.links.iter().filter(|link| link.feed.is_some());
        connected.map(|link| link.station.parts).reduce(Parts::or)
    }

    /// Takes note of a connection. It gives what the station wants, for the first telling.
    pub(super) fn connected(&mut self, connected: Connected, now: Instant) -> Option<(u64, Parts)> {
        let link = self.links.iter_mut().find(|link| link.life == connected.life)?;
        link.feed = Some(connected.feed);
        self.statistics.get_or_insert(now + STATISTICS);
        Some((link.life, link.station.parts))
    }

    /// The first telling.
    pub(super) fn tell_first(&self, life: u64, tables: Bytes) {
        let link = self.links.iter().find(|link| link.life == life);
        if let Some(feed) = link.and_then(|link| link.feed.as_ref()) {
            // A task that is gone comes back with a new feed.
            let _ = feed.chunks.send(Chunk::Bytes(tables, 0));
        }
    }

    /// What peers had been given. False when that station is gone.
    pub(super) fn tell_given(&self, life: u64, given: Vec<GivenTable>) -> bool {
        let link = self.links.iter().find(|link| link.life == life);
        let Some(feed) = link.and_then(|link| link.feed.as_ref()) else {
            return false;
        };
        given
            .into_iter()
            .all(|table| feed.chunks.send(Chunk::Given(Box::new(table))).is_ok())
    }

    /// What happened since. True when a station was lost by it.
    pub(super) fn tell(&mut self, pieces: &[(Part, Bytes)]) -> bool {
        let mut lost = false;
        for link in &mut self.links {
            let Some(feed) = &link.feed else { continue };
            let wanted = pieces.iter().filter(|(part, _)| link.station.parts.wants(*part));
            let mut alive = true;
            for (_, piece) in wanted {
                let waiting = feed.waiting.fetch_add(piece.len(), Ordering::Relaxed) + piece.len();
                if waiting > link.station.queue {
                    warn!(station = %link.station.address, waiting, "a BMP station is too slow; it is cut off and told anew");
                    alive = false;
                }
                alive = alive && feed.chunks.send(Chunk::Bytes(piece.clone(), piece.len())).is_ok();
                if !alive {
                    break;
                }
            }
            if !alive {
                link.feed = None;
                lost = true;
            }
        }
        lost
    }

    /// When [`Stations::statistics`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.statistics.filter(|_| self.parts().is_some())
    }

    /// Whether statistics are to be told now.
    pub(super) fn statistics(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|at| at <= now);
        if due {
            self.statistics = Some(now + STATISTICS);
        }
        due
    }

    /// Says goodbye to all, and waits a moment for them to hear it.
    pub(super) async fn shutdown(&mut self) {
        let leaving = self.links.drain(..).map(|mut link| {
            link.leave();
            link.task
        });
        let leaving: Vec<_> = leaving.collect();
        let all = async {
            for task in leaving {
                // It was ended.
                let _ = task.await;
            }
        };
        drop(tokio::time::timeout(FAREWELL, all).await);
    }
}

impl Link {
    /// A Termination, and the end: of the task too when nobody is connected.
    fn leave(&mut self) {
        match self.feed.take() {
            Some(feed) => {
                let mut end = BytesMut::new();
                bmp::termination(&mut end);
                // A task that is gone needs no end.
                let _ = feed.chunks.send(Chunk::Bytes(end.freeze(), 0));
                let _ = feed.chunks.send(Chunk::End);
                // The task ends by itself, or after a moment.
                let task = self.task.abort_handle();
                tokio::runtime::Handle::try_current().map_or_else(
                    |_| task.abort(),
                    |runtime| {
                        let task = task.clone();
                        drop(runtime.spawn(async move {
                            let _feed = feed;
                            tokio::time::sleep(FAREWELL).await;
                            task.abort();
                        }));
                    },
                );
            }
            None => self.task.abort(),
        }
    }
}

async fn keep_connected(station: Station, life: u64, connected: mpsc::Sender<Connected>) {
    let (first, longest) = PAUSES;
    let mut pause = first;
    loop {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(station.address)).await {
            Ok(Ok(stream)) => {
                info!(station = %station.address, "bmp station connected");
                let since = Instant::now();
                let (chunks, feed) = mpsc::unbounded_channel();
                let (alive, ended) = oneshot::channel();
                let waiting = Arc::new(AtomicUsize::new(0));
                let up = Connected {
                    life,
                    feed: Feed {
                        chunks,
                        waiting: Arc::clone(&waiting),
                        _alive: alive,
                    },
                };
                if connected.send(up).await.is_err() {
                    return;
                }
                let over = tokio::select! {
                    over = write(stream, feed, &waiting) => over,
                    _ = ended => Over::Lost("cut off".to_owned()),
                };
                match over {
                    Over::Left => return,
                    Over::Lost(reason) => info!(station = %station.address, reason, "bmp station lost"),
                }
                if since.elapsed() >= LASTED {
                    pause = first;
                }
            }
            Ok(Err(error)) => debug!(station = %station.address, %error, "cannot connect to a bmp station"),
            Err(_) => debug!(station = %station.address, "a bmp station does not answer"),
        }
        // Half to whole, by the clock's last digits: stations that come back find their speakers one by one.
        let share = Instant::now().elapsed().subsec_nanos() ^ u32::try_from(life & 0xff).unwrap_or(0);
        tokio::time::sleep(pause / 2 + pause / 2 * (share % 256) / 256).await;
        pause = (pause * 2).min(longest);
    }
}

enum Over {
    /// We left it.
    Left,
    /// It is gone.
    Lost(String),
}

async fn write(
    mut stream: TcpStream,
    mut feed: mpsc::UnboundedReceiver<Chunk>,
    waiting: &AtomicUsize,
) -> Over {
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        while let Some(chunk) = feed.recv().await {
            match chunk {
                Chunk::Bytes(bytes, counted) => {
                    if let Err(error) = writer.write_all(&bytes).await {
                        return Over::Lost(error.to_string());
                    }
                    waiting.fetch_sub(counted, Ordering::Relaxed);
                }
                Chunk::Given(table) => {
                    for piece in table.pieces() {
                        if let Err(error) = writer.write_all(&piece).await {
                            return Over::Lost(error.to_string());
                        }
                    }
                }
                Chunk::End => {
                    // It may be gone.
                    let _ = writer.shutdown().await;
                    return Over::Left;
                }
            }
        }
        Over::Lost("cut off".to_owned())
    };
    // RFC 7854 §3.2: a station never says anything; what it says all the same is thrown away, but for the end.
    let reading = async {
        let mut sink = [0; 512];
        loop {
            match reader.read(&mut sink).await {
                Ok(0) => return Over::Lost("the station closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Over::Lost(error.to_string()),
            }
        }
    };
    tokio::select! {
        over = writing => over,
        over = reading => over,
    }
}
