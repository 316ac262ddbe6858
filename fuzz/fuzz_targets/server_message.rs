#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::server_message, targets::seeds("server_message"));
