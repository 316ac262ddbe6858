#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::vendor_messages, targets::seeds("vendor_messages"));
