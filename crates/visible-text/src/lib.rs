//! Makes text from outside fit for a log, a terminal and systemd: what AWS, files and their names say
//! cannot begin a line, move a cursor or turn the direction of writing.

#![forbid(unsafe_code)]

/// Replaces each character that does something instead of showing something by its escape, such as
/// `\n` or `\u{202e}`.
///
/// These are control characters (also U+0085, a line end), the other line ends of Unicode, and the
/// marks that change the direction of what follows. Source: Unicode Standard Annex #9, section 2, and
/// <https://trojansource.codes>.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}' // line and paragraph separator
            | '\u{061c}' | '\u{200e}' | '\u{200f}' // marks of direction
            | '\u{202a}'..='\u{202e}' // embeddings and overrides of direction
            | '\u{2066}'..='\u{2069}' // isolates of direction
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_instead_of_showing_is_escaped() {
        for (text, escaped) in [
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}"),
            ("\u{1b}[2J\u{7f}", "\\u{1b}[2J\\u{7f}"),
            ("\u{85}\u{9b}", "\\u{85}\\u{9b}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("\u{61c}\u{200e}\u{200f}", "\\u{61c}\\u{200e}\\u{200f}"),
            (
                "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}",
                "\\u{202a}\\u{202b}\\u{202c}\\u{202d}\\u{202e}",
            ),
            (
                "\u{2066}\u{2067}\u{2068}\u{2069}",
                "\\u{2066}\\u{2067}\\u{2068}\\u{2069}",
            ),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }

    #[test]
    fn what_shows_stays_as_it_is() {
        for text in [
            "",
            "plain",
            "ÄÖ „“ …",
            "שלום",
            "مرحبا",
            "日本語",
            "a \\n b",
            "👩\u{200d}🔧",
        ] {
            assert_eq!(escape(text), text);
        }
    }
}
