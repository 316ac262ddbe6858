#![no_main]

use libwebrtc::internals::fuzz as targets;

fuzz::fuzz_target!(targets::negotiation, targets::seeds("negotiation"));
