//! How many places the tables have: known after a clean stop, counted after any other when somebody asks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::{Mutex, MutexGuard};

/// A number of places, or that nobody has counted them.
pub(super) struct Count(Mutex<Option<u64>>);

/// The number while places come and go.
pub(super) struct Counting<'a>(MutexGuard<'a, Option<u64>>);

impl Count {
    pub(super) fn known(n_entries: u64) -> Count {
        Count(Mutex::new(Some(n_entries)))
    }

    pub(super) fn unknown() -> Count {
        Count(Mutex::new(None))
    }

    /// Held while places are put in or taken out, so that who counts sees all of that or nothing.
    pub(super) fn lock(&self) -> Counting<'_> {
        Counting(self.0.lock())
    }

    /// How many there are. Tables that cannot be counted count as empty, as what they have is not to be had.
    pub(super) fn get(&self, places: &sled::Tree) -> u64 {
        let mut known = self.0.lock();
        let count = || catch_unwind(AssertUnwindSafe(|| places.len() as u64)).unwrap_or(0);
        *known.get_or_insert_with(count)
    }
}

impl Counting<'_> {
    pub(super) fn add(&mut self, n: u64) {
        *self.0 = self.0.map(|count| count + n);
    }

    pub(super) fn take(&mut self, n: u64) {
        *self.0 = self.0.map(|count| count.saturating_sub(n));
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn places_that_nobody_has_counted_are_counted_when_somebody_asks() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let add = |count: &Count, key: &[u8]| {
            let mut counting = count.lock();
            counting.add(u64::from(db.insert(key, b"").unwrap().is_none()));
        };
        let count = Count::unknown();
        add(&count, b"a");
        add(&count, b"b");
        assert_eq!(count.get(&db), 2);
        add(&count, b"b");
        add(&count, b"c");
        count.lock().take(u64::from(db.remove(b"a").unwrap().is_some()));
        assert_eq!(count.get(&db), 2);
        db.clear().unwrap();
        assert_eq!(count.get(&db), 2, "it is counted once");
    }
}
