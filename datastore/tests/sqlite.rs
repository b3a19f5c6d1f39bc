//! What only a file can suffer: processes killed while they write, modes, copies, replacement, other programs' files.
//!
//! The killed processes are this very program, called with `MARGAY_TEST_WRITER` set.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use datastore::backend::sqlite::{Options, Sqlite};
use datastore::mirror::State;
use datastore::{Error, Expect, Mirror, ResyncReason, Revision, Store, WatchItem};
use libtest_mimic::{Arguments, Failed, Trial};
use rusqlite::Connection;

const WRITER: &str = "MARGAY_TEST_WRITER";

/// How long something may take that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(WRITER) {
        runtime().block_on(write_until_killed(path.into()));
        return ExitCode::FAILURE;
    }
    let trial = |name: &str, run: fn(PathBuf)| {
        Trial::test(name, move || {
            let dir = tempfile::tempdir().map_err(|e| Failed::from(e.to_string()))?;
            run(dir.path().join("store.db"));
            Ok(())
        })
    };
    let trials = vec![
        trial(
            "what_was_acknowledged_survives_kill_9",
            what_was_acknowledged_survives_kill_9,
        ),
        trial("the_file_is_private", the_file_is_private),
        trial("a_reader_may_not_write", a_reader_may_not_write),
        trial("a_reader_sees_what_is_written", a_reader_sees_what_is_written),
        trial("a_copy_is_another_store", a_copy_is_another_store),
        trial("a_replaced_file_is_followed", a_replaced_file_is_followed),
        trial("a_file_made_anew_is_listed_anew", a_file_made_anew_is_listed_anew),
        trial(
            "foreign_newer_and_damaged_files_are_refused",
            foreign_newer_and_damaged_files_are_refused,
        ),
        trial("compaction_takes_the_log", compaction_takes_the_log),
        trial(
            "a_path_that_cannot_be_opened_is_told_at_once",
            a_path_that_cannot_be_opened_is_told_at_once,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

async fn open(path: &Path) -> Sqlite {
    Sqlite::open(path).await.expect("open")
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let current = store.get(key).await.expect("get");
    let expect = current.map_or(Expect::Absent, |e| Expect::ModRevision(e.mod_revision));
    store.put(key, value.into(), expect).await.expect("put")
}

/// The child: counts in a key of its own and in one that all share, and says each time what was acknowledged.
async fn write_until_killed(path: PathBuf) {
    let store = open(&path).await;
    let own = format!("/own/{}", std::process::id());
    let mut stdout = std::io::stdout();
    for n in 0u64.. {
        let revision = put(&store, &own, &n.to_string()).await;
        // A closed pipe: the parent is gone.
        if writeln!(stdout, "{revision} {own} {n}")
            .and_then(|()| stdout.flush())
            .is_err()
        {
            return;
        }
        if let Some(shared) = store.get("/shared").await.expect("get") {
            let count: u64 = String::from_utf8_lossy(&shared.value).parse().expect("a number");
            let next = (count + 1).to_string().into_bytes();
            match store
                .put("/shared", next, Expect::ModRevision(shared.mod_revision))
                .await
            {
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
        if n % 7 == 3 {
            let entry = store.get(&own).await.expect("get").expect("exists");
            store.delete(&own, entry.mod_revision).await.expect("delete");
        }
    }
}

fn writer(path: &Path) -> Child {
    let program = std::env::current_exe().expect("own path");
    Command::new(program)
        .env(WRITER, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn")
}

fn what_was_acknowledged_survives_kill_9(path: PathBuf) {
    let runtime = runtime();
    runtime.block_on(async { put(&open(&path).await, "/shared", "0").await });
    let mut acknowledged: BTreeMap<i64, (String, String)> = BTreeMap::new();
    for round in 0..6 {
        let mut children: Vec<Child> = (0..3).map(|_| writer(&path)).collect();
        // Killed after different numbers of acknowledgements, in the middle of whatever they do then.
        for (index, child) in children.iter_mut().enumerate() {
            let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
            let mut take = |line: String| {
                // The last line may be cut off by the kill.
                let mut words = line.split(' ').map(str::to_owned);
                if let (Some(Ok(rev)), Some(key), Some(n)) =
                    (words.next().map(|r| r.parse()), words.next(), words.next())
                {
                    acknowledged.insert(rev, (key, n));
                }
            };
            lines
                .by_ref()
                .take(3 + 5 * round + 2 * index)
                .flatten()
                .for_each(&mut take);
            child.kill().expect("kill");
            lines.map_while(Result::ok).for_each(take);
        }
        for mut child in children {
            child.wait().expect("wait");
        }
        check(&path, &acknowledged);
    }
    assert!(
        acknowledged.len() > 50,
        "{} acknowledged writes are no test",
        acknowledged.len()
    );
    runtime.block_on(async {
        let store = open(&path).await;
        put(&store, "/after", "x").await;
        let sockets = fs::read_dir(path.with_extension("db.watch"))
            .expect("directory")
            .count();
        assert_eq!(sockets, 1, "the sockets of the dead are gone, ours is there");
    });
    assert_eq!(
        fs::read_dir(path.with_extension("db.watch"))
            .expect("directory")
            .count(),
        0
    );
}

/// The file is whole, the log has no gap and replayed gives the table, and contains all that was acknowledged.
fn check(path: &Path, acknowledged: &BTreeMap<i64, (String, String)>) {
    let db = Connection::open(path).expect("open");
    let integrity: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("pragma");
    assert_eq!(integrity, "ok");
    let mut replayed: BTreeMap<String, (Vec<u8>, i64, i64)> = BTreeMap::new();
    let mut log = db
        .prepare("SELECT id, rev, key, op, value, create_rev, prev_rev FROM log ORDER BY id")
        .expect("sql");
    let mut rows = log.query([]).expect("sql");
    let (mut last, mut missing) = (0, acknowledged.clone());
    while let Some(row) = rows.next().expect("sql") {
        let (id, rev, key, op): (i64, i64, String, String) = (
            row.get(0).unwrap_or(0),
            row.get(1).unwrap_or(0),
            row.get(2).expect("key"),
            row.get(3).expect("op"),
        );
        assert_eq!((id, rev), (last + 1, id), "revisions without a gap");
        last = id;
        let previous: Option<i64> = row.get(6).expect("prev_rev");
        assert_eq!(
            previous,
            replayed.get(&key).map(|(_, _, modified)| *modified),
            "revision {id} of {key}"
        );
        if op == "put" {
            let value: Vec<u8> = row.get(4).expect("value");
            if let Some((wanted, n)) = missing.remove(&rev) {
                assert_eq!((key.as_str(), value.as_slice()), (wanted.as_str(), n.as_bytes()));
            }
            replayed.insert(key, (value, row.get(5).expect("create_rev"), rev));
        } else {
            replayed.remove(&key);
        }
    }
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    let mut table = db
        .prepare("SELECT key, value, create_rev, mod_rev FROM kv")
        .expect("sql");
    let table: BTreeMap<String, (Vec<u8>, i64, i64)> = table
        .query_map([], |row| {
            Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))
        })
        .and_then(Iterator::collect)
        .expect("sql");
    assert_eq!(replayed, table);
}

fn the_file_is_private(path: PathBuf) {
    let path = path.parent().expect("parent").join("made/for/it/store.db");
    let _store = runtime().block_on(open(&path));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    let with = |ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
    assert_eq!(mode(path.parent().expect("parent")), 0o700);
    assert_eq!(
        [mode(&path), mode(&with("-wal")), mode(&with("-shm"))],
        [0o600; 3]
    );
    assert_eq!(mode(&with(".watch")), 0o700);
}

fn a_reader_may_not_write(path: PathBuf) {
    runtime().block_on(async {
        let options = Options {
            path: path.clone(),
            read_only: true,
        };
        let missing = Sqlite::open_with(options.clone()).await;
        assert!(matches!(missing, Err(Error::Invalid { .. })), "{missing:?}");
        assert!(!path.exists(), "looking does not create");
        put(&open(&path).await, "/a", "1").await;
        let reader = Sqlite::open_with(options).await.expect("open");
        assert!(reader.status().await.expect("status").read_only);
        assert_eq!(
            &*reader.get("/a").await.expect("get").expect("exists").value,
            b"1"
        );
        let refused = reader.put("/b", vec![], Expect::Absent).await;
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
    });
}

fn a_reader_sees_what_is_written(path: PathBuf) {
    runtime().block_on(async {
        let writer = open(&path).await;
        let reader = Sqlite::open_with(Options {
            path,
            read_only: true,
        })
        .await
        .expect("open");
        let start = reader.list("/").await.expect("list").revision;
        let mut watch = reader.watch("/", start).await.expect("watch");
        let revision = put(&writer, "/a", "1").await;
        let told = async {
            while let Some(WatchItem::Batch(batch)) = watch.next().await {
                if batch.revision >= revision {
                    return;
                }
            }
            panic!("the watch ended");
        };
        tokio::time::timeout(PATIENCE, told).await.expect("told");
    });
}

fn a_copy_is_another_store(path: PathBuf) {
    runtime().block_on(async {
        let store = open(&path).await;
        put(&store, "/a", "1").await;
        let id = store.status().await.expect("status").cluster_id;
        drop(store);
        let copy = path.with_file_name("copy.db");
        Connection::open(&path)
            .and_then(|db| db.execute("VACUUM INTO ?1", [copy.display().to_string()]))
            .expect("copy");
        let moved = path.with_file_name("moved.db");
        fs::rename(&path, &moved).expect("rename");
        assert_eq!(
            open(&moved).await.status().await.expect("status").cluster_id,
            id,
            "moved, it stays the same"
        );
        let copied = open(&copy).await;
        assert_ne!(copied.status().await.expect("status").cluster_id, id);
        assert_eq!(
            &*copied.get("/a").await.expect("get").expect("exists").value,
            b"1"
        );
    });
}

/// The file is deleted under its reader, made anew, and then has more revisions than the old one had.
fn a_file_made_anew_is_listed_anew(path: PathBuf) {
    runtime().block_on(async {
        let store: Arc<dyn Store> = Arc::new(open(&path).await);
        for name in ["/old", "/both"] {
            put(&*store, name, "old").await;
        }
        let mut mirror = Mirror::spawn(store, ["/"]);
        let settle = async |mirror: &mut Mirror, wanted: &BTreeMap<String, String>| {
            let same = async {
                loop {
                    let snapshot = mirror.snapshot();
                    let here: BTreeMap<String, String> = snapshot
                        .iter()
                        .map(|(key, entry)| {
                            (
                                key.to_string(),
                                String::from_utf8_lossy(&entry.value).into_owned(),
                            )
                        })
                        .collect();
                    if here == *wanted {
                        return;
                    }
                    let _ = tokio::time::timeout(Duration::from_millis(50), mirror.next()).await;
                }
            };
            tokio::time::timeout(PATIENCE, same)
                .await
                .expect("the mirror follows");
        };
        let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        settle(&mut mirror, &text(&[("/old", "old"), ("/both", "old")])).await;
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", path.display()));
        }
        // The mirror notices that the file is gone before there is another one.
        let lost = async {
            while mirror.status().borrow().error.is_none() {
                let _ = tokio::time::timeout(Duration::from_millis(50), mirror.next()).await;
            }
        };
        tokio::time::timeout(PATIENCE, lost)
            .await
            .expect("the loss is noticed");
        assert_ne!(
            mirror.status().borrow().state,
            State::InSync,
            "what is gone is not in sync"
        );
        let anew = open(&path).await;
        for n in 0..10 {
            put(&anew, "/both", &format!("new {n}")).await;
        }
        put(&anew, "/new", "new").await;
        settle(&mut mirror, &text(&[("/both", "new 9"), ("/new", "new")])).await;
    });
}

fn a_replaced_file_is_followed(path: PathBuf) {
    runtime().block_on(async {
        let other = path.with_file_name("other.db");
        {
            let store = open(&other).await;
            for n in 0..5 {
                put(&store, "/a", &format!("other {n}")).await;
            }
        }
        Connection::open(&other)
            .expect("open")
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .expect("checkpoint");
        let store = open(&path).await;
        let revision = put(&store, "/a", "first").await;
        let mut watch = store.watch("/", revision).await.expect("watch");
        for ending in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", path.display()));
        }
        fs::rename(&other, &path).expect("rename");
        let resync = async {
            loop {
                match watch.next().await {
                    Some(WatchItem::Batch(_)) => {}
                    end => return end,
                }
            }
        };
        let end = tokio::time::timeout(PATIENCE, resync).await.expect("told");
        assert_eq!(end, Some(WatchItem::Resync(ResyncReason::HistoryChanged)));
        let read = async {
            while store
                .get("/a")
                .await
                .expect("get")
                .is_none_or(|e| &*e.value != b"other 4")
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the new file is read");
    });
}

fn foreign_newer_and_damaged_files_are_refused(path: PathBuf) {
    runtime().block_on(async {
        let foreign = path.with_file_name("foreign.db");
        Connection::open(&foreign)
            .and_then(|db| db.execute_batch("CREATE TABLE t(a)"))
            .expect("sql");
        let error = Sqlite::open(&foreign).await.expect_err("refused");
        assert!(
            matches!(&error, Error::Invalid { reason } if reason.contains("another program")),
            "{error}"
        );

        drop(open(&path).await);
        Connection::open(&path)
            .and_then(|db| db.pragma_update(None, "user_version", 99))
            .expect("sql");
        let error = Sqlite::open(&path).await.expect_err("refused");
        assert!(
            matches!(&error, Error::Invalid { reason } if reason.contains("layout 99")),
            "{error}"
        );

        let damaged = path.with_file_name("damaged.db");
        fs::write(
            &damaged,
            "this is no database, however long it may be ".repeat(100),
        )
        .expect("write");
        let error = Sqlite::open(&damaged).await.expect_err("refused");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    });
}

/// None of these mends itself: whoever waits for the store must not wait for them.
fn a_path_that_cannot_be_opened_is_told_at_once(path: PathBuf) {
    runtime().block_on(async {
        let directory = path.parent().expect("directory").to_owned();
        for (bad, advice) in [
            (PathBuf::from("/proc/no/such/store.db"), "--datastore"),
            (PathBuf::from("/dev/null/store.db"), "is a file, not a directory"),
            (directory, "name a file in this directory"),
        ] {
            let error = Sqlite::open(&bad).await.expect_err("refused");
            let text = error.to_string();
            assert!(!error.is_transient(), "{bad:?}: {error:?}");
            assert!(text.starts_with("/") && text.contains(advice), "{bad:?}: {text}");
        }
        let nothing = Options {
            path: path.with_file_name("none.db"),
            read_only: true,
        };
        let error = Sqlite::open_with(nothing).await.expect_err("refused");
        assert!(
            matches!(&error, Error::Invalid { reason } if reason.contains("none.db")),
            "{error}"
        );
        let locked = path.with_file_name("locked");
        fs::create_dir(&locked).expect("mkdir");
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("chmod");
        // Modes do not keep root out.
        if fs::create_dir(locked.join("probe")).is_err() {
            let error = Sqlite::open(locked.join("a/store.db"))
                .await
                .expect_err("refused");
            assert!(
                error.to_string().contains("run as a user who may write there"),
                "{error}"
            );
        }
    });
}

fn compaction_takes_the_log(path: PathBuf) {
    runtime().block_on(async {
        let store = open(&path).await;
        let mut last = Revision::ZERO;
        for n in 0..50 {
            last = put(&store, "/a", &n.to_string()).await;
        }
        store.compact(last).await.expect("compact");
        let rows: i64 = Connection::open(&path)
            .and_then(|db| db.query_row("SELECT count(*) FROM log", [], |row| row.get(0)))
            .expect("sql");
        assert_eq!(rows, 0);
        drop(store);
        let store = open(&path).await;
        assert!(
            put(&store, "/a", "next").await > last,
            "revisions go on though the log was empty"
        );
    });
}
