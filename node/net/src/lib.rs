//! The only crate that opens sockets to peers.
//!
//! It owns the identity of this host, its connections to the other members, the requests and the gossip that travel over
//! them, and the exchange of blocks. It decides nothing: who is a member, what a request means and whom to ask are told to
//! it by the one who starts it.
//!
//! What always holds:
//! * a peer that is not a member can reach one protocol, [`protocol::Protocol::Join`], and is let go after a while;
//! * every length that comes from the wire is checked against a bound before memory is taken for it;
//! * every queue has a bound, and what does not fit is refused with an error that says so;
//! * a block that leaves [`exchange`] hashes to the CID it was asked for.
//!
//! ```text
//!   Net (handle) --commands--> task: one loop around the swarm --handler futures--> Handler (the daemon)
//!      ^                         |  gate: members, or join alone        ^
//!      |                         |  dialer: whom to call, and when      |
//!   Exchange                     +--notices: gossip, up, down ----------+
//! ```

pub mod protocol;

pub mod identity;

pub mod peer;

pub mod request;

pub mod handler;

pub mod config;

pub mod net;

pub mod view;

pub mod exchange;

pub mod block_frames;

mod wants;

mod wire;

mod gate;

mod behaviour;

mod dialer;

mod links;

mod outbound;

mod inbound;

mod notices;

mod task;

mod turns;
