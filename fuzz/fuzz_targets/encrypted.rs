#![no_main]

use libwebrtc::internals::fuzz as targets;

fuzz::fuzz_target!(targets::encrypted, targets::seeds("encrypted"));
