//! The programs that have a man page and completions.

use clap::{Command, CommandFactory};

/// Section of the manual: commands for the administrator of a system.
const OF_SYSTEM: &str = "8";

/// Section of the manual: commands for every user.
const OF_USER: &str = "1";

/// A program, and further sections of its man page.
pub struct Program {
    /// Its command line.
    pub command: Command,
    /// Section of the manual.
    pub section: &'static str,
    /// Further sections of its page, in the language of man(7).
    pub sections: &'static str,
}

impl Program {
    /// Returns the name that it is installed under.
    pub fn name(&self) -> &str {
        self.command.get_name()
    }
}

/// Returns all programs that are installed into a directory of `$PATH`.
pub fn programs() -> Vec<Program> {
    vec![
        Program {
            // The program itself accepts the subcommand only as the first argument, because COMMAND may
            // have the same name.
            command: iam_kms_wrapper::command_line::CommandLine::command()
                .subcommand(iam_kms_wrapper::code::CodeCommandLine::command())
                .subcommand(iam_kms_wrapper::audit::AuditCommandLine::command())
                .subcommand(iam_kms_wrapper::setup::SetupCommandLine::command()),
            section: OF_SYSTEM,
            sections: include_str!("../man/iam-kms-wrapper.8"),
        },
        Program {
            command: iam_kms_broker::command_line::CommandLine::command(),
            section: OF_SYSTEM,
            sections: include_str!("../man/iam-kms-broker.8"),
        },
        Program {
            command: iam_kms_unlock::command_line::CommandLine::command(),
            section: OF_USER,
            sections: include_str!("../man/iam-kms-unlock.1"),
        },
        Program {
            command: iam_kms_console::command_line::CommandLine::command(),
            section: OF_SYSTEM,
            sections: include_str!("../man/iam-kms-console.8"),
        },
        Program {
            command: kms_manage_key::command_line::CommandLine::command(),
            section: OF_SYSTEM,
            sections: include_str!("../man/kms-manage-key.8"),
        },
        Program {
            command: kms_data_keys::command_line(),
            section: OF_SYSTEM,
            sections: include_str!("../man/kms-data-keys.8"),
        },
    ]
}

/// Further sections of a subcommand's page, by its file name, in the language of man(7).
pub fn sections_of_subcommand(page: &str) -> &'static str {
    match page {
        "iam-kms-wrapper-setup.8" => include_str!("../man/iam-kms-wrapper-setup.8"),
        _ => "",
    }
}
