//! Volumes on this host: the catalogue as a user sees it, and what is mounted where.

pub(crate) mod space;
mod advice;
pub(crate) mod users;
pub(crate) mod remembered;
pub(crate) mod wishes;
pub(crate) mod mounted;
pub(crate) mod service;
mod docker;
mod forgotten;
