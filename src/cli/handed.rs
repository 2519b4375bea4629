//! The environment that an orchestrator hands to a runner in a file: what may be secret stands
//! neither in its script nor in an argument.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::exit::Failure;
use crate::config::env;
use crate::os;
use crate::wire::control::ENV_ENVIRONMENT_FILE;

/// Reads the file, removes it, and starts the program once more with what it held. Without such a
/// file nothing happens.
pub fn take_environment(program: &str, arguments: &[String]) -> Result<(), Failure> {
    let Some(path) = env(ENV_ENVIRONMENT_FILE).map(PathBuf::from) else { return Ok(()) };
    if arguments.first().map(String::as_str) != Some("run") {
        return Ok(());
    }
    let refused = |why: String| {
        Failure::system(format!("cannot take the environment from {}: {why}", path.display()))
    };
    let file = os::open_file(&path).map_err(|error| refused(error.to_string()))?;
    let told: BTreeMap<String, String> =
        serde_json::from_reader(file).map_err(|error| refused(error.to_string()))?;
    std::fs::remove_file(&path).map_err(|error| refused(error.to_string()))?;
    // By its descriptor: the file may have been replaced by a newer one since.
    let mut again = Command::new("/proc/self/exe");
    again.arg0(program).args(arguments).envs(told).env_remove(ENV_ENVIRONMENT_FILE);
    Err(refused(again.exec().to_string()))
}
