use super::*;
use serde_json::json;

#[test]
fn wrong_types_fall_back_field_by_field() {
    let record = json!({
        "command": 5, "defaultArgs": ["a", 1], "env": {"A": "1", "B": 2}, "defaultTags": ["x"],
        "headless": {"shutdownTimeoutMs": -3}, "restart": {"exitsMax": 9, "firstMs": "soon"}, "replyMode": "explicit"
    });
    let config = ProviderConfig::read(record.as_object().expect("object"));
    assert_eq!((config.command, config.default_args.len(), config.env.len()), (None, 0, 0));
    assert_eq!(config.warnings.len(), 5, "{:?}", config.warnings);
    assert_eq!(config.default_tags, ["x"]);
    assert_eq!(config.shutdown_timeout, Duration::from_secs(10));
    assert_eq!((config.restart.exits_max, config.restart.first), (9, Duration::from_millis(500)));
    assert_eq!(config.reply_mode, ReplyMode::Explicit);
}

#[test]
fn a_mark_of_an_editor_is_no_fault_of_a_file() {
    let dir = std::env::temp_dir().join(format!("agent-relay-mark-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("config.json");
    std::fs::write(&path, "\u{feff}{\r\n  \"token\": \"t\"\r\n}\r\n").expect("write");
    assert_eq!(read_record(&path).expect("reads")["token"], "t");
    // Another encoding is one, and the cure is named.
    std::fs::write(&path, b"\xff\xfe{\0}\0").expect("write");
    let error = read_record(&path).expect_err("not UTF-8").to_string();
    assert!(error.contains("config.json") && error.contains("save it as UTF-8"), "{error}");
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn a_broken_file_names_file_and_line() {
    let dir = std::env::temp_dir().join(format!("agent-relay-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("config.json");
    std::fs::write(&path, "{\n  \"token\": oops\n}").expect("write");
    let error = read_record(&path).expect_err("broken").to_string();
    assert!(error.contains("config.json:2:"), "{error}");
    assert!(read_record(&dir.join("none.json")).expect("missing is empty").is_empty());
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn what_is_not_set_is_told_and_left_out() {
    let record = json!({
        "env": {"A": "1", "B": "$env:PATH", "C": "$env:NO_SUCH_VARIABLE", "D": "$env:"},
        "headless": {"tmuxPrefix": "x"}
    });
    let config = ProviderConfig::read(record.as_object().expect("object"));
    let names: Vec<String> = config.resolved_env().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["A", "B"]);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("headless.tmuxPrefix has no effect"));
    let told: Vec<String> = unset_variables(&config.env, |name| name == "PATH").collect();
    assert!(told.len() == 2 && told[0].contains("env.C takes its value from NO_SUCH_VARIABLE"));
}
