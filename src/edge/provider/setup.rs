//! Prepares a start of the provider: makes the launch plan and writes the files that it names.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::process::{find_command, missing_command, path_of};
use super::start::StartWay;
use crate::core::session::StartFault;
use crate::os;
use crate::provider::launch::{
    Conversation, Disk, LaunchError, LaunchPlan, LaunchRequest, PlanFn, SetupFile, TreeFile,
};
use crate::wire::control::ENV_REPLY_MODE;

/// How every start of one agent is planned.
pub struct Planner {
    /// The provider's part.
    pub plan: PlanFn,
    /// What is wanted.
    pub request: LaunchRequest,
    /// Variables that every start has; those of the plan come later and count more.
    pub env: Vec<(String, String)>,
    /// Folders that the sockets of a session may go to, the best one first; never empty.
    pub socket_folders: Vec<String>,
}

/// Bytes of a record that are looked at for something said in it. It stands near its beginning.
const RECORD_BYTES_MAX: u64 = 64 << 20;

impl Planner {
    /// The plan of one start, with its files on disk and its environment complete.
    pub(super) fn prepare(
        &self,
        conversation: Conversation<'_>,
        StartWay { folder, at_port }: StartWay,
    ) -> Result<LaunchPlan, LaunchError> {
        let last = self.socket_folders.len().saturating_sub(1);
        let runtime_dir = self.socket_folders.get(folder.min(last)).cloned().unwrap_or_default();
        let request = LaunchRequest { runtime_dir, at_port, ..self.request.clone() };
        let mut plan = (self.plan)(&request, conversation, &RealDisk)?;
        if plan.sockets.is_some() {
            try_socket_folder(Path::new(&request.runtime_dir))
                .map_err(|error| self.no_sockets(&request.runtime_dir, &error, folder >= last))?;
        }
        for file in &plan.files {
            write_setup_file(file).map_err(|error| {
                LaunchError::passing(format!("cannot prepare the start of the provider: {error}"))
            })?;
        }
        // Inherited where an agent started this runner; it must not reach our provider.
        if !self.env.iter().any(|(name, _)| name == ENV_REPLY_MODE) {
            plan.unset.push(ENV_REPLY_MODE.into());
        }
        let common = self.env.iter().filter(|(name, _)| !plan.unset.contains(name)).cloned();
        plan.env = common.chain(std::mem::take(&mut plan.env)).collect();
        let path = with_folder_of(&self.request.bin, path_of(&plan.env));
        plan.env.extend(path.map(|path| ("PATH".to_string(), path)));
        Ok(plan)
    }

    /// Why no sockets can be made, and whether another folder helps.
    fn no_sockets(&self, folder: &str, error: &std::io::Error, is_last: bool) -> LaunchError {
        let text = format!("no socket can be made in {folder} ({error})");
        match error.kind() {
            // Of the whole disk, or of the whole machine: it may be gone in a while.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => {
                LaunchError::passing(text)
            }
            _ => {
                let cure = "; name a folder of this user that is writable by TMPDIR";
                LaunchError {
                    text: text + if is_last { cure } else { "" },
                    fault: StartFault::SocketFolder { is_last },
                }
            }
        }
    }

    /// The sentence for a command that is nowhere: known before anything is started or written. Why
    /// there is no plan is told later.
    pub fn missing_command(&self) -> Option<String> {
        let plan = (self.plan)(
            &self.request,
            Conversation { earlier: "", refused: None, fresh: "0" },
            &RealDisk,
        )
        .ok()?;
        let env: Vec<(String, String)> = self.env.iter().cloned().chain(plan.env).collect();
        let program = plan.argv.first()?;
        find_command(program, &env).is_none().then(|| missing_command(program, &env, plan.hint))
    }
}

/// A search path on which a session finds this program, after all that it has already; `None`: it
/// does not need another one.
fn with_folder_of(program: &str, path: String) -> Option<String> {
    let folder = Path::new(program).parent().filter(|folder| folder.is_absolute())?;
    let mut all: Vec<_> = std::env::split_paths(&path).collect();
    if path.is_empty() {
        all = ["/usr/local/bin", "/usr/bin", "/bin"].map(Into::into).into();
    }
    if all.iter().any(|known| known == folder) {
        return None;
    }
    all.push(folder.to_path_buf());
    // A folder whose name has a colon cannot stand there.
    std::env::join_paths(all).ok()?.into_string().ok()
}

/// Makes the folder, closed to others, and a socket in it: some file systems have none. It may have
/// been there before, open to others, or be a link of somebody else's.
pub fn try_socket_folder(folder: &Path) -> std::io::Result<()> {
    make_own_folder(folder)?;
    let socket = folder.join("try.sock");
    let _ = fs::remove_file(&socket);
    UnixListener::bind(&socket)?;
    fs::remove_file(&socket)
}

fn make_own_folder(folder: &Path) -> std::io::Result<()> {
    os::make_private_dir(folder)?;
    let meta = fs::symlink_metadata(folder)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        let text = "it is not a folder of this user; remove it";
        return Err(std::io::Error::new(ErrorKind::PermissionDenied, text));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// The program that a command only starts, where its provider knows.
pub(super) fn program_behind(
    found: &str,
    behind: fn(&str, &dyn Disk) -> Option<String>,
) -> Option<String> {
    let real = fs::canonicalize(found).ok()?;
    behind(&real.to_string_lossy(), &RealDisk).filter(|path| os::is_program(Path::new(path)))
}

struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(path).ok()
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn has_line(&self, path: &str, is_wanted: fn(&[u8]) -> bool) -> bool {
        // What cannot be read here, the provider may judge.
        let Ok(file) = os::open_file(Path::new(path)) else { return true };
        let is_long = file.metadata().is_ok_and(|meta| meta.len() > RECORD_BYTES_MAX);
        let lines = BufReader::new(file.take(RECORD_BYTES_MAX)).split(b'\n');
        lines.map_while(Result::ok).any(|line| is_wanted(&line)) || is_long
    }
}

fn write_setup_file(file: &SetupFile) -> Result<(), String> {
    let say = |path: &str, error: std::io::Error| format!("{path}: {error}");
    match file {
        SetupFile::Folder(path) => {
            make_own_folder(Path::new(path)).map_err(|error| say(path, error))
        }
        SetupFile::File { path, text } => {
            os::replace_private_file(Path::new(path), text, false).map_err(|error| say(path, error))
        }
        SetupFile::Link { path, to } => {
            if fs::read_link(path).is_ok_and(|there| there == Path::new(to)) {
                return Ok(());
            }
            if fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_symlink()) {
                return Ok(()); // a file of its own, for example of a login in this very profile
            }
            let _ = fs::remove_file(path);
            std::os::unix::fs::symlink(to, path).map_err(|error| say(path, error))
        }
        SetupFile::Tree { path, files } => {
            write_tree(Path::new(path), files).map_err(|error| say(path, error))
        }
    }
}

/// The folder appears whole: it is made beside its place and moved there. One that is there with
/// the same texts stays.
fn write_tree(path: &Path, files: &[TreeFile]) -> std::io::Result<()> {
    let same = |file: &TreeFile| {
        fs::read_to_string(path.join(file.path)).is_ok_and(|there| there == file.text)
    };
    if files.iter().all(same) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&beside);
    for file in files {
        let to = beside.join(file.path);
        os::make_private_dir(to.parent().unwrap_or(&beside))?;
        fs::write(&to, file.text)?;
        fs::set_permissions(
            &to,
            fs::Permissions::from_mode(if file.is_program { 0o700 } else { 0o600 }),
        )?;
    }
    // An atomic swap: a session that starts just now sees the old folder or the new one.
    let flags = if path.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    if renameat_with(CWD, &beside, CWD, path, flags).is_ok() {
        let _ = fs::remove_dir_all(&beside);
        return Ok(());
    }
    // A file system that cannot do that, or another runner was faster.
    let old = path.with_file_name(format!(".{name}.{}.old", std::process::id()));
    let _ = fs::rename(path, &old);
    let moved = fs::rename(&beside, path);
    let _ = fs::remove_dir_all(&old);
    let _ = fs::remove_dir_all(&beside);
    // Another runner may have been faster; then it must have written the same.
    match moved {
        Err(_) if files.iter().all(same) => Ok(()),
        moved => moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_finds_this_program_behind_its_own_path() {
        for (program, path, want) in [
            ("/opt/x/agent-relay", "/bin:/usr/bin", Some("/bin:/usr/bin:/opt/x")),
            ("/opt/x/agent-relay", "/opt/x:/bin", None),
            ("/opt/x/agent-relay", "", Some("/usr/local/bin:/usr/bin:/bin:/opt/x")),
            ("/opt/a:b/agent-relay", "/bin", None),
            ("agent-relay", "/bin", None),
            ("", "/bin", None),
        ] {
            assert_eq!(
                with_folder_of(program, path.into()).as_deref(),
                want,
                "{program:?} {path:?}"
            );
        }
    }
}
