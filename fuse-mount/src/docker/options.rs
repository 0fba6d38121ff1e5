//! What a user may say about a volume with `docker volume create -o KEY=VALUE`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The options there are, with a value that shows the shape; printed whenever one is refused.
pub const VALID_OPTIONS: &str =
    "replicas=3, durability=quorum|local, size=10GiB, uid=1000, gid=1000, mode=0750, acl=true";

/// The option for POSIX ACLs.
const ACL: &str = "acl";

/// Most options that are looked at in one request.
const OPTIONS_MAX: usize = 64;

/// When `fsync` on a volume returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When a majority of the volume's keepers has the commit on disk.
    Quorum,
    /// When this host's own disk has it; other keepers follow.
    Local,
}

impl Durability {
    /// The word a user types for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Quorum => "quorum",
            Durability::Local => "local",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Durability {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Durability, OptionError> {
        match text {
            "quorum" => Ok(Durability::Quorum),
            "local" => Ok(Durability::Local),
            _ => Err(OptionError::value("durability", text, "quorum or local")),
        }
    }
}

/// What was asked of a new volume; `None` leaves the choice to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// How many members keep the volume; at least 1.
    pub replicas: Option<u8>,
    /// When `fsync` returns.
    pub durability: Option<Durability>,
    /// Most bytes the volume may hold; at least 1.
    pub size: Option<u64>,
    /// Owner of the root directory, as the container engine's host counts.
    pub uid: Option<u32>,
    /// Group of the root directory.
    pub gid: Option<u32>,
    /// Permission bits of the root directory, 0 to 0o7777.
    pub mode: Option<u16>,
    /// Whether the volume has POSIX ACLs.
    pub acl: Option<bool>,
    /// The options as they were typed. An engine is told these words again when it learns of the volume from us, because
    /// compose compares texts, not meanings. Empty if the volume did not come through an engine.
    pub given: BTreeMap<String, String>,
}

impl VolumeOptions {
    /// Reads options as an engine sends them.
    ///
    /// # Errors
    /// [`OptionError`] for the first option, in order of name, that is unknown or has a value of the wrong shape.
    pub fn parse(given: BTreeMap<String, String>) -> Result<VolumeOptions, OptionError> {
        if given.len() > OPTIONS_MAX {
            return Err(OptionError::TooMany { n_options: given.len() });
        }
        let mut options = VolumeOptions::default();
        for (key, value) in &given {
            options.set(key, value)?;
        }
        options.given = given;
        Ok(options)
    }

    /// Sets one option from its text; does not touch [`VolumeOptions::given`].
    ///
    /// # Errors
    /// As [`VolumeOptions::parse`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        match key {
            "replicas" => self.replicas = Some(parse_replicas(value)?),
            "durability" => self.durability = Some(value.parse()?),
            "size" => self.size = Some(parse_size(value)?),
            "uid" => self.uid = Some(parse_owner("uid", value)?),
            "gid" => self.gid = Some(parse_owner("gid", value)?),
            "mode" => self.mode = Some(parse_mode(value)?),
            ACL => self.acl = Some(parse_acl(value)?),
            _ => return Err(OptionError::Unknown { key: shortened(key) }),
        }
        Ok(())
    }

    /// The options to tell an engine: as typed, or written in one fixed way if they were never typed to an engine.
    pub fn to_given(&self) -> BTreeMap<String, String> {
        if !self.given.is_empty() {
            return self.given.clone();
        }
        let texts = [
            ("replicas", self.replicas.map(|n| n.to_string())),
            ("durability", self.durability.map(|d| d.to_string())),
            ("size", self.size.map(|bytes| bytes.to_string())),
            ("uid", self.uid.map(|id| id.to_string())),
            ("gid", self.gid.map(|id| id.to_string())),
            ("mode", self.mode.map(|mode| format!("{mode:04o}"))),
            (ACL, self.acl.map(|acl| acl.to_string())),
        ];
        texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?))).collect()
    }
}

fn parse_replicas(value: &str) -> Result<u8, OptionError> {
    let wanted = "a number from 1 to 255";
    digits(value)
        .and_then(|text| text.parse::<u8>().ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| OptionError::value("replicas", value, wanted))
}

/// Reads an owner. The highest number means "leave it" to chown(2) and is therefore nobody's.
fn parse_owner(key: &'static str, value: &str) -> Result<u32, OptionError> {
    digits(value)
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| OptionError::value(key, value, "a number, not a name (names differ between images)"))
}

fn parse_acl(value: &str) -> Result<bool, OptionError> {
    value.parse().map_err(|_| OptionError::value(ACL, value, "true or false"))
}

/// Whether the options a volume was created with, as they are kept with it, ask for POSIX ACLs.
pub fn asks_for_acls(given: &BTreeMap<String, String>) -> bool {
    given.get(ACL).is_some_and(|value| parse_acl(value) == Ok(true))
}

fn parse_mode(value: &str) -> Result<u16, OptionError> {
    let text = value.strip_prefix("0o").unwrap_or(value);
    digits(text)
        .and_then(|text| u16::from_str_radix(text, 8).ok())
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| OptionError::value("mode", value, "octal permission bits such as 0750"))
}

/// Reads a size in bytes: digits, perhaps a fraction, perhaps a unit.
///
/// Units are `b`, `k`, `m`, `g`, `t`, `p`, each also as `kb` or `kib`, in any case. All are powers of 1024, as everywhere in Docker,
/// so that nobody gets less than was asked for. A fraction of a byte is dropped.
///
/// # Errors
/// [`OptionError::Value`] if it is not of that shape, is 0, or does not fit 63 bits.
pub fn parse_size(value: &str) -> Result<u64, OptionError> {
    let wrong =
        || OptionError::value("size", value, "bytes or a number with a unit, such as 10GiB, 512m or 1.5t");
    let trimmed = value.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let shift = unit_shift(unit.trim_start()).ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = digits(whole).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let fraction = digits(fraction).filter(|text| text.len() <= 9).ok_or_else(wrong)?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let part: u128 = fraction.parse().map_err(|_| wrong())?;
    let bytes = (u128::from(whole) << shift) + ((part << shift) / scale);
    match u64::try_from(bytes) {
        Ok(bytes) if bytes > 0 && bytes <= i64::MAX.unsigned_abs() => Ok(bytes),
        _ => Err(wrong()),
    }
}

fn unit_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    let letter = match unit.as_str() {
        "" | "b" => return Some(0),
        other => other.strip_suffix("ib").or_else(|| other.strip_suffix('b')).unwrap_or(other),
    };
    ["k", "m", "g", "t", "p"]
        .iter()
        .zip([10, 20, 30, 40, 50])
        .find(|(name, _)| **name == letter)
        .map(|(_, shift)| shift)
}

/// The text if it is made of digits alone; the standard parsers also take a sign.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// The start of a text from a stranger, short enough to be printed.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// Why options were refused; correct them and create the volume again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such option.
    #[error("unknown option {key:?}; valid options: {VALID_OPTIONS}")]
    Unknown {
        /// The start of what was given.
        key: String,
    },
    /// The option exists, its value has the wrong shape.
    #[error("option {key}={value:?} must be {wanted}; valid options: {VALID_OPTIONS}")]
    Value {
        /// The option.
        key: &'static str,
        /// The start of what was given.
        value: String,
        /// What it has to look like.
        wanted: &'static str,
    },
    /// More options than exist several times over.
    #[error("{n_options} options were given; valid options: {VALID_OPTIONS}")]
    TooMany {
        /// How many.
        n_options: usize,
    },
}

impl OptionError {
    fn value(key: &'static str, value: &str, wanted: &'static str) -> OptionError {
        OptionError::Value { key, value: shortened(value), wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::{Durability, OptionError, VolumeOptions, asks_for_acls, parse_size};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use std::collections::BTreeMap;

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeOptions, OptionError> {
        VolumeOptions::parse(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_documented_option_is_read_and_kept_as_typed() {
        let pairs = [
            ("replicas", "3"),
            ("durability", "quorum"),
            ("size", "10GiB"),
            ("uid", "1000"),
            ("gid", "0"),
            ("mode", "0750"),
            ("acl", "true"),
        ];
        let options = parse(&pairs).unwrap();
        assert_eq!(options.replicas, Some(3));
        assert_eq!(options.durability, Some(Durability::Quorum));
        assert_eq!(options.size, Some(10 << 30));
        assert_eq!((options.uid, options.gid, options.mode), (Some(1000), Some(0), Some(0o750)));
        assert_eq!(options.acl, Some(true));
        assert!(asks_for_acls(&options.to_given()));
        assert!(!asks_for_acls(&parse(&[("acl", "false")]).unwrap().to_given()));
        assert_eq!(options.to_given().get("size").map(String::as_str), Some("10GiB"));
        assert_eq!(parse(&[]).unwrap(), VolumeOptions::default());
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_list_of_valid_ones() {
        let text = parse(&[("sise", "10GiB")]).unwrap_err().to_string();
        for valid in ["sise", "replicas", "durability", "size", "uid", "gid", "mode", "acl"] {
            assert!(text.contains(valid), "{text}");
        }
        let long = "k".repeat(100_000);
        assert!(parse(&[(&long, "")]).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn a_value_of_the_wrong_shape_is_refused() {
        for (key, value) in [
            ("replicas", "0"),
            ("replicas", "256"),
            ("replicas", "+3"),
            ("replicas", ""),
            ("durability", "Quorum"),
            ("size", ""),
            ("size", "0"),
            ("size", "-1"),
            ("size", "10 apples"),
            ("size", "1e9"),
            ("size", "10GiBB"),
            ("size", "9999999999999999999p"),
            ("size", "1.2.3g"),
            ("size", ".5g"),
            ("size", "8192p"),
            ("uid", "4294967295"),
            ("uid", "root"),
            ("gid", "-1"),
            ("mode", "0788"),
            ("mode", "17777"),
            ("mode", "rwx"),
            ("mode", "0o"),
            ("acl", "yes"),
        ] {
            let refused = parse(&[(key, value)]);
            assert!(matches!(refused, Err(OptionError::Value { .. })), "{key}={value}: {refused:?}");
        }
    }

    #[test]
    fn sizes_mean_what_docker_means() {
        for (text, bytes) in [
            ("1", 1),
            ("512b", 512),
            ("1k", 1024),
            ("1kB", 1024),
            ("1KiB", 1024),
            ("10g", 10 << 30),
            ("10G", 10 << 30),
            ("10 GiB", 10 << 30),
            ("1.5m", 3 << 19),
            ("2T", 2 << 40),
            ("8191p", 8191 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_request_full_of_options_is_refused() {
        let many = (0..1000).map(|n| (format!("o{n}"), String::new())).collect();
        assert_eq!(VolumeOptions::parse(many), Err(OptionError::TooMany { n_options: 1000 }));
    }

    proptest! {
        #[test]
        fn options_survive_being_told_to_an_engine(
            replicas in proptest::option::of(1u8..),
            local in proptest::option::of(any::<bool>()),
            size in proptest::option::of(1u64..(1 << 63)),
            uid in proptest::option::of(0..u32::MAX),
            gid in proptest::option::of(0..u32::MAX),
            mode in proptest::option::of(0u16..=0o7777),
            acl in proptest::option::of(any::<bool>()),
        ) {
            let durability = local.map(|local| if local { Durability::Local } else { Durability::Quorum });
            let options = VolumeOptions { replicas, durability, size, uid, gid, mode, acl, given: BTreeMap::new() };
            let told = options.to_given();
            let heard = VolumeOptions::parse(told.clone()).unwrap();
            prop_assert_eq!(&heard.given, &told);
            prop_assert_eq!(VolumeOptions { given: BTreeMap::new(), ..heard }, options);
        }

        #[test]
        fn no_text_makes_the_reader_fail(key in "replicas|size|uid|mode|durability|acl|\\PC*", value in "\\PC*") {
            let mut options = VolumeOptions::default();
            if let Err(error) = options.set(&key, &value) {
                prop_assert!(error.to_string().len() < 2000);
            }
        }
    }
}
