//! The statements: compare-and-swap on both tables in one transaction, reads at one revision, the log since a revision.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior};

use super::file::is_busy;
use crate::store::{Batch, Compare, Entry, Error, Event, Listing, Op, Result, Revision, holds};

/// Log rows deleted per transaction: the write lock is never held for long.
const COMPACT_STEP: u64 = 1_000;

/// Changes younger than this are kept for slow readers.
const KEEP_AGE: Duration = Duration::from_secs(3_600);

/// At least so many log rows are kept, however old.
const KEEP_MIN: u64 = 10_000;

/// At most so many log rows are kept, however young.
const KEEP_MAX: u64 = 500_000;

/// A batch grows up to about this many events before it is handed on.
const BATCH_EVENTS: usize = 1_000;

/// Applies the writes at one revision if all comparisons hold.
pub(super) fn write(connection: &mut Connection, compares: &[Compare], ops: &[Op]) -> Result<Revision> {
    let txn = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    for Compare { key, expect } in compares {
        let found = mod_revision(&txn, key)?;
        if !holds(*expect, found) {
            let current = get(&txn, key)?.map(Box::new);
            return Err(Error::Conflict {
                key: key.clone(),
                current,
            });
        }
    }
    let mut todo = Vec::with_capacity(ops.len());
    for op in ops {
        let previous = txn
            .prepare_cached("SELECT create_rev, mod_rev FROM kv WHERE key = ?1")
            .and_then(|mut s| {
                s.query_row([op.key()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(failed)?;
        // A delete of nothing changes nothing and needs no revision.
        if matches!(op, Op::Put { .. }) || previous.is_some() {
            todo.push((op, previous));
        }
    }
    let before = current_revision(&txn)?.raw();
    if todo.is_empty() {
        return Ok(Revision::from_raw(before));
    }
    let revision = Revision::from_raw(before + todo.len() as u64);
    for (id, (op, previous)) in (before + 1..).zip(todo) {
        apply(&txn, id, revision, op, previous).map_err(failed)?;
    }
    match txn.commit() {
        Ok(()) => Ok(revision),
        Err(e) if is_busy(&e) => Err(failed(e)),
        Err(e) => Err(Error::Ambiguous {
            reason: format!("commit: {e}"),
        }),
    }
}

/// (create revision, mod revision) of a key.
type Lifetime = Option<(i64, i64)>;

fn apply(
    txn: &Transaction<'_>,
    id: u64,
    revision: Revision,
    op: &Op,
    previous: Lifetime,
) -> rusqlite::Result<()> {
    let rev = to_sql(revision.raw());
    let created = previous.map_or(rev, |(created, _)| created);
    let (name, value) = match op {
        Op::Put { key, value } => {
            txn.prepare_cached("INSERT OR REPLACE INTO kv VALUES (?1, ?2, ?3, ?4)")?
                .execute((key, value, created, rev))?;
            ("put", Some(value))
        }
        Op::Delete { key } => {
            txn.prepare_cached("DELETE FROM kv WHERE key = ?1")?
                .execute([key])?;
            ("delete", None)
        }
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    txn.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute((
            to_sql(id),
            rev,
            op.key(),
            name,
            value,
            created,
            previous.map(|(_, modified)| modified),
            to_sql(now),
        ))?;
    Ok(())
}

/// The current state of one key.
pub(super) fn get(connection: &Connection, key: &str) -> Result<Option<Entry>> {
    connection
        .prepare_cached("SELECT key, value, create_rev, mod_rev FROM kv WHERE key = ?1")
        .and_then(|mut s| s.query_row([key], entry).optional())
        .map_err(failed)
}

/// Everything below a prefix, as one snapshot.
pub(super) fn list(connection: &mut Connection, prefix: &str) -> Result<Listing> {
    let txn = connection.transaction().map_err(failed)?;
    let revision = current_revision(&txn)?;
    let entries = match after_prefix(prefix) {
        Some(end) => txn
            .prepare_cached(
                "SELECT key, value, create_rev, mod_rev FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key",
            )
            .and_then(|mut s| s.query_map([prefix, &end], entry)?.collect()),
        None => txn
            .prepare_cached("SELECT key, value, create_rev, mod_rev FROM kv WHERE key >= ?1 ORDER BY key")
            .and_then(|mut s| s.query_map([prefix], entry)?.collect()),
    };
    Ok(Listing {
        revision,
        entries: entries.map_err(failed)?,
    })
}

/// Cluster id, latest revision, floor.
pub(super) fn status(connection: &mut Connection) -> Result<(String, Revision, Revision)> {
    let txn = connection.transaction().map_err(failed)?;
    let id = txn.query_row("SELECT value FROM meta WHERE name = 'cluster_id'", [], |row| {
        row.get(0)
    });
    Ok((id.map_err(failed)?, current_revision(&txn)?, floor(&txn)?))
}

/// The latest revision.
pub(super) fn current_revision(connection: &Connection) -> Result<Revision> {
    connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'log'")
        .and_then(|mut s| s.query_row([], |row| revision(row, 0)).optional())
        .map(Option::unwrap_or_default)
        .map_err(failed)
}

/// Changes up to here are no longer in the log.
pub(super) fn floor(connection: &Connection) -> Result<Revision> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = 'floor'")
        .and_then(|mut s| s.query_row([], |row| revision(row, 0)))
        .map_err(failed)
}

/// Hands on all changes after a revision below a prefix, in batches of whole revisions.
pub(super) fn changes(
    connection: &Connection,
    after: Revision,
    prefix: &str,
    mut each: impl FnMut(Batch),
) -> Result<()> {
    let mut statement = connection
        .prepare_cached("SELECT key, value, create_rev, rev, op FROM log WHERE id > ?1 ORDER BY id")
        .map_err(failed)?;
    let mut rows = statement.query([to_sql(after.raw())]).map_err(failed)?;
    let mut events: Vec<Event> = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let event = event(row).map_err(failed)?;
        if !event.key().starts_with(prefix) {
            continue;
        }
        if let Some(last) = events.last().map(Event::revision)
            && last != event.revision()
            && events.len() >= BATCH_EVENTS
        {
            each(Batch {
                revision: last,
                events: std::mem::take(&mut events),
            });
        }
        events.push(event);
    }
    if let Some(revision) = events.last().map(Event::revision) {
        each(Batch { revision, events });
    }
    Ok(())
}

/// Forgets the changes up to a revision. The floor moves first: a reader never meets a log with a hole above it.
pub(super) fn compact(connection: &mut Connection, wanted: Revision) -> Result<()> {
    let txn = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let wanted = wanted.min(current_revision(&txn)?);
    if wanted <= floor(&txn)? {
        return Ok(());
    }
    txn.execute(
        "UPDATE meta SET value = ?1 WHERE name = 'floor'",
        [to_sql(wanted.raw())],
    )
    .map_err(failed)?;
    txn.commit().map_err(failed)?;
    loop {
        let deleted = connection
            .execute(
                "DELETE FROM log WHERE id IN (SELECT id FROM log WHERE id <= ?1 ORDER BY id LIMIT ?2)",
                [to_sql(wanted.raw()), to_sql(COMPACT_STEP)],
            )
            .map_err(failed)?;
        if deleted == 0 {
            return Ok(());
        }
    }
}

/// Forgets what is both old and not among the latest, and whatever is too much.
pub(super) fn compact_by_age(connection: &mut Connection) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let current = current_revision(connection)?.raw();
    let old: Option<i64> = connection
        .query_row(
            "SELECT max(rev) FROM log WHERE id <= ?1 AND at < ?2",
            [
                to_sql(current.saturating_sub(KEEP_MIN)),
                to_sql(now.saturating_sub(KEEP_AGE).as_secs()),
            ],
            |row| row.get(0),
        )
        .map_err(failed)?;
    let old = old.and_then(|rev| u64::try_from(rev).ok()).unwrap_or(0);
    compact(
        connection,
        Revision::from_raw(old.max(current.saturating_sub(KEEP_MAX))),
    )
}

fn mod_revision(connection: &Connection, key: &str) -> Result<Option<Revision>> {
    connection
        .prepare_cached("SELECT mod_rev FROM kv WHERE key = ?1")
        .and_then(|mut s| s.query_row([key], |row| revision(row, 0)).optional())
        .map_err(failed)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let key: String = row.get(0)?;
    let value: Vec<u8> = row.get(1)?;
    Ok(Entry {
        key: key.into(),
        value: value.into(),
        create_revision: revision(row, 2)?,
        mod_revision: revision(row, 3)?,
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    if row.get_ref(4)?.as_str()? == "put" {
        return Ok(Event::Put(entry(row)?));
    }
    let key: String = row.get(0)?;
    Ok(Event::Delete {
        key: key.into(),
        revision: revision(row, 3)?,
    })
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    row.get::<_, i64>(column)
        .map(|n| Revision::from_raw(u64::try_from(n).unwrap_or(0)))
}

/// SQLite's integers are signed; revisions and times stay far below the limit.
fn to_sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The first string after all those that begin with `prefix`; `None` if there is none. Strings order as their UTF-8.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// An error of something that did not reach its commit: nothing happened.
pub(super) fn failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Corrupt {
            what: "the store file".to_owned(),
            reason: error.to_string(),
        },
        Some(ErrorCode::ReadOnly) => Error::ReadOnly {
            reason: error.to_string(),
        },
        Some(ErrorCode::DiskFull) => Error::Unavailable {
            reason: "the disk is full".to_owned(),
        },
        _ if is_busy(&error) => Error::Unavailable {
            reason: "other writers hold the store".to_owned(),
        },
        _ => Error::Unavailable {
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after_prefix("/a/"), Some("/a0".to_owned()));
        assert_eq!(
            after_prefix("/\u{d7ff}"),
            Some("/\u{e000}".to_owned()),
            "no surrogates in between"
        );
        assert_eq!(after_prefix("/\u{10ffff}"), Some("0".to_owned()));
        assert_eq!(after_prefix("\u{10ffff}"), None);
        assert_eq!(after_prefix(""), None);
    }
}
