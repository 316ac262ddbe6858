//! What ICE needs of servers: reflexive addresses (STUN) and relays (TURN).
//!
//! Everything here is free of sockets and clocks: time comes in as an argument, packets and
//! findings come out as values. `driver::servers` opens the connections. str0m's ICE agent does the
//! checks between the two peers; it is given what is found here.

pub(crate) mod gather;
pub(crate) mod server;
pub(crate) mod stun;
pub(crate) mod turn;
