//! Whether SELinux knows this project's programs: its policy lets the server use only a broker that it knows.

use std::{env, fs, io, path::Path};

use rustix::fs::getxattr;

use super::Finding;

/// `1` if the kernel enforces the policy; absent where SELinux is off.
const ENFORCES: &str = "/sys/fs/selinux/enforce";

/// What the policy module calls this program.
const TYPE: &str = "iam_kms_wrapper_exec_t";

const MOST_LABEL_BYTES: usize = 4096;

/// Checks the label of this program. `None` where SELinux is off or only permissive.
pub(super) fn check_module() -> Option<Finding> {
    if fs::read_to_string(ENFORCES).ok()?.trim() != "1" {
        return None;
    }
    let labelled = env::current_exe().and_then(|program| {
        let label = label(&program)?;
        Ok((program, label))
    });
    Some(match labelled {
        Ok((program, label)) => finding(&program, &label),
        Err(error) => {
            Finding::NotChecked(format!("cannot read the label of this program: {error}"))
        }
    })
}

/// The label of a file, such as `system_u:object_r:bin_t:s0`.
fn label(file: &Path) -> io::Result<String> {
    let mut label = [0; MOST_LABEL_BYTES];
    let bytes = getxattr(file, "security.selinux", &mut label)?;
    let text = String::from_utf8_lossy(label.get(..bytes).unwrap_or_default());
    Ok(text.trim_end_matches('\0').into())
}

fn finding(program: &Path, label: &str) -> Finding {
    if label.split(':').nth(2) == Some(TYPE) {
        return Finding::Fine(format!("the policy module is loaded: {label}"));
    }
    let prefix = program.ancestors().nth(2).unwrap_or(Path::new("/usr"));
    let prefix = prefix.display();
    Finding::Failure(format!(
        "this program is labelled {label}, so the server may not use the broker; install the package \
         iam-kms-wrapper-selinux, or run semodule -X 200 -i \
         {prefix}/share/selinux/packages/iam-kms-wrapper/iam_kms_wrapper.cil && \
         restorecon -iR {prefix}/bin {prefix}/libexec /etc/iam-kms-wrapper /run/iam-kms-wrapper"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_label_of_the_module_is_fine() {
        let label = "system_u:object_r:iam_kms_wrapper_exec_t:s0";
        let found = finding(Path::new("/usr/bin/iam-kms-wrapper"), label);
        assert!(matches!(found, Finding::Fine(text) if text.ends_with(label)));
    }

    #[test]
    fn with_any_other_label_the_commands_that_load_the_module_are_said() {
        for label in ["system_u:object_r:bin_t:s0", "iam_kms_wrapper_exec_t", ""] {
            let found = finding(Path::new("/usr/local/bin/iam-kms-wrapper"), label);
            let Finding::Failure(text) = found else {
                panic!("{label} is fine");
            };
            assert!(
                text.contains("semodule -X 200 -i /usr/local/share/selinux/"),
                "{text}"
            );
        }
    }
}
