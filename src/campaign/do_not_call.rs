//! Who is never to be called: `campaigns/do_not_call.txt`, one number a line. It counts for every
//! campaign, and may be edited by hand.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::journal::{self, JournalError};
use super::number::DialNumber;
use crate::phone::CountryCode;

const FILE: &str = "do_not_call.txt";
/// The largest file that is read: ten million numbers.
const LARGEST: u64 = 200 * 1024 * 1024;

/// The list. It is read again when the file has changed.
#[derive(Debug)]
pub struct DoNotCall {
    path: PathBuf,
    country: CountryCode,
    numbers: HashSet<DialNumber>,
    version: Option<(SystemTime, u64)>,
}

impl DoNotCall {
    /// The list of a data folder. `country`: where numbers without a country code belong.
    pub fn new(data_dir: &Path, country: CountryCode) -> Self {
        Self {
            path: journal::folder(data_dir).join(FILE),
            country,
            numbers: HashSet::new(),
            version: None,
        }
    }

    /// Whether a number is on the list now.
    ///
    /// # Errors
    /// When the file is there and cannot be read: then nobody must be called.
    pub fn contains(&mut self, number: DialNumber) -> Result<bool, JournalError> {
        self.read().map_err(JournalError::io("read", &self.path))?;
        Ok(self.numbers.contains(&number))
    }

    fn read(&mut self) -> io::Result<()> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.numbers.clear();
                self.version = None;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let version = Some((metadata.modified()?, metadata.len()));
        if version == self.version {
            return Ok(());
        }
        if metadata.len() > LARGEST {
            return Err(io::Error::other(format!(
                "it has more than {LARGEST} bytes"
            )));
        }
        let mut text = Vec::new();
        File::open(&self.path)?
            .take(LARGEST)
            .read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.trim_start_matches('\u{feff}').lines();
        // A comment may stand behind a number or alone.
        let texts = lines.filter_map(|line| line.split('#').next().map(str::trim));
        self.numbers = texts
            .filter_map(|text| DialNumber::read(text, &self.country).ok())
            .collect();
        self.version = version;
        Ok(())
    }

    /// Adds a number and syncs. `false`: it is there already.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn add(&mut self, number: DialNumber) -> Result<bool, JournalError> {
        if self.contains(number)? {
            return Ok(false);
        }
        self.append(number)?;
        Ok(true)
    }

    /// Adds a number and syncs, without reading the list, which may be long: a number that is there
    /// twice counts once.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&self, number: DialNumber) -> Result<(), JournalError> {
        let append = || -> io::Result<()> {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(&self.path)?;
            // An editor may have left the last line without its end: an empty line harms nothing.
            file.write_all(format!("\n{number}\n").as_bytes())?;
            file.sync_all()
        };
        append().map_err(JournalError::io("append to", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_as_people_write_it_and_grows() {
        let data = tempfile::tempdir().unwrap();
        let india: CountryCode = serde_json::from_str("\"91\"").unwrap();
        let number = |text: &str| DialNumber::read(text, &india).unwrap();
        let mut list = DoNotCall::new(data.path(), india.clone());
        assert!(!list.contains(number("+918655066243")).unwrap());
        assert!(list.add(number("+918655066243")).unwrap());
        assert!(!list.add(number("086550 66243")).unwrap());
        let path = data.path().join("campaigns/do_not_call.txt");
        fs::write(
            &path,
            "\u{feff}086550-66243 # asked in May\n\n# nobody\n+1 555 010 0123",
        )
        .unwrap();
        assert!(list.add(number("+15550100124")).unwrap());
        for listed in ["+918655066243", "+15550100123", "+15550100124"] {
            assert!(list.contains(number(listed)).unwrap(), "{listed}");
        }
        assert!(!list.contains(number("+15550100125")).unwrap());
    }
}
