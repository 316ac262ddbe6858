#![no_main]

use roomserver::internals as targets;

fuzz::fuzz_target!(targets::twirp, targets::seeds("twirp"));
