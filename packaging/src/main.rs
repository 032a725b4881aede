//! Writes the man pages, the shell completions and the table of the configuration into the directory
//! given as argument, in the layout of `share/`. With `--configuration-table` or `--audit-tables`, prints the
//! tables of the documentation.

#![forbid(unsafe_code)]

mod audit;
mod configuration;
mod programs;

use std::{env, fs, io, path::Path, process::ExitCode};

use clap::Command;
use clap_complete::{generate_to, shells};
use clap_mangen::Man;

use programs::{Program, programs, sections_of_subcommand};

/// Pages that do not describe a command line, by file name.
const PAGES: [(&str, &str); 1] = [(
    "aws_key_management.7",
    include_str!("../man/aws_key_management.7"),
)];

fn main() -> ExitCode {
    let usage = || {
        eprintln!(
            "Usage: packaging DIRECTORY | packaging --configuration-table | packaging --audit-tables"
        );
        ExitCode::from(2)
    };
    let Some(share) = env::args_os().nth(1) else {
        return usage();
    };
    if share == "--configuration-table" {
        print!("{}", configuration::markdown_table());
        return ExitCode::SUCCESS;
    }
    if share == "--audit-tables" {
        print!("{}\n{}", audit::table_of_events(), audit::table_of_fields());
        return ExitCode::SUCCESS;
    }
    if share.as_encoded_bytes().starts_with(b"-") {
        return usage();
    }
    match write(Path::new(&share)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packaging: cannot write below {}: {error}", share.display());
            ExitCode::FAILURE
        }
    }
}

fn write(share: &Path) -> io::Result<()> {
    for program in programs() {
        write_completions(&program, share)?;
        for (name, page) in pages(&program)? {
            write_page(share, &name, &page)?;
        }
    }
    for (name, page) in PAGES {
        write_page(share, name, page.as_bytes())?;
    }
    write_page(
        share,
        "iam-kms-wrapper.config.5",
        &configuration::man_page()?,
    )?;
    let documents = folder(share, "doc/iam-kms-wrapper")?;
    fs::write(
        documents.join("configuration.md"),
        format!("# Configuration\n\n{}", configuration::markdown_table()),
    )
}

/// Renders the page of a program and one for each of its subcommands, with their file names.
fn pages(program: &Program) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let page = Man::new(in_full(subcommand)).section(program.section);
        let mut text = description(&page)?;
        text.extend(sections_of_subcommand(&page.get_filename()).bytes());
        let (name, section) = (program.name(), program.section);
        text.extend(format!(".SH \"SEE ALSO\"\n.BR {name} ({section})\n").bytes());
        pages.push((page.get_filename(), text));
    }
    let has_subcommands = !pages.is_empty();
    let page = Man::new(command).section(program.section);
    let mut text = description(&page)?;
    if has_subcommands {
        page.render_subcommands_section(&mut text)?;
    }
    text.extend(program.sections.bytes());
    pages.push((page.get_filename(), text));
    Ok(pages)
}

/// Moves the text after the help into the description.
fn in_full(subcommand: &Command) -> Command {
    match (subcommand.get_about(), subcommand.get_after_help()) {
        (Some(about), Some(more)) => subcommand.clone().long_about(format!("{about}.\n\n{more}")),
        _ => subcommand.clone(),
    }
}

fn description(page: &Man) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    Ok(text)
}

fn write_page(share: &Path, name: &str, page: &[u8]) -> io::Result<()> {
    let (_, section) = name.rsplit_once('.').unwrap_or_default();
    let folder = share.join(format!("man/man{section}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), page)
}

fn write_completions(program: &Program, share: &Path) -> io::Result<()> {
    let bash = folder(share, "bash-completion/completions")?;
    let zsh = folder(share, "zsh/site-functions")?;
    let fish = folder(share, "fish/vendor_completions.d")?;
    let mut command = program.command.clone();
    let name = program.name().to_owned();
    let written = generate_to(shells::Bash, &mut command, &name, &bash)?;
    // bash looks it up by the name of the program.
    fs::rename(written, bash.join(&name))?;
    generate_to(shells::Zsh, &mut command, &name, &zsh)?;
    generate_to(shells::Fish, &mut command, &name, &fish)?;
    Ok(())
}

fn folder(share: &Path, name: &str) -> io::Result<std::path::PathBuf> {
    let folder = share.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests;
