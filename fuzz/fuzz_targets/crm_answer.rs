#![no_main]

use voicebot::internals as targets;

fuzz::fuzz_target!(targets::crm_answer, targets::seeds("crm_answer"));
