//! Standard output. `print!` panics if the reader has closed the pipe.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use super::outcome::Result;

/// Prints what can be printed again. A reader that closes the pipe early, such as `head`, has read all that it wants.
pub(super) fn print(text: impl Display) -> io::Result<()> {
    match write(&text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints a secret on a line of its own. If that fails, the secret may be lost, so the error says how to get one again.
pub(super) fn print_secret(secret: &str, again: &str) -> Result {
    write(&format_args!("{secret}\n"))
        .map_err(|error| format!("the secret could not be printed ({error}); {again}").into())
}

fn write(text: &impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}")?;
    stdout.flush()
}
