//! The `libwebrtc` API that the official `livekit` crate uses, made in Rust on str0m and libopus.
