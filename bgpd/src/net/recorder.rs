//! Files of what goes over the sessions ([`crate::mrt`]), written by a thread of their own.
//!
//! ```text
//!   session tasks ──messages, states──► queue, bounded in bytes ──► thread: one file at a time
//! ```
//!
//! A session never waits for the disk: what does not fit into the queue is left out, and counted. A disk that fails loses what
//! was to be written; a file ends with a whole record all the same, and a new one is tried every few seconds.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use tracing::{info, warn};

use crate::mrt::{Encoding, Ends, Recording, put_message, put_state_change};
use crate::view::{RecordingView, State};
use crate::wire::{MAX_EXTENDED_MESSAGE_LENGTH, frame};

/// Bytes gathered before they are written.
const GATHER: usize = 64 * 1024;
/// What was gathered is written after so much silence at the latest.
const SILENCE: Duration = Duration::from_millis(500);
/// After a failure a file is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// What an entry of the queue takes beside its bytes, about.
const ENTRY: usize = 160;
/// The end of the speaker waits this long for the rest to be written.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is to be recorded.
#[derive(Debug)]
enum Item {
    /// Whole messages one behind another.
    Messages {
        time: Duration,
        ends: Ends,
        sent: bool,
        encoding: Encoding,
        bytes: Bytes,
    },
    State {
        time: Duration,
        ends: Ends,
        old: State,
        new: State,
    },
}

impl Item {
    fn time(&self) -> Duration {
        match self {
            Self::Messages { time, .. } | Self::State { time, .. } => *time,
        }
    }

    /// What it takes in the queue.
    fn size(&self) -> usize {
        ENTRY
            + match self {
                Self::Messages { bytes, .. } => bytes.len(),
                Self::State { .. } => 0,
            }
    }

    fn records(&self) -> u64 {
        match self {
            Self::Messages { bytes, .. } => messages(bytes).count() as u64,
            Self::State { .. } => 1,
        }
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Messages {
                time,
                ends,
                sent,
                encoding,
                bytes,
            } => {
                for message in messages(bytes) {
                    put_message(out, *time, ends, *sent, encoding, message);
                }
            }
            Self::State { time, ends, old, new } => put_state_change(out, *time, ends, *old, *new),
        }
    }
}

fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, _) = frame(rest, MAX_EXTENDED_MESSAGE_LENGTH).ok()??;
        let (message, tail) = rest.split_at_checked(length)?;
        rest = tail;
        Some(message)
    })
}

/// What the thread has done.
#[derive(Debug, Default)]
struct Progress {
    waiting: AtomicUsize,
    records: AtomicU64,
    bytes: AtomicU64,
    left_out: AtomicU64,
    /// The file that is written, and what went wrong last.
    file: Mutex<(Option<PathBuf>, Option<String>)>,
}

#[derive(Debug)]
struct Tape {
    config: Recording,
    items: mpsc::Sender<Item>,
    progress: Arc<Progress>,
    /// Told when the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// Where sessions leave what is to be recorded; one for all of them.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    on: AtomicBool,
    /// The speaker's own AS.
    asn: AtomicU32,
    tape: Mutex<Option<Tape>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Records so from now on; nothing, when nothing is given.
    pub(super) fn set(&self, asn: u32, wanted: Option<&Recording>) {
        self.asn.store(asn, Ordering::Relaxed);
        let mut tape = lock(&self.tape);
        if tape.as_ref().map(|tape| &tape.config) == wanted {
            return;
        }
        // The thread writes what it has and ends.
        *tape = None;
        if let Some(config) = wanted {
            match start(config.clone()) {
                Ok(started) => *tape = Some(started),
                Err(error) => warn!(%error, "cannot record messages"),
            }
        }
        self.on.store(tape.is_some(), Ordering::Relaxed);
    }

    /// Ends it, and waits a moment for the rest to be written.
    pub(super) fn finish(&self) {
        self.on.store(false, Ordering::Relaxed);
        if let Some(Tape { items, ended, .. }) = lock(&self.tape).take() {
            drop(items);
            // Either it has ended or it is not waited for.
            let _ = ended.recv_timeout(FAREWELL);
        }
    }

    /// Whether there is anything to be done.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The speaker's own AS.
    pub(super) fn asn(&self) -> u32 {
        self.asn.load(Ordering::Relaxed)
    }

    /// Records whole messages.
    pub(super) fn messages(&self, ends: Ends, sent: bool, encoding: Encoding, bytes: Bytes) {
        self.record(|time| Item::Messages {
            time,
            ends,
            sent,
            encoding,
            bytes,
        });
    }

    /// Records a change of state.
    pub(super) fn state(&self, ends: Ends, old: State, new: State) {
        self.record(|time| Item::State { time, ends, old, new });
    }

    fn record(&self, item: impl FnOnce(Duration) -> Item) {
        let tape = lock(&self.tape);
        let Some(tape) = tape.as_ref() else { return };
        let item = item(since_1970());
        if matches!(item, Item::Messages { sent: true, .. }) && !tape.config.sent {
            return;
        }
        let (size, progress) = (item.size(), &tape.progress);
        if progress.waiting.load(Ordering::Relaxed) + size > tape.config.queue {
            progress.left_out.fetch_add(item.records(), Ordering::Relaxed);
            return;
        }
        progress.waiting.fetch_add(size, Ordering::Relaxed);
        // A thread that is gone has said why.
        let _ = tape.items.send(item);
    }

    /// For those who look.
    pub(super) fn view(&self) -> Option<RecordingView> {
        let tape = lock(&self.tape);
        let tape = tape.as_ref()?;
        let progress = &tape.progress;
        let (file, error) = lock(&progress.file).clone();
        Some(RecordingView {
            directory: tape.config.directory.display().to_string(),
            file: file.map(|file| file.display().to_string()),
            records: progress.records.load(Ordering::Relaxed),
            bytes: progress.bytes.load(Ordering::Relaxed),
            left_out: progress.left_out.load(Ordering::Relaxed),
            error,
        })
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn start(config: Recording) -> io::Result<Tape> {
    let (items, inbox) = mpsc::channel();
    let (alive, ended) = mpsc::channel();
    let progress = Arc::new(Progress::default());
    let mut writer = Writer {
        config: config.clone(),
        progress: Arc::clone(&progress),
        open: None,
        out: BytesMut::new(),
        gathered: 0,
        tried: None,
    };
    std::thread::Builder::new()
        .name("bgp-mrt".into())
        .spawn(move || {
            writer.run(&inbox);
            // Nobody may wait.
            let _ = alive.send(());
        })?;
    Ok(Tape {
        config,
        items,
        progress,
        ended,
    })
}

struct Open {
    file: File,
    /// Bytes in it; all of them whole records.
    length: u64,
    slot: u64,
}

struct Writer {
    config: Recording,
    progress: Arc<Progress>,
    open: Option<Open>,
    /// Records not yet written, and how many.
    out: BytesMut,
    gathered: u64,
    /// When a file could not be opened or written.
    tried: Option<Instant>,
}

impl Writer {
    fn run(&mut self, inbox: &mpsc::Receiver<Item>) {
        loop {
            let next = if self.out.is_empty() {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                inbox.recv_timeout(SILENCE)
            };
            match next {
                Ok(item) => {
                    self.take(&item);
                    self.progress.waiting.fetch_sub(item.size(), Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => return self.write(),
            }
        }
    }

    fn slot(&self, time: Duration) -> u64 {
        time.as_secs()
            .checked_div(self.config.interval.as_secs())
            .unwrap_or(0)
    }

    fn take(&mut self, item: &Item) {
        let slot = self.slot(item.time());
        let over = self
            .open
            .as_ref()
            .is_some_and(|open| slot > open.slot || open.length + self.out.len() as u64 >= self.config.size);
        if over {
            self.write();
            self.open = None;
        }
        if self.open.is_none() && !self.begin(item.time()) {
            self.progress
                .left_out
                .fetch_add(item.records(), Ordering::Relaxed);
            return;
        }
        item.put(&mut self.out);
        self.gathered += item.records();
        if self.out.len() >= GATHER {
            self.write();
        }
    }

    /// Opens the next file.
    fn begin(&mut self, time: Duration) -> bool {
        if self.tried.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        match create(&self.config, time) {
            Ok((file, path)) => {
                if self.tried.take().is_some() {
                    info!(file = %path.display(), "messages are recorded again");
                }
                *lock(&self.progress.file) = (Some(path), None);
                self.open = Some(Open {
                    file,
                    length: 0,
                    slot: self.slot(time),
                });
                self.forget_old();
                true
            }
            Err(error) => {
                self.failed(&error, "cannot open a file to record messages in");
                false
            }
        }
    }

    fn failed(&mut self, error: &io::Error, what: &str) {
        let directory = self.config.directory.display();
        // Once, not every few seconds.
        if self.tried.is_none() {
            warn!(%directory, %error, "{what}");
        }
        self.tried = Some(Instant::now());
        self.open = None;
        *lock(&self.progress.file) = (None, Some(format!("{what}: {error}")));
    }

    fn write(&mut self) {
        let (out, records) = (self.out.split(), std::mem::take(&mut self.gathered));
        let Some(open) = &mut self.open else { return };
        if out.is_empty() {
            return;
        }
        match open.file.write_all(&out) {
            Ok(()) => {
                open.length += out.len() as u64;
                self.progress.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
                self.progress.records.fetch_add(records, Ordering::Relaxed);
            }
            Err(error) => {
                // A piece of a record would make the rest of the file unreadable; where not even this works nothing is lost by it.
                let _ = open.file.set_len(open.length);
                self.progress.left_out.fetch_add(records, Ordering::Relaxed);
                self.failed(&error, "cannot write recorded messages");
            }
        }
    }

    /// Removes the oldest files beyond those that are kept. Names sort by time.
    fn forget_old(&self) {
        if self.config.keep == 0 {
            return;
        }
        let Ok(entries) = fs::read_dir(&self.config.directory) else {
            return;
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| is_ours(name, &self.config.name)).collect();
        names.sort_unstable();
        let beyond = names.len().saturating_sub(self.config.keep);
        for name in names.into_iter().take(beyond) {
            if let Err(error) = fs::remove_file(self.config.directory.join(&name)) {
                warn!(name, %error, "cannot remove an old recording");
            }
        }
    }
}

/// Whether it is a name that [`create`] gives.
fn is_ours(file: &str, name: &str) -> bool {
    let Some(middle) = file
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix(".mrt"))
    else {
        return false;
    };
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    middle.split_once('.').is_some_and(|(date, time)| {
        let (time, number) = time.split_once('_').unwrap_or((time, "000"));
        digits(date, 8) && digits(time, 6) && digits(number, 3)
    })
}

fn create(config: &Recording, time: Duration) -> io::Result<(File, PathBuf)> {
    fs::create_dir_all(&config.directory)?;
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let stamp = jiff::Timestamp::from_second(seconds)
        .map_err(io::Error::other)?
        .strftime("%Y%m%d.%H%M%S");
    let stem = format!("{}.{stamp}", config.name);
    // Several a second only where files are tiny.
    let names = (0..1000).map(|n| match n {
        0 => format!("{stem}.mrt"),
        n => format!("{stem}_{n:03}.mrt"),
    });
    for name in names {
        let path: PathBuf = Path::new(&config.directory).join(name);
        match File::options().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (file, path)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        Ends {
            peer_asn: 65001,
            local_asn: 65000,
            peer: "192.0.2.2".parse().unwrap(),
            local: "192.0.2.1".parse().unwrap(),
        }
    }

    /// A disk that never takes anything costs the queue and no more.
    #[test]
    fn what_does_not_fit_into_the_queue_is_left_out_and_counted() {
        let (items, inbox) = mpsc::channel();
        let (_alive, ended) = mpsc::channel();
        let recorder = Recorder::default();
        *lock(&recorder.tape) = Some(Tape {
            config: Recording {
                queue: 10_000,
                ..Recording::new("/nonexistent")
            },
            items,
            progress: Arc::default(),
            ended,
        });
        let mut keepalives = vec![0xff; 16];
        keepalives.extend([0, 19, 4]);
        let keepalives = Bytes::from(keepalives.repeat(100));
        for _ in 0..50 {
            recorder.messages(ends(), false, Encoding::default(), keepalives.clone());
        }
        let view = recorder.view().unwrap();
        let taken = inbox.try_iter().count() as u64;
        assert!((1..10).contains(&taken), "{taken}");
        assert_eq!(view.left_out, (50 - taken) * 100);
    }

    #[test]
    fn only_files_of_this_recording_are_removed() {
        assert!(is_ours("updates.20261121.234500.mrt", "updates"));
        assert!(is_ours("updates.20261121.234500_001.mrt", "updates"));
        for other in [
            "updates.mrt",
            "updates.20261121.mrt",
            "updates.20261121.234500.mrt.gz",
            "other.20261121.234500.mrt",
            "updates.b.20261121.234500.mrt",
        ] {
            assert!(!is_ours(other, "updates"), "{other}");
        }
    }
}
