//! Giving back the space of blocks that nothing refers to any more.

pub(crate) mod collecting;
pub(crate) mod marking;
mod pace;
