//! The command: found before a code is asked for, and then executed in place of this process or as its
//! child.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::{SigSet, Signal},
    unistd::{AccessFlags, Pid, access, execve},
};

/// Why the command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("cannot find {0:?}; give a path, or the name of a program in PATH")]
    NotFound(OsString),
    /// The program is not executable.
    #[error("cannot execute {path}: {source}", path = path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An argument or a variable contains a NUL byte.
    #[error("cannot pass on an argument or a variable that contains a NUL byte")]
    Nul,
}

/// A program and its arguments.
pub struct Command {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Command {
    /// Finds the program that `arguments` start with: by its path if it contains a slash, else in
    /// `PATH`.
    pub fn find(arguments: Vec<OsString>) -> Result<Self, CommandError> {
        let name = arguments.first().cloned().unwrap_or_default();
        Ok(Self {
            path: find_program(&name)?,
            arguments,
        })
    }

    /// Returns the path of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the command as a child, with exactly `environment` and with `mask` as its signal mask.
    /// SIGPIPE gets its default action, because Rust's start-up code ignores it.
    pub fn start(
        &self,
        environment: &[(OsString, OsString)],
        mask: &SigSet,
    ) -> Result<Pid, CommandError> {
        let strings = self.strings(environment)?;
        let attributes = || {
            let mut attributes = PosixSpawnAttr::init()?;
            attributes.set_sigmask(mask)?;
            attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
            attributes.set_flags(
                PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
            )?;
            Ok((attributes, PosixSpawnFileActions::init()?))
        };
        attributes()
            .and_then(|(attributes, actions)| {
                posix_spawn(
                    strings.path.as_c_str(),
                    &actions,
                    &attributes,
                    &strings.arguments,
                    &strings.environment,
                )
            })
            .map_err(|error| self.not_executable(error))
    }

    /// Replaces this process with the command, which gets exactly `environment`. Returns only if that
    /// fails. Nothing else changes: this is execve(2), because std's `exec` would change the signal
    /// mask.
    pub fn replace_process(&self, environment: &[(OsString, OsString)]) -> CommandError {
        let strings = match self.strings(environment) {
            Ok(strings) => strings,
            Err(error) => return error,
        };
        let Err(error) = execve(&strings.path, &strings.arguments, &strings.environment);
        self.not_executable(error)
    }

    fn strings(&self, environment: &[(OsString, OsString)]) -> Result<Strings, CommandError> {
        let path = CString::new(self.path.as_os_str().as_bytes());
        let arguments: Result<Vec<_>, _> = self
            .arguments
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect();
        let environment: Result<Vec<_>, _> = environment.iter().map(assignment).collect();
        match (path, arguments, environment) {
            (Ok(path), Ok(arguments), Ok(environment)) => Ok(Strings {
                path,
                arguments,
                environment,
            }),
            _ => Err(CommandError::Nul),
        }
    }

    fn not_executable(&self, error: Errno) -> CommandError {
        if error == Errno::ENOENT {
            return CommandError::NotFound(self.path.clone().into());
        }
        CommandError::NotExecutable {
            path: self.path.clone(),
            source: error.into(),
        }
    }
}

/// The arguments of execve(2).
struct Strings {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// The directories that execvp(3) searches without `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Finds `name` as execvp(3) does, and distinguishes a missing program from one that is not executable.
/// Unlike execvp(3), it ignores an empty element of `PATH`: that would be the current directory, which
/// the server may be able to write to.
pub fn find_program(name: &OsStr) -> Result<PathBuf, CommandError> {
    if name.as_bytes().contains(&b'/') {
        return check_executable(Path::new(name));
    }
    let directories = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut found = CommandError::NotFound(name.into());
    let named = |directory: &PathBuf| !name.is_empty() && !directory.as_os_str().is_empty();
    for directory in env::split_paths(&directories).filter(named) {
        match check_executable(&directory.join(name)) {
            Ok(path) => return Ok(path),
            Err(error @ CommandError::NotExecutable { .. }) => found = error,
            Err(_) => {}
        }
    }
    Err(found)
}

fn check_executable(path: &Path) -> Result<PathBuf, CommandError> {
    let refused = |source| CommandError::NotExecutable {
        path: path.into(),
        source,
    };
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(refused(Errno::EISDIR.into())),
        Ok(_) => access(path, AccessFlags::X_OK)
            .map(|()| path.into())
            .map_err(|error| refused(error.into())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refused(error)),
        Err(_) => Err(CommandError::NotFound(path.into())),
    }
}

fn assignment((name, value): &(OsString, OsString)) -> Result<CString, std::ffi::NulError> {
    let mut assignment = name.clone().into_vec();
    assignment.reserve_exact(value.len() + 2);
    assignment.push(b'=');
    assignment.extend_from_slice(value.as_bytes());
    CString::new(assignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_path_and_by_path() {
        assert!(find_program(OsStr::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(
            find_program(OsStr::new("/bin/sh")).unwrap(),
            Path::new("/bin/sh")
        );
    }

    #[test]
    fn missing_and_not_executable_programs_are_distinguished() {
        for name in ["no-such-program-here", "/no/such/program", ""] {
            assert!(
                matches!(
                    find_program(OsStr::new(name)),
                    Err(CommandError::NotFound(_))
                ),
                "{name}"
            );
        }
        for name in ["/etc/passwd", "/etc"] {
            let refused = find_program(OsStr::new(name));
            assert!(
                matches!(refused, Err(CommandError::NotExecutable { .. })),
                "{name}"
            );
        }
    }
}
