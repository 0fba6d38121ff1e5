//! The Docker volume driver.
