#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::ipc, targets::seeds("ipc"));
