//! Finished calls a page at a time, newest first. A page costs one listing of the folders' names,
//! and as many files as were opened; when few match, a page ends early and says where to go on, so
//! that no question takes long.

use chrono::{DateTime, Utc};

use super::search::{CallFilter, FoundCall, Query, Unreadable, open_if_named};
use crate::store::{CallFile, Place, Store, StoreError};

/// Which finished calls are wanted.
#[derive(Debug, Clone, Default)]
pub struct PageQuestion {
    /// Standing, outcome, number, and since when.
    pub filter: CallFilter,
    /// Only those that began before then.
    pub before: Option<DateTime<Utc>>,
    /// Only those that this names.
    pub query: Option<Query>,
    /// Only those that come after this one in the list.
    pub after: Option<PageMark>,
}

/// The place of a call in the list, as text that a client gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMark {
    began: DateTime<Utc>,
    session: String,
}

/// A page of the list.
#[derive(Debug, Clone, Default)]
pub struct CallPage {
    /// The calls, newest first.
    pub calls: Vec<FoundCall>,
    /// Files that could not be read, as they were met.
    pub unreadable: Vec<Unreadable>,
    /// Where the next page begins; `None` when there is nothing more.
    pub next: Option<PageMark>,
    /// How far back this page has looked, when it ended early.
    pub looked_back_to: Option<DateTime<Utc>>,
    /// Finished calls in the folders, whether they match or not.
    pub all: usize,
}

impl PageMark {
    fn of(file: &CallFile) -> Option<Self> {
        Some(Self {
            began: file.began,
            session: file.session()?.to_owned(),
        })
    }

    /// Whether the file comes later in the list.
    fn is_before(&self, file: &CallFile) -> bool {
        let of_file = (file.began, file.session().unwrap_or_default());
        // Newest first, then by session.
        of_file.0 < self.began || (of_file.0 == self.began && of_file.1 > self.session.as_str())
    }
}

impl std::fmt::Display for PageMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = self.began.timestamp_nanos_opt().unwrap_or_default();
        write!(f, "{nanos}.{}", self.session)
    }
}

impl std::str::FromStr for PageMark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (nanos, session) = text.split_once('.').ok_or(())?;
        Ok(Self {
            began: DateTime::from_timestamp_nanos(nanos.parse().map_err(drop)?),
            session: session.to_owned(),
        })
    }
}

/// A page of at most `size` finished calls, for which at most `most_files` files are opened.
///
/// # Errors
/// When a folder cannot be listed.
pub fn page(
    store: &Store,
    question: &PageQuestion,
    size: usize,
    most_files: usize,
) -> Result<CallPage, StoreError> {
    let mut page = CallPage::default();
    let mut files = Vec::new();
    for place in [Place::Waiting, Place::Archived] {
        store.visit_call_files(place, |file| {
            page.all += 1;
            if question.may_mean(&file) {
                files.push(file);
            }
        })?;
    }
    CallFile::sort_newest_first(&mut files);
    let mut opened = 0;
    let mut last: Option<&CallFile> = None;
    for file in &files {
        let session = file.session();
        // A call that moved on while the folders were listed stands in the list twice.
        if last.is_some_and(|last| last.session() == session) {
            continue;
        }
        if page.calls.len() == size || opened == most_files {
            page.next = last.and_then(PageMark::of);
            if page.calls.len() < size {
                page.looked_back_to = last.map(|last| last.began);
            }
            break;
        }
        last = Some(file);
        opened += 1;
        let found = match &question.query {
            Some(query) => open_if_named(store, query, file),
            None => FoundCall::open(store, file),
        };
        match found {
            Some(Ok(call)) if question.means(&call) => page.calls.push(call),
            Some(Err(problem)) => page.unreadable.push(problem),
            _ => {}
        }
    }
    Ok(page)
}

impl PageQuestion {
    /// What a file's name tells.
    fn may_mean(&self, file: &CallFile) -> bool {
        let minute = chrono::TimeDelta::minutes(1);
        self.filter.place_counts(file.place)
            && self
                .filter
                .since
                .is_none_or(|since| file.began >= since - minute)
            && self
                .before
                .is_none_or(|before| file.began <= before + minute)
            && self
                .query
                .as_ref()
                .and_then(Query::day)
                .is_none_or(|day| file.may_be_of(day))
            && self.after.as_ref().is_none_or(|mark| mark.is_before(file))
    }

    fn means(&self, call: &FoundCall) -> bool {
        let before = match (self.before, call.record.started_at()) {
            (Some(before), Some(began)) => began < before,
            _ => true,
        };
        before
            && self.filter.lets_pass(call)
            && self.query.as_ref().is_none_or(|query| query.names(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let mark = PageMark {
            began: "2026-11-21T10:00:00.123456Z".parse().unwrap(),
            session: "session_20261121_100000_aaaaaa".to_owned(),
        };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        for bad in ["", "x", "12", "x.session", "99999999999999999999.s"] {
            assert_eq!(bad.parse::<PageMark>(), Err(()), "{bad}");
        }
    }
}
