//! What fuzz targets and benchmarks need of private code. Behind the feature `internals`, and not
//! part of the interface.
//!
//! The fuzz targets themselves are here, because parsers and state machines are private: each takes
//! the bytes of a fuzzer and panics when an invariant does not hold. What the benchmarks measure is
//! in [`parts`].

pub mod fuzz;
mod pair;
pub mod parts;
