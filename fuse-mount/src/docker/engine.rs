//! A small client of this host's own container engine.
