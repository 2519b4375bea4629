//! Files that other users of the machine could put in our way.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::*;

fn mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

/// Whoever may write the folder could lead us to any file of ours: nothing is opened for writing
/// through a symbolic link.
#[test]
fn no_file_of_ours_is_written_through_a_symbolic_link() {
    for (name, arguments) in [
        ("hub/lock", &["hub", "--port", "0"][..]),
        ("hub/hub.sqlite", &["hub", "--port", "0"]),
        ("hub/root-token", &["hub", "--port", "0"]),
        ("config.json.tmp", &["hub", "--port", "0"]),
        ("agents/a/lock", &["run", "acp", "--agent-id", "a", "--", "agent-relay", "demo-agent"]),
        (
            "agents/a/runner.sqlite",
            &["run", "acp", "--agent-id", "a", "--", "agent-relay", "demo-agent"],
        ),
    ] {
        let machine = Machine::new("links");
        let target = machine.work.join("precious");
        fs::write(&target, "do not touch").expect("writes");
        let link = machine.home.join(name);
        fs::create_dir_all(link.parent().expect("one")).expect("folder");
        mode(&machine.home, 0o700);
        symlink(&target, &link).expect("links");
        let mut running = machine.start(arguments);
        // Refused, or a file of its own stands in the link's place.
        wait_for("the link to be met", 60, || {
            let refused = running.child.try_wait().expect("waits").is_some();
            let up = machine.home.join("hub/hub.json").exists()
                || machine.home.join("agents/a/runner.json").exists();
            (refused || up).then_some(())
        });
        assert_eq!(fs::read_to_string(&target).expect("there"), "do not touch", "{name}");
        running.kill();
        assert_eq!(fs::read_to_string(&target).expect("there"), "do not touch", "{name}");
    }
}

#[test]
fn a_home_that_everybody_may_write_is_refused_with_its_cure_and_doctor_says_so() {
    for open in ["home", "above"] {
        let mut machine = Machine::new("open");
        if open == "above" {
            machine.home = machine.home.join("inner");
        }
        fs::create_dir_all(machine.home.join("hub")).expect("folder");
        let target = machine.work.join("precious");
        fs::write(&target, "do not touch").expect("writes");
        symlink(&target, machine.home.join("hub/lock")).expect("links");
        let wide = if open == "home" {
            machine.home.clone()
        } else {
            machine.home.parent().expect("one").to_path_buf()
        };
        mode(&wide, 0o777);
        for arguments in [
            &["hub", "--port", "0"][..],
            &["run", "acp", "--", "agent-relay", "demo-agent"],
            &["send", "a", "x"],
            &["inbox"],
        ] {
            let said = machine.fails(2, arguments);
            assert!(
                said.contains("may write")
                    && said.contains(&format!("chmod o-w {}", wide.display())),
                "{arguments:?}: {said}"
            );
        }
        assert_eq!(fs::read_to_string(&target).expect("there"), "do not touch");
        let doctor = machine.run(&["doctor"]);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(
            doctor.status.code() == Some(1) && said.contains("FAIL") && said.contains("chmod o-w"),
            "{said}"
        );
        mode(&wide, 0o755);
        fs::remove_file(machine.home.join("hub/lock")).expect("there");
        let _hub = machine.hub();
    }
}
