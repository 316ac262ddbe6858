//! What all targets share: initial inputs that our own code writes, so that they never fall behind
//! it.

use std::{fs, path::Path};

pub use libfuzzer_sys;

/// When this names a folder, a target writes its seeds into it and ends.
const SEEDS_VARIABLE: &str = "FUZZ_WRITE_SEEDS";

/// Makes a target of a function of bytes and the seeds for it.
#[macro_export]
macro_rules! fuzz_target {
    ($target:path, $seeds:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds_if_asked(|| $seeds),
            |data: &[u8]| { $target(data) }
        );
    };
}

/// Writes the seeds and ends the process, if it was started for that.
pub fn write_seeds_if_asked(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(SEEDS_VARIABLE) else {
        return;
    };
    for (number, seed) in seeds().into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number}"));
        fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    std::process::exit(0);
}
