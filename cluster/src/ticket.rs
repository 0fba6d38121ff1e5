//! The join ticket: one line that brings one host into the cluster, once.
//!
//! A ticket is `remora1` and base32 of its fields and a checksum, so that a lost letter is told from a wrong secret. The
//! joiner dials the issuer by the peer id in the ticket, so it knows whom it talks to before it shows the secret. The
//! issuer keeps only the secret's hash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned, list};
use crate::cert::Role;
use crate::identity::{ClusterId, PeerId, base32};

const PREFIX: &str = "remora";
const VERSION: u8 = 1;
const BOOK_VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Longest ticket that is looked at, in characters.
pub const TICKET_CHARS_MAX: usize = 4096;
/// Most addresses in a ticket.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Most tickets a book remembers; the used and expired ones go first.
pub const BOOK_TICKETS_MAX: usize = 1024;

/// What the holder of a ticket knows and the issuer recognises: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl Secret {
    fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(b"remora ticket secret\0");
        hasher.update(self.0);
        hasher.finalize().into()
    }
}

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The cluster to join.
    pub cluster: ClusterId,
    /// Who issued it and must be asked.
    pub issuer: PeerId,
    /// Where the issuer listens, as multiaddr text; 1 to 8, each at most 256 bytes.
    #[serde(deserialize_with = "list::<_, _, ADDRESSES_MAX>")]
    pub addresses: Vec<String>,
    /// What the new member will be.
    pub role: Role,
    /// From when on it is worth nothing, milliseconds since 1970.
    pub expires_unix_ms: u64,
    /// Proves that the joiner was invited.
    pub secret: Secret,
}

/// Why a line is not a ticket that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin as tickets do.
    #[error("this is not a join ticket: a ticket is one line that begins with {PREFIX}{VERSION}")]
    NotATicket,
    /// It is a ticket of a newer version.
    #[error("this ticket was made by a newer Remora (ticket version {version}): update this host, then join")]
    Newer {
        /// The version it names.
        version: u32,
    },
    /// Letters are missing, added or changed.
    #[error("this ticket is garbled: copy the whole line again, or ask for a new one with `remora ticket`")]
    Garbled,
    /// Its time is over.
    #[error("this ticket expired {ago_ms} ms ago: ask for a new one with `remora ticket`")]
    Expired {
        /// How long ago, in milliseconds.
        ago_ms: u64,
    },
}

fn checksum(cluster_bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::new().chain_update(b"remora ticket\0").chain_update(cluster_bytes).finalize();
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash[..CHECKSUM_BYTES]);
    sum
}

impl Ticket {
    /// The one line for people.
    pub fn encode(&self) -> String {
        let mut bytes = encode_versioned(VERSION, self);
        bytes.extend(checksum(&bytes));
        format!("{PREFIX}{VERSION}{}", base32().encode(&bytes))
    }

    /// Reads a line; surrounding white space and upper case are forgiven. Does not look at the clock.
    ///
    /// # Errors
    /// Not a ticket, newer, or garbled.
    pub fn parse(line: &str) -> Result<Self, TicketError> {
        let line = line.trim();
        if line.len() > TICKET_CHARS_MAX || !line.is_ascii() {
            return Err(TicketError::NotATicket);
        }
        let line = line.to_ascii_lowercase();
        let rest = line.strip_prefix(PREFIX).ok_or(TicketError::NotATicket)?;
        // One digit is enough: before version 10 the prefix can change.
        let digit = rest.chars().next().and_then(|c| c.to_digit(10)).ok_or(TicketError::NotATicket)?;
        if digit != u32::from(VERSION) {
            return Err(TicketError::Newer { version: digit });
        }
        Self::parse_body(&rest[1..])
    }

    fn parse_body(body: &str) -> Result<Self, TicketError> {
        let bytes = base32().decode(body.as_bytes()).map_err(|_| TicketError::Garbled)?;
        let split = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TicketError::Garbled)?;
        let (fields, sum) = bytes.split_at(split);
        if checksum(fields) != sum {
            return Err(TicketError::Garbled);
        }
        let ticket: Ticket = match decode_versioned("ticket", VERSION, TICKET_CHARS_MAX, fields) {
            Ok(ticket) => ticket,
            Err(DecodeError::Newer { version, .. }) => {
                return Err(TicketError::Newer { version: version.into() });
            }
            Err(_) => return Err(TicketError::Garbled),
        };
        let addresses_fit = ticket
            .addresses
            .iter()
            .all(|a| a.len() <= ADDRESS_BYTES_MAX && a.chars().all(|c| c.is_ascii_graphic()));
        if ticket.addresses.is_empty() || !addresses_fit {
            return Err(TicketError::Garbled);
        }
        Ok(ticket)
    }

    /// Whether it can still be used.
    ///
    /// # Errors
    /// It expired.
    pub fn check_expiry(&self, now_unix_ms: u64) -> Result<(), TicketError> {
        if now_unix_ms < self.expires_unix_ms {
            return Ok(());
        }
        Err(TicketError::Expired { ago_ms: now_unix_ms - self.expires_unix_ms })
    }
}

/// Why the issuer refuses a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    /// No ticket with this secret was issued here, or it was forgotten.
    #[error("this host issued no such ticket: ask for a new one with `remora ticket`")]
    Unknown,
    /// Another host joined with it.
    #[error("this ticket was used by peer {by} (at {unix_ms} ms since 1970): each ticket lets one host in")]
    Used {
        /// Who used it.
        by: PeerId,
        /// When, milliseconds since 1970.
        unix_ms: u64,
    },
    /// Its time is over.
    #[error("this ticket has expired: ask for a new one with `remora ticket`")]
    Expired,
}

/// Who used a ticket, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    by: PeerId,
    unix_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    role: Role,
    expires_unix_ms: u64,
    used: Option<Use>,
}

/// The tickets one host issued, by the hash of their secret.
///
/// A ticket is spent by the first peer that shows it. The same peer may show it again: its first answer may have been
/// lost. Durability is the caller's: write [`TicketBook::encode`] to disk before a ticket is printed and before a
/// redeemed one is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketBook {
    #[serde(deserialize_with = "crate::bounded::map::<_, _, _, BOOK_TICKETS_MAX>")]
    issued: BTreeMap<[u8; 32], Issued>,
}

impl TicketBook {
    /// Remembers a ticket; forgets those that expired, and the one that expires first when the book is full.
    pub fn issue(&mut self, ticket: &Ticket, now_unix_ms: u64) {
        self.issued.retain(|_, issued| issued.expires_unix_ms > now_unix_ms || issued.used.is_some());
        while self.issued.len() >= BOOK_TICKETS_MAX {
            let least =
                self.issued.iter().min_by_key(|(hash, i)| (i.used.is_none(), i.expires_unix_ms, **hash));
            let Some(hash) = least.map(|(hash, _)| *hash) else { break };
            self.issued.remove(&hash);
        }
        let issued = Issued { role: ticket.role, expires_unix_ms: ticket.expires_unix_ms, used: None };
        self.issued.insert(ticket.secret.hash(), issued);
    }

    /// Spends the ticket with this secret on `by`.
    ///
    /// # Errors
    /// Unknown, used by another peer, or expired; the book is as before.
    pub fn redeem(&mut self, secret: &Secret, by: PeerId, now_unix_ms: u64) -> Result<Role, RedeemError> {
        let issued = self.issued.get_mut(&secret.hash()).ok_or(RedeemError::Unknown)?;
        match &issued.used {
            Some(used) if used.by == by => return Ok(issued.role),
            Some(used) => return Err(RedeemError::Used { by: used.by, unix_ms: used.unix_ms }),
            None if now_unix_ms >= issued.expires_unix_ms => return Err(RedeemError::Expired),
            None => issued.used = Some(Use { by, unix_ms: now_unix_ms }),
        }
        Ok(issued.role)
    }

    /// How many tickets can still be used.
    pub fn n_open(&self, now_unix_ms: u64) -> usize {
        self.issued.values().filter(|i| i.used.is_none() && i.expires_unix_ms > now_unix_ms).count()
    }

    /// The bytes for the disk.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(BOOK_VERSION, self)
    }

    /// Reads what [`TicketBook::encode`] wrote.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("ticket book", BOOK_VERSION, BOOK_TICKETS_MAX * 128, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{BOOK_TICKETS_MAX, RedeemError, Secret, Ticket, TicketBook, TicketError};
    use crate::cert::Role;
    use crate::identity::{ClusterId, PeerId};
    use proptest::prelude::{any, prop_assert, proptest};

    fn ticket(secret: u8) -> Ticket {
        Ticket {
            cluster: ClusterId([1; 32]),
            issuer: PeerId([2; 32]),
            addresses: vec!["/ip4/10.0.0.1/tcp/4001".to_owned(), "/ip6/fe80::1/tcp/4001".to_owned()],
            role: Role::Storage,
            expires_unix_ms: 1_000,
            secret: Secret([secret; 16]),
        }
    }

    #[test]
    fn a_ticket_is_one_line_and_reads_back() {
        let line = ticket(3).encode();
        assert!(line.starts_with("remora1"));
        assert!(line.chars().all(|c| c.is_ascii_alphanumeric()));
        assert_eq!(Ticket::parse(&format!("  {line}\n")), Ok(ticket(3)));
        assert_eq!(Ticket::parse(&line.to_uppercase()), Ok(ticket(3)));
    }

    #[test]
    fn every_changed_letter_and_every_cut_is_found() {
        let line = ticket(3).encode();
        for index in 0..line.len() {
            let mut changed = line.clone().into_bytes();
            changed[index] = if changed[index] == b'a' { b'b' } else { b'a' };
            assert!(Ticket::parse(std::str::from_utf8(&changed).unwrap()).is_err(), "letter {index}");
            assert!(Ticket::parse(&line[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn garbled_newer_and_expired_are_told_apart() {
        let line = ticket(3).encode();
        assert_eq!(Ticket::parse("hello"), Err(TicketError::NotATicket));
        assert_eq!(Ticket::parse(&"remora1".repeat(5000)), Err(TicketError::NotATicket));
        assert_eq!(Ticket::parse(&line[..line.len() - 3]), Err(TicketError::Garbled));
        assert_eq!(
            Ticket::parse(&line.replacen("remora1", "remora2", 1)),
            Err(TicketError::Newer { version: 2 })
        );
        assert_eq!(ticket(3).check_expiry(999), Ok(()));
        assert_eq!(ticket(3).check_expiry(1_500), Err(TicketError::Expired { ago_ms: 500 }));
    }

    #[test]
    fn a_ticket_lets_one_peer_in() {
        let mut book = TicketBook::default();
        book.issue(&ticket(3), 0);
        let (first, second) = (PeerId([8; 32]), PeerId([9; 32]));
        assert_eq!(book.redeem(&Secret([4; 16]), first, 5), Err(RedeemError::Unknown));
        assert_eq!(book.redeem(&Secret([3; 16]), first, 5), Ok(Role::Storage));
        let mut book = TicketBook::decode(&book.encode()).unwrap();
        assert_eq!(
            book.redeem(&Secret([3; 16]), second, 7),
            Err(RedeemError::Used { by: first, unix_ms: 5 })
        );
        assert_eq!(
            book.redeem(&Secret([3; 16]), first, 8),
            Ok(Role::Storage),
            "its answer may have been lost"
        );
    }

    #[test]
    fn an_expired_ticket_lets_nobody_in() {
        let mut book = TicketBook::default();
        book.issue(&ticket(3), 0);
        assert_eq!(book.redeem(&Secret([3; 16]), PeerId([8; 32]), 1_000), Err(RedeemError::Expired));
        assert_eq!(book.n_open(1_000), 0);
    }

    #[test]
    fn a_full_book_forgets_used_tickets_first() {
        let mut book = TicketBook::default();
        book.issue(&ticket(0), 0);
        book.redeem(&Secret([0; 16]), PeerId([8; 32]), 1).unwrap();
        for index in 0..BOOK_TICKETS_MAX as u32 {
            let mut secret = [7; 16];
            secret[..4].copy_from_slice(&index.to_le_bytes());
            book.issue(&Ticket { secret: Secret(secret), ..ticket(0) }, 2);
        }
        assert_eq!(book.n_open(2), BOOK_TICKETS_MAX);
        assert_eq!(TicketBook::decode(&book.encode()), Ok(book));
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Ticket::parse(&line).is_err());
            let body = crate::identity::base32().encode(&bytes);
            let encoded = Ticket::parse(&format!("remora1{body}"));
            prop_assert!(encoded.is_err());
            let _ = TicketBook::decode(&bytes);
        }
    }
}
