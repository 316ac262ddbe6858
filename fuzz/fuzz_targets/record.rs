#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::record, targets::seeds("record"));
