//! The objects of the API, typed: create, read, replace, apply, modify, delete.
//!
//! Values are Calico's JSON. What this release does not know of an object stays in it: every write goes through
//! [`Stored`], which applies the change of the typed view to the JSON that was read. The store's revision is the
//! object's `resourceVersion`; it is filled on reading and never stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use policy::resource::{
    ClusterInformationSpec, IpPoolSpec, Kind, Object, ObjectMeta, Resource, STORED_METADATA_ANNOTATION, Spec,
    Stored, has_prefixed_form,
};
use serde_json::{Value, json};

use crate::key::{self, Key};
use crate::store::{self, Entry, Expect, Revision, Store};

/// Attempts of a read-modify-write before somebody else's writes are given the blame.
const ATTEMPTS: u32 = 100;

/// An object as it is stored, its `resourceVersion` filled in.
pub type Record = Stored<Resource>;

/// Objects at one revision.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    /// The revision that this shows.
    pub revision: Revision,
    /// Sorted by key: by namespace, then name.
    pub items: Vec<T>,
    /// Stored objects that cannot be understood: key and reason. They are left out, the others are good.
    pub damaged: Vec<(String, String)>,
}

/// What went wrong, grouped by what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("{kind} {name:?} does not exist")]
    NotFound {
        /// Its kind.
        kind: Kind,
        /// Its name, with its namespace where it has one.
        name: String,
    },
    /// There is one already.
    #[error("{kind} {name:?} already exists")]
    AlreadyExists {
        /// Its kind.
        kind: Kind,
        /// Its name, with its namespace where it has one.
        name: String,
    },
    /// The object has changed since the caller read it. Read it again.
    #[error(
        "{kind} {name:?} has changed since it was read (now resourceVersion {current}); get it again and repeat the change"
    )]
    Conflict {
        /// Its kind.
        kind: Kind,
        /// Its name, with its namespace where it has one.
        name: String,
        /// Where it is now.
        current: Revision,
    },
    /// The request makes no sense; no retry helps.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The object in the store cannot be understood.
    #[error("stored object {key} cannot be understood: {reason}")]
    Damaged {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The store itself failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What every call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none before.
    Created,
    /// It was changed.
    Updated,
    /// It was as wanted already; nothing was written.
    Unchanged,
}

/// The annotation of the ClusterInformation that says how new policies are stored.
pub const POLICY_NAMES_ANNOTATION: &str = "margay/policy-names";

/// How policies are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyNames {
    /// Under their names, as Calico does from 3.32 on.
    Plain,
    /// With their tier in front, `default` where there is none, as Calico does before 3.32.
    Prefixed,
}

impl PolicyNames {
    /// What a release of Calico does, `v3.31.0` and the like; plain where it cannot be told.
    fn of_release(release: Option<&str>) -> Self {
        let numbers = release.and_then(|text| {
            let mut parts = text.trim_start_matches('v').splitn(3, '.');
            let major: u32 = parts.next()?.parse().ok()?;
            let minor: u32 = parts.next()?.parse().ok()?;
            Some((major, minor))
        });
        match numbers {
            Some(release) if release < (3, 32) => Self::Prefixed,
            _ => Self::Plain,
        }
    }
}

impl std::fmt::Display for PolicyNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Prefixed => "prefixed",
        })
    }
}

impl std::str::FromStr for PolicyNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            "prefixed" => Ok(Self::Prefixed),
            _ => Err(format!("{text:?} is neither plain nor prefixed")),
        }
    }
}

/// Typed access to a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    store: Arc<dyn Store>,
}

impl Client {
    /// Access to `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The store behind.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// One object, or `None`.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Invalid`] for a namespace that is missing or superfluous, [`Error::Store`].
    pub async fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<Option<Record>> {
        let key = key_of(kind, namespace, name)?;
        let (_, entry) = self.locate(&key).await?;
        entry.as_ref().map(record).transpose()
    }

    /// One object of a kind known at compile time, or `None`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_as<S: Spec>(&self, namespace: Option<&str>, name: &str) -> Result<Option<Object<S>>> {
        Ok(self
            .get(S::KIND, namespace, name)
            .await?
            .and_then(|record| S::take(record.typed).ok()))
    }

    /// All objects of a kind, in one namespace or everywhere.
    ///
    /// # Errors
    /// [`Error::Store`]. What cannot be understood is listed in [`Listed::damaged`].
    pub async fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<Listed<Record>> {
        let listing = self.store.list(&key::resources(kind, namespace)).await?;
        let mut listed = Listed {
            revision: listing.revision,
            items: Vec::new(),
            damaged: Vec::new(),
        };
        for entry in &listing.entries {
            match record(entry) {
                Ok(record) => listed.items.push(record),
                Err(e) => listed.damaged.push((entry.key.to_string(), e.to_string())),
            }
        }
        Ok(listed)
    }

    /// All objects of a kind known at compile time.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list_as<S: Spec>(&self, namespace: Option<&str>) -> Result<Listed<Object<S>>> {
        let Listed {
            revision,
            items,
            damaged,
        } = self.list(S::KIND, namespace).await?;
        let items = items
            .into_iter()
            .filter_map(|record| S::take(record.typed).ok())
            .collect();
        Ok(Listed {
            revision,
            items,
            damaged,
        })
    }

    /// Creates an object. Its `uid`, `creationTimestamp` and `generation` are set here.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`], [`Error::Store`].
    pub async fn create(&self, resource: impl Into<Resource>) -> Result<Record> {
        let resource = resource.into();
        let plain = key_of_resource(&resource)?;
        if plain.prefixed().is_some() && self.locate(&plain).await?.1.is_some() {
            return Err(already_exists(&resource));
        }
        let (key, new) = self.newborn(&plain, resource).await?;
        let value = encode(&new.to_json());
        for _ in 0..ATTEMPTS {
            match self.store.put(&key, value.clone(), Expect::Absent).await {
                Ok(revision) => return Ok(at(new, revision)),
                Err(store::Error::Conflict { .. }) => return Err(already_exists(&new.typed)),
                Err(store::Error::Ambiguous { .. }) => match self.store.get(&key).await? {
                    None => {}
                    Some(entry) if entry.value[..] == value[..] => return Ok(at(new, entry.mod_revision)),
                    Some(_) => return Err(already_exists(&new.typed)),
                },
                Err(e) => return Err(e.into()),
            }
        }
        Err(gave_up(&key))
    }

    /// Replaces an object that exists. With a `resourceVersion` it must be the current one. Fields that this release does
    /// not know, `uid` and `creationTimestamp` stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], [`Error::Invalid`], [`Error::Store`].
    pub async fn replace(&self, resource: impl Into<Resource>) -> Result<Record> {
        let resource = resource.into();
        let key = key_of_resource(&resource)?;
        let wanted = wanted_version(&resource)?;
        let (_, record) = self
            .write(&key, &resource, |old| {
                let Some((revision, old)) = old else {
                    return Err(not_found(&resource));
                };
                if wanted.is_some_and(|wanted| wanted != revision) {
                    return Err(changed(&resource, revision));
                }
                succeed(old, &resource).map(Some)
            })
            .await?;
        Ok(record)
    }

    /// Creates an object, or makes the existing one what is said here. Fields that this release does not know, `uid` and
    /// `creationTimestamp` stay. A `resourceVersion` that is not the current one is a conflict.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Invalid`], [`Error::Store`].
    pub async fn apply(&self, resource: impl Into<Resource>) -> Result<(Outcome, Record)> {
        let resource = resource.into();
        let key = key_of_resource(&resource)?;
        let wanted = wanted_version(&resource)?;
        self.write(&key, &resource, |old| match old {
            None if wanted.is_some() => Err(not_found(&resource)),
            None => Ok(None),
            Some((revision, _)) if wanted.is_some_and(|wanted| wanted != revision) => {
                Err(changed(&resource, revision))
            }
            Some((_, old)) => succeed(old, &resource).map(Some),
        })
        .await
    }

    /// What [`Client::apply`] would do, without doing it: the object as it is stored, and as it would be.
    ///
    /// # Errors
    /// As `apply`.
    pub async fn preview(&self, resource: impl Into<Resource>) -> Result<(Option<Record>, Record)> {
        let resource = resource.into();
        let key = key_of_resource(&resource)?;
        let wanted = wanted_version(&resource)?;
        let (_, entry) = self.locate(&key).await?;
        match entry.as_ref() {
            None if wanted.is_some() => Err(not_found(&resource)),
            None => Ok((None, newborn(resource))),
            Some(entry) if wanted.is_some_and(|wanted| wanted != entry.mod_revision) => {
                Err(changed(&resource, entry.mod_revision))
            }
            Some(entry) => {
                let old = record(entry)?;
                Ok((Some(old.clone()), succeed(old, &resource)?))
            }
        }
    }

    /// Reads an object, lets `change` change it, writes it; from the start again if somebody else was quicker. `change`
    /// may run more than once.
    ///
    /// # Errors
    /// [`Error::NotFound`], whatever `change` says, [`Error::Store`].
    pub async fn modify(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        mut change: impl FnMut(&mut Resource) -> Result<()> + Send,
    ) -> Result<Record> {
        let wanted = key_of(kind, namespace, name)?;
        let missing = || Error::NotFound {
            kind,
            name: display_name(namespace, name),
        };
        for _ in 0..ATTEMPTS {
            let (key, entry) = self.locate(&wanted).await?;
            let entry = entry.ok_or_else(missing)?;
            let old = record(&entry)?;
            let mut changed = old.typed.clone();
            change(&mut changed)?;
            let new = succeed(old, &changed)?;
            if let Some((_, record)) = self.write_once(&key, Some(&entry), new).await? {
                return Ok(record);
            }
        }
        Err(gave_up(&wanted.to_string()))
    }

    /// The ClusterInformation `default`, made where there is none: tools of Calico ask it whether the store may be used.
    ///
    /// # Errors
    /// As [`Client::create`] and [`Client::get`].
    pub async fn cluster_information(&self) -> Result<Object<ClusterInformationSpec>> {
        let name = "default";
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.get_as::<ClusterInformationSpec>(None, name).await? {
                return Ok(found);
            }
            let spec = ClusterInformationSpec {
                cluster_guid: Some(uuid::Uuid::new_v4().simple().to_string()),
                cluster_type: Some("margay".to_owned()),
                datastore_ready: Some(true),
                ..ClusterInformationSpec::default()
            };
            match self.create(Object::new(ObjectMeta::named(name), spec)).await {
                Ok(_) | Err(Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(gave_up(name))
    }

    /// Says in the ClusterInformation whether the store may be used. While it may not, as during a migration, nobody
    /// attaches or detaches workloads; what runs goes on.
    ///
    /// # Errors
    /// As [`Client::modify`].
    pub async fn set_ready(&self, ready: bool) -> Result<()> {
        self.cluster_information().await?;
        let change = |resource: &mut Resource| {
            if let Resource::ClusterInformation(information) = resource {
                information.spec.datastore_ready = Some(ready);
            }
            Ok(())
        };
        self.modify(Kind::ClusterInformation, None, "default", change)
            .await
            .map(drop)
    }

    /// Sets labels, or removes those with no value.
    ///
    /// # Errors
    /// As [`Client::modify`].
    pub async fn set_labels(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        labels: &BTreeMap<String, Option<String>>,
    ) -> Result<Record> {
        self.modify(kind, namespace, name, |resource| {
            for (label, value) in labels {
                let all = &mut resource.metadata_mut().labels;
                match value {
                    Some(value) => drop(all.insert(label.clone(), value.clone())),
                    None => drop(all.remove(label)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Deletes an object; with a revision, only if it is still at that one. Returns what was deleted, where it can be
    /// understood: also a damaged object can be deleted.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], [`Error::Store`].
    pub async fn delete(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        expected: Option<Revision>,
    ) -> Result<Option<Record>> {
        let (key, _) = self.locate(&key_of(kind, namespace, name)?).await?;
        let display = || display_name(namespace, name);
        let mut in_doubt: Option<Entry> = None;
        for _ in 0..ATTEMPTS {
            let entry = match (self.store.get(&key).await?, in_doubt.take()) {
                (None, None) => {
                    return Err(Error::NotFound {
                        kind,
                        name: display(),
                    });
                }
                // The delete that was left in doubt had happened; a new object under the name is another one.
                (None, Some(deleted)) => return Ok(record(&deleted).ok()),
                (Some(new), Some(deleted)) if new.create_revision != deleted.create_revision => {
                    return Ok(record(&deleted).ok());
                }
                (Some(entry), _) => entry,
            };
            if expected.is_some_and(|expected| expected != entry.mod_revision) {
                return Err(Error::Conflict {
                    kind,
                    name: display(),
                    current: entry.mod_revision,
                });
            }
            match self.store.delete(&key, entry.mod_revision).await {
                Ok(_) => return Ok(record(&entry).ok()),
                Err(store::Error::Conflict { .. }) => {}
                Err(store::Error::Ambiguous { .. }) => in_doubt = Some(entry),
                Err(e) => return Err(e.into()),
            }
        }
        Err(gave_up(&key))
    }

    /// Computes the next state from the current one and writes it, until it is written or `next` refuses. Where `next`
    /// has nothing to go by, the object is made.
    async fn write(
        &self,
        wanted: &Key,
        resource: &Resource,
        mut next: impl FnMut(Option<(Revision, Record)>) -> Result<Option<Record>> + Send,
    ) -> Result<(Outcome, Record)> {
        for _ in 0..ATTEMPTS {
            let (key, entry) = self.locate(wanted).await?;
            let old = entry
                .as_ref()
                .map(|e| record(e).map(|r| (e.mod_revision, r)))
                .transpose()?;
            let (key, new) = match next(old)? {
                None => self.newborn(wanted, resource.clone()).await?,
                Some(new) => (key, new),
            };
            if let Some(written) = self.write_once(&key, entry.as_ref(), new).await? {
                return Ok(written);
            }
        }
        Err(gave_up(&wanted.to_string()))
    }

    /// The key under which an object is stored, with what is there. A policy may be stored under its name or, by
    /// Calico before 3.32, with its tier in front; where there is neither, the key is the one that is meant.
    async fn locate(&self, wanted: &Key) -> Result<(String, Option<Entry>)> {
        let key = wanted.to_string();
        if let Some(entry) = self.store.get(&key).await? {
            return Ok((key, Some(entry)));
        }
        if let Some(prefixed) = wanted.prefixed().map(|prefixed| prefixed.to_string())
            && let Some(entry) = self.store.get(&prefixed).await?
        {
            // An object that is really called so is another one.
            let is_it = record(&entry).is_ok_and(|found| Key::of(&found.typed).as_ref() == Some(wanted));
            if is_it {
                return Ok((prefixed, Some(entry)));
            }
        }
        Ok((key, None))
    }

    /// A new object's key and first state, in the form that this store has its policies in.
    async fn newborn(&self, key: &Key, resource: Resource) -> Result<(String, Record)> {
        let new = newborn(resource);
        match key.prefixed() {
            Some(prefixed) if self.policy_names().await? == PolicyNames::Prefixed => {
                Ok((prefixed.to_string(), with_prefixed_name(&new, &prefixed)?))
            }
            _ => Ok((key.to_string(), new)),
        }
    }

    /// The form in which new policies are stored: what the ClusterInformation says in an annotation of ours, else what
    /// the release of Calico that it names does, else plain.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn policy_names(&self) -> Result<PolicyNames> {
        let information = self.get_as::<ClusterInformationSpec>(None, "default").await?;
        Ok(information.map_or(PolicyNames::Plain, |information| {
            let annotated = information.metadata.annotations.get(POLICY_NAMES_ANNOTATION);
            let said = annotated.and_then(|text| text.parse().ok());
            said.unwrap_or_else(|| PolicyNames::of_release(information.spec.calico_version.as_deref()))
        }))
    }

    /// Stores all policies in this form from now on, those that are there too. Each is written anew before its old key
    /// goes, so that none is missing at any time; what stopped half-way is finished by another call. Returns how many
    /// were moved.
    ///
    /// # Errors
    /// [`Error::Conflict`] where one was changed meanwhile, [`Error::Store`].
    pub async fn set_policy_names(&self, form: PolicyNames) -> Result<usize> {
        self.cluster_information().await?;
        self.modify(Kind::ClusterInformation, None, "default", |resource| {
            let annotations = &mut resource.metadata_mut().annotations;
            annotations.insert(POLICY_NAMES_ANNOTATION.to_owned(), form.to_string());
            Ok(())
        })
        .await?;
        let mut moved = 0;
        for kind in Kind::all().iter().filter(|kind| has_prefixed_form(**kind)) {
            for entry in self.store.list(&key::resources(*kind, None)).await?.entries {
                let Ok(old) = record(&entry) else { continue };
                let Some(plain) = Key::of(&old.typed) else {
                    continue;
                };
                let Some(prefixed) = plain.prefixed() else {
                    continue;
                };
                let (key, new) = match form {
                    PolicyNames::Plain => (plain.to_string(), reread(shown(&old))?),
                    PolicyNames::Prefixed => (prefixed.to_string(), with_prefixed_name(&old, &prefixed)?),
                };
                if *entry.key == *key {
                    continue;
                }
                let there = self.store.get(&key).await?;
                let written = self.write_once(&key, there.as_ref(), new).await?;
                if written.is_none() {
                    return Err(changed(&old.typed, entry.mod_revision));
                }
                self.store.delete(&entry.key, entry.mod_revision).await?;
                moved += 1;
            }
        }
        Ok(moved)
    }

    /// `None`: somebody else was quicker, or it is not known to have been written; read again.
    async fn write_once(
        &self,
        key: &str,
        old: Option<&Entry>,
        new: Record,
    ) -> Result<Option<(Outcome, Record)>> {
        let value = encode(&new.to_json());
        let outcome = if old.is_some() {
            Outcome::Updated
        } else {
            Outcome::Created
        };
        if let Some(old) = old
            && serde_json::from_slice::<Value>(&old.value).ok() == serde_json::from_slice(&value).ok()
        {
            return Ok(Some((Outcome::Unchanged, at(new, old.mod_revision))));
        }
        let expect = old.map_or(Expect::Absent, |e| Expect::ModRevision(e.mod_revision));
        match self.store.put(key, value.clone(), expect).await {
            Ok(revision) => Ok(Some((outcome, at(new, revision)))),
            Err(store::Error::Conflict { .. }) => Ok(None),
            Err(store::Error::Ambiguous { .. }) => match self.store.get(key).await? {
                Some(entry) if entry.value[..] == value[..] => {
                    Ok(Some((outcome, at(new, entry.mod_revision))))
                }
                _ => Ok(None),
            },
            Err(e) => Err(e.into()),
        }
    }
}

/// Reads a stored object and fills in its `resourceVersion`.
///
/// # Errors
/// [`Error::Damaged`].
pub fn record(entry: &Entry) -> Result<Record> {
    let damaged = |reason: String| Error::Damaged {
        key: entry.key.to_string(),
        reason,
    };
    let mut json: Value = serde_json::from_slice(&entry.value).map_err(|e| damaged(e.to_string()))?;
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "resourceVersion".to_owned(),
            entry.mod_revision.to_string().into(),
        );
    }
    Record::from_json(json).map_err(|e| damaged(e.to_string()))
}

fn encode(json: &Value) -> Vec<u8> {
    let mut json = json.clone();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("resourceVersion");
    }
    json.to_string().into_bytes()
}

/// The record with the revision that its write got.
fn at(record: Record, revision: Revision) -> Record {
    let mut json = record.to_json();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    // It was read or made a moment ago; should it not read again, the caller gets it without its revision.
    Record::from_json(json).unwrap_or(record)
}

/// The record under the name with its tier in front, and with its own name in the annotation.
fn with_prefixed_name(record: &Record, prefixed: &Key) -> Result<Record> {
    let given = json!({ "name": record.typed.metadata().name }).to_string();
    let mut json = record.to_json();
    if let Key::Resource { name, .. } = prefixed
        && let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("name".to_owned(), name.as_str().into());
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(STORED_METADATA_ANNOTATION.to_owned(), given.into());
        }
    }
    reread(json)
}

/// The object as people know it: a policy under the name it was given, without the note of how it is stored.
pub fn shown(record: &Record) -> Value {
    let mut json = record.to_json();
    if has_prefixed_form(record.typed.kind())
        && let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("name".to_owned(), record.typed.metadata().name.as_str().into());
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove(STORED_METADATA_ANNOTATION);
            if annotations.is_empty() {
                metadata.shift_remove("annotations");
            }
        }
    }
    json
}

fn reread(json: Value) -> Result<Record> {
    Record::from_json(json).map_err(|e| Error::Invalid {
        reason: e.to_string(),
    })
}

/// A new object's first state.
fn newborn(mut resource: Resource) -> Record {
    let metadata = resource.metadata_mut();
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    metadata.creation_timestamp = Some(now.to_string());
    metadata.generation = Some(1);
    metadata.resource_version = None;
    Stored::new(resource)
}

/// The next state of an object that exists: what `wanted` says, and of the old state what is not `wanted`'s to say.
fn succeed(old: Record, wanted: &Resource) -> Result<Record> {
    let before = old.typed.clone();
    if let (Some(before), Some(after)) = (before.spec_of::<IpPoolSpec>(), wanted.spec_of::<IpPoolSpec>()) {
        for (field, changed) in [
            ("cidr", before.spec.cidr != after.spec.cidr),
            (
                "blockSize",
                before.spec.effective_block_size() != after.spec.effective_block_size(),
            ),
        ] {
            if changed {
                let name = &wanted.metadata().name;
                let reason = format!(
                    "IPPool {name:?}: spec.{field} cannot be changed; make a new pool, disable this one and move over"
                );
                return Err(Error::Invalid { reason });
            }
        }
    }
    let mut new = old;
    let status = new.raw().get("status").cloned();
    new.typed = wanted.clone();
    let ObjectMeta {
        uid,
        creation_timestamp,
        generation,
        resource_version,
        ..
    } = before.metadata().clone();
    let stored_name = before.metadata().annotations.get(STORED_METADATA_ANNOTATION);
    let metadata = new.typed.metadata_mut();
    // Not the writer's to say: it is about how the object is stored.
    metadata.annotations.remove(STORED_METADATA_ANNOTATION);
    metadata
        .annotations
        .extend(stored_name.map(|text| (STORED_METADATA_ANNOTATION.to_owned(), text.clone())));
    metadata.uid = uid;
    metadata.creation_timestamp = creation_timestamp;
    metadata.resource_version = resource_version;
    metadata.generation = generation;
    let mut json = new.to_json();
    if json.get("spec") != new.raw().get("spec")
        && let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("generation".to_owned(), (generation.unwrap_or(0) + 1).into());
    }
    if let (Some(status), Some(object)) = (status, json.as_object_mut()) {
        object.entry("status").or_insert(status);
    }
    reread(json)
}

fn wanted_version(resource: &Resource) -> Result<Option<Revision>> {
    let parse = |version: &String| {
        version.parse().map_err(|_| Error::Invalid {
            reason: format!("metadata.resourceVersion {version:?} is not one of this datastore"),
        })
    };
    resource
        .metadata()
        .resource_version
        .as_ref()
        .map(parse)
        .transpose()
}

fn key_of(kind: Kind, namespace: Option<&str>, name: &str) -> Result<Key> {
    Key::resource(kind, namespace, name).ok_or_else(|| Error::Invalid {
        reason: match (kind.namespaced(), namespace) {
            _ if name.is_empty() => format!("{kind} needs a name"),
            (true, _) => format!("{kind} {name:?} needs a namespace"),
            (false, _) => format!("{kind} {name:?} has no namespace"),
        },
    })
}

fn key_of_resource(resource: &Resource) -> Result<Key> {
    let metadata = resource.metadata();
    key_of(resource.kind(), metadata.namespace.as_deref(), &metadata.name)
}

fn display_name(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

fn name_of(resource: &Resource) -> String {
    display_name(
        resource.metadata().namespace.as_deref(),
        &resource.metadata().name,
    )
}

fn not_found(resource: &Resource) -> Error {
    Error::NotFound {
        kind: resource.kind(),
        name: name_of(resource),
    }
}

fn already_exists(resource: &Resource) -> Error {
    Error::AlreadyExists {
        kind: resource.kind(),
        name: name_of(resource),
    }
}

fn changed(resource: &Resource, current: Revision) -> Error {
    Error::Conflict {
        kind: resource.kind(),
        name: name_of(resource),
        current,
    }
}

fn gave_up(key: &str) -> Error {
    let reason = format!("{key} is being changed all the time, gave up after {ATTEMPTS} attempts");
    Error::Store(store::Error::Unavailable { reason })
}

#[cfg(test)]
mod tests;
