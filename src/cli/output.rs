//! Writing to a terminal, or into a pipe whose reader may stop listening.

use std::io::{self, BufWriter, StdoutLock, Write};

/// Standard output for commands that write much. A reader that has gone (`… | head`) ends the
/// output, not with an error.
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes standard output for as long as it lives.
    pub fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    /// Writes a line. `false`: nobody reads any more.
    ///
    /// # Errors
    /// When it cannot be written for another reason.
    pub fn line(&mut self, line: &str) -> io::Result<bool> {
        listened(writeln!(self.0, "{line}"))
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        listened(self.0.flush()).map(|_| ())
    }
}

fn listened(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}
