//! Subagents, homes of their own, and what a session is given at its start.

use super::*;

/// The answer of the subagent is held back: whatever happens before it is released happened behind
/// it.
#[test]
#[ignore = "make interop runs it"]
fn codex_is_reached_behind_a_subagent() {
    let mut session = Session::prepared("codex-subagent", "guarded");
    // Newer models search for the tool first.
    session.words.extend(["--model", "gpt-5.3-codex"].map(String::from));
    session.run();
    let first = session.send("AGENT first");
    assert!(session.answered(first).ends_with("AGENT first"));
    let works = || {
        let work = session.machine.status("a")["work"].clone();
        work.as_array().is_some_and(|work| work.iter().any(|item| item["kind"] == "subagent"))
    };
    session.waits("a subagent at work", || works().then_some(()));
    let second = session.send("behind it");
    assert_eq!(session.answered(second), "Heard: behind it");
    assert!(works(), "its answer is still held back");
    session.model.release();
    session.waits("the end of the subagent", || (!works()).then_some(()));
    session.wait("idle");
    session.once(first);
    session.once(second);
    session.end();
}

/// A home of its own, with the login of the user's: the model gets it, and nothing is written into
/// the user's home.
#[test]
#[ignore = "make interop runs it"]
fn codex_has_a_home_of_its_own() {
    let mut session = Session::prepared("codex-isolated", "guarded");
    let temporary = session.machine.home.with_file_name("tmp");
    std::fs::create_dir_all(&temporary).expect("a folder");
    session.machine.set("TMPDIR", &temporary.to_string_lossy());
    let users = session.machine.home.join(".codex");
    std::fs::write(users.join("auth.json"), r#"{"OPENAI_API_KEY": "sk-of-the-user"}"#)
        .expect("a login");
    let before = std::fs::read_dir(&users).expect("a folder").count();
    let url = format!("\"http://127.0.0.1:{}/v1\"", session.model.port);
    let provider = |key: &str, value: &str| format!("model_providers.fake.{key}={value}");
    let settings = [
        "model_provider=fake".to_string(),
        provider("name", "fake"),
        provider("base_url", &url),
        provider("wire_api", "responses"),
        provider("requires_openai_auth", "true"),
    ];
    session.words.extend(["--isolated", "--model", "gpt-5.5", "--"].map(String::from));
    session.words.extend(settings.into_iter().flat_map(|setting| ["-c".to_string(), setting]));
    session.run();
    let id = session.send("hello alone");
    assert_eq!(session.answered(id), "Heard: hello alone");
    assert_eq!(session.model.login(), "Bearer sk-of-the-user");
    let own = session.machine.home.join("agents/a/codex");
    assert!(own.join("sessions").is_dir());
    assert!(std::fs::symlink_metadata(own.join("auth.json")).is_ok_and(|it| it.is_symlink()));
    assert_eq!(std::fs::read_dir(&users).expect("a folder").count(), before);
    // It goes on with the same thread, in settings that were written anew.
    session.machine.ok(&["command", "a", "restart"]);
    let again = session.send("hello again");
    assert_eq!(session.answered(again), "Heard: hello again");
    session.once(id);
    session.end();
}
