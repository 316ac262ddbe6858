#![no_main]

use libwebrtc::internals::fuzz as targets;

fuzz::fuzz_target!(targets::ice_tcp, targets::seeds("ice_tcp"));
