//! What a customer gets: the link as a QR code, and as a text to send.

pub mod invitation;
pub mod qr_code;
