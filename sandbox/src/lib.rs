//! A stand-in for Dojo.
