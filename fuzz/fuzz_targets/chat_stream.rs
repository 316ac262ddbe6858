#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::chat_stream, targets::seeds("chat_stream"));
