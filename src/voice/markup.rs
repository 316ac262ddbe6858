//! Removes markdown, HTML and SSML from text that is to be spoken, while the text streams in. Pure.
//!
//! Removed is what a person would not say: code blocks, images, tags, comments, footnotes, struck
//! out text. Kept is what a person would say: the words of links, the cells of tables as a list,
//! the content of elements. Marks within a sentence (emphasis, headings, emoji) are left to
//! `speech_text::speakable`, which sees whole sentences.
//!
//! Text without markup is returned at once. Only from a markup character on is text held back,
//! until its meaning is clear.

/// The longest tag, link or struck out text, bytes. Anything longer counts as text.
const MAX_MARK_BYTES: usize = 400;
/// The longest URL of a link or an image, bytes; it may be a data URL with the image.
const MAX_ADDRESS_BYTES: usize = 8 * 1024;

/// Elements whose content is not spoken.
const SILENT: &[&str] = &[
    "del", "head", "math", "script", "strike", "style", "svg", "template", "title",
];

/// Elements that stand on lines of their own.
const LINES: &[&str] = &[
    "article",
    "blockquote",
    "br",
    "dd",
    "div",
    "dl",
    "dt",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "paragraph",
    "pre",
    "section",
    "sentence",
    "table",
    "tbody",
    "thead",
    "tr",
    "ul",
];

/// Code blocks in these languages hold words.
const WORDS: &[&str] = &["markdown", "md", "plain", "plaintext", "text", "txt"];

/// Removes the markup from one text.
#[derive(Debug)]
pub struct Markup {
    /// Text that is held back.
    held: String,
    /// Whether the current line has only spaces so far.
    at_line_start: bool,
    fence: Option<Fence>,
    /// The element whose content is left out.
    silent: Option<String>,
}

/// A code block that is open.
#[derive(Debug)]
struct Fence {
    mark: &'static str,
    /// Whether it contains words; if its language is not named, that is unknown until its first
    /// line.
    is_spoken: Option<bool>,
}

impl Default for Markup {
    fn default() -> Self {
        Self {
            held: String::new(),
            at_line_start: true,
            fence: None,
            silent: None,
        }
    }
}

/// The markup at the beginning of a text, with its length in bytes.
enum Mark {
    /// More characters are needed to decide.
    Wait,
    /// Only text.
    Text(usize),
    /// To be replaced by this.
    Instead(usize, String),
    /// A tag.
    Tag(usize),
}

impl Markup {
    /// Takes more text and returns what is to be spoken.
    pub fn push(&mut self, more: &str) -> String {
        self.held.push_str(more);
        self.read(false)
    }

    /// Returns the rest at the end of the text.
    pub fn finish(&mut self) -> String {
        self.read(true)
    }

    fn read(&mut self, last: bool) -> String {
        let mut out = String::new();
        while !self.held.is_empty() {
            let goes_on = if self.silent.is_some() {
                self.leave_out(last)
            } else if self.at_line_start {
                self.line_start(last, &mut out)
            } else {
                self.inline(last, &mut out)
            };
            if !goes_on {
                break;
            }
        }
        out
    }

    fn take(&mut self, len: usize) -> String {
        self.held.drain(..len).collect()
    }

    /// Drops the content of a silent element.
    fn leave_out(&mut self, last: bool) -> bool {
        let close = format!("</{}", self.silent.as_deref().unwrap_or_default());
        let end = self
            .held
            .to_ascii_lowercase()
            .find(&close)
            .and_then(|at| Some(at + self.held[at..].find('>')? + 1));
        match end {
            Some(end) => {
                self.take(end);
                self.silent = None;
                true
            }
            None if last => {
                self.held.clear();
                false
            }
            None => {
                // Only a possible beginning of its end tag is kept.
                let mut keep = self
                    .held
                    .rfind("</")
                    .unwrap_or(self.held.len().saturating_sub(1));
                while !self.held.is_char_boundary(keep) {
                    keep -= 1;
                }
                self.take(keep);
                false
            }
        }
    }

    /// Handles markup of whole lines: code blocks and tables.
    fn line_start(&mut self, last: bool, out: &mut String) -> bool {
        let line_end = self.held.find('\n').map(|at| at + 1);
        let whole = line_end.or(last.then_some(self.held.len()));
        let line = self.held[..line_end.unwrap_or(self.held.len())].trim_start_matches([' ', '\t']);
        let marks = ["```", "~~~"];
        let mark = match &self.fence {
            Some(fence) => line.starts_with(fence.mark).then_some(fence.mark),
            None => marks.into_iter().find(|mark| line.starts_with(*mark)),
        };
        let may_become = line.is_empty() || marks.iter().any(|mark| mark.starts_with(line));
        if mark.is_none() && may_become && !last {
            return false;
        }
        if let Some(mark) = mark {
            let Some(end) = whole else { return false };
            let language = line[mark.len()..].trim().to_lowercase();
            self.take(end);
            self.fence = match self.fence {
                Some(_) => None,
                // A block on one line is closed already.
                None if language.contains(mark) => None,
                None => Some(Fence {
                    mark,
                    is_spoken: match language.as_str() {
                        "" => None,
                        language => Some(WORDS.contains(&language)),
                    },
                }),
            };
            out.push('\n');
            return true;
        }
        if let Some(fence) = &mut self.fence {
            if fence.is_spoken.is_none() && !line.trim().is_empty() {
                if whole.is_none() {
                    return false;
                }
                fence.is_spoken = Some(is_sentence(line));
            }
            if fence.is_spoken != Some(true) {
                let Some(end) = whole else { return false };
                self.take(end);
                return true;
            }
        }
        if line.starts_with('|') {
            let Some(end) = whole else { return false };
            let row = self.take(end);
            let cells: Vec<&str> = row
                .trim()
                .split('|')
                .map(str::trim)
                .filter(|cell| cell.chars().any(|c| !matches!(c, '-' | ':' | ' ')))
                .collect();
            out.push_str(&spoken(&cells.join(", ")));
            out.push('\n');
            return true;
        }
        self.at_line_start = false;
        true
    }

    fn inline(&mut self, last: bool, out: &mut String) -> bool {
        let Some(at) = self
            .held
            .find(['\n', '<', '&', '!', '[', '【', '~', '`', '\\'])
        else {
            out.push_str(&std::mem::take(&mut self.held));
            return false;
        };
        out.push_str(&self.take(at));
        let mark = match self.held.as_bytes()[0] {
            b'\n' => {
                self.at_line_start = true;
                Mark::Text(1)
            }
            b'<' => tag(&self.held, last),
            b'&' => entity(&self.held, last),
            b'!' => image(&self.held, last),
            b'[' => link(&self.held, last),
            b'~' => struck_out(&self.held, last),
            b'`' => code(&self.held, last),
            b'\\' => escaped(&self.held, last),
            _ => between(&self.held, '】', last),
        };
        match mark {
            Mark::Wait => return false,
            Mark::Text(len) => out.push_str(&self.take(len)),
            Mark::Instead(len, text) => {
                self.take(len);
                out.push_str(&text);
            }
            Mark::Tag(len) => {
                let tag = self.take(len);
                self.tag(&tag, out);
            }
        }
        true
    }

    fn tag(&mut self, tag: &str, out: &mut String) {
        let inside = &tag[1..tag.len() - 1];
        let closes = inside.starts_with('/');
        let name: String = inside
            .trim_start_matches('/')
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_lowercase();
        let opens = !closes && !inside.ends_with('/');
        if LINES.contains(&name.as_str()) {
            out.push('\n');
            self.at_line_start = true;
        } else if closes && matches!(name.as_str(), "td" | "th") {
            out.push_str(", ");
        } else if opens && SILENT.contains(&name.as_str()) {
            self.silent = Some(name);
        } else if opens
            && name == "sub"
            && let Some((_, alias)) = inside.split_once("alias=")
        {
            // SSML: how to pronounce the content.
            let quote = alias.chars().next().unwrap_or_default();
            out.push_str(
                alias[quote.len_utf8().min(alias.len())..]
                    .split(quote)
                    .next()
                    .unwrap_or_default(),
            );
            self.silent = Some(name);
        }
    }
}

/// `text` without markup, as part of a line.
fn spoken(text: &str) -> String {
    let mut markup = Markup {
        at_line_start: false,
        ..Markup::default()
    };
    markup.push(text) + &markup.finish()
}

/// Whether a line of a code block is a sentence and not code.
fn is_sentence(line: &str) -> bool {
    let line = line.trim();
    line.contains(' ')
        && line.starts_with(|c: char| c.is_alphabetic())
        && !line.contains(['{', '}', '[', ']', '<', '>', '=', ';', '$', '|', '\\', '#'])
}

/// Waits for the end of a mark within `limit` bytes.
fn wait_or(text: &str, limit: usize, last: bool, otherwise: Mark) -> Mark {
    if last || text.len() > limit || text.contains('\n') {
        otherwise
    } else {
        Mark::Wait
    }
}

/// A tag, a comment, or a URL in angle brackets. "5 < 6" is none of them.
fn tag(text: &str, last: bool) -> Mark {
    let inside = &text[1..];
    if let Some(comment) = inside.strip_prefix("!--") {
        return match comment.find("-->") {
            Some(end) => Mark::Instead(1 + 3 + end + 3, String::new()),
            None if last => Mark::Instead(text.len(), String::new()),
            None if text.len() <= MAX_ADDRESS_BYTES => Mark::Wait,
            None => Mark::Text(1),
        };
    }
    let name = inside.trim_start_matches(['/', '?', '!']);
    match name.chars().next() {
        None => return wait_or(text, MAX_MARK_BYTES, last, Mark::Text(1)),
        Some(c) if c.is_ascii_alphabetic() => {}
        Some('-') if inside.starts_with('!') => {
            return wait_or(text, MAX_MARK_BYTES, last, Mark::Text(1));
        }
        Some(_) => return Mark::Text(1),
    }
    let end = inside.find(['>', '<']);
    let content = &inside[..end.unwrap_or(inside.len())];
    let is_closed = end.is_some_and(|end| inside[end..].starts_with('>'));
    if !content.contains(char::is_whitespace) && (content.contains('@') || content.contains("://"))
    {
        return match is_closed {
            true => Mark::Instead(content.len() + 2, content.to_owned()),
            false => wait_or(text, MAX_MARK_BYTES, last || end.is_some(), Mark::Text(1)),
        };
    }
    if !may_be_tag(content) || content.len() > MAX_MARK_BYTES {
        return Mark::Text(1);
    }
    match end {
        Some(_) if is_closed => Mark::Tag(content.len() + 2),
        Some(_) => Mark::Text(1),
        // SSML breaks lines within tags.
        None if last => Mark::Text(1),
        None => Mark::Wait,
    }
}

/// Whether the content of angle brackets begins like a tag: a name and attributes with values. Two
/// words in a row are no tag.
fn may_be_tag(content: &str) -> bool {
    let mut rest = content.trim_start_matches(['/', '?', '!']);
    rest = rest.trim_start_matches(|c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '.' | '|' | '=')
    });
    let mut bare_words = 0;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '/' | '?'));
        let word = rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | ':' | '.')))
            .unwrap_or(rest.len());
        let after = &rest[word..];
        if word == 0 {
            return after.is_empty();
        }
        if after.is_empty() {
            return bare_words == 0;
        }
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let value = value.trim_start();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            rest = match quote {
                Some(quote) => match value[1..].find(quote) {
                    Some(end) => &value[end + 2..],
                    None => return true,
                },
                None => value.trim_start_matches(|c: char| !c.is_whitespace()),
            };
        } else {
            bare_words += 1;
            if bare_words > 1 {
                return false;
            }
            rest = after;
        }
    }
}

/// `&amp;` and its like.
fn entity(text: &str, last: bool) -> Mark {
    const LONGEST: usize = 10;
    let name_len = text[1..]
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '#'))
        .unwrap_or(text.len() - 1);
    let name = &text[1..1 + name_len];
    if 1 + name_len == text.len() && name_len < LONGEST && !last {
        return Mark::Wait;
    }
    if !text[1 + name_len..].starts_with(';') {
        return Mark::Text(1);
    }
    let c = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" | "lsquo" | "rsquo" => '\'',
        "ldquo" | "rdquo" | "laquo" | "raquo" => '"',
        "nbsp" | "ensp" | "emsp" | "thinsp" => ' ',
        "ndash" => '–',
        "mdash" => '—',
        "hellip" => '…',
        "euro" => '€',
        "pound" => '£',
        "deg" => '°',
        "copy" | "reg" | "trade" | "shy" | "zwj" | "zwnj" => {
            return Mark::Instead(name_len + 2, String::new());
        }
        name => {
            let number =
                name.strip_prefix('#')
                    .and_then(|number| match number.strip_prefix(['x', 'X']) {
                        Some(hex) => u32::from_str_radix(hex, 16).ok(),
                        None => number.parse().ok(),
                    });
            match number.and_then(char::from_u32) {
                Some(c) => c,
                None => return Mark::Text(1),
            }
        }
    };
    Mark::Instead(name_len + 2, c.to_string())
}

/// `![alt](address)`: images are not spoken.
fn image(text: &str, last: bool) -> Mark {
    match text[1..].chars().next() {
        None if !last => Mark::Wait,
        Some('[') => match link(&text[1..], last) {
            Mark::Wait => Mark::Wait,
            Mark::Instead(len, _) => Mark::Instead(1 + len, String::new()),
            _ => Mark::Text(1),
        },
        _ => Mark::Text(1),
    }
}

/// `[label](address)`, `[label][reference]`, `[^footnote]`, `[1]`, `[x]`.
fn link(text: &str, last: bool) -> Mark {
    let Some(end) = closing(text, '[', ']', MAX_MARK_BYTES) else {
        return wait_or(text, MAX_MARK_BYTES, last, Mark::Text(1));
    };
    let label = &text[1..end - 1];
    let after = &text[end..];
    let address = match after.chars().next() {
        None if !last => return Mark::Wait,
        Some('(') => closing(after, '(', ')', MAX_ADDRESS_BYTES),
        Some('[') => closing(after, '[', ']', MAX_ADDRESS_BYTES),
        _ => {
            let is_note = label.starts_with('^')
                || matches!(label, "x" | "X" | " " | "")
                || label
                    .chars()
                    .all(|c| c.is_ascii_digit() || matches!(c, ',' | ' ' | '-'));
            return match is_note {
                true => Mark::Instead(end, String::new()),
                false => Mark::Text(end),
            };
        }
    };
    match address {
        Some(len) => Mark::Instead(end + len, spoken(label)),
        None => wait_or(after, MAX_ADDRESS_BYTES, last, Mark::Text(end)),
    }
}

/// Length of the bracketed text at the beginning of `text`; `None` if it is not closed within the
/// line or `limit` bytes.
fn closing(text: &str, open: char, close: char, limit: usize) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, c) in text.char_indices() {
        match c {
            _ if at >= limit => return None,
            c if c == open => depth += 1,
            c if c == close => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + c.len_utf8());
                }
            }
            '\n' => return None,
            _ => {}
        }
    }
    None
}

/// `~~text~~`: struck out text is dropped.
fn struck_out(text: &str, last: bool) -> Mark {
    let Some(inside) = text.strip_prefix("~~") else {
        return match text.len() {
            1 if !last => Mark::Wait,
            _ => Mark::Text(1),
        };
    };
    match inside
        .find("~~")
        .filter(|end| *end <= MAX_MARK_BYTES - 4 && !inside[..*end].contains('\n'))
    {
        Some(end) => Mark::Instead(2 + end + 2, String::new()),
        None => wait_or(text, MAX_MARK_BYTES, last, Mark::Instead(2, String::new())),
    }
}

/// A code block within a line. Single marks stand around words.
fn code(text: &str, last: bool) -> Mark {
    let marks = text.len() - text.trim_start_matches('`').len();
    if marks < 3 {
        return match marks == text.len() && !last {
            true => Mark::Wait,
            false => Mark::Text(marks),
        };
    }
    match text[marks..]
        .find("```")
        .filter(|end| marks + end + 3 <= MAX_ADDRESS_BYTES)
    {
        Some(end) => Mark::Instead(marks + end + 3, String::new()),
        None if last || text.len() > MAX_ADDRESS_BYTES => Mark::Instead(marks, String::new()),
        None => Mark::Wait,
    }
}

/// `\*` is a star that marks nothing; `\(` and `\[` begin a formula.
fn escaped(text: &str, last: bool) -> Mark {
    match text[1..].chars().next() {
        None if !last => Mark::Wait,
        Some('(' | ')' | '[' | ']') => Mark::Instead(2, String::new()),
        Some(c) if c.is_ascii_punctuation() => Mark::Instead(2, c.to_string()),
        _ => Mark::Text(1),
    }
}

/// Citations of OpenAI's models: 【1†source】.
fn between(text: &str, close: char, last: bool) -> Mark {
    let first = text.chars().next().map_or(1, char::len_utf8);
    match text
        .find([close, '\n'])
        .filter(|end| text[*end..].starts_with(close))
    {
        Some(end) if end <= MAX_MARK_BYTES => Mark::Instead(end + close.len_utf8(), String::new()),
        Some(_) => Mark::Text(first),
        None => wait_or(text, MAX_MARK_BYTES, last, Mark::Text(first)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_by(text: &str, piece: usize) -> String {
        let mut markup = Markup::default();
        let chars: Vec<char> = text.chars().collect();
        let mut out: String = chars
            .chunks(piece)
            .map(|piece| markup.push(&piece.iter().collect::<String>()))
            .collect();
        out.push_str(&markup.finish());
        out
    }

    #[test]
    fn what_nobody_says_is_left_out_whatever_the_pieces() {
        for (written, expected) in [
            (
                "| Plan | Price |\n|---|:--:|\n| **Small** | [20](x) |\nThat is all.",
                "Plan, Price\n\n**Small**, 20\nThat is all.",
            ),
            ("See:\n```json\n{\"a\": 1}\n```\nDone.", "See:\n\n\nDone."),
            ("```\nlet x = 1;\n```\nDone.", "\n\nDone."),
            ("```text\nWe open at nine.\n```", "\nWe open at nine.\n\n"),
            ("```\nWe open at nine.\n```", "\nWe open at nine.\n\n"),
            ("~~~\nx = 1\n~~~\nDone.", "\n\nDone."),
            ("Use ```x = 1``` now, or `y`.", "Use  now, or `y`."),
            (
                "See <b>here</b><br> and ![logo](https://example.com/l_(1).png)~~old~~ new.",
                "See here\n and  new.",
            ),
            (
                "<speak>Hello <break\n time=\"500ms\"/> you, <emphasis level='strong'>now</emphasis>.</speak>",
                "Hello  you, now.",
            ),
            (
                "<sub alias=\"World Wide Web\">WWW</sub> and <say-as interpret-as=\"date\">1/2</say-as>",
                "World Wide Web and 1/2",
            ),
            (
                "<style>b { }</style>Yes<!-- not <b>this</b> -->. <del>No.</del>",
                "Yes. ",
            ),
            (
                "<table><tr><td>Small</td><td>20</td></tr></table>",
                "\n\nSmall, 20, \n\n",
            ),
            (
                "5 < 6 and a <b or c> d, x<y, 3<4>2 <3",
                "5 < 6 and a <b or c> d, x<y, 3<4>2 <3",
            ),
            (
                "Write to <asha@example.com> or <https://example.com>.",
                "Write to asha@example.com or https://example.com.",
            ),
            (
                "See [our page](https://example.com/a_(b)) or [that][1] [2] [^3]. [really]",
                "See our page or that  . [really]",
            ),
            (
                "[![logo](l.png)](https://example.com) [x] done",
                " done".trim_start_matches('x'),
            ),
            (
                "AT&T, R&D &amp; Q&#39;s &nbsp;&lt;3 &unknown;",
                "AT&T, R&D & Q's  <3 &unknown;",
            ),
            (
                "Twenty【4:0†source】 euros, \\*about\\*, \\(x\\), C:\\new",
                "Twenty euros, *about*, x, C:\\new",
            ),
            ("It is ~20, not ~~ 30 !", "It is ~20, not  30 !"),
            ("Open ![half", "Open ![half"),
            ("Open [half](", "Open [half]("),
            ("Open <half", "Open <half"),
        ] {
            for piece in [1, 2, 3, 11, 1_000] {
                let out = read_by(written, piece);
                let trim = |text: &str| text.trim().to_owned();
                assert_eq!(
                    trim(&out),
                    trim(expected),
                    "{written:?} in pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn text_without_markup_goes_on_at_once() {
        let text = "We open at nine! It costs 20 euros, or 5 < 6; (really).\nAnd Tom & Ann?";
        let mut markup = Markup::default();
        let (mut out, mut longest_wait) = (String::new(), 0);
        for (at, c) in text.char_indices() {
            out.push_str(&markup.push(&c.to_string()));
            longest_wait = longest_wait.max(at + 1 - out.len());
        }
        assert!(longest_wait <= 1, "{longest_wait}");
        assert_eq!(out + &markup.finish(), text);
    }

    #[test]
    fn a_mark_without_end_is_bounded() {
        for mark in ["[", "<a href=\"", "~~", "![", "&", "【", "<!--", "```"] {
            let mut markup = Markup::default();
            let mut out = markup.push(&format!("x {mark}"));
            for _ in 0..100 {
                out.push_str(&markup.push(&"word ".repeat(40)));
                assert!(markup.held.len() <= MAX_ADDRESS_BYTES + 200, "{mark}");
            }
            out.push_str(&markup.finish());
            assert!(out.matches("word").count() >= 3_000, "{mark}");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_the_same_whatever_the_pieces(
            text in "(<|/|>|\\||~~|`|```|\\[|\\]|\\(|\\)|!|&|amp;|\\\\|b |td|del|[a-z .:,\n=\"é【】-])*",
            piece in 1usize..9,
        ) {
            prop_assert_eq!(read_by(&text, piece), read_by(&text, 100_000));
        }
    }
}
