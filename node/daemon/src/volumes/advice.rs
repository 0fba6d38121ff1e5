//! What an operator can do about a volume that stepped down.

/// What helps, by the reason that the volume gives.
pub(crate) fn on(why: &str) -> &'static str {
    if why.contains("keepers of the volume were reachable") {
        "the network or the other hosts were away: restart the containers here, or start them where the keepers are"
    } else if why.contains("took the volume over")
        || why.contains("took over the volume")
        || why.contains("promised the volume")
    {
        "the volume is written on another host now: start the containers there; what was not acknowledged is kept in fork/"
    } else {
        "nothing acknowledged is lost; trying again does not help. Look at the kernel's log, mend the disk, stop the \
         containers, then restart the daemon: it opens what is really on disk"
    }
}

#[cfg(test)]
mod tests {
    use super::on;

    #[test]
    fn a_disk_that_failed_needs_another_daemon_and_a_takeover_another_host() {
        assert!(on("sync the log: log closed after a failure").contains("restart the daemon"));
        assert!(on("another host took the volume over").contains("another host"));
        assert!(
            on("too few keepers of the volume were reachable for the time of a lease").contains("network")
        );
    }
}
