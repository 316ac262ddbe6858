#![no_main]

use libwebrtc::internals::fuzz as targets;

fuzz::fuzz_target!(targets::opus_packet, targets::seeds("opus_packet"));
