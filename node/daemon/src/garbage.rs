//! Giving back the space of blocks that nothing refers to any more.

pub(crate) mod marking;
pub(crate) mod collecting;
