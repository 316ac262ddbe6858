//! Opus sound in Ogg files (RFC 7845): writing as the sound arrives, reading, and measuring.
