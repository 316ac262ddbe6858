//! What fuzz targets and benchmarks need of the inside. Behind the feature `internals`, and no part
//! of the interface.
//!
//! The fuzz targets themselves are here, because parsers and machines are private: each takes the
//! bytes that a fuzzer has made up, and panics when something is not as it must be. What the
//! benchmarks measure is in [`parts`].

pub mod fuzz;
mod pair;
pub mod parts;
