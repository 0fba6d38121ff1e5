//! Mounts whose server is gone.
