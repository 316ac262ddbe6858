#![no_main]

use roomserver::internals as targets;

fuzz::fuzz_target!(targets::server_sdp, targets::seeds("server_sdp"));
