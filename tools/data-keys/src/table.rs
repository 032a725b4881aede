//! Tables for output.

use visible_text::escape;

/// Lays out `rows` below `titles`, each column as wide as its longest cell.
pub(crate) fn layout<const COLUMNS: usize>(
    titles: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> String {
    let rows: Vec<[String; COLUMNS]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| escape(cell)))
        .collect();
    let mut widths = titles.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |cells: [&str; COLUMNS]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    std::iter::once(line(titles))
        .chain(
            rows.iter()
                .map(|row| line(row.each_ref().map(String::as_str))),
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_no_line_ends_in_spaces() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned);
        assert_eq!(
            layout(
                ["ID", "FILE"],
                &[
                    row(["4294967294", "a"]),
                    row(["1", "long-name"]),
                    row(["2", "x\n3  \u{202e}y"])
                ]
            ),
            "ID          FILE\n4294967294  a\n1           long-name\n2           x\\n3  \\u{202e}y\n"
        );
    }
}
