//! After a crash of the provider or of the runner the provider's record decides, message by
//! message.

use super::*;

impl Bench {
    /// The provider ends and comes back; its record tells these outcomes.
    fn come_back(&mut self, outcomes: Vec<DeliveryOutcome>) -> Vec<Effect> {
        self.tell(Event::Provider(ProviderEvent::Exited { code: 9, stderr: String::new() }));
        self.commit();
        self.now.tick = self.now.tick + Duration::from_secs(61);
        self.agent.wake(self.now);
        self.commit();
        self.tell(Event::Provider(ProviderEvent::Spawned {
            process: ProcessRef { pid: 8, start: 2 },
            terminal: None,
        }));
        self.commit();
        let opened = Opened {
            session: "s".into(),
            how: OpenMode::Loaded(outcomes),
            agent: "demo".into(),
            model: None,
            has_evidence: true,
        };
        let mut effects = self.session_event(SessionEvent::Opened(opened));
        effects.extend(self.commit());
        effects
    }

    /// Two messages in one batch.
    fn with_two(&mut self) {
        self.session_event(SessionEvent::TurnStarted);
        self.message(1);
        self.message(2);
        self.commit();
        self.session_event(SessionEvent::TurnEnded {
            batch: None,
            end: TurnEnd::Completed,
            text: String::new(),
        });
        let effects = self.commit();
        let [delivery] = deliveries(&effects).try_into().expect("one batch");
        assert!(delivery.text.contains("#1") && delivery.text.contains("#2"), "{}", delivery.text);
    }
}

#[test]
fn after_a_restart_each_message_has_a_fate_of_its_own() {
    let mut bench = Bench::ready();
    bench.with_two();
    let mut effects =
        bench.come_back(vec![DeliveryOutcome::Answered("done".into()), DeliveryOutcome::Unseen]);
    // The relay does not say which answers are owed: all are sent.
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    effects.extend(bench.agent.wake(bench.now));
    effects.extend(bench.commit());
    let keys: Vec<&str> = effects
        .iter()
        .flat_map(|effect| match effect {
            Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => ops.as_slice(),
            _ => &[],
        })
        .filter_map(|op| match op {
            StoreOp::OutboxAppend(row) if row.kind == RowKind::Message => Some(row.key.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(keys, ["reply:a:1"], "only what was answered is");
    let again = deliveries(&effects);
    assert!(
        again.len() == 1 && again[0].text.contains("#2") && !again[0].text.contains("#1"),
        "{again:?}"
    );
}

#[test]
fn what_the_record_holds_unanswered_is_never_said_again() {
    let mut bench = Bench::ready();
    bench.with_two();
    let effects = bench.come_back(vec![DeliveryOutcome::Unanswered, DeliveryOutcome::Unanswered]);
    let [nudge] = deliveries(&effects).try_into().expect("a word to go on");
    assert!(
        nudge.text.starts_with(RESTART_MARK) && !nudge.text.contains("do it"),
        "{}",
        nudge.text
    );
    let effects = bench.come_back(vec![DeliveryOutcome::Unanswered, DeliveryOutcome::Unanswered]);
    let [second] = deliveries(&effects).try_into().expect("a word to go on");
    assert_ne!(nudge.key, second.key, "a session that knows a key says nothing to it");
}

/// The first prompt is asked for in the record until its turn is over, also if a message joined
/// that turn.
#[test]
fn the_first_prompt_survives_a_crash_and_is_said_once() {
    let injected = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Provider(ProviderCommand::Verb {
                number,
                verb: Verb::Inject { text, .. },
                ..
            }) => Some((*number, text.clone())),
            _ => None,
        })
    };
    for (fate, want) in [
        (DeliveryOutcome::Unseen, Some("begin the work".to_string())),
        (DeliveryOutcome::Unanswered, Some(RESTART_MARK.to_string())),
        (DeliveryOutcome::Answered("done".into()), None),
    ] {
        let mut bench = Bench::ready();
        bench.agent.config.prompt = Some(Prompt {
            text: "begin the work".into(),
            digest: "d".into(),
            key: StartKey::Text,
            again: false,
        });
        bench.session_event(SessionEvent::TurnStarted);
        bench.session_event(SessionEvent::TurnEnded {
            batch: None,
            end: TurnEnd::Completed,
            text: String::new(),
        });
        let effects = bench.commit();
        assert_eq!(injected(&effects).map(|(_, text)| text).as_deref(), Some("begin the work"));
        // It dies before anything is known; the record is asked.
        let asked = bench.agent.prompt_fingerprint().expect("asked for");
        assert!(asked.is_whole && asked.is_in("beginthework", |text| text.replace(' ', "")));
        assert!(
            !asked.is_in("pleasebeginthework", |text| text.replace(' ', "")),
            "another text that holds the same words"
        );
        let again = injected(&bench.come_back(vec![fate]));
        assert_eq!(
            again.as_ref().map(|(_, text)| text.starts_with(want.as_deref().unwrap_or("?"))),
            want.map(|_| true)
        );
        let Some((number, _)) = again else { continue };
        // A turn that ends before the session has it is not its own.
        bench.session_event(SessionEvent::TurnEnded {
            batch: None,
            end: TurnEnd::Completed,
            text: String::new(),
        });
        assert!(bench.agent.prompt_fingerprint().is_some());
        bench.session_event(SessionEvent::Answered { verb: number, result: Ok(json!(null)) });
        bench.session_event(SessionEvent::TurnEnded {
            batch: Some(BatchNumber(7)),
            end: TurnEnd::Completed,
            text: String::new(),
        });
        assert!(bench.agent.prompt_fingerprint().is_none(), "over, with messages that joined it");
    }
}

/// What never reached the agent is told to its sender, also where the agent answers itself, and is
/// not told as read.
#[test]
fn a_refused_message_is_told_to_its_sender_and_holds_up_nobody() {
    let mut bench = Bench::ready();
    bench.agent.config.reply_mode = ReplyMode::Explicit;
    bench.message(1);
    bench.commit();
    bench.session_event(SessionEvent::TurnStarted); // of a person, at the terminal
    let effects = bench.session_event(SessionEvent::Refused {
        batch: BatchNumber(1),
        key: key_of_first(),
        why: "no".into(),
    });
    let told = effects.iter().any(|effect| match effect {
        Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
            ops.iter().any(|op| matches!(op, StoreOp::OutboxAppend(row) if row.payload["body"].as_str().is_some_and(|body| body.contains("did not reach"))))
        }
        _ => false,
    });
    assert!(told, "{effects:?}");
    let effects = bench.session_event(SessionEvent::TurnEnded {
        batch: None,
        end: TurnEnd::Completed,
        text: String::new(),
    });
    let all = [bench.commit(), effects].concat();
    let read = |effect: &Effect| format!("{effect:?}").contains("/read");
    assert!(!all.iter().any(read), "{all:?}");
    assert!(!bench.agent.turn.unread_places().any(|at| at.id == MessageId(1)));
    bench.message(2);
    let effects = bench.commit();
    assert_eq!(deliveries(&effects).len(), 1, "the next one has its turn: {effects:?}");
}
