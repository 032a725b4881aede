//! The key store that `key_store` names: a second copy of the wrapped data keys, in an S3 bucket or in a
//! directory. A lost key file is restored from it, and the nodes of a cluster share it.
//!
//! One object for each key version ([`WrappedKey`], in JSON), `<id>/<version>`; what `rewrap` adds for a key that
//! is there, `<id>/<version>.<n>`. Nothing is ever overwritten or deleted: an object is put only if
//! there is none of its name, which the store must enforce ([`KeyStore::check`]).
//!
//! Broker and tools share it. The plugin does not depend on it; it asks the broker.

#![forbid(unsafe_code)]

mod access;
mod connection;
mod error;
mod object;

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use aws_session::{
    credentials::Credentials,
    key_store_location::KeyStoreLocation,
    settings::{Bucket, Settings},
};
use futures_util::TryStreamExt;
use key_files::{WrappedKey, key_name::parse_number};
use object_store::{
    Error as ObjectError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig,
    aws::{AmazonS3Builder, AwsCredential, Checksum},
    local::LocalFileSystem,
    path::Path,
};
use secrecy::ExposeSecret;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::warn;

pub use error::StoreError;

/// How far above the version before it a new one may be at most: whoever puts the highest number of all leaves none to the
/// others.
pub const MAX_JUMP: u32 = 1_000_000;

/// Most objects of a store that are listed.
const MAX_OBJECTS: usize = 1_000_000;

/// Most later forms of a key that are tried.
const MAX_FORMS: usize = 16;

/// How much longer than the HTTP client, which can name the host, a request may take.
const GRACE: Duration = Duration::from_millis(500);

/// How often a put is tried whose outcome is not known, and the pause in between.
const PUT_ATTEMPTS: u32 = 3;
const PUT_PAUSE: Duration = Duration::from_millis(200);

/// The object that [`KeyStore::check`] puts.
const PROBE: &str = KeyStoreLocation::PROBE;
const PROBE_CONTENT: &str = "iam-kms-broker puts this object again and again, and the store must refuse all but the first.\n";

/// A key store, with the credentials of one session.
#[derive(Debug, Clone)]
pub struct KeyStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where the whole store lies, of which this may be a name space.
    root: Path,
    location: KeyStoreLocation,
    request_timeout: Duration,
}

/// The form of a wrapped key: 0 as KMS made it, then 1, 2 … for each `rewrap`.
pub type Form = u32;

/// The versions in a store, by id and version.
pub type Versions = BTreeMap<(u32, u32), Forms>;

/// The forms of a key version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forms {
    /// The highest number.
    pub latest: Form,
    /// The object of the first form; `None`: it is not there.
    pub first: Option<Stamp>,
}

/// Tells whether an object is still the one that was read: nothing is overwritten here, but an object can be lost, and
/// another one take its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    modified_microseconds: i64,
    e_tag: Option<String>,
    size_bytes: u64,
}

impl From<&ObjectMeta> for Stamp {
    fn from(object: &ObjectMeta) -> Self {
        Self {
            modified_microseconds: object.last_modified.timestamp_micros(),
            e_tag: object.e_tag.clone(),
            size_bytes: object.size,
        }
    }
}

/// What came of putting a key.
#[derive(Debug)]
pub enum Put {
    /// It is there now, and nothing else was there before.
    New,
    /// There was another one of that name.
    Exists(WrappedKey),
}

impl KeyStore {
    /// Opens the store at `location`. No request is made, and no file looked at: a file server may not answer.
    ///
    /// Errors: the settings make no URL.
    pub fn open(
        location: &KeyStoreLocation,
        aws: &Settings,
        credentials: Option<&Credentials>,
    ) -> Result<Self, StoreError> {
        let failed = |error| StoreError::new(location, "be opened", error);
        let (store, prefix) = match location {
            KeyStoreLocation::S3 { bucket, prefix } => {
                let store = s3(aws, bucket, &aws.bucket(bucket), credentials).map_err(failed)?;
                (store, Path::from(prefix.as_str()))
            }
            KeyStoreLocation::Directory(path) => {
                let prefix =
                    Path::from_absolute_path(path).map_err(|error| failed(error.into()))?;
                let store = LocalFileSystem::new().with_fsync(true);
                let store: Arc<dyn ObjectStore> = Arc::new(store);
                (store, prefix)
            }
        };
        Ok(Self {
            store,
            root: prefix.clone(),
            prefix,
            location: location.clone(),
            request_timeout: aws.request_timeout(),
        })
    }

    /// A part of the store for the keys of some servers. It need not exist.
    #[must_use]
    pub fn name_space(self, name: &str) -> Self {
        Self {
            prefix: self.root.clone().join(name),
            location: self.location.name_space(name),
            ..self
        }
    }

    /// Where it is.
    pub fn location(&self) -> &KeyStoreLocation {
        &self.location
    }

    /// Makes an empty store usable. In S3 the first [`Self::check`] does that; an empty directory may be the mount
    /// point of a file server that is not mounted, and keys put there would not be in the store. Changes nothing in a
    /// store.
    ///
    /// Errors: there is something else in the directory.
    pub async fn init(&self) -> Result<(), StoreError> {
        if let KeyStoreLocation::Directory(path) = &self.location {
            if matches!(path.try_exists(), Ok(false)) {
                return Err(StoreError::NoDirectory(self.location.clone()));
            }
            let listed = self.bounded(self.store.list_with_delimiter(Some(&self.prefix)));
            let listed = listed
                .await
                .map_err(|error| self.failed("be listed", error))?;
            let is_other = |folder: &Path| {
                folder
                    .parts()
                    .next_back()
                    .is_none_or(|it| it.as_ref() != "lost+found")
            };
            let is_probe = |object: &ObjectMeta| object.location == self.probe();
            let is_empty =
                !listed.common_prefixes.iter().any(is_other) && listed.objects.is_empty();
            if !(listed.objects.iter().any(is_probe) || is_empty && path.is_dir()) {
                return Err(StoreError::NotEmpty(self.location.clone()));
            }
        }
        match self.put_new(&self.probe(), PROBE_CONTENT.into()).await {
            Ok(()) | Err(ObjectError::AlreadyExists { .. }) => self.share(&self.probe()).await,
            Err(error) => Err(self.failed("be written", error)),
        }
    }

    /// Makes one form of a key readable for all that use the store, as [`Self::put_form`] does. It was not, if the program
    /// that put it was killed.
    pub async fn share_form(&self, id: u32, version: u32, form: Form) -> Result<(), StoreError> {
        self.share(&self.path(id, version, form)).await
    }

    async fn share(&self, object: &Path) -> Result<(), StoreError> {
        if let KeyStoreLocation::S3 { .. } = self.location {
            return Ok(());
        }
        let failed = |error: ObjectError| self.failed("give an object its own permissions", error);
        let files = LocalFileSystem::new();
        let root = files.path_to_filesystem(&self.root).map_err(failed)?;
        let object = files.path_to_filesystem(object).map_err(failed)?;
        let sharing = spawn_blocking(move || access::share(&root, &object));
        let shared = self.bounded(async {
            let shared = sharing.await.map_err(io::Error::other).flatten();
            shared.map_err(|error| ObjectError::Generic {
                store: "key store",
                source: Box::new(error),
            })
        });
        shared.await.map_err(failed)
    }

    fn probe(&self) -> Path {
        self.root.clone().join(PROBE)
    }

    /// Fails if this is a directory and not a store.
    async fn expect_store(&self) -> Result<(), StoreError> {
        let is_store = match self.location {
            KeyStoreLocation::S3 { .. } => true,
            KeyStoreLocation::Directory(_) => self.read(&self.probe()).await?.is_some(),
        };
        match is_store {
            true => Ok(()),
            false => Err(StoreError::NoStore(self.location.clone())),
        }
    }

    /// Proves that the store refuses to put an object that is there: without that, two nodes could make
    /// one version with two keys.
    ///
    /// Errors: it does not refuse, or cannot be written.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.expect_store().await?;
        let probe = self.probe();
        let mut puts = 0;
        for _ in 0..PUT_ATTEMPTS {
            let error = match self.put_new(&probe, PROBE_CONTENT.into()).await {
                // The first time ever.
                Ok(()) if puts == 0 => {
                    puts += 1;
                    continue;
                }
                Ok(()) => return Err(StoreError::Unconditional(self.location.clone())),
                Err(error) => error,
            };
            if !matches!(error, ObjectError::AlreadyExists { .. }) {
                return Err(self.failed("be written", error));
            }
            // A conflict with another put, which is not there yet, looks the same.
            if self.read(&probe).await?.is_some() {
                return Ok(());
            }
            sleep(PUT_PAUSE).await;
        }
        Err(StoreError::NoAnswer {
            location: self.location.clone(),
            what: "be written",
            why: "another server is writing the same object; try again".into(),
            is_denied: false,
        })
    }

    /// All versions in the store.
    pub async fn list(&self) -> Result<Versions, StoreError> {
        let prefix = self.prefix.clone();
        if let KeyStoreLocation::S3 { .. } = self.location {
            return self.list_under(&prefix).await;
        }
        // What else lies in the root of a file system, such as lost+found, may not be readable.
        self.expect_store().await?;
        let listed = self.store.list_with_delimiter(Some(&prefix));
        let listed = self.bounded(listed).await;
        let folders = listed.map_err(|error| self.failed("be listed", error))?;
        let mut versions = Versions::new();
        for folder in folders.common_prefixes {
            let mut parts = folder.prefix_match(&prefix).into_iter().flatten();
            let id = parts.next().and_then(|id| parse_number(id.as_ref()));
            if id.is_some() {
                versions.extend(self.list_under(&folder).await?);
            }
        }
        Ok(versions)
    }

    /// The versions of one key.
    pub async fn list_id(&self, id: u32) -> Result<Versions, StoreError> {
        self.list_under(&self.prefix.clone().join(id.to_string()))
            .await
    }

    async fn list_under(&self, prefix: &Path) -> Result<Versions, StoreError> {
        let failed = |error| self.failed("be listed", error);
        let check = |count| match count > MAX_OBJECTS {
            true => Err(StoreError::TooMany(self.location.clone(), MAX_OBJECTS)),
            false => Ok(()),
        };
        let mut versions = Versions::new();
        let mut add = |object: &ObjectMeta| {
            if let Some((id, version, form)) = self.parse(&object.location) {
                let forms: &mut Forms = versions.entry((id, version)).or_default();
                forms.latest = form.max(forms.latest);
                if form == 0 {
                    forms.first = Some(object.into());
                }
            }
        };
        match self.location {
            // The stream below reads a directory in two steps, with room for a thousand files.
            KeyStoreLocation::Directory(_) => {
                let listed = self.store.list_with_delimiter(Some(prefix));
                let listed = self.bounded(listed).await.map_err(failed)?;
                check(listed.objects.len())?;
                listed.objects.iter().for_each(add);
            }
            KeyStoreLocation::S3 { .. } => {
                let mut objects = self.store.list(Some(prefix));
                let mut count = 0;
                while let Some(object) = self.bounded(objects.try_next()).await.map_err(failed)? {
                    count += 1;
                    check(count)?;
                    add(&object);
                }
            }
        }
        // The keys may be missing because the file server is.
        if versions.is_empty() {
            self.expect_store().await?;
        }
        Ok(versions)
    }

    /// Reads one form of a key; `None`: it is not there.
    ///
    /// Errors: it cannot be read, or what is there is not that key.
    pub async fn get(
        &self,
        id: u32,
        version: u32,
        form: Form,
    ) -> Result<Option<WrappedKey>, StoreError> {
        let path = self.path(id, version, form);
        let Some(content) = self.read(&path).await? else {
            return Ok(None);
        };
        let invalid = |why| StoreError::Invalid {
            location: self.location.clone(),
            object: self.shown(&path),
            why,
        };
        let key = object::parse(&content).map_err(invalid)?;
        if key.name.number() != (id, version) {
            return Err(invalid(format!("it is {}", key.name)));
        }
        Ok(Some(key))
    }

    /// Reads the latest form of a version, or of the highest version; `None`: it is not there.
    pub async fn find(
        &self,
        id: u32,
        version: Option<u32>,
    ) -> Result<Option<WrappedKey>, StoreError> {
        let versions = self.list_id(id).await?;
        let version = match version {
            None => self.highest(id, &versions)?,
            Some(version) => Some(version),
        };
        match version.and_then(|version| versions.get_key_value(&(id, version))) {
            Some((&(id, version), forms)) => self.latest_form(id, version, forms.latest).await,
            None => Ok(None),
        }
    }

    /// Why a version cannot be used of which only later forms are there: who may add objects may add a later form of
    /// anything.
    pub fn without_first(&self, id: u32, version: u32, latest: Form) -> StoreError {
        let (first, later) = (self.path(id, version, 0), self.path(id, version, latest));
        let (object, later) = (self.shown(&first), self.shown(&later));
        StoreError::Invalid {
            location: self.location.clone(),
            why: format!(
                "only a later form, {later}, is there. If it was lost by accident, copy {later} to {object}: in a directory with cp, in S3 with aws s3api put-object --if-none-match '*'"
            ),
            object,
        }
    }

    /// Reads the first form of a version, or the latest one that can be read and is the same key: who may add objects may
    /// add a later form of anything.
    ///
    /// Errors: see also [`Self::without_first`].
    pub async fn latest_form(
        &self,
        id: u32,
        version: u32,
        latest: Form,
    ) -> Result<Option<WrappedKey>, StoreError> {
        let Some(first) = self.get(id, version, 0).await? else {
            return match latest {
                0 => Ok(None),
                latest => Err(self.without_first(id, version, latest)),
            };
        };
        for form in (1..=latest).rev().take(MAX_FORMS) {
            match self.get(id, version, form).await {
                Ok(Some(key))
                    if (key.name, key.bits, key.check_value)
                        == (first.name, first.bits, first.check_value) =>
                {
                    return Ok(Some(key));
                }
                Ok(_) | Err(StoreError::Invalid { .. }) => {}
                Err(error) if error.is_denied() => {
                    warn!("{error}; an earlier form of {id}/{version} is used")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(first))
    }

    /// The highest version of a key in a list of its versions.
    ///
    /// Errors: its number is so far above the one before that nobody can have made it in turn. After the highest
    /// number of all, no key could be made any more.
    pub fn highest(&self, id: u32, versions: &Versions) -> Result<Option<u32>, StoreError> {
        let mut highest = 0;
        for &(_, version) in versions.keys().filter(|number| number.0 == id) {
            if version - highest > MAX_JUMP {
                return Err(StoreError::Invalid {
                    location: self.location.clone(),
                    object: format!("{id}/{version}"),
                    why: format!(
                        "the version before it is {highest}, so no server has made it; find out who has put it there, and remove it"
                    ),
                });
            }
            highest = version;
        }
        Ok(Some(highest).filter(|&highest| highest > 0))
    }

    /// Puts a key, if there is none of its id and version, and returns when it is there for good.
    pub async fn put(&self, key: &WrappedKey) -> Result<Put, StoreError> {
        self.put_form(key, 0).await
    }

    /// Puts another form of a key that is there.
    pub async fn put_form(&self, key: &WrappedKey, form: Form) -> Result<Put, StoreError> {
        let put = self.put_object(key, form).await?;
        self.share_form(key.name.id, key.name.version, form).await?;
        Ok(put)
    }

    async fn put_object(&self, key: &WrappedKey, form: Form) -> Result<Put, StoreError> {
        self.expect_store().await?;
        let (id, version) = key.name.number();
        let path = self.path(id, version, form);
        let mut attempt = 1;
        loop {
            let error = match self.put_new(&path, object::format(key).into()).await {
                // What the servers are going to use must be what lies under the name.
                Ok(()) => {
                    return match self.get(id, version, form).await? {
                        Some(there) if there == *key => Ok(Put::New),
                        Some(there) => Ok(Put::Exists(there)),
                        None => Err(StoreError::Invalid {
                            location: self.location.clone(),
                            object: self.shown(&path),
                            why: "it was put there and is not there".into(),
                        }),
                    };
                }
                Err(error) => error,
            };
            // It may be our own, whose answer was lost or came as an error; and a conflict with another
            // put, which has failed since, looks like an object that is there.
            let is_there = matches!(error, ObjectError::AlreadyExists { .. });
            let error = self.failed("be written", error);
            // In a directory, what an error has left may not be on the disk for good.
            let is_unclear = matches!(self.location, KeyStoreLocation::S3 { .. });
            if is_there || is_unclear && error.is_transient() {
                match self.get(id, version, form).await {
                    Ok(Some(there)) if there == *key => return Ok(Put::New),
                    Ok(Some(there)) => return Ok(Put::Exists(there)),
                    Ok(None) => {}
                    Err(reading) if is_there => return Err(reading),
                    Err(_) => return Err(error),
                }
            } else {
                return Err(error);
            }
            if attempt == PUT_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            sleep(PUT_PAUSE).await;
        }
    }

    async fn put_new(&self, path: &Path, content: PutPayload) -> Result<(), ObjectError> {
        self.bounded(self.store.put_opts(path, content, PutMode::Create.into()))
            .await
            .map(drop)
    }

    /// Reads an object of at most [`object::MAX_BYTES`].
    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let read = async {
            let found = self.store.get(path).await?;
            if found.meta.size > object::MAX_BYTES {
                return Ok(None);
            }
            found.bytes().await.map(|bytes| Some(bytes.to_vec()))
        };
        match self.bounded(read).await {
            Ok(Some(content)) => Ok(Some(content)),
            Ok(None) => Err(StoreError::Invalid {
                location: self.location.clone(),
                object: self.shown(path),
                why: format!("it is longer than {} bytes", object::MAX_BYTES),
            }),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("be read", error)),
        }
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, ObjectError>>,
    ) -> Result<T, ObjectError> {
        let limit = self.request_timeout + GRACE;
        match timeout(limit, request).await {
            Ok(done) => done,
            Err(_) => Err(error::no_answer(self.request_timeout)),
        }
    }

    fn failed(&self, what: &'static str, error: ObjectError) -> StoreError {
        StoreError::new(&self.location, what, error)
    }

    fn path(&self, id: u32, version: u32, form: Form) -> Path {
        let name = match form {
            0 => version.to_string(),
            form => format!("{version}.{form}"),
        };
        self.prefix.clone().join(id.to_string()).join(name)
    }

    fn shown(&self, path: &Path) -> String {
        let parts = path.prefix_match(&self.prefix);
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        parts.join("/")
    }

    fn parse(&self, path: &Path) -> Option<(u32, u32, Form)> {
        let mut parts = path.prefix_match(&self.prefix)?;
        let (id, name) = (parts.next()?, parts.next()?);
        let (version, form) = match name.as_ref().split_once('.') {
            None => (parse_number(name.as_ref())?, 0),
            Some((version, form)) => (parse_number(version)?, parse_number(form)?),
        };
        let id = parse_number(id.as_ref())?;
        parts.next().is_none().then_some((id, version, form))
    }
}

fn s3(
    aws: &Settings,
    bucket: &str,
    place: &Bucket,
    credentials: Option<&Credentials>,
) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(aws.region())
        .with_endpoint(&place.url.endpoint)
        .with_virtual_hosted_style_request(place.url.is_virtual_hosted)
        // A bucket with Object Lock takes no object without one.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_http_connector(connection::Factory(place.connector.clone()))
        // What is retried, and after what look at the store, is decided here.
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        });
    if let Some(credentials) = credentials {
        let credential = AwsCredential {
            key_id: credentials.access_key_id.clone(),
            secret_key: credentials.secret_access_key.expose_secret().into(),
            token: credentials
                .session_token
                .as_ref()
                .map(|token| token.expose_secret().into()),
        };
        builder = builder.with_credentials(Arc::new(connection::Fixed(Arc::new(credential))));
    }
    Ok(Arc::new(builder.build()?))
}

#[cfg(test)]
mod tests;
