//! The gatun program.

fn main() -> std::process::ExitCode {
    gatun::cli::main()
}
