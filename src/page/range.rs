//! The header `Range` of a request for a recording (RFC 9110, 14.2). Pure.

/// What a request wants of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it: no range, several, or one that cannot be understood, which RFC 9110 lets a server
    /// ignore.
    All,
    /// These bytes.
    Part {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Bytes that the file does not have.
    Nothing,
}

/// What `header` wants of a file with `size` bytes.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let range = header
        .and_then(|header| header.trim().strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'));
    let Some((from, to)) = range else {
        return Wanted::All;
    };
    let (from, to) = (from.trim(), to.trim());
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More than fits is beyond any file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(from), number(to)) {
        (None, Some(last)) if from.is_empty() => {
            if last == 0 || size == 0 {
                return Wanted::Nothing;
            }
            Wanted::Part {
                from: size.saturating_sub(last),
                to: size - 1,
            }
        }
        (Some(from), None) if to.is_empty() => part(from, u64::MAX, size),
        (Some(from), Some(to)) if from <= to => part(from, to, size),
        _ => Wanted::All,
    }
}

fn part(from: u64, to: u64, size: u64) -> Wanted {
    if from >= size {
        return Wanted::Nothing;
    }
    Wanted::Part {
        from,
        to: to.min(size - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_browsers_and_others_send_them() {
        let part = |from, to| Wanted::Part { from, to };
        for (header, size, expected) in [
            (None, 100, Wanted::All),
            (Some("bytes=0-"), 100, part(0, 99)),
            (Some("bytes=0-0"), 100, part(0, 0)),
            (Some("bytes=10-19"), 100, part(10, 19)),
            (Some(" bytes=10 - 19 "), 100, part(10, 19)),
            (Some("bytes=90-1000"), 100, part(90, 99)),
            (Some("bytes=-10"), 100, part(90, 99)),
            (Some("bytes=-1000"), 100, part(0, 99)),
            (Some("bytes=100-"), 100, Wanted::Nothing),
            (Some("bytes=-0"), 100, Wanted::Nothing),
            (Some("bytes=0-"), 0, Wanted::Nothing),
            (Some("bytes=-5"), 0, Wanted::Nothing),
            (Some("bytes=99999999999999999999-"), 100, Wanted::Nothing),
            (Some("bytes=5-99999999999999999999"), 100, part(5, 99)),
            (Some("bytes=20-10"), 100, Wanted::All),
            (Some("bytes=0-1,5-6"), 100, Wanted::All),
            (Some("bytes=a-b"), 100, Wanted::All),
            (Some("bytes=+1-5"), 100, Wanted::All),
            (Some("bytes=-"), 100, Wanted::All),
            (Some("items=0-5"), 100, Wanted::All),
            (Some(""), 100, Wanted::All),
        ] {
            assert_eq!(wanted(header, size), expected, "{header:?} of {size}");
        }
    }
}
