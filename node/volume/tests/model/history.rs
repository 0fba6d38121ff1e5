//! What was done to a volume, what was promised of it, and whether a tree found after a crash can be explained.
//!
//! The promise, from docs/SEMANTICS.md: what is found is the volume as it was after some request not older than the last
//! promise. Writes that may be collected into a chunk are the one exception: those at the end of a file may be missing, in
//! order, as long as no later request that named the file is found.

use std::collections::BTreeMap;

use remora_vfs::attr::{Attr, Ino, Timestamp};
use remora_vfs::filesystem::Filesystem;
use remora_vfs::memfs::MemFs;

use super::picture::{Held, Names, Path, Picture, held_by, names_of};
use super::request::{Request, Slots, Target, pattern};

const CHUNK_BYTES: u64 = 1 << 20;

/// A write at least this long may be collected.
const COLLECTED_BYTES_MIN: usize = 64 << 10;

#[derive(Clone, Debug)]
enum Event {
    /// A request that succeeded; whether its place in the order is certain even if it is a long write.
    Done { request: Request, time: Timestamp, is_settled: bool },
    /// The host went and came back: nothing is open any more.
    Restart,
}

/// A write that may not have reached the log.
struct Late {
    index: usize,
    offset: u64,
    bytes: Vec<u8>,
    time: Timestamp,
}

/// A file system that is being told a history.
struct Telling {
    fs: MemFs,
    slots: Slots,
    late: BTreeMap<Ino, Vec<Late>>,
}

/// Everything that was done.
pub struct History {
    events: Vec<Event>,
    /// The model after all of it.
    model: MemFs,
    slots: Slots,
    now: i64,
    /// After how many events the view of an inode of the model was the one it has.
    changed: BTreeMap<Ino, usize>,
    views: BTreeMap<Ino, (Attr, Vec<Path>)>,
    /// So many events are sure to be found.
    promised: usize,
}

impl Telling {
    fn new() -> Telling {
        Telling { fs: MemFs::new(Timestamp(0)), slots: Slots::default(), late: BTreeMap::new() }
    }

    fn tell(&mut self, index: usize, event: &Event) {
        let (request, time, is_settled) = match event {
            Event::Restart => return self.slots.clear(&self.fs),
            Event::Done { request, time, is_settled } => (request, *time, *is_settled),
        };
        let named = request.named(&self.fs, &self.slots);
        if let (Request::Write { offset, len, fill, skip, .. }, [ino]) = (request, &named[..]) {
            let may_be_late = *len >= COLLECTED_BYTES_MIN
                || *offset > 0 && offset.is_multiple_of(CHUNK_BYTES)
                || self.late.contains_key(ino);
            if may_be_late && !is_settled {
                let late = Late { index, offset: *offset, bytes: pattern(*fill, *skip, *len), time };
                self.late.entry(*ino).or_default().push(late);
                return;
            }
        }
        for ino in named {
            for late in self.late.remove(&ino).unwrap_or_default() {
                self.fs.write(ino, late.offset, &late.bytes, late.time).unwrap();
            }
        }
        request.apply(&self.fs, &mut self.slots, time).unwrap();
    }

    /// Whether this is what was found; answers the late writes that are missing.
    fn explains(&self, found: &Picture) -> Option<Vec<usize>> {
        let told = names_of(&self.fs);
        if told.sights.len() != found.names.sights.len() {
            return None;
        }
        let mut missing = Vec::new();
        for (path, sight) in &told.sights {
            let other = found.names.sights.get(path)?;
            let is_late = self.late.contains_key(&told.inos[path]);
            if other.first != sight.first || !is_late && other.attr != sight.attr {
                return None;
            }
        }
        for (path, sight) in told.sights.iter().filter(|(path, sight)| sight.first == **path) {
            let (ino, (other, other_held)) = (told.inos[path], found.at(path));
            let held = held_by(&self.fs, ino);
            match self.late.get(&ino) {
                None if held == *other_held => {}
                None => return None,
                Some(late) => {
                    let n = n_found((sight.attr, held), late, (other.attr, other_held))?;
                    missing.extend(late[n..].iter().map(|late| late.index));
                }
            }
        }
        Some(missing)
    }
}

/// How many of the late writes make the file what was found.
fn n_found(file: (Attr, Held), late: &[Late], found: (Attr, &Held)) -> Option<usize> {
    let (mut attr, mut held) = file;
    for n in 0..=late.len() {
        if attr == found.0 && held == *found.1 {
            return Some(n);
        }
        let Some(write) = late.get(n) else { break };
        let end = write.offset as usize + write.bytes.len();
        held.bytes.resize(held.bytes.len().max(end), 0);
        held.bytes[write.offset as usize..end].copy_from_slice(&write.bytes);
        (attr.size, attr.mtime, attr.ctime) = (held.bytes.len() as u64, write.time, write.time);
    }
    None
}

impl History {
    pub fn new() -> History {
        let mut history = History {
            events: Vec::new(),
            model: MemFs::new(Timestamp(0)),
            slots: Slots::default(),
            now: 1_000_000_000,
            changed: BTreeMap::new(),
            views: BTreeMap::new(),
            promised: 0,
        };
        history.look(0);
        history
    }

    /// The model after everything that was done.
    pub fn model(&self) -> &MemFs {
        &self.model
    }

    /// The size of a file, if it is one.
    pub fn size_of(&self, target: Target) -> Option<u64> {
        let ino = target.ino(&self.model, &self.slots).ok()?;
        self.model.getattr(ino).ok().map(|attr| attr.size)
    }

    /// Puts a request to the volume and to the model, which must agree on whether it works. Answers whether it did.
    pub fn request(&mut self, volume: &dyn Filesystem, slots: &mut Slots, request: &Request) -> bool {
        self.now += 1001;
        let time = Timestamp(self.now);
        let answer = request.apply(volume, slots, time);
        let expected = request.apply(&self.model, &mut self.slots, time);
        assert_eq!(answer, expected, "{request:?}");
        if answer.is_err() {
            return false;
        }
        for request in pieces(request) {
            self.events.push(Event::Done { request, time, is_settled: false });
        }
        self.look(self.events.len());
        true
    }

    /// Tells the model what the volume has gone through already.
    pub fn assume(&mut self, request: &Request) {
        self.now += 1001;
        let time = Timestamp(self.now);
        request.apply(&self.model, &mut self.slots, time).unwrap();
        let events = pieces(request).into_iter();
        self.events.extend(events.map(|request| Event::Done { request, time, is_settled: true }));
        self.look(self.events.len());
    }

    /// Notes what has changed to be seen after so many events.
    fn look(&mut self, n: usize) {
        let views = views_of(&names_of(&self.model));
        for (ino, view) in &views {
            if self.views.get(ino) != Some(view) {
                self.changed.insert(*ino, n);
            }
        }
        self.views = views;
    }

    /// An fsync has succeeded: what the inode is and the names that lead to it are sure.
    pub fn promise(&mut self, target: Target) {
        let Ok(ino) = target.ino(&self.model, &self.slots) else { return };
        let n = self.changed.get(&ino).copied().unwrap_or(0);
        self.promised = self.promised.max(n);
        for index in self.late_writes(target) {
            if let Event::Done { is_settled, .. } = &mut self.events[index] {
                *is_settled = true;
            }
        }
    }

    /// Everything so far is sure.
    pub fn promise_all(&mut self) {
        self.promised = self.events.len();
        for event in &mut self.events {
            if let Event::Done { is_settled, .. } = event {
                *is_settled = true;
            }
        }
    }

    /// The writes of an inode whose place in the order is not certain.
    fn late_writes(&self, target: Target) -> Vec<usize> {
        let telling = self.tell();
        let Ok(ino) = target.ino(&telling.fs, &telling.slots) else { return Vec::new() };
        telling.late.get(&ino).into_iter().flatten().map(|late| late.index).collect()
    }

    fn tell(&self) -> Telling {
        let mut telling = Telling::new();
        self.events.iter().enumerate().for_each(|(index, event)| telling.tell(index, event));
        telling
    }

    /// Explains what was found after a crash, and goes on from there. Answers how many events were found, or `None` if
    /// there is no explanation.
    pub fn recover(&mut self, found: &Picture) -> Option<usize> {
        let mut telling = Telling::new();
        for index in 0..=self.events.len() {
            if index >= self.promised
                && let Some(missing) = telling.explains(found)
            {
                self.restart_after(index, &missing);
                return Some(index);
            }
            if let Some(event) = self.events.get(index) {
                telling.tell(index, event);
            }
        }
        None
    }

    fn restart_after(&mut self, n: usize, missing: &[usize]) {
        self.events.truncate(n);
        let mut index = 0;
        self.events.retain(|_| {
            index += 1;
            !missing.contains(&(index - 1))
        });
        self.events.push(Event::Restart);
        self.promise_all();
        let telling = self.tell();
        (self.changed, self.views) = (BTreeMap::new(), BTreeMap::new());
        (self.model, self.slots) = (telling.fs, telling.slots);
        self.look(self.events.len());
    }
}

fn views_of(names: &Names) -> BTreeMap<Ino, (Attr, Vec<Path>)> {
    let mut views: BTreeMap<Ino, (Attr, Vec<Path>)> = BTreeMap::new();
    for (path, ino) in &names.inos {
        let attr = names.sights[path].attr;
        views.entry(*ino).or_insert_with(|| (attr, Vec::new())).1.push(path.clone());
    }
    views
}

/// A request as the parts that are atomic: a long write may be found up to the end of some chunk.
fn pieces(request: &Request) -> Vec<Request> {
    let Request::Write { file, offset, len, fill, skip } = *request else { return vec![request.clone()] };
    let mut parts = Vec::new();
    let mut done = 0;
    while done < len {
        let offset = offset + done as u64;
        let n = (len - done).min((CHUNK_BYTES - offset % CHUNK_BYTES) as usize);
        parts.push(Request::Write { file, offset, len: n, fill, skip: skip + done });
        done += n;
    }
    parts
}
