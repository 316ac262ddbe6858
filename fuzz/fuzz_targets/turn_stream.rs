#![no_main]

use libwebrtc::internals::fuzz as targets;

fuzz::fuzz_target!(targets::turn_stream, targets::seeds("turn_stream"));
