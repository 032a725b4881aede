//! `verify`: whether every data key can be had.

use std::path::PathBuf;

use clap::Args;
use key_store::{key_directory::KeyDirectory, key_name::KeyName};

use crate::{
    DataKeysError, Outcome, data_keys, each::each, list, print, runtime,
    unwrapping::UnwrapperArguments,
};

/// Unwrap every data key, and name those that cannot be had
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    /// The data directory, or aws_key_management_keyfile_dir where that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Unwraps all, tells of each that fails, and sums up.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    let listing = directory.list()?;
    let names = list::check_names(&directory, &listing);
    let (mut verified, mut kept) = (0, 0);
    let runtime = runtime()?;
    let unwrapper = arguments.unwrapper.open(&runtime)?;
    let work = async |name: &KeyName| unwrapper.unwrap(&directory, name).await;
    let failed = runtime.block_on(each(&listing.keys, work, |_, unwrapped| {
        match unwrapped.is_from_kms {
            true => verified += 1,
            false => kept += 1,
        }
    }));
    let not_verified = match kept {
        0 => String::new(),
        _ => format!(
            ", {} unchanged since the broker had them unwrapped: its session is over, so KMS was not asked",
            data_keys(kept)
        ),
    };
    print(&format!(
        "{} verified at KMS, {failed} failed{not_verified}\n",
        data_keys(verified)
    ))?;
    Ok(names.unless_failed(failed))
}
