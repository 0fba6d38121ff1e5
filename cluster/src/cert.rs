//! Membership papers: the cluster key signs what a member is, and signs its exclusion.
//!
//! A certificate proves that a peer belongs to a cluster; nothing else does. What always holds: a certificate is looked
//! at only after its signature has been checked against the cluster id, which is the public half of the cluster key.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned};
use crate::identity::{ClusterId, PeerId, Signature};

const VERSION: u8 = 1;
const PAPER_BYTES_MAX: usize = 4096;
const CERTIFICATE_DOMAIN: &[u8] = b"remora certificate\0";
const REVOCATION_DOMAIN: &[u8] = b"remora revocation\0";

/// Longest host name and zone, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;

/// What a member does for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps blocks and volumes, and votes.
    Storage,
    /// Votes, keeps no content.
    Witness,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Role::Storage => "storage",
            Role::Witness => "witness",
        })
    }
}

/// Text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such role: use storage or witness")]
pub struct RoleParseError;

impl FromStr for Role {
    type Err = RoleParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "storage" => Ok(Role::Storage),
            "witness" => Ok(Role::Witness),
            _ => Err(RoleParseError),
        }
    }
}

/// What the cluster says of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The member.
    pub peer: PeerId,
    /// Host name, for people; at most 64 bytes, not unique.
    pub name: String,
    /// Failure domain; at most 64 bytes, empty for none.
    pub zone: String,
    /// Share of the data it takes, relative to the others; at least 1.
    pub weight: u32,
    /// What it does; never empty.
    pub roles: BTreeSet<Role>,
    /// When it was signed, milliseconds since 1970.
    pub issued_unix_ms: u64,
    /// Number of this certificate; of two for one peer the higher one counts.
    pub serial: u64,
}

/// A certificate and the cluster key's signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCertificate {
    /// What is signed. Not to be believed before [`SignedCertificate::verify`].
    pub certificate: Certificate,
    /// The cluster key's signature.
    pub signature: Signature,
}

/// The cluster's statement that a peer is a member no more; for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The cluster that excludes.
    pub cluster: ClusterId,
    /// Who is excluded.
    pub peer: PeerId,
    /// When, milliseconds since 1970.
    pub revoked_unix_ms: u64,
    /// The cluster key's signature over the fields above.
    pub signature: Signature,
}

/// Why a certificate or revocation does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// It is from another cluster.
    #[error("the certificate is from cluster {found:?}, not from {expected:?}")]
    OtherCluster {
        /// The cluster of the check.
        expected: ClusterId,
        /// The cluster of the certificate.
        found: ClusterId,
    },
    /// It is about another peer.
    #[error("the certificate is for peer {found:?}, not for {expected:?}")]
    OtherPeer {
        /// The peer of the check.
        expected: PeerId,
        /// The peer of the certificate.
        found: PeerId,
    },
    /// The cluster key did not sign it.
    #[error("the certificate of peer {peer:?} is not signed by the cluster key")]
    BadSignature {
        /// The peer it names.
        peer: PeerId,
    },
    /// A field breaks a rule.
    #[error("the certificate of peer {peer:?} is not valid: {reason}")]
    Invalid {
        /// The peer it names.
        peer: PeerId,
        /// The rule.
        reason: &'static str,
    },
    /// The bytes are no certificate.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && text.chars().all(|c| c.is_ascii_graphic())
}

impl Certificate {
    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = CERTIFICATE_DOMAIN.to_vec();
        bytes.extend(encode_versioned(VERSION, self));
        bytes
    }

    /// The rule a field breaks, if any: names are short and printable, weight and roles are not empty.
    fn broken_rule(&self) -> Option<&'static str> {
        if self.name.is_empty() || !is_label(&self.name) {
            return Some("the name is not 1 to 64 printable ASCII characters");
        }
        if !is_label(&self.zone) {
            return Some("the zone is not at most 64 printable ASCII characters");
        }
        if self.weight == 0 {
            return Some("the weight is 0");
        }
        self.roles.is_empty().then_some("there are no roles")
    }
}

impl SignedCertificate {
    /// The certificate, if `cluster` signed it for `peer`.
    ///
    /// # Errors
    /// Another cluster, another peer, a wrong signature, a field that breaks a rule: refuse the peer.
    pub fn verify(&self, cluster: &ClusterId, peer: &PeerId) -> Result<&Certificate, CertError> {
        let certificate = &self.certificate;
        if certificate.cluster != *cluster {
            return Err(CertError::OtherCluster { expected: *cluster, found: certificate.cluster });
        }
        if certificate.peer != *peer {
            return Err(CertError::OtherPeer { expected: *peer, found: certificate.peer });
        }
        if !cluster.verifies(&certificate.signed_bytes(), &self.signature) {
            return Err(CertError::BadSignature { peer: *peer });
        }
        match certificate.broken_rule() {
            Some(reason) => Err(CertError::Invalid { peer: *peer, reason }),
            None => Ok(certificate),
        }
    }

    /// The bytes for registry, disk and wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`SignedCertificate::encode`] wrote; verifies nothing.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("certificate", VERSION, PAPER_BYTES_MAX, bytes)
    }
}

impl Revocation {
    fn signed_bytes(cluster: &ClusterId, peer: &PeerId, revoked_unix_ms: u64) -> Vec<u8> {
        let mut bytes = REVOCATION_DOMAIN.to_vec();
        bytes.extend(encode_versioned(VERSION, &(cluster, peer, revoked_unix_ms)));
        bytes
    }

    /// Whether `cluster` excluded `peer`.
    ///
    /// # Errors
    /// As [`SignedCertificate::verify`]: the statement counts for nothing.
    pub fn verify(&self, cluster: &ClusterId, peer: &PeerId) -> Result<(), CertError> {
        if self.cluster != *cluster {
            return Err(CertError::OtherCluster { expected: *cluster, found: self.cluster });
        }
        if self.peer != *peer {
            return Err(CertError::OtherPeer { expected: *peer, found: self.peer });
        }
        let bytes = Self::signed_bytes(cluster, peer, self.revoked_unix_ms);
        if cluster.verifies(&bytes, &self.signature) {
            return Ok(());
        }
        Err(CertError::BadSignature { peer: *peer })
    }

    /// The bytes for registry, disk and wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`Revocation::encode`] wrote; verifies nothing.
    ///
    /// # Errors
    /// Malformed, too large, or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_versioned("revocation", VERSION, PAPER_BYTES_MAX, bytes)
    }
}

/// The private half of the cluster's identity. Who has it decides who is a member.
pub struct ClusterKey(SigningKey);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ClusterKey(of {:?})", self.id())
    }
}

impl ClusterKey {
    /// The key with this seed: 32 random bytes, kept secret by the caller.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        ClusterKey(SigningKey::from_bytes(seed))
    }

    /// The seed it was made from.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The cluster this is the key of.
    pub fn id(&self) -> ClusterId {
        ClusterId(self.0.verifying_key().to_bytes())
    }

    /// Signs a certificate of this cluster.
    ///
    /// # Errors
    /// The certificate names another cluster, or a field breaks a rule.
    pub fn certify(&self, certificate: Certificate) -> Result<SignedCertificate, CertError> {
        if certificate.cluster != self.id() {
            return Err(CertError::OtherCluster { expected: self.id(), found: certificate.cluster });
        }
        if let Some(reason) = certificate.broken_rule() {
            return Err(CertError::Invalid { peer: certificate.peer, reason });
        }
        let signature = Signature(self.0.sign(&certificate.signed_bytes()).to_bytes());
        Ok(SignedCertificate { certificate, signature })
    }

    /// Signs the exclusion of `peer`.
    pub fn revoke(&self, peer: PeerId, now_unix_ms: u64) -> Revocation {
        let cluster = self.id();
        let bytes = Revocation::signed_bytes(&cluster, &peer, now_unix_ms);
        let signature = Signature(self.0.sign(&bytes).to_bytes());
        Revocation { cluster, peer, revoked_unix_ms: now_unix_ms, signature }
    }
}

#[cfg(test)]
mod tests {
    use super::{CertError, Certificate, ClusterKey, Revocation, Role, SignedCertificate};
    use crate::identity::{ClusterId, PeerId};

    const PEER: PeerId = PeerId([5; 32]);

    fn key() -> ClusterKey {
        ClusterKey::from_seed(&[1; 32])
    }

    fn certificate() -> Certificate {
        Certificate {
            cluster: key().id(),
            peer: PEER,
            name: "host-1".to_owned(),
            zone: "eu-a".to_owned(),
            weight: 100,
            roles: [Role::Storage].into(),
            issued_unix_ms: 17,
            serial: 1,
        }
    }

    #[test]
    fn a_signed_certificate_survives_encoding_and_verifies() {
        let signed = key().certify(certificate()).unwrap();
        let read = SignedCertificate::decode(&signed.encode()).unwrap();
        assert_eq!(read.verify(&key().id(), &PEER), Ok(&certificate()));
    }

    #[test]
    fn another_cluster_another_peer_and_a_changed_field_are_refused() {
        let signed = key().certify(certificate()).unwrap();
        let other = ClusterKey::from_seed(&[2; 32]);
        assert!(matches!(signed.verify(&other.id(), &PEER), Err(CertError::OtherCluster { .. })));
        assert!(matches!(signed.verify(&key().id(), &PeerId([6; 32])), Err(CertError::OtherPeer { .. })));
        let mut changed = signed.clone();
        changed.certificate.roles.insert(Role::Witness);
        assert!(matches!(changed.verify(&key().id(), &PEER), Err(CertError::BadSignature { .. })));
        let mut forged = Certificate { cluster: other.id(), ..certificate() };
        let mut signed_by_other = other.certify(forged.clone()).unwrap();
        forged.cluster = key().id();
        signed_by_other.certificate = forged;
        assert!(signed_by_other.verify(&key().id(), &PEER).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = key().certify(certificate()).unwrap().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let verified = SignedCertificate::decode(&flipped)
                .is_ok_and(|signed| signed.verify(&key().id(), &PEER).is_ok());
            assert!(!verified, "bit {bit}");
        }
    }

    #[test]
    fn fields_that_break_a_rule_are_not_signed() {
        for change in [
            |c: &mut Certificate| c.name.clear(),
            |c: &mut Certificate| c.name = "a\nb".to_owned(),
            |c: &mut Certificate| c.zone = "z".repeat(65),
            |c: &mut Certificate| c.weight = 0,
            |c: &mut Certificate| c.roles.clear(),
            |c: &mut Certificate| c.cluster = ClusterId([9; 32]),
        ] {
            let mut certificate = certificate();
            change(&mut certificate);
            assert!(key().certify(certificate).is_err());
        }
    }

    #[test]
    fn a_revocation_counts_for_its_peer_alone() {
        let revocation = key().revoke(PEER, 99);
        let read = Revocation::decode(&revocation.encode()).unwrap();
        assert_eq!(read.verify(&key().id(), &PEER), Ok(()));
        assert!(read.verify(&key().id(), &PeerId([6; 32])).is_err());
        let moved = Revocation { peer: PeerId([6; 32]), ..read };
        assert!(moved.verify(&key().id(), &PeerId([6; 32])).is_err());
    }
}
