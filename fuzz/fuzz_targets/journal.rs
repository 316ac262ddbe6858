#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::journal, targets::seeds("journal"));
