//! Where each status word comes from, and what ends one that was posted.

use super::*;

impl Bench {
    fn post(&mut self, body: serde_json::Value) {
        self.tell(Event::Control(Ticket(1), ControlRequest::StatusPosted(body)));
        self.commit();
    }

    /// Word, source and evidence as people see them.
    pub(super) fn known(&self) -> (String, String, String) {
        let truth = self.agent.truth(self.now);
        let text = |at: &str| truth.pointer(at).and_then(|it| it.as_str()).unwrap_or("-").into();
        (text("/status"), text("/source"), text("/evidence/text"))
    }

    fn knows(&self, word: &str, source: &str, evidence: &str) {
        let (is, by, text) = self.known();
        assert_eq!((is.as_str(), by.as_str()), (word, source), "{text}");
        assert!(text.contains(evidence), "{text:?} does not say {evidence:?}");
    }
}

#[test]
fn evidence_belongs_to_the_status_that_it_proves() {
    let mut bench = Bench::ready();
    bench.knows("idle", "session", "demo is ready");
    bench.message(1);
    bench.commit();
    bench.knows("busy", "runner", "handed messages over");
    bench.session_event(SessionEvent::Evidence("the screen shows it".into()));
    bench.knows("busy", "runner", "handed messages over");
    bench.session_event(SessionEvent::TurnStarted);
    bench.knows("busy", "session", "the screen shows it");
    bench.session_event(SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Failed("no credit\nat all".into()),
        text: String::new(),
    });
    bench.knows("idle", "session", "the turn failed: no credit ⏎ at all");
    let truth = bench.agent.truth(bench.now);
    assert!(!truth["why"].as_str().is_some_and(|why| why.contains("handed")), "{truth}");
    // A sentence with nothing to follow stands for the status of now.
    bench.session_event(SessionEvent::Evidence("the registry says idle".into()));
    bench.session_event(SessionEvent::Context(json!({})));
    bench.knows("idle", "session", "the registry says idle");
}

#[test]
fn what_is_posted_is_shown_with_its_words_and_as_posted() {
    let mut bench = Bench::ready();
    let outside = json!({"status": "busy", "reason": "posted", "source": "outside",
        "why": "compiling, 3 of 10", "role": "builder", "parentId": "p1"});
    bench.post(outside);
    bench.knows("busy", "posted", "posted from outside: compiling, 3 of 10");
    let truth = bench.agent.truth(bench.now);
    let work = json!({"kind": "posted", "id": "posted", "label": null, "metadata": {}, "role": "builder", "parentId": "p1"});
    assert_eq!(truth["work"], json!([work]));
    // A turn beside it is known by the session; afterwards the post is what is left.
    bench.session_event(SessionEvent::TurnStarted);
    bench.knows("busy", "session", "began a turn");
    bench.session_event(SessionEvent::TurnEnded {
        batch: None,
        end: TurnEnd::Completed,
        text: String::new(),
    });
    bench.knows("busy", "posted", "3 of 10");
    bench.post(json!({"status": "idle", "reason": "posted", "message": "compiled"}));
    bench.knows("idle", "posted", "posted: compiled");
    for (body, text) in [
        (json!({"status": "error"}), "posted at the control port"),
        (json!({"status": "error", "text": "out\nof credit"}), "posted: out ⏎ of credit"),
        (json!({"status": "error", "metadata": {"error": "rate limit"}}), "posted: rate limit"),
        (json!({"status": "offline", "detail": "away"}), "posted: away"),
    ] {
        bench.post(body.clone());
        bench.knows(body["status"].as_str().expect("a word"), "posted", text);
        assert_eq!(bench.agent.truth(bench.now)["why"], bench.known().2);
    }
}

#[test]
fn a_posted_end_is_over_with_a_turn_that_the_session_proves() {
    let turn_ended = || SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Completed,
        text: "done".into(),
    };
    let accepted = || SessionEvent::Accepted {
        batch: BatchNumber(1),
        key: key_of_first(),
        evidence: "seen".into(),
    };
    let proofs: [fn() -> SessionEvent; 3] = [|| SessionEvent::TurnStarted, accepted, turn_ended];
    for (word, proof) in ["error", "offline"].into_iter().flat_map(|w| proofs.map(|p| (w, p))) {
        let mut bench = Bench::ready();
        bench.post(json!({"status": word}));
        bench.message(1);
        bench.commit();
        // Handing over proves nothing.
        assert_eq!(bench.known().0, word);
        let event = proof();
        let is_end = matches!(event, SessionEvent::TurnEnded { .. });
        bench.session_event(event);
        assert_eq!(bench.known().0, if is_end { "idle" } else { "busy" }, "{word}");
    }
    // What the runner itself knows of a process that is gone is not a post.
    let mut bench = Bench::ready();
    bench.tell(Event::Provider(ProviderEvent::Exited { code: 1, stderr: "no".into() }));
    bench.post(json!({"status": "busy"}));
    bench.knows("restarting", "runner", "");
    bench.post(json!({"status": "error", "why": "x"}));
    assert_eq!(bench.known().0, "restarting");
}
