//! The password of an exported key file.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use offline_keys::password::Password;
use service::signals::with_terminal_restored;
use zeroize::Zeroizing;

use crate::DataKeysError;

/// Where the password comes from.
#[derive(Debug, Args)]
pub(crate) struct PasswordArguments {
    /// The file with the password; default: prompt
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl PasswordArguments {
    /// Returns the file of the password, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    /// Reads the password, or prompts for it.
    pub fn get(&self) -> Result<Password, DataKeysError> {
        match &self.password_file {
            Some(path) => Ok(Password::read(path)?),
            None => ask("Password of the key file: "),
        }
    }

    /// Does the same for a new file, with two prompts.
    pub fn get_new(&self) -> Result<Password, DataKeysError> {
        let password = self.get()?;
        if self.password_file.is_none() && ask("Repeat the password: ")? != password {
            return Err(DataKeysError::NotExported(
                "the two passwords differ; run it again".into(),
            ));
        }
        Ok(password)
    }
}

fn ask(prompt: &str) -> Result<Password, DataKeysError> {
    let failed = |error: io::Error| match error.raw_os_error() {
        // The error of opening /dev/tty without a terminal.
        Some(_) => DataKeysError::NoTerminal,
        None => DataKeysError::System("read the password", error),
    };
    let text = with_terminal_restored(|| rpassword::prompt_password(prompt)).map_err(failed)?;
    let text = Zeroizing::new(text);
    // rpassword puts it in place of what it cannot read, and of the bytes after that.
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(DataKeysError::PasswordEncoding);
    }
    let bytes = Zeroizing::new(text.as_bytes().to_vec());
    Ok(Password::new(bytes)?)
}
