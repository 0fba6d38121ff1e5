//! What a newcomer and the issuer of its ticket say to one another, once.

use serde::{Deserialize, Serialize};

/// The newcomer's side; its peer id is proved by the connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    pub(crate) version: u8,
    /// The ticket's secret.
    pub(crate) secret: [u8; 16],
    pub(crate) name: String,
    pub(crate) zone: String,
}

/// The issuer's side.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinAnswer {
    pub(crate) version: u8,
    /// The newcomer's certificate (`SignedCertificate`).
    pub(crate) certificate: Vec<u8>,
    /// The cluster key's seed, for storage members.
    pub(crate) cluster_seed: Option<[u8; 32]>,
    /// Registry news (`RegistryMessage`): the newcomer itself, the issuer and where it listens. The rest comes by
    /// anti-entropy.
    pub(crate) news: Vec<Vec<u8>>,
    /// Members of the cluster, the newcomer included.
    pub(crate) members: u32,
}

/// The version of both.
pub(crate) const JOIN_VERSION: u8 = 1;
