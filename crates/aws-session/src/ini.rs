//! INI files: the configuration file of MariaDB's manual, and AWS's configuration and credentials files.
//!
//! The AWS SDK has a parser for AWS's files, but it keeps no line numbers, opens the files itself, and leaves
//! copies of secrets in memory. So this is the only parser here.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.

use zeroize::Zeroizing;

const SPACES: [char; 2] = [' ', '\t'];
const COMMENT: [char; 2] = ['#', ';'];

/// Which rules a file follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// MariaDB's manual: `key = value` or `key: value`; indentation has no meaning.
    Manual,
    /// AWS: `key = value`; keys ignore case; an indented line continues the value of the line before.
    Aws,
}

/// A `[section]` and what follows it. A name may occur more than once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub name: String,
    /// Line in the file, from 1.
    pub line: usize,
    pub properties: Vec<Property>,
}

/// A key and its value. A key may occur more than once; the last one counts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Property {
    pub key: String,
    /// Wiped when dropped: it may be a secret.
    pub value: Zeroizing<String>,
    /// Line in the file, from 1.
    pub line: usize,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IniError {
    /// Line in the file, from 1.
    pub line: usize,
    pub reason: &'static str,
}

/// Reads the sections of `text` in their order.
pub(crate) fn parse(text: &str, dialect: Dialect) -> Result<Vec<Section>, IniError> {
    let separators: &[char] = match dialect {
        Dialect::Manual => &['=', ':'],
        Dialect::Aws => &['='],
    };
    let mut sections: Vec<Section> = Vec::new();
    for (number, full_line) in (1..).zip(text.lines()) {
        let failed = |reason| IniError {
            line: number,
            reason,
        };
        let line = full_line.trim_matches(SPACES);
        if line.is_empty() || line.starts_with(COMMENT) {
            continue;
        }
        if dialect == Dialect::Aws && full_line.starts_with(SPACES) {
            let property = sections
                .last_mut()
                .and_then(|section| section.properties.last_mut());
            continue_value(property, line).map_err(failed)?;
        } else if let Some(header) = line.strip_prefix('[') {
            let header = header.split(COMMENT).next().unwrap_or_default();
            let name = header
                .trim_end_matches(SPACES)
                .strip_suffix(']')
                .ok_or_else(|| failed("a section needs a closing ']'"))?;
            sections.push(Section {
                name: name.trim_matches(SPACES).into(),
                line: number,
                properties: Vec::new(),
            });
        } else {
            let section = sections.last_mut().ok_or_else(|| {
                failed(match dialect {
                    Dialect::Manual => "a section must come first: [kms]",
                    Dialect::Aws => "a section must come first, such as [default]",
                })
            })?;
            let (key, value) = without_comment(line)
                .split_once(separators)
                .ok_or_else(|| failed("expected key = value"))?;
            let key = match (key.trim_matches(SPACES), dialect) {
                ("", _) => return Err(failed("there is no key before the '='")),
                (key, Dialect::Manual) => key.into(),
                (key, Dialect::Aws) => key.to_ascii_lowercase(),
            };
            section.properties.push(Property {
                key,
                value: Zeroizing::new(value.trim_matches(SPACES).into()),
                line: number,
            });
        }
    }
    Ok(sections)
}

/// The value of `key` in the indented lines that continue a value.
pub(crate) fn nested<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim_matches(SPACES) == key)
        .map(|(_, value)| value.trim_matches(SPACES))
}

/// Adds an indented line. Below a property without a value there are nested properties.
fn continue_value(property: Option<&mut Property>, line: &str) -> Result<(), &'static str> {
    let property = property.ok_or("an indented line must continue a setting")?;
    let is_nested = property.value.is_empty() || property.value.starts_with('\n');
    if is_nested && !without_comment(line).contains('=') {
        return Err("expected key = value");
    }
    property.value.push('\n');
    property.value.push_str(line);
    Ok(())
}

/// `line` up to a comment, which begins after a space.
fn without_comment(line: &str) -> &str {
    line.match_indices(COMMENT)
        .find(|(at, _)| line[..*at].ends_with(SPACES))
        .map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(text: &str, dialect: Dialect) -> Vec<(String, String, usize)> {
        let sections = parse(text, dialect).unwrap();
        let properties = sections.into_iter().flat_map(|section| section.properties);
        properties
            .map(|it| (it.key, it.value.to_string(), it.line))
            .collect()
    }

    #[test]
    fn each_dialect_has_its_separators_cases_and_indentation() {
        let text = "[a] # b\n  Key: v=1 ; no\n\nk#y = x#y\n";
        let expected = |key: &str, value: &str, line| (key.to_owned(), value.to_owned(), line);
        assert_eq!(
            properties(text, Dialect::Manual),
            [expected("Key", "v=1", 2), expected("k#y", "x#y", 4)]
        );
        let text = "[a]\r\nKEY = v: 1\r\n  more\r\nsts =\r\n  b = c\r\n";
        assert_eq!(
            properties(text, Dialect::Aws),
            [
                expected("key", "v: 1\nmore", 2),
                expected("sts", "\nb = c", 4)
            ]
        );
    }

    #[test]
    fn nested_properties_are_found_by_name() {
        let sections = parse("[s]\nsts =\n  a = 1\n  b=2\n", Dialect::Aws).unwrap();
        let sts = &sections[0].properties[0].value;
        assert_eq!((nested(sts, "b"), nested(sts, "c")), (Some("2"), None));
    }

    #[test]
    fn errors_name_their_line() {
        for (text, line, reason) in [
            ("a = b", 1, "a section must come first, such as [default]"),
            ("[a]\n\nb", 3, "expected key = value"),
            ("[a]\n= b", 2, "there is no key before the '='"),
            ("[a\n", 1, "a section needs a closing ']'"),
            ("[a]\n b = c", 2, "an indented line must continue a setting"),
            ("[a]\nb =\n c\n", 3, "expected key = value"),
        ] {
            let expected = IniError { line, reason };
            assert_eq!(parse(text, Dialect::Aws), Err(expected), "{text:?}");
        }
    }
}
