//! `kms-manage-key`: see [`iam_kms_wrapper::manage_key`].

#[path = "../pow.rs"]
mod pow;

use std::process::exit;

fn main() {
    exit(iam_kms_wrapper::manage_key::main());
}
