//! What a command answers to the shell that called it, and the error that carries it.

use std::fmt;

/// Exit codes of the `remora` command; documented in docs/OPERATIONS.md, never renumbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// Something went wrong that no other code names.
    Failed = 1,
    /// The command line, a name or an option is wrong.
    Usage = 2,
    /// No daemon answers on the API socket.
    NoDaemon = 3,
    /// There is no such volume, peer, CID or path.
    NotFound = 4,
    /// It exists already, or another host holds it.
    Conflict = 5,
    /// This data directory is not initialised (or already is).
    NotReady = 6,
    /// A key, config or store file is damaged.
    Damaged = 7,
    /// Not in time: a peer or keeper did not answer.
    Unreachable = 8,
}

/// An error with its exit code; the text says what happened and what to do next.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Failure { code, text: text.into() }
    }

    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(Code::Failed, text)
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Code::Usage, text)
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, text)
    }

    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self::new(Code::Conflict, text)
    }

    /// The HTTP status that carries this code over the API socket.
    pub(crate) fn status(&self) -> u16 {
        match self.code {
            Code::Usage => 400,
            Code::NotFound => 404,
            Code::Conflict => 409,
            Code::Unreachable => 504,
            Code::NotReady | Code::NoDaemon => 503,
            Code::Failed | Code::Damaged => 500,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Adds "while doing what" to an error of the operating system or a library.
pub(crate) trait Context<T> {
    /// `what` in the present tense: "read config /x".
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|e| Failure::failed(format!("{what}: {e}")))
    }
}
