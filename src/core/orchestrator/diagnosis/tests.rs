//! From recorded texts of systemd 252 and Linux 6 to answers and pages.

use super::*;
use crate::core::orchestrator::record::{SYSTEMD, Supervisor};
use crate::core::orchestrator::systemd::Ceilings;

const KILLED: &str = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\n\
                      ExecMainCode=2\nExecMainStatus=9\nMainPID=0\nMemoryPeak=[not set]\n";
const FAILED: &str = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n\
                      ExecMainCode=1\nExecMainStatus=71\nMainPID=0\n";
const OOM: &str = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=oom-kill\n\
                   ExecMainCode=2\nExecMainStatus=9\nMainPID=0\nMemoryPeak=209715200\n";
const RUNNING: &str = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\
                       ExecMainCode=0\nExecMainStatus=0\nMainPID=77\nStatusText=agent a: idle\n";
const FORGOTTEN: &str = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n\
                         ExecMainCode=0\nExecMainStatus=0\nMainPID=0\n";
const JOURNAL: &str = "u.service: A process of this unit has been killed by the OOM killer.\n\
                       u.service: Main process exited, code=killed, status=9/KILL\n\
                       u.service: Failed with result 'oom-kill'.\n";

fn facts(unit: Option<Result<&str, &str>>) -> Facts {
    let supervisor = match unit {
        Some(_) => Supervisor { kind: SYSTEMD.into(), unit: Some("u".into()), launch_script: None },
        None => Supervisor::default(),
    };
    let record = Record {
        name: "ar-p-web".into(),
        pid: 77,
        supervisor,
        provider: "p".into(),
        workspace_mode: "inherit".into(),
        label: "web".into(),
        cwd: "/work".into(),
        log_file: "/logs/ar-p-web.log".into(),
        runner_info_file: "/runners/ar-p-web.json".into(),
        agent_id: "host-p-web".into(),
        approval_mode: "guarded".into(),
        spawn_request_id: "r1".into(),
        started_at: 1_000_000,
        ..Record::default()
    };
    Facts {
        record,
        detected_at: 1_065_400,
        log: Some(Ok((12, vec!["one".into(), "two".into()]))),
        runner: Some("runner-1".into()),
        unit: unit.map(|text| text.map(str::to_string).map_err(str::to_string)),
        ..Facts::default()
    }
}

#[test]
fn how_it_ended_is_told_from_all_that_saw_it() {
    let counts =
        |kills: u64| format!("low 0\nhigh 0\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 0\n");
    let exited = "u.service: Main process exited, code=exited, status=1/FAILURE\n\
                  u.service: Main process exited, code=exited, status=70/n/a\n";
    for (unit, events, journal, want) in [
        (Some(Ok(FAILED)), None, "", Exit::Code(71)),
        (Some(Ok(KILLED)), None, "", Exit::Signal(9)),
        (Some(Ok(OOM)), None, "", Exit::OutOfMemory { peak: Some(209_715_200) }),
        // What followed from a kill of the kernel, whatever the unit says.
        (Some(Ok(FAILED)), Some(counts(1)), "", Exit::OutOfMemory { peak: None }),
        (Some(Ok(FAILED)), Some(counts(0)), "", Exit::Code(71)),
        (Some(Ok(FAILED)), Some("oom_kill many\n".into()), "", Exit::Code(71)),
        (Some(Ok(KILLED)), None, JOURNAL, Exit::OutOfMemory { peak: None }),
        // A unit that is forgotten knows nothing; the journal may.
        (Some(Ok(FORGOTTEN)), None, "", Exit::Unknown),
        (Some(Ok(FORGOTTEN)), None, exited, Exit::Code(70)),
        (Some(Ok("")), None, "Main process exited, code=dumped, status=6/ABRT", Exit::Signal(6)),
        (
            Some(Err("no bus")),
            None,
            "Main process exited, code=exited, status=0/SUCCESS",
            Exit::Orderly,
        ),
        (Some(Err("no bus")), None, "Main process exited, code=odd, status=x", Exit::Unknown),
        (None, None, "", Exit::Unknown),
    ] {
        let journal = Some(journal.to_string()).filter(|text| !text.is_empty());
        let facts = Facts { memory_events: events, journal, ..facts(unit) };
        assert_eq!(exit(&facts), want, "{unit:?} {:?}", facts.journal);
        let told = diagnosis(&facts);
        assert_eq!(told["exit"]["text"], json!(want.to_string()));
        assert!(told["advice"].as_str().is_some_and(|text| text.len() > 20), "{told}");
    }
    let killed = diagnosis(&facts(Some(Ok(KILLED))));
    assert_eq!(killed["exit"]["signal"], json!(9));
    assert_eq!(killed["exit"]["signalName"], json!("SIGKILL"));
}

#[test]
fn what_the_orchestrator_has_said_is_known_after_the_unit_is_forgotten() {
    for exit in [
        Exit::Orderly,
        Exit::Code(71),
        Exit::Signal(9),
        Exit::OutOfMemory { peak: None },
        Exit::TimedOut,
        Exit::Reboot,
        Exit::Unknown,
    ] {
        let mut facts = facts(Some(Ok(FORGOTTEN)));
        facts.record.parked = Some(format!("{exit}; another start would end in the same way"));
        assert_eq!(super::exit(&facts), exit);
        // The last end counts, and what others saw counts more.
        facts.ends =
            vec!["it ended with exit code 3".into(), format!("{exit}; it is started again")];
        assert_eq!(super::exit(&facts), exit);
        facts.unit = Some(Ok(FAILED.into()));
        assert_eq!(super::exit(&facts), Exit::Code(71));
    }
}

#[test]
fn the_story_on_one_line_names_what_is_known() {
    let start = "managed p session ar-p-web exited after 65s";
    let empty = Some(Ok((0, vec![])));
    for (unit, log, runner, want) in [
        (None, Some(Ok((5, vec![]))), true, String::new()),
        (None, empty.clone(), false, "; stdout/stderr log is empty; runner info was not written".into()),
        (None, Some(Err("gone".into())), true, "; stdout/stderr log unavailable".into()),
        (
            Some(Ok(FAILED)),
            Some(Ok((5, vec![]))),
            true,
            "; systemd u.service state=failed/failed result=exit-code exit=1/71".into(),
        ),
        (
            Some(Ok("ActiveState=failed")),
            empty,
            true,
            "; systemd u.service state=failed result=unknown exit=unknown; stdout/stderr log is empty".into(),
        ),
        (Some(Err("no bus")), None, true, "; systemd status unavailable: no bus".into()),
    ] {
        let runner = runner.then(|| "runner-1".to_string());
        let told = diagnosis(&Facts { log, runner, ..facts(unit) });
        assert_eq!(told["lastError"], json!(format!("{start}{want}")));
    }
    let early = Facts { detected_at: 0, ..facts(None) };
    assert_eq!(diagnosis(&early)["runtimeMs"], json!(0), "clocks may jump");
}

#[test]
fn the_answer_has_the_known_fields_and_no_empty_ones() {
    let mut all = facts(Some(Ok(RUNNING)));
    (all.alive, all.current_pid, all.terminal) = (true, 78, true);
    all.record.ceilings = Ceilings { memory_max: Some(300_000_000), ..Ceilings::default() };
    all.ends = vec!["it ended with exit code 71".into()];
    all.journal = Some("Started u.service.\n\n\u{1b}[1mbold\u{1b}[0m\n".into());
    let told = diagnosis(&all);
    assert_eq!(
        told,
        json!({
            "agentId": "host-p-web", "provider": "p", "workspaceMode": "inherit",
            "workspace": {"mode": "shared", "requestedMode": "inherit"},
            "sessionName": "ar-p-web", "tmuxSession": "ar-p-web", "terminalSession": "ar-p-web",
            "cwd": "/work", "label": "web", "approvalMode": "guarded", "spawnRequestId": "r1",
            "supervisor": "systemd", "systemdUnit": "u", "terminalAvailable": true, "alive": true,
            "pid": 77, "currentPid": 78, "startedAt": 1_000_000, "detectedAt": 1_065_400,
            "runtimeMs": 65_400, "logFile": "/logs/ar-p-web.log", "logBytes": 12, "logEmpty": false,
            "logTail": ["one", "two"], "runnerInfoFile": "/runners/ar-p-web.json",
            "runnerInfoPresent": true, "runnerId": "runner-1",
            "systemd": {"unit": "u", "activeState": "active", "subState": "running", "result": "success",
                "execMainCode": "0", "execMainStatus": "0", "mainPid": 77, "statusText": "agent a: idle"},
            "memory": {"max": 300_000_000}, "journal": ["Started u.service.", "bold"],
            "ends": ["it ended with exit code 71"],
        })
    );
    let none = Facts { log: Some(Err("it is a folder".into())), runner: None, ..facts(None) };
    let told = diagnosis(&none);
    for absent in [
        "logBytes",
        "logEmpty",
        "logTail",
        "systemd",
        "systemdUnit",
        "memory",
        "journal",
        "currentPid",
        "policyName",
    ] {
        assert!(told.get(absent).is_none(), "{absent}");
    }
    assert_eq!(
        told["unavailable"],
        json!(["stdout/stderr log unavailable: it is a folder", "runner info unavailable"])
    );
    let empty = diagnosis(&Facts { log: Some(Ok((0, vec![]))), ..facts(None) });
    assert_eq!((&empty["logEmpty"], &empty["logTail"]), (&json!(true), &json!([])));
    assert_eq!(empty["unavailable"], json!(["stdout/stderr log empty"]));
}

#[test]
fn a_page_tells_all_of_it_to_people() {
    let mut oom = facts(Some(Ok(OOM)));
    oom.memory_events = Some("oom_kill 2\n".into());
    oom.journal = Some(JOURNAL.into());
    oom.record.ceilings = Ceilings { memory_max: Some(209_715_200), ..Ceilings::default() };
    oom.record.parked = Some("5 ends within 10 minutes".into());
    let page = page(&diagnosis(&oom)).join("\n");
    assert_eq!(
        page,
        "\
ar-p-web is over; it was started 65 s ago
  why         it was killed for want of memory (OOM) after using 210 MB
  help        give it more with a higher memoryMax, or run fewer sessions on this host
  parked      5 ends within 10 minutes
  who         agent host-p-web, provider p, mode guarded
  folder      /work
  request     r1
  process     pid 77, is gone; kept by systemd
  unit        u.service is failed (failed), result oom-kill
  memory      at most 210 MB, used up to 210 MB, 2 killed for want of it
  runner      runner-1 has told where it is
  terminal    none
  log         /logs/ar-p-web.log (12 bytes)
  the end of its log:
    | one
    | two
  what the service manager wrote:
    | u.service: A process of this unit has been killed by the OOM killer.
    | u.service: Main process exited, code=killed, status=9/KILL
    | u.service: Failed with result 'oom-kill'."
    );
    let mut runs = facts(Some(Ok(RUNNING)));
    (runs.alive, runs.current_pid, runs.runner) = (true, 78, None);
    let page = super::page(&diagnosis(&runs)).join("\n");
    for want in [
        "ar-p-web runs for 65 s\n",
        "pid 78 (started as 77), lives",
        "u.service is active (running), result success, it said: agent a: idle",
        "runner      has not told where it is (/runners/ar-p-web.json)",
        "missing     runner info unavailable",
    ] {
        assert!(page.contains(want), "{want}: {page}");
    }
    assert!(!page.contains("why ") && !page.contains("help "), "{page}");
    // Whatever comes back from an older or a hostile orchestrator makes a page.
    for odd in [json!(null), json!({"systemd": 5, "logTail": {"a": 1}, "memory": []}), json!([])] {
        assert!(!super::page(&odd).is_empty());
    }
}
