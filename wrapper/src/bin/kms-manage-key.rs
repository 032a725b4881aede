//! `kms-manage-key`: see [`iam_kms_wrapper::manage_key`].

#[path = "../pow.rs"]
mod pow;

use std::process::exit;

// A panic between EnableKey and DisableKey would leave the key enabled.
#[cfg(not(panic = "unwind"))]
compile_error!("kms-manage-key must be built with panic = \"unwind\"");

fn main() {
    exit(iam_kms_wrapper::manage_key::main());
}
