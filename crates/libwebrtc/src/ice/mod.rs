//! What ICE needs of other servers: addresses seen from outside (STUN) and relays (TURN).
//!
//! Everything here is free of sockets and clocks: time comes in as an argument, packets and
//! findings come out as values. `driver::servers` opens what is asked for. str0m's ICE agent does
//! the checks between the two peers; it is given what is found here.

pub(crate) mod gather;
pub(crate) mod server;
pub(crate) mod stun;
pub(crate) mod turn;
