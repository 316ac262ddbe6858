//! Reading a list of leads: CSV with a header, a JSON array of objects, or one JSON object a line.
//! What cannot be a lead is refused with its line and the reason; the others are imported.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use serde::Serialize;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::event::{CampaignEvent, ImportedLead};
use super::journal::{Campaign, JournalError};
use super::number::DialNumber;
use crate::phone::CountryCode;
use crate::session::time;

/// Columns that may hold the number, in this order.
const NUMBER_COLUMNS: [&str; 7] = [
    "phone_number",
    "phone",
    "number",
    "mobile",
    "telephone",
    "tel",
    "to",
];
/// Columns that may hold the lead's id.
const ID_COLUMNS: [&str; 2] = ["lead_id", "id"];
const ZONE_COLUMN: &str = "timezone";
/// The most that a list may say of one lead, bytes.
const LARGEST_LEAD: usize = 64 * 1024;
/// Leads that are written at once, so that a dialler waits for a moment only.
const BATCH: usize = 2000;
/// Refused lines that are kept with their reasons; more are counted.
const MOST_REFUSED: usize = 10_000;

/// Why a list cannot be read at all, or not further.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("the list {path} cannot be read: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// It is no list.
    #[error("the list {path} {problem}")]
    NoList {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The campaign cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A line that is no lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its line in the file, or its place in a JSON array, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Leads that are new in the campaign.
    pub imported: u64,
    /// Lines that were refused.
    pub refused: u64,
    /// The first of these, with their reasons.
    pub reasons: Vec<Refused>,
}

/// Imports lists into a campaign.
pub struct Importer<'a> {
    campaign: &'a mut Campaign,
    country: CountryCode,
    number_column: Option<String>,
    batch: Vec<(u64, ImportedLead)>,
    report: ImportReport,
}

impl<'a> Importer<'a> {
    /// `country`: where numbers without a country code belong; `number_column`: the column of the
    /// number, if it has a name of its own.
    pub fn new(
        campaign: &'a mut Campaign,
        country: CountryCode,
        number_column: Option<String>,
    ) -> Self {
        Self {
            campaign,
            country,
            number_column,
            batch: Vec::new(),
            report: ImportReport::default(),
        }
    }

    /// Imports a file. Leads that are in the campaign already are refused, so that an import that
    /// was interrupted can be made again.
    ///
    /// # Errors
    /// When it cannot be read to its end; what was read before is imported.
    pub fn file(mut self, path: &Path) -> Result<ImportReport, ImportError> {
        let unreadable = |why| ImportError::File {
            path: path.to_owned(),
            why,
        };
        let file = File::open(path).map_err(unreadable)?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let start = reader.fill_buf().map_err(unreadable)?;
        if start.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
        }
        let start = reader.fill_buf().map_err(unreadable)?;
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        let read = match first {
            Some(b'[') => self.array(reader),
            Some(b'{') => self.lines(reader),
            Some(_) => self.csv(reader),
            None => Err(Stop::Problem("is empty".to_owned())),
        };
        // What was read is kept, whatever came after it.
        self.write()?;
        match read {
            Ok(()) => Ok(self.report),
            Err(Stop::Problem(problem)) => Err(ImportError::NoList {
                path: path.to_owned(),
                problem,
            }),
            Err(Stop::Io(why)) => Err(unreadable(why)),
            Err(Stop::Journal(error)) => Err(error.into()),
        }
    }

    fn csv(&mut self, reader: impl BufRead) -> Result<(), Stop> {
        let mut reader = reader;
        let header_so_far = reader.fill_buf()?;
        let header = header_so_far.split(|byte| *byte == b'\n').next();
        let count = |of: u8| header.map_or(0, |h| h.iter().filter(|byte| **byte == of).count());
        // Spreadsheets of many countries write semicolons.
        let delimiter = [b',', b';', b'\t']
            .into_iter()
            .rev()
            .max_by_key(|of| count(*of))
            .unwrap_or(b',');
        let mut rows = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            // Otherwise lines that end with CR LF are counted wrong; the CR is trimmed below.
            .terminator(csv::Terminator::Any(b'\n'))
            .from_reader(reader);
        let header = rows.byte_headers().map_err(csv_problem)?.clone();
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        let has_number = match &self.number_column {
            Some(column) => names.iter().any(|name| name.eq_ignore_ascii_case(column)),
            None => names.iter().any(|name| is_one_of(name, &NUMBER_COLUMNS)),
        };
        if !has_number {
            let wanted = self.number_column.clone().map_or_else(
                || format!("that is called {}", NUMBER_COLUMNS.join(", ")),
                |column| format!("{column:?}"),
            );
            return Err(Stop::Problem(format!(
                "has no column {wanted} in its first line, which has {names:?}; name the column of the numbers with --number-column"
            )));
        }
        let mut row = csv::ByteRecord::new();
        while rows.read_byte_record(&mut row).map_err(csv_problem)? {
            let line = row.position().map_or(0, csv::Position::line);
            if row.len() == 1 && row[0].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if row.len() != names.len() {
                let reason = format!(
                    "it has {} columns, and the first line {}",
                    row.len(),
                    names.len()
                );
                self.refuse(line, reason);
                continue;
            }
            let fields = names.iter().zip(row.iter());
            let fields: Result<Map<String, Value>, _> = fields
                .filter(|(_, text)| !text.iter().all(u8::is_ascii_whitespace))
                .map(|(name, text)| {
                    let text = std::str::from_utf8(text)?;
                    Ok::<_, std::str::Utf8Error>((name.clone(), text.trim().into()))
                })
                .collect();
            match fields {
                Ok(fields) => self.lead(line, fields)?,
                Err(_) => self.refuse(line, "it is not UTF-8: save the list as UTF-8".to_owned()),
            }
        }
        Ok(())
    }

    fn lines(&mut self, mut reader: impl BufRead) -> Result<(), Stop> {
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let most = LARGEST_LEAD as u64 * 2;
            (&mut reader).take(most).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                break;
            }
            if line.len() as u64 == most {
                return Err(Stop::Problem(format!(
                    "has a line of more than {most} bytes, line {number}"
                )));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice::<Value>(&line) {
                Ok(value) => self.value(number, value)?,
                Err(error) => self.refuse(number, format!("it is not JSON: {error}")),
            }
        }
        Ok(())
    }

    fn array(&mut self, reader: impl BufRead) -> Result<(), Stop> {
        let mut stopped = None;
        let mut json = serde_json::Deserializer::from_reader(reader);
        let seed = Elements {
            importer: self,
            stopped: &mut stopped,
        };
        let read = seed.deserialize(&mut json);
        match (stopped, read) {
            (Some(stop), _) => Err(stop),
            (None, Err(error)) => Err(Stop::Problem(format!("is not JSON: {error}"))),
            (None, Ok(())) => Ok(()),
        }
    }

    fn value(&mut self, line: u64, value: Value) -> Result<(), Stop> {
        match value {
            Value::Object(fields) => self.lead(line, fields),
            _ => {
                self.refuse(line, "it is no JSON object".to_owned());
                Ok(())
            }
        }
    }

    fn lead(&mut self, line: u64, fields: Map<String, Value>) -> Result<(), Stop> {
        match self.read_lead(fields) {
            Ok(lead) => self.batch.push((line, lead)),
            Err(reason) => self.refuse(line, reason),
        }
        match self.batch.len() >= BATCH {
            true => self.write().map_err(Stop::Journal),
            false => Ok(()),
        }
    }

    fn read_lead(&self, mut fields: Map<String, Value>) -> Result<ImportedLead, String> {
        let size = serde_json::to_vec(&fields).map_or(usize::MAX, |bytes| bytes.len());
        if size > LARGEST_LEAD {
            return Err(format!("it is larger than {LARGEST_LEAD} bytes"));
        }
        let own = self.number_column.as_deref();
        let columns = own
            .as_ref()
            .map_or(&NUMBER_COLUMNS[..], std::slice::from_ref);
        let (_, text) =
            take_text(&mut fields, columns).ok_or_else(|| "it has no number".to_owned())?;
        let number = DialNumber::read(&text, &self.country).map_err(|error| error.to_string())?;
        let lead_id = take_text(&mut fields, &ID_COLUMNS).map(|(_, id)| id);
        let timezone = match take_text(&mut fields, &[ZONE_COLUMN]) {
            None => None,
            Some((_, zone)) => Some(
                zone.parse::<Tz>()
                    .map_err(|_| format!("{zone:?} is no time zone such as Asia/Kolkata"))?,
            ),
        };
        Ok(ImportedLead {
            number,
            lead_id,
            timezone,
            data: fields,
        })
    }

    fn refuse(&mut self, line: u64, reason: String) {
        self.report.refused += 1;
        if self.report.reasons.len() < MOST_REFUSED {
            self.report.reasons.push(Refused { line, reason });
        }
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let (count, doubles) = self.campaign.record(time::now(), |plan| {
            let mut seen = std::collections::HashMap::new();
            let mut doubles = Vec::new();
            let mut events = Vec::new();
            for (line, lead) in batch {
                if plan.lead_of(lead.number).is_some() {
                    doubles.push((line, "its number is in the campaign already".to_owned()));
                } else if let Some(first) = seen.insert(lead.number, line) {
                    doubles.push((line, format!("its number is that of line {first}")));
                    seen.insert(lead.number, first);
                } else {
                    events.push(CampaignEvent::Imported(lead));
                }
            }
            let count = events.len() as u64;
            (events, (count, doubles))
        })?;
        self.report.imported += count;
        for (line, reason) in doubles {
            self.refuse(line, reason);
        }
        Ok(())
    }
}

/// Why a list is not read on.
enum Stop {
    Problem(String),
    Io(io::Error),
    Journal(JournalError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn csv_problem(error: csv::Error) -> Stop {
    Stop::Problem(format!("is no CSV: {error}"))
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Takes the first of these fields that has a text or a number.
fn take_text(fields: &mut Map<String, Value>, names: &[&str]) -> Option<(String, String)> {
    let (key, text) = names.iter().find_map(|name| {
        let (key, value) = fields
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        let text = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        (!text.is_empty()).then(|| (key.clone(), text))
    })?;
    fields.remove(&key);
    Some((key, text))
}

/// The elements of a JSON array, one after the other, so that a long one is never whole in memory.
struct Elements<'a, 'b> {
    importer: &'a mut Importer<'b>,
    stopped: &'a mut Option<Stop>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut place = 0;
        while let Some(value) = elements.next_element::<Value>()? {
            place += 1;
            if let Err(stop) = self.importer.value(place, value) {
                *self.stopped = Some(stop);
                return Err(serde::de::Error::custom("it was stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::settings;
    use super::*;
    use std::fs;
    use std::io::Write as _;

    fn import(
        text: &[u8],
        column: Option<&str>,
    ) -> (Result<ImportReport, String>, Campaign, tempfile::TempDir) {
        let data = tempfile::tempdir().unwrap();
        let mut campaign = Campaign::create(data.path(), settings("")).unwrap();
        let path = data.path().join("list");
        fs::write(&path, text).unwrap();
        let india: CountryCode = serde_json::from_str("\"91\"").unwrap();
        let importer = Importer::new(&mut campaign, india, column.map(str::to_owned));
        let report = importer.file(&path).map_err(|error| error.to_string());
        (report, campaign, data)
    }

    #[test]
    fn a_list_is_read_in_every_form_and_what_is_no_lead_is_refused_with_its_line() {
        let csv = "\u{feff}Name,Phone,id,timezone,Note\r\nAsha,+91 86550-66243,L-1,,\"two\nlines\"\r\nBob,+15550100123,L-2,America/New_York,\r\n\
                   Cid,nobody,L-3,,\nDan,086550 66243,L-4,,\nEve,+15550100124,L-5,Mars/Base,\nFay,+15550100125\nGus,,L-7,,\n\r\n";
        let (report, campaign, _data) = import(csv.as_bytes(), None);
        let report = report.unwrap();
        assert_eq!((report.imported, report.refused), (2, 5), "{report:?}");
        let mut lines: Vec<u64> = report.reasons.iter().map(|refused| refused.line).collect();
        lines.sort();
        assert_eq!(lines, [5, 6, 7, 8, 9]);
        for word in [
            "no telephone number",
            "that of line 2",
            "Mars/Base",
            "columns",
            "no number",
        ] {
            assert!(
                report
                    .reasons
                    .iter()
                    .any(|refused| refused.reason.contains(word)),
                "{word}: {report:?}"
            );
        }
        let leads = campaign.plan().leads();
        let first = campaign.lead_at(leads[0].place).unwrap();
        assert_eq!(first.lead_id.as_deref(), Some("L-1"));
        assert_eq!(
            Value::from(first.data),
            serde_json::json!({ "Name": "Asha", "Note": "two\nlines" })
        );
        assert_eq!(campaign.plan().zone_of(&leads[1]), Tz::America__New_York);

        let semicolons = "name;handy\nAsha;+918655066243\n";
        assert_eq!(
            import(semicolons.as_bytes(), Some("Handy"))
                .0
                .unwrap()
                .imported,
            1
        );
        let array = br#" [{"phone": 918655066243, "tags": ["a"]}, 5, {"phone": "x"}, {"to": "+15550100123"}]"#;
        let report = import(array, None).0.unwrap();
        assert_eq!((report.imported, report.refused), (2, 2), "{report:?}");
        let lines = b"{\"phone\": \"+918655066243\"}\n\n{\n{\"phone\": \"+15550100123\"}";
        let report = import(lines, None).0.unwrap();
        assert_eq!(
            (report.imported, report.refused, report.reasons[0].line),
            (2, 1, 3)
        );
    }

    #[test]
    fn what_is_no_list_is_a_sentence_and_what_came_before_is_kept() {
        for (text, word) in [
            (&b""[..], "is empty"),
            (b"  \n ", "is empty"),
            (b"name,age\nAsha,5\n", "--number-column"),
            (b"[{\"phone\": \"+918655066243\"}, {\"phone\"", "not JSON"),
        ] {
            let (report, campaign, _data) = import(text, None);
            let problem = report.unwrap_err();
            assert!(problem.contains(word), "{problem}");
            assert_eq!(
                campaign.plan().leads().len(),
                usize::from(text.starts_with(b"["))
            );
        }
        let latin = b"phone,name\n+918655066243,J\xfcrgen\n+15550100123,Asha\n";
        let report = import(latin, None).0.unwrap();
        assert_eq!((report.imported, report.refused), (1, 1));
        assert!(report.reasons[0].reason.contains("UTF-8"));
    }

    #[test]
    fn a_long_list_is_imported_once_however_often_it_is_given() {
        let mut text = b"phone,name\n".to_vec();
        for index in 0..20_000 {
            writeln!(text, "+1555{:07},Lead {index}", 1_000_000 + index).unwrap();
        }
        let (report, mut campaign, data) = import(&text, None);
        assert_eq!(report.unwrap().imported, 20_000);
        let importer = Importer::new(&mut campaign, CountryCode::default(), None);
        let report = importer.file(&data.path().join("list")).unwrap();
        assert_eq!(
            (report.imported, report.refused, report.reasons.len()),
            (0, 20_000, MOST_REFUSED)
        );
        let again = Campaign::open(data.path(), campaign.name()).unwrap();
        assert_eq!(again.plan().leads().len(), 20_000);
    }
}
