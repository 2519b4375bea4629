//! The program: everything is in the library.

fn main() {
    std::process::exit(agent_relay::cli::main(std::env::args_os().collect()).into());
}
