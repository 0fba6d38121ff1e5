//! The registry read as what it means: members, addresses, volumes by name.
//!
//! Two hosts may create volumes of one name at once. Both stay: the older one (creation time, then id) has the name, the
//! other is shown as `name~` and the beginning of its id, so that nothing is hidden and every host shows the same.

use std::collections::BTreeMap;

use crate::cert::{Certificate, SignedCertificate};
use crate::hlc::Hlc;
use crate::identity::{PeerId, VolumeId};
use crate::placement::Candidate;
use crate::registry::Registry;
use crate::registry::entry::{Addresses, Holder, Key};
use crate::volume_record::VolumeRecord;

/// A volume under the name it is shown with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Unique in the catalogue: the record's own name, or `name~id` for one that came second.
    pub shown_name: String,
    /// The record.
    pub record: VolumeRecord,
}

impl Registry {
    /// The certificate of a member that is not excluded.
    pub fn member(&self, peer: &PeerId) -> Option<Certificate> {
        if self.get(&Key::Revoked(*peer)).is_some() {
            return None;
        }
        let value = self.get(&Key::Member(*peer))?.value.as_deref()?;
        // Its signature was checked when the entry was taken.
        SignedCertificate::decode(value).ok().map(|signed| signed.certificate)
    }

    /// Whether `peer` has a certificate and is not excluded.
    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.get(&Key::Revoked(*peer)).is_none() && self.get(&Key::Member(*peer)).is_some()
    }

    /// All members that are not excluded, by peer id.
    pub fn members(&self) -> BTreeMap<PeerId, Certificate> {
        let peers = self.entries().filter_map(|entry| match entry.key {
            Key::Member(peer) => Some(peer),
            _ => None,
        });
        peers.filter_map(|peer| Some((peer, self.member(&peer)?))).collect()
    }

    /// The members as placement sees them, by peer id.
    pub fn candidates(&self) -> Vec<Candidate> {
        let members = self.members().into_values();
        members
            .map(|member| Candidate { peer: member.peer, zone: member.zone, weight: member.weight })
            .collect()
    }

    /// Where a peer says that it listens; empty if it never said.
    pub fn addresses(&self, peer: &PeerId) -> Vec<String> {
        let value = self.get(&Key::Address(*peer)).and_then(|entry| entry.value.as_deref());
        value.and_then(|value| Addresses::decode(value).ok()).unwrap_or_default().addresses
    }

    /// The record of a volume, removed ones included.
    pub fn volume(&self, id: &VolumeId) -> Option<VolumeRecord> {
        let value = self.get(&Key::Volume(*id))?.value.as_deref()?;
        VolumeRecord::decode(value).ok()
    }

    /// Who says that it writes a volume, and when it said so.
    pub fn holder(&self, id: &VolumeId) -> Option<(Holder, Hlc)> {
        let entry = self.get(&Key::Holder(*id))?;
        let holder = Holder::decode(entry.value.as_deref()?).ok()?;
        Some((holder, entry.hlc))
    }

    /// All volumes that are not removed, by shown name.
    pub fn volumes(&self) -> Vec<CatalogueEntry> {
        let mut catalogue: Vec<CatalogueEntry> =
            self.names.keys().flat_map(|name| self.volumes_of(name)).collect();
        catalogue.sort_by(|a, b| a.shown_name.cmp(&b.shown_name));
        catalogue
    }

    /// The volume shown as `name`.
    pub fn volume_named(&self, name: &str) -> Option<CatalogueEntry> {
        // A name holds no `~`, so what a shown name begins with is the name in the record.
        let (own, _) = name.split_once('~').unwrap_or((name, ""));
        self.volumes_of(own).into_iter().find(|entry| entry.shown_name == name)
    }

    /// All volumes with one name in their record that are not removed: the oldest has it, the others come second.
    fn volumes_of(&self, name: &str) -> Vec<CatalogueEntry> {
        let ids = self.names.get(name).into_iter().flatten();
        let mut records: Vec<VolumeRecord> =
            ids.filter_map(|id| self.volume(id)).filter(|record| !record.removed).collect();
        records.sort_by_key(|record| (record.created_unix_ms, record.id));
        let mut shown: Vec<CatalogueEntry> = Vec::with_capacity(records.len());
        for record in records {
            let shown_name =
                if shown.is_empty() { record.name.clone() } else { second_name(&record, &shown) };
            shown.push(CatalogueEntry { shown_name, record });
        }
        shown
    }
}

fn second_name(record: &VolumeRecord, shown: &[CatalogueEntry]) -> String {
    let short = format!("{}~{}", record.name, record.id.short());
    let is_taken = shown.iter().any(|entry| entry.shown_name == short);
    if is_taken { format!("{}~{}", record.name, record.id) } else { short }
}
