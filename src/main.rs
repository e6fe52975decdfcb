//! The program `rushgate`. All of it is in the library: what both crates used would be compiled for
//! each of them.

use std::process::ExitCode;

fn main() -> ExitCode {
    rushgate::cli::main()
}
