//! The program as built, driven by AWS's own CLI and by boto3.

// What fails here fails a test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod boto3;
mod program;
mod support;
