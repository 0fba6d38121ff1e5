//! What every [`Filesystem`] must do, as small named checks.
//!
//! An implementation's tests call [`run`], or go through [`CHECKS`] one by one. Each check gets an empty file system:
//! a root directory and nothing else. Checks talk to the trait alone, so they also hold for an implementation that sits
//! behind a crash and a reopen; they read no clock and leave open what Linux leaves open.
//!
//! A check fails by panicking with what was expected; this module is for tests.

// A check that finds a violation has to stop its test, and says so in the panic.
#![allow(clippy::panic)]

mod acls;
mod attributes;
mod content;
mod directories;
mod names;
mod renames;
mod scene;
mod xattrs;

use crate::filesystem::Filesystem;
use std::sync::Arc;

/// A rule of the interface, proven on an empty file system; panics if it is broken.
pub type Check = fn(&dyn Filesystem);

/// All checks with the rule each proves, unique, in reading order.
pub const CHECKS: &[(&str, Check)] = &[
    ("the root is a directory of its own", directories::root_is_its_own_parent),
    ("a made node has what was asked for", names::make_gives_what_was_asked),
    ("a name is taken once", names::name_is_taken_once),
    ("what cannot be a name is refused", names::bad_names_are_refused),
    ("the longest name works", names::longest_name_works),
    ("names are bytes", names::names_are_bytes),
    ("a setgid directory gives its group", names::setgid_directory_gives_its_group),
    ("a symlink keeps its target", names::symlink_keeps_its_target),
    ("a hard link is the same inode", names::hard_link_is_the_same_inode),
    ("a directory has one name", names::directory_has_one_name),
    ("unlink and rmdir know their kind", names::removal_knows_its_kind),
    ("an unlinked open file lives until its close", names::orphan_lives_until_close),
    ("an unlinked referenced file lives until it is forgotten", names::orphan_lives_until_forget),
    ("a removed directory takes no names", names::removed_directory_takes_no_names),
    ("inode numbers are not reused", names::inode_numbers_are_not_reused),
    ("a change of names stamps the directory", names::change_of_names_stamps_the_directory),
    ("rename moves", renames::rename_moves),
    ("rename replaces a file", renames::rename_replaces_a_file),
    ("rename replaces an empty directory only", renames::rename_replaces_an_empty_directory),
    ("rename keeps kinds apart", renames::rename_keeps_kinds_apart),
    ("rename of two names of one inode does nothing", renames::rename_of_one_inode_does_nothing),
    ("rename without replacing", renames::rename_without_replacing),
    ("exchange swaps", renames::exchange_swaps),
    ("exchange moves a directory's link", renames::exchange_moves_a_directory_link),
    ("a directory does not go below itself", renames::directory_does_not_go_below_itself),
    ("rename keeps a replaced open file", renames::rename_keeps_a_replaced_open_file),
    ("rename stamps what it touches", renames::rename_stamps_what_it_touches),
    ("directory links count subdirectories", directories::links_count_subdirectories),
    ("parent follows a rename", directories::parent_follows_a_rename),
    ("a listing is complete", directories::listing_is_complete),
    ("a listing goes on after any cookie", directories::listing_goes_on_after_any_cookie),
    ("an entry that stays is listed exactly once", directories::entry_that_stays_is_listed_once),
    ("a listing takes no reference", directories::listing_takes_no_reference),
    ("a file is no directory", directories::file_is_no_directory),
    ("what is written is read", content::what_is_written_is_read),
    ("a read ends with the file", content::read_ends_with_the_file),
    ("a gap reads as zeros", content::gap_reads_as_zeros),
    ("a cut file does not show its past", content::cut_file_does_not_show_its_past),
    ("a write stamps the file", content::write_stamps_the_file),
    ("a file too large is refused", content::file_too_large_is_refused),
    ("only files hold bytes", content::only_files_hold_bytes),
    ("a hole of a tebibyte is a hole", content::hole_of_a_tebibyte),
    ("seek finds data and holes", content::seek_finds_data_and_holes),
    ("allocate extends", content::allocate_extends),
    ("punch zeroes and frees", content::punch_zeroes_and_frees),
    ("zero range zeroes", content::zero_range_zeroes),
    ("copy range copies", content::copy_range_copies),
    ("copy range keeps holes and ends with the source", content::copy_range_ends_with_the_source),
    ("copy range refuses an overlap", content::copy_range_refuses_an_overlap),
    ("fsync answers", content::fsync_answers),
    ("attributes change as one", attributes::attributes_change_as_one),
    ("times are kept to the nanosecond", attributes::times_are_kept),
    ("mode is twelve bits", attributes::mode_is_twelve_bits),
    ("truncate stamps the file", attributes::truncate_stamps_the_file),
    ("only files are truncated", attributes::only_files_are_truncated),
    ("blocks count data", attributes::blocks_count_data),
    ("statfs has room", attributes::statfs_has_room),
    ("an inode that is gone is an error", attributes::gone_inode_is_an_error),
    ("xattrs are kept", xattrs::xattrs_are_kept),
    ("xattr modes are obeyed", xattrs::xattr_modes_are_obeyed),
    ("xattrs are bounded", xattrs::xattrs_are_bounded),
    ("xattrs stamp the inode", xattrs::xattrs_stamp_the_inode),
    ("an access list sets the mode", acls::access_list_sets_the_mode),
    ("a list that is a mode is not kept", acls::list_that_is_a_mode_is_not_kept),
    ("chmod changes the mask", acls::chmod_changes_the_mask),
    ("a default list is taken over", acls::default_list_is_taken_over),
    ("a list that cannot be is refused", acls::list_that_cannot_be_is_refused),
];

/// Runs every check on a fresh file system and names the one that fails.
///
/// # Panics
/// If a rule is broken.
pub fn run(make: &dyn Fn() -> Arc<dyn Filesystem>) {
    for (name, check) in CHECKS {
        let named = NameOnPanic(name);
        check(make().as_ref());
        std::mem::forget(named);
    }
}

/// Says which rule was being checked when a check panics: the panic itself names only a line.
struct NameOnPanic(&'static str);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        eprintln!("broken rule: {}", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{CHECKS, run};
    use crate::attr::Timestamp;
    use crate::memfs::MemFs;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn memfs_conforms() {
        run(&|| Arc::new(MemFs::new(Timestamp(0))));
    }

    #[test]
    fn check_names_are_unique() {
        let names: BTreeSet<_> = CHECKS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
