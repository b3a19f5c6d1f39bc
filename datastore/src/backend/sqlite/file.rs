//! A connection to a store file: making it, checking that it is one of ours, noticing that it was replaced.
//!
//! The file remembers its own inode. One that was copied or restored from a backup finds another inode under itself and
//! takes a new cluster id, so nobody compares its revisions with those of the original. A running process sees from the
//! path's inode that another file took the place, and opens that one.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::random::SplitMix64;
use crate::store::{Error, Result};

/// `PRAGMA application_id`: "marg".
const APPLICATION_ID: i64 = 0x6d61_7267;

/// `PRAGMA user_version`: the layout of the tables.
const SCHEMA_VERSION: i64 = 1;

/// How long a writer waits for other writers before it gives up without having done anything.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// How long between two looks at whether the file is still the same one.
const IDENTITY_INTERVAL: Duration = Duration::from_millis(200);

const SCHEMA: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE kv(
    key        TEXT PRIMARY KEY,
    value      BLOB NOT NULL,
    create_rev INTEGER NOT NULL,
    mod_rev    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE log(
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    rev        INTEGER NOT NULL,  -- the last id of the transaction: its revision
    key        TEXT NOT NULL,
    op         TEXT NOT NULL CHECK (op IN ('put', 'delete')),
    value      BLOB,
    create_rev INTEGER NOT NULL,
    prev_rev   INTEGER,           -- what the compare-and-swap found
    at         INTEGER NOT NULL   -- unix seconds, for compaction by age
) STRICT;
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
}

/// An open store file.
pub(super) struct File {
    path: PathBuf,
    access: Access,
    connection: Connection,
    inode: u64,
    checked: Instant,
    /// Counts how often another file took this one's place.
    replaced: u64,
}

/// [`prepare`], and a word at once about what no waiting will mend.
pub(super) fn prepare_first(path: &Path, read_only: bool) -> Result<Access> {
    let access = prepare(path, read_only)?;
    fs::File::open(path).map_err(|e| at_the_door(path, &e))?;
    Ok(access)
}

/// Makes sure that the file exists and is a store. Says what this user may do with it.
pub(super) fn prepare(path: &Path, read_only: bool) -> Result<Access> {
    if read_only {
        return Ok(Access::ReadOnly);
    }
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| at_the_door(directory, &e))?;
    }
    // SQLite gives its companions (-wal, -shm) the mode of the file itself.
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => {}
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            tracing::debug!(path = %path.display(), error = %e, "store is opened for reading only");
            return Ok(Access::ReadOnly);
        }
        Err(e) => return Err(at_the_door(path, &e)),
    }
    let mut connection = connect(path, Access::ReadWrite)?;
    let inode = inode_of(path)?;
    initialise(path, &mut connection, inode)?;
    Ok(Access::ReadWrite)
}

impl File {
    /// Opens a file that [`prepare`] has seen.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self> {
        let inode = inode_of(path)?;
        let connection = connect(path, access)?;
        check_version(path, &connection)?;
        Ok(Self {
            path: path.to_owned(),
            access,
            connection,
            inode,
            checked: Instant::now(),
            replaced: 0,
        })
    }

    /// The connection, to the file that the path names now.
    pub(super) fn connection(&mut self) -> Result<&mut Connection> {
        if self.checked.elapsed() >= IDENTITY_INTERVAL {
            let inode = inode_of(&self.path)?;
            if inode != self.inode {
                tracing::warn!(path = %self.path.display(), "store file was replaced, opening the new one");
                if self.access == Access::ReadWrite {
                    prepare(&self.path, false)?;
                }
                let replaced = self.replaced + 1;
                *self = Self {
                    replaced,
                    ..Self::open(&self.path, self.access)?
                };
            }
            self.checked = Instant::now();
        }
        Ok(&mut self.connection)
    }

    /// Changes when the file was replaced by another one.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced
    }
}

fn inode_of(path: &Path) -> Result<u64> {
    fs::metadata(path)
        .map(|m| m.ino())
        .map_err(|e| unavailable(path, &e))
}

fn connect(path: &Path, access: Access) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = match access {
        Access::ReadWrite => Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE),
        Access::ReadOnly => Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_ONLY),
    }
    .map_err(|e| sql(path, e))?;
    connection
        .busy_handler(Some(busy_handler()))
        .map_err(|e| sql(path, e))?;
    if access == Access::ReadOnly {
        // Without a writer there is no shared memory file, and one who may not write cannot make it. Then, and only if
        // there is no log to be read either, the file by itself is the whole truth.
        let wal_is_empty = fs::metadata(companion(path, "-wal")).map_or(true, |m| m.len() == 0);
        let readable = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        if let (Err(_), true) = (&readable, wal_is_empty) {
            let uri = format!("file:{}?immutable=1", uri_escape(path));
            let flags = flags | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            connection = Connection::open_with_flags(uri, flags).map_err(|e| sql(path, e))?;
        }
    }
    connection
        .execute_batch("PRAGMA synchronous=FULL; PRAGMA trusted_schema=OFF; PRAGMA cache_size=-8192;")
        .map_err(|e| sql(path, e))?;
    Ok(connection)
}

/// A path with another ending appended to its name.
pub(super) fn companion(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn uri_escape(path: &Path) -> String {
    path.to_string_lossy()
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23")
}

/// Short waits of random length: SQLite's own handler backs off up to 100 ms, so a newcomer always overtakes those who
/// wait longest (seconds, measured). With waits of equal distribution everybody's turn comes.
fn busy_handler() -> impl FnMut(i32) -> bool + Send + 'static {
    let mut random = SplitMix64::from_entropy();
    let mut since = Instant::now();
    move |count| {
        if count == 0 {
            since = Instant::now();
        }
        std::thread::sleep(Duration::from_micros(100 + random.below(1900)));
        since.elapsed() < BUSY_LIMIT
    }
}

fn check_version(path: &Path, connection: &Connection) -> Result<()> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(|e| sql(path, e))?;
    let version = pragma("user_version").map_err(|e| sql(path, e))?;
    let reason = if application != APPLICATION_ID {
        format!("{} is a database of another program", path.display())
    } else if version != SCHEMA_VERSION {
        let path = path.display();
        format!(
            "{path} has layout {version}, this version of margay understands layout {SCHEMA_VERSION}; use the newer one"
        )
    } else {
        return Ok(());
    };
    Err(Error::Invalid { reason })
}

/// Makes the tables if the file is empty; gives a copied file an identity of its own.
fn initialise(path: &Path, connection: &mut Connection, inode: u64) -> Result<()> {
    set_wal(path, connection)?;
    let inode = i64::from_ne_bytes(inode.to_ne_bytes());
    let cluster_id = || uuid::Uuid::new_v4().to_string();
    let txn = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|e| sql(path, e))?;
    let tables = txn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
        row.get::<_, i64>(0)
    });
    if tables.map_err(|e| sql(path, e))? == 0 {
        txn.execute_batch(SCHEMA)
            .and_then(|()| txn.pragma_update(None, "application_id", APPLICATION_ID))
            .and_then(|()| txn.pragma_update(None, "user_version", SCHEMA_VERSION))
            .and_then(|()| {
                txn.execute(
                    "INSERT INTO meta VALUES ('cluster_id', ?1), ('inode', ?2), ('floor', 0)",
                    (cluster_id(), inode),
                )
            })
            .map_err(|e| sql(path, e))?;
    } else {
        check_version(path, &txn)?;
        let moved = txn
            .execute(
                "UPDATE meta SET value = ?1 WHERE name = 'inode' AND value <> ?1",
                [inode],
            )
            .map_err(|e| sql(path, e))?;
        if moved > 0 {
            tracing::warn!(path = %path.display(), "store file is a copy, it gets a cluster id of its own");
            txn.execute(
                "UPDATE meta SET value = ?1 WHERE name = 'cluster_id'",
                [cluster_id()],
            )
            .map_err(|e| sql(path, e))?;
        }
    }
    txn.commit().map_err(|e| sql(path, e))
}

/// The change of the journal mode does not call the busy handler, so this asks again itself.
fn set_wal(path: &Path, connection: &Connection) -> Result<()> {
    let mut wait = busy_handler();
    let mut attempt = 0;
    loop {
        let mode = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                let reason = format!(
                    "{}: the file system allows journal mode {mode} only, WAL is needed",
                    path.display()
                );
                return Err(Error::Invalid { reason });
            }
            Err(e) if is_busy(&e) && wait(attempt) => attempt += 1,
            Err(e) => return Err(sql(path, e)),
        }
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// A path that cannot be opened as it is: waiting does not help, so it is no [`Error::Unavailable`].
fn at_the_door(path: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "run as a user who may write there (root, usually), or name another file"
        }
        io::ErrorKind::NotFound => "create it, or name another file",
        io::ErrorKind::NotADirectory => "a part of this path is a file, not a directory; name another one",
        io::ErrorKind::IsADirectory => "name a file in this directory",
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => "name another file",
        _ => return unavailable(path, error),
    };
    let path = path.display();
    Error::Invalid {
        reason: format!("{path}: {error}; {advice} (--datastore sqlite:///path/to/file.db)"),
    }
}

fn unavailable(path: &Path, error: &io::Error) -> Error {
    Error::Unavailable {
        reason: format!("{}: {error}", path.display()),
    }
}

/// An error of an operation that has changed nothing.
fn sql(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Corrupt {
            what: path.display().to_string(),
            reason: format!(
                "{error}; put a backup in its place, or name another file (--datastore sqlite:///path/to/file.db)"
            ),
        },
        _ => Error::Unavailable {
            reason: format!("{}: {error}", path.display()),
        },
    }
}
