//! A node's directory: made once, with its seed, and held by one process at a time.
//!
//! ```text
//! node.json              which network, and whether it was restored from words; written last, so that it says: whole
//! seed                   the words, mode 0600
//! lock                   held by the process that runs the node
//! news.sqlite            what became of invoices and payments, in order (ours)
//! ldk_node_data.sqlite   channels, payments, wallet (ldk-node's)
//! control.sock           where the process that runs the node can be asked
//! ```

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use farebox_core::{BitcoinNetwork, ports::Entropy};
use ldk_node::bip39::{Language, Mnemonic};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

const MARKER: &str = "node.json";
const SEED: &str = "seed";
const LOCK: &str = "lock";
/// ldk-node's store; its name is part of its releases' promise to read older stores.
const STORE: &str = "ldk_node_data.sqlite";
/// More than 24 words have.
const SEED_BYTES_MAX: u64 = 512;

/// The words of a seed: whoever has them has the money on chain. They do not print.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedWords(Mnemonic);

impl SeedWords {
    /// 24 new words.
    ///
    /// # Panics
    /// Never: 32 bytes are a seed.
    #[must_use]
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(&mut *bytes);
        #[expect(clippy::expect_used, reason = "32 bytes are one of the lengths that BIP 39 defines")]
        let words = Mnemonic::from_entropy_in(Language::English, &*bytes).expect("32 bytes are a seed");
        Self(words)
    }

    /// Words that were written down, in any case and spacing.
    ///
    /// # Errors
    /// A word is not of the list (its place is told, never the word), there are too many or too few, or the last one is not what the
    /// others ask for: one of them is wrong, or two were swapped.
    pub fn parse(text: &str) -> Result<Self, SeedWordsError> {
        use ldk_node::bip39::Error;
        let lower = Zeroizing::new(text.to_lowercase());
        let spaced = Zeroizing::new(lower.split_whitespace().collect::<Vec<_>>().join(" "));
        Mnemonic::parse_in_normalized(Language::English, &spaced).map(Self).map_err(|error| match error {
            Error::BadWordCount(found) => SeedWordsError::Count { found },
            Error::UnknownWord(place) => SeedWordsError::Unknown { place: place + 1 },
            _ => SeedWordsError::Checksum,
        })
    }

    /// The words one by one, for the person who writes them down.
    pub fn reveal(&self) -> impl Iterator<Item = &'static str> {
        self.0.words()
    }

    pub(super) fn mnemonic(&self) -> Mnemonic {
        self.0.clone()
    }
}

impl fmt::Debug for SeedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeedWords(..)")
    }
}

/// What is wrong with words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedWordsError {
    /// Not 12, 15, 18, 21 or 24.
    #[error("a seed has 12, 15, 18, 21 or 24 words, found {found}")]
    Count {
        /// So many were given.
        found: usize,
    },
    /// Not in the list of BIP 39.
    #[error("word {place} is not in the English word list of BIP 39")]
    Unknown {
        /// Counted from 1.
        place: usize,
    },
    /// They do not belong together.
    #[error("the words do not belong together: one of them is wrong, or two were swapped")]
    Checksum,
}

/// Why a directory was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is a node.
    #[error("there is a node in {} already; a seed is never written over", .dir.display())]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// There is something else.
    #[error("{} is not empty; a node gets a directory of its own", .dir.display())]
    NotEmpty {
        /// Where.
        dir: PathBuf,
    },
    /// The file system said no.
    #[error("{} could not be written", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl InitError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "node_exists",
            Self::NotEmpty { .. } => "directory_not_empty",
            Self::Io { .. } => "directory_not_writable",
        }
    }
}

/// Where the words of a seed come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedOrigin {
    /// Generated now: no coin can be theirs yet.
    New,
    /// Of a node that was: its coins are looked for.
    Restored,
}

/// Makes the directory of a node: mode 0700, the seed in it 0600. A crash leaves a directory that is refused as not empty, never half a node.
///
/// # Errors
/// [`InitError`]; nothing of a node that was there is touched.
pub fn init(dir: &Path, network: BitcoinNetwork, words: &SeedWords, origin: SeedOrigin) -> Result<(), InitError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InitError::Io { path, source }
    };
    free_for_init(dir)?;
    fs::create_dir_all(dir).map_err(failed(dir))?;
    private(dir, 0o700).map_err(failed(dir))?;
    let mut text = Zeroizing::new(words.reveal().collect::<Vec<_>>().join(" "));
    text.push('\n');
    write_new(&dir.join(SEED), text.as_bytes()).map_err(failed(&dir.join(SEED)))?;
    let marker = Marker { version: 1, network, restored: origin == SeedOrigin::Restored };
    let marker = serde_json::to_vec(&marker).map_err(|error| failed(&dir.join(MARKER))(error.into()))?;
    write_new(&dir.join(MARKER), &marker).map_err(failed(&dir.join(MARKER)))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

/// Whether [`init`] would make a node there: nothing is, or an empty directory.
///
/// # Errors
/// [`InitError`].
pub fn free_for_init(dir: &Path) -> Result<(), InitError> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(InitError::Io { path: dir.to_owned(), source }),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let dir = dir.to_owned();
    let is_node = dir.join(MARKER).exists() || dir.join(SEED).exists();
    Err(if is_node { InitError::Exists { dir } } else { InitError::NotEmpty { dir } })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Nobody but its owner.
pub(super) fn private(path: &Path, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    version: u32,
    network: BitcoinNetwork,
    restored: bool,
}

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No node.
    #[error("there is no node in {}; make one with `farebox lightning init`", .dir.display())]
    None {
        /// Where.
        dir: PathBuf,
    },
    /// Another process runs it.
    #[error("the node in {} is held by {holder}", .dir.display())]
    Held {
        /// Where.
        dir: PathBuf,
        /// `process 1234`, or `another process`.
        holder: String,
    },
    /// Made by a later version, or not by us.
    #[error("{} is not what this version writes", .path.display())]
    Foreign {
        /// What.
        path: PathBuf,
    },
    /// Others can read the seed.
    #[error("{} can be read by others (mode {mode:o}); make it 0600", .path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file system said no.
    #[error("{} could not be read", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The directory of a node, held until it is released or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) dir: PathBuf,
    pub(super) network: BitcoinNetwork,
    /// Its wallet may have coins from before its directory was made.
    pub(super) restored: bool,
    lock: Mutex<Option<File>>,
}

/// The network that the node in `dir` was made for.
///
/// # Errors
/// [`HomeError`].
pub fn network_of(dir: &Path) -> Result<BitcoinNetwork, HomeError> {
    read_marker(dir).map(|marker| marker.network)
}

impl Home {
    /// Takes the directory.
    ///
    /// # Errors
    /// [`HomeError`].
    pub(super) fn take(dir: &Path) -> Result<Self, HomeError> {
        let marker = read_marker(dir)?;
        let lock = lock(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            network: marker.network,
            restored: marker.restored,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The words of its seed.
    ///
    /// # Errors
    /// They cannot be read, others can read them as well, or they are not words.
    pub(super) fn words(&self) -> Result<SeedWords, HomeError> {
        let path = self.dir.join(SEED);
        let failed = |source| HomeError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(HomeError::Open { path, mode });
            }
        }
        let mut text = Zeroizing::new(String::new());
        file.take(SEED_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let words = SeedWords::parse(&text);
        text.zeroize();
        words.map_err(|_| HomeError::Foreign { path })
    }

    /// Lets another process have the directory.
    pub(super) fn release(&self) {
        self.lock.lock().take();
    }

    /// Whether the node has run before.
    pub(super) fn has_store(&self) -> bool {
        self.dir.join(STORE).exists()
    }

    /// Forgets the store of a node whose first start failed: nothing was given out of it yet.
    ///
    /// # Errors
    /// The file system said no.
    pub(super) fn forget_first_store(&self) -> io::Result<()> {
        fs::remove_file(self.dir.join(STORE))
    }
}

fn read_marker(dir: &Path) -> Result<Marker, HomeError> {
    let path = dir.join(MARKER);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HomeError::None { dir: dir.to_owned() }),
        Err(source) => return Err(HomeError::Io { path, source }),
    };
    match serde_json::from_slice::<Marker>(&text) {
        Ok(marker) if marker.version == 1 => Ok(marker),
        _ => Err(HomeError::Foreign { path }),
    }
}

fn lock(dir: &Path) -> Result<File, HomeError> {
    let path = dir.join(LOCK);
    let failed = |source| HomeError::Io { path: path.clone(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Who it is is only said for convenience.
            let known = (&file).take(20).read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
            let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(HomeError::Held { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Counting;

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
        }
    }

    #[test]
    fn a_node_is_made_once_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("node");
        let words = SeedWords::generate(&Counting);
        assert_eq!(words.reveal().count(), 24);
        init(&dir, BitcoinNetwork::Regtest, &words, SeedOrigin::New).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&dir), mode(&dir.join(SEED))), (0o700, 0o600));
        }
        let again = init(&dir, BitcoinNetwork::Regtest, &words, SeedOrigin::New).unwrap_err();
        assert_eq!(again.code(), "node_exists");
        let other = init(parent.path(), BitcoinNetwork::Regtest, &words, SeedOrigin::New).unwrap_err();
        assert_eq!(other.code(), "directory_not_empty");
        assert_eq!(network_of(&dir).unwrap(), BitcoinNetwork::Regtest);

        let home = Home::take(&dir).unwrap();
        assert!(home.words().unwrap() == words && !home.restored && !home.has_store());
        let held = Home::take(&dir).unwrap_err().to_string();
        assert!(held.ends_with(&format!("is held by process {}", std::process::id())), "{held}");
        drop(home);
        let home = Home::take(&dir).unwrap();
        private(&dir.join(SEED), 0o644).unwrap();
        assert!(matches!(home.words(), Err(HomeError::Open { mode: 0o644, .. })));
    }

    #[test]
    fn words_are_read_as_people_write_them_and_mistakes_are_told_without_them() {
        let words = SeedWords::generate(&Counting);
        let list: Vec<&str> = words.reveal().collect();
        let spoken = list.join("\n  ").to_uppercase();
        assert_eq!(SeedWords::parse(&spoken), Ok(words.clone()));
        assert_eq!(format!("{words:?}"), "SeedWords(..)");

        assert_eq!(SeedWords::parse(&list[1..].join(" ")), Err(SeedWordsError::Count { found: 23 }));
        let mut wrong = list.clone();
        wrong[4] = "farebox";
        assert_eq!(SeedWords::parse(&wrong.join(" ")), Err(SeedWordsError::Unknown { place: 5 }));
        let mut swapped = list;
        swapped.swap(2, 9);
        assert_eq!(SeedWords::parse(&swapped.join(" ")), Err(SeedWordsError::Checksum));
    }
}
