//! The container engine's view: the volume driver, and what the engine is told by itself.

pub(crate) mod driver;
pub(crate) mod seeding;
