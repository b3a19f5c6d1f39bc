//! One machine's store: a SQLite file that several processes share.
//!
//! ```text
//!   kv(key, value, create_rev, mod_rev)        what is now
//!   log(id, rev, key, op, value, prev_rev)     what changed: row id = revision, so watches read it in order
//!   meta(cluster_id, inode, floor)
//! ```
//!
//! Both tables are written in one `BEGIN IMMEDIATE` transaction in WAL mode with `synchronous=FULL`: an address that was
//! handed out is not forgotten when the power fails. Compaction deletes log rows up to a floor.
//!
//! A change is signalled **after** its commit, by a datagram to every registered watcher's socket (`signal`).
//! Watching the WAL file instead would fire before the commit is visible. A slow poll is the back-up.
//!
//! SQLite blocks, so it runs on three threads per handle, never on tokio's: one writer, one reader, one for watches.

mod file;
mod signal;
mod table;
mod watcher;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::file::{Access, File};
use self::signal::Notifier;
use self::watcher::Watchers;
use crate::store::{
    Capabilities, Compare, Entry, Error, Expect, Listing, Op, Result, Revision, Status, Store, Watch,
    check_key, check_txn, check_value,
};

/// A handle on a store file. Other handles, in this process or another one, see its writes within milliseconds.
#[derive(Debug)]
pub struct Sqlite {
    writer: Worker,
    reader: Worker,
    watchers: Watchers,
    read_only: bool,
    location: String,
}

/// How to open a store file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// Refuse to write, also where the file's mode would allow it. The file must exist.
    pub read_only: bool,
}

impl Sqlite {
    /// Opens a store file, creating it (mode 0600, a new directory 0700) if it does not exist. A file that this user may
    /// only read is opened read-only.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a file that is no store, was written by a newer version or cannot be opened as this user or
    /// by this path, [`Error::Corrupt`] for a damaged one, [`Error::Unavailable`] for what may be otherwise later.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(Options {
            path: path.into(),
            read_only: false,
        })
        .await
    }

    /// [`Sqlite::open`], with a say.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_with(options: Options) -> Result<Self> {
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&options)).await;
        opened.unwrap_or_else(|e| {
            Err(Error::Unavailable {
                reason: e.to_string(),
            })
        })
    }

    fn open_blocking(options: &Options) -> Result<Self> {
        let access = file::prepare_first(&options.path, options.read_only)?;
        let writer = File::open(&options.path, access)?;
        let reader = File::open(&options.path, Access::ReadOnly)?;
        let watching = File::open(&options.path, Access::ReadOnly)?;
        let notifier = Arc::new(Notifier::open(&options.path, access)?);
        let writer = Worker::spawn("store-writer", writer, Some(notifier.clone()))?;
        let watchers = Watchers::spawn(
            watching,
            &notifier,
            (access == Access::ReadWrite).then(|| writer.clone()),
        )?;
        Ok(Self {
            writer,
            reader: Worker::spawn("store-reader", reader, None)?,
            watchers,
            read_only: access == Access::ReadOnly,
            location: format!("sqlite://{}", options.path.display()),
        })
    }

    async fn write(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision> {
        if self.read_only {
            return Err(Error::ReadOnly {
                reason: format!("{} was opened for reading", self.location),
            });
        }
        let outcome = self
            .writer
            .run(move |file| table::write(file.connection()?, &compares, &ops))
            .await;
        // The writer died with the write in its hands.
        outcome.unwrap_or(Err(Error::Ambiguous {
            reason: "the store's writer ended".to_owned(),
        }))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut File) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let outcome = self.reader.run(read).await;
        outcome.unwrap_or(Err(Error::Unavailable {
            reason: "the store's reader ended".to_owned(),
        }))
    }
}

#[async_trait]
impl Store for Sqlite {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            multi_key_txn: true,
            lease: false,
            server_progress: true,
            prefix_watch: true,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let key = key.to_owned();
        self.read(move |file| table::get(file.connection()?, &key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let prefix = prefix.to_owned();
        self.read(move |file| table::list(file.connection()?, &prefix))
            .await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        self.watchers.add(prefix, after)
    }

    async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> Result<Revision> {
        check_key(key)?;
        check_value(key, &value)?;
        let compare = Compare {
            key: key.to_owned(),
            expect,
        };
        self.write(
            vec![compare],
            vec![Op::Put {
                key: key.to_owned(),
                value,
            }],
        )
        .await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        check_key(key)?;
        let compare = Compare {
            key: key.to_owned(),
            expect: Expect::ModRevision(expect),
        };
        self.write(vec![compare], vec![Op::Delete { key: key.to_owned() }])
            .await
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision> {
        check_txn(&compares, &ops)?;
        self.write(compares, ops).await
    }

    async fn compact(&self, floor: Revision) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly {
                reason: format!("{} was opened for reading", self.location),
            });
        }
        let outcome = self
            .writer
            .run(move |file| table::compact(file.connection()?, floor).map(|()| floor))
            .await;
        outcome
            .unwrap_or(Err(Error::Unavailable {
                reason: "the store's writer ended".to_owned(),
            }))
            .map(|_| ())
    }

    async fn status(&self) -> Result<Status> {
        let (location, read_only) = (self.location.clone(), self.read_only);
        self.read(move |file| {
            let (cluster_id, revision, compacted) = table::status(file.connection()?)?;
            Ok(Status {
                cluster_id,
                revision,
                compacted,
                read_only,
                location,
            })
        })
        .await
    }
}

type Job = Box<dyn FnOnce(&mut File) + Send>;

/// A thread that owns one connection and does one job after the other. It ends with the last clone.
#[derive(Clone, Debug)]
struct Worker(mpsc::Sender<Job>, Option<Arc<Notifier>>);

impl Worker {
    fn spawn(name: &str, mut file: File, notifier: Option<Arc<Notifier>>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let run = move || {
            while let Ok(job) = queue.recv() {
                job(&mut file);
            }
        };
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        spawned.map_err(|e| Error::Unavailable {
            reason: format!("no thread for the store: {e}"),
        })?;
        Ok(Self(jobs, notifier))
    }

    /// Runs a job on the thread; `None` if the thread ended before it answered. The watchers are told when it succeeded
    /// and this is a writer.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut File) -> Result<T> + Send + 'static,
    ) -> Option<Result<T>> {
        let (answer, answered) = oneshot::channel();
        let notifier = self.1.clone();
        let job: Job = Box::new(move |file| {
            let outcome = job(file);
            if let (true, Some(notifier)) = (outcome.is_ok(), notifier) {
                notifier.notify();
            }
            let _ = answer.send(outcome);
        });
        self.0.send(job).ok()?;
        answered.await.ok()
    }

    /// Queues a job whose outcome nobody waits for.
    fn post(&self, job: impl FnOnce(&mut File) + Send + 'static) {
        let _ = self.0.send(Box::new(job));
    }
}
