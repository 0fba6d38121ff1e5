//! The `remora` command.

fn main() -> std::process::ExitCode {
    remora::cli::main(std::env::args_os())
}
