//! When people may be called: hours of each weekday in the time zone of the callee. Pure.

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// How far ahead an opening is searched, days: each weekday twice, because a change of the clock
/// may take the only hour of a week away.
const DAYS_AHEAD: i64 = 16;

/// Hours that have a name. Laws differ by place, kind of call and consent: these are starting
/// points, and whoever calls has to know which rule is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Every day from 8 to 21 h (47 CFR 64.1200(c)(1), the called party's local time).
    UsTelemarketing,
    /// Every day from 9 to 21 h, the hours that are usual for commercial calls in India.
    IndiaCommercial,
    /// Monday to Friday from 9 to 18 h.
    OfficeHours,
    /// At any time.
    AnyTime,
}

impl Preset {
    fn hours(self, weekday: usize) -> Vec<Hours> {
        let hours = |from: u16, to: u16| {
            vec![Hours {
                from: from * 60,
                to: to * 60,
            }]
        };
        match self {
            Self::UsTelemarketing => hours(8, 21),
            Self::IndiaCommercial => hours(9, 21),
            Self::OfficeHours if weekday < 5 => hours(9, 18),
            Self::OfficeHours => Vec::new(),
            Self::AnyTime => hours(0, 24),
        }
    }
}

/// A stretch of a day, in minutes after midnight; its end does not belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hours {
    from: u16,
    to: u16,
}

impl Hours {
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no stretch of a day: write it as \"09:00-18:00\", the end after the beginning"
            )
        };
        let minutes = |text: &str| -> Option<u16> {
            let (hour, minute) = text.trim().split_once(':')?;
            let two = |text: &str| {
                (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()))
                    .then(|| text.parse::<u16>().ok())?
            };
            let (hour, minute) = (two(hour)?, two(minute)?);
            let all = hour * 60 + minute;
            (minute < 60 && all <= DAY).then_some(all)
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let from = minutes(from).ok_or_else(wrong)?;
        let to = minutes(to).ok_or_else(wrong)?;
        match from < to {
            true => Ok(Self { from, to }),
            false => Err(wrong()),
        }
    }

    fn text(self) -> String {
        let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        format!("{}-{}", time(self.from), time(self.to))
    }
}

/// The window as it is written: a preset, or hours by weekday.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<Preset>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tuesday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wednesday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    thursday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    friday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    saturday: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sunday: Vec<String>,
}

impl Written {
    fn days(&self) -> [&Vec<String>; 7] {
        [
            &self.monday,
            &self.tuesday,
            &self.wednesday,
            &self.thursday,
            &self.friday,
            &self.saturday,
            &self.sunday,
        ]
    }
}

/// The hours in which people may be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Window {
    preset: Option<Preset>,
    /// By weekday from Monday; in order, without overlaps.
    days: [Vec<Hours>; 7],
}

impl TryFrom<Written> for Window {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let any_day = written.days().iter().any(|day| !day.is_empty());
        let presets = "us-telemarketing (8 to 21 h), india-commercial (9 to 21 h), office-hours (Monday to Friday, 9 to 18 h) or any-time";
        match (written.preset, any_day) {
            (Some(preset), false) => Ok(Self::of(preset)),
            (Some(_), true) => Err("it has a preset and weekdays: keep one of the two".to_owned()),
            (None, false) => Err(format!(
                "no hours are given: set preset to {presets}, or hours by weekday such as monday = [\"09:00-18:00\"]"
            )),
            (None, true) => {
                let mut days: [Vec<Hours>; 7] = Default::default();
                for (day, texts) in days.iter_mut().zip(written.days()) {
                    for text in texts {
                        day.push(Hours::read(text)?);
                    }
                    day.sort_by_key(|hours| hours.from);
                    if let Some(pair) = day.windows(2).find(|pair| pair[0].to > pair[1].from) {
                        let (one, other) = (pair[0].text(), pair[1].text());
                        return Err(format!("{one} and {other} overlap"));
                    }
                }
                Ok(Self { preset: None, days })
            }
        }
    }
}

impl From<Window> for Written {
    fn from(window: Window) -> Self {
        if window.preset.is_some() {
            return Self {
                preset: window.preset,
                ..Self::default()
            };
        }
        let [
            monday,
            tuesday,
            wednesday,
            thursday,
            friday,
            saturday,
            sunday,
        ] = window
            .days
            .map(|day| day.into_iter().map(Hours::text).collect::<Vec<_>>());
        Self {
            preset: None,
            monday,
            tuesday,
            wednesday,
            thursday,
            friday,
            saturday,
            sunday,
        }
    }
}

impl Window {
    /// The hours of a preset.
    pub fn of(preset: Preset) -> Self {
        Self {
            preset: Some(preset),
            days: std::array::from_fn(|weekday| preset.hours(weekday)),
        }
    }

    /// In a line for people: `Mon 09:00-18:00, Tue …`.
    pub fn in_words(&self) -> String {
        const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let days = NAMES.iter().zip(&self.days);
        let days = days.filter(|(_, hours)| !hours.is_empty());
        let days: Vec<String> = days
            .map(|(name, hours)| {
                let hours: Vec<String> = hours.iter().map(|hours| hours.text()).collect();
                format!("{name} {}", hours.join(" "))
            })
            .collect();
        days.join(", ")
    }

    /// Whether somebody in this zone may be called at this time.
    pub fn is_open(&self, zone: Tz, at: DateTime<Utc>) -> bool {
        let local = at.with_timezone(&zone).naive_local();
        let minute = minute_of(local);
        self.hours_of(local.date())
            .iter()
            .any(|hours| (hours.from..hours.to).contains(&minute))
    }

    /// The first time from `from` on at which somebody in this zone may be called.
    pub fn opening(&self, zone: Tz, from: DateTime<Utc>) -> DateTime<Utc> {
        if self.is_open(zone, from) {
            return from;
        }
        let first = from.with_timezone(&zone).date_naive();
        for ahead in 0..DAYS_AHEAD {
            let day = first + TimeDelta::days(ahead);
            // Where the clock is set back, an hour may begin twice in a day.
            let mut begins: Vec<_> = self
                .hours_of(day)
                .iter()
                .flat_map(|hours| instants(zone, at_minute(day, hours.from)))
                .filter(|begins| *begins > from && self.is_open(zone, *begins))
                .collect();
            begins.sort();
            if let Some(first) = begins.first() {
                return *first;
            }
        }
        // Cannot be: whoever asks does so again then.
        from + TimeDelta::days(DAYS_AHEAD)
    }

    fn hours_of(&self, day: NaiveDate) -> &[Hours] {
        &self.days[day.weekday().num_days_from_monday() as usize]
    }
}

/// The day that it is in a zone, as a number that grows by one each day.
pub fn local_day(zone: Tz, at: DateTime<Utc>) -> i32 {
    at.with_timezone(&zone).num_days_from_ce()
}

/// When the next day begins in a zone.
pub fn next_day(zone: Tz, at: DateTime<Utc>) -> DateTime<Utc> {
    let day = at.with_timezone(&zone).date_naive() + TimeDelta::days(1);
    let [first, _] = instants(zone, at_minute(day, 0));
    first.max(at)
}

fn minute_of(local: NaiveDateTime) -> u16 {
    use chrono::Timelike as _;
    (local.hour() * 60 + local.minute()) as u16
}

fn at_minute(day: NaiveDate, minute: u16) -> NaiveDateTime {
    day.and_time(chrono::NaiveTime::MIN) + TimeDelta::minutes(i64::from(minute))
}

/// The instants of a local time: two where the clock is set back, and where it leaves the time out,
/// the first after it.
fn instants(zone: Tz, local: NaiveDateTime) -> [DateTime<Utc>; 2] {
    // No zone leaves out more than a day.
    for quarter in 0..=96 {
        let later = local + TimeDelta::minutes(15 * quarter);
        let found = zone.from_local_datetime(&later);
        if let (Some(first), Some(last)) = (found.earliest(), found.latest()) {
            return [first.with_timezone(&Utc), last.with_timezone(&Utc)];
        }
    }
    [local.and_utc(); 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn window(text: &str) -> Result<Window, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_window_opens_in_the_callees_own_time() {
        let weekdays = window(
            "monday = [\"14:00-18:00\", \"09:00-12:00\"]\nwednesday = [\"09:00-24:00\"]\nsunday = [\"02:15-02:45\"]",
        )
        .unwrap();
        for (zone, from, opens) in [
            // 2026-11-30 is a Monday.
            (
                "Asia/Kolkata",
                "2026-11-30T03:29:59Z",
                "2026-11-30T03:30:00Z",
            ),
            (
                "Asia/Kolkata",
                "2026-11-30T03:30:00Z",
                "2026-11-30T03:30:00Z",
            ),
            (
                "Asia/Kolkata",
                "2026-11-30T06:30:00Z",
                "2026-11-30T08:30:00Z",
            ),
            (
                "Asia/Kolkata",
                "2026-11-30T12:30:00Z",
                "2026-12-02T03:30:00Z",
            ),
            (
                "America/New_York",
                "2026-11-30T06:30:00Z",
                "2026-11-30T14:00:00Z",
            ),
            // The clock leaves out the hour from 2 to 3 on that Sunday.
            (
                "America/New_York",
                "2026-03-08T05:00:00Z",
                "2026-03-09T13:00:00Z",
            ),
            // It has the hour from 1 to 2 twice in autumn, and 2:15 once.
            (
                "America/New_York",
                "2026-11-01T05:00:00Z",
                "2026-11-01T07:15:00Z",
            ),
        ] {
            let zone: Tz = zone.parse().unwrap();
            assert_eq!(
                weekdays.opening(zone, time(from)),
                time(opens),
                "{zone} {from}"
            );
        }
    }

    #[test]
    fn hours_are_never_silent() {
        for (text, word) in [
            ("", "us-telemarketing"),
            ("preset = \"always\"", "any-time"),
            (
                "preset = \"any-time\"\nmonday = [\"09:00-10:00\"]",
                "keep one",
            ),
            ("monday = [\"9-18\"]", "09:00-18:00"),
            ("monday = [\"18:00-09:00\"]", "after the beginning"),
            ("monday = [\"09:00-24:01\"]", "09:00-18:00"),
            ("monday = [\"09:60-12:00\"]", "09:00-18:00"),
            ("monday = [\"09:00-12:00\", \"11:00-13:00\"]", "overlap"),
            ("mon = [\"09:00-12:00\"]", "mon"),
        ] {
            let problem = window(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
        let us = Window::of(Preset::UsTelemarketing);
        assert!(us.in_words().starts_with("Mon 08:00-21:00, Tue"));
        let written = toml::to_string(&us).unwrap();
        assert_eq!(written.trim(), "preset = \"us-telemarketing\"");
        assert_eq!(window(&written).unwrap(), us);
    }

    proptest! {
        /// Whatever the zone and the hours: an opening is open, not before it was asked for, and
        /// nothing before it is open.
        #[test]
        fn an_opening_is_the_first_open_time(
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            minutes in 0_i64..60 * 24 * 730,
            from in 0_u16..23, hours in 1_u16..4, weekday in 0_usize..7,
        ) {
            let at = time("2026-01-01T00:00:00Z") + TimeDelta::minutes(minutes);
            let mut days: [Vec<Hours>; 7] = Default::default();
            let to = (from + hours).min(24) * 60;
            days[weekday] = vec![Hours { from: from * 60, to }];
            days[(weekday + 3) % 7] = vec![Hours { from: 600, to: 630 }];
            let window = Window { preset: None, days };
            let opening = window.opening(zone, at);
            prop_assert!(opening >= at);
            prop_assert!(window.is_open(zone, opening), "{zone} {at}: {opening}");
            let mut before = at;
            while before < opening {
                prop_assert!(!window.is_open(zone, before), "{zone} {at}: {before} {opening}");
                before += TimeDelta::minutes(30);
            }
            prop_assert!(next_day(zone, at) >= at);
        }
    }
}
