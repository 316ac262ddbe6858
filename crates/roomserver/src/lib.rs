//! A LiveKit-compatible room server for development, demonstrations and tests. Not for production.
