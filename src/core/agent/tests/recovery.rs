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

/// The next start that an agent orders after this end of one: whether it goes on with the
/// conversation, and where its sockets go. `None`: it orders none.
fn next_start(bench: &mut Bench, event: ProviderEvent) -> Option<(bool, usize)> {
    let mut effects = bench.tell(Event::Provider(event));
    effects.extend(bench.commit());
    effects.into_iter().find_map(|effect| match effect {
        Effect::Provider(ProviderCommand::Spawn { refused, folder, .. }) => {
            Some((refused.is_none(), folder))
        }
        _ => None,
    })
}

impl Bench {
    /// The provider has ended, and a start is under way.
    fn starting() -> Bench {
        let mut bench = Bench::ready();
        bench.tell(Event::Provider(ProviderEvent::Exited { code: 9, stderr: String::new() }));
        bench.commit();
        bench.now.tick = bench.now.tick + Duration::from_secs(61);
        bench.agent.wake(bench.now);
        bench.commit();
        bench
    }
}

#[test]
fn a_start_that_failed_is_not_repeated_as_it_was() {
    let failed = |fault| ProviderEvent::SpawnFailed { reason: "no".into(), fault };
    let folder = |is_last| failed(StartFault::SocketFolder { is_last });
    // what the start ends with -> what follows at once, and how the agent is then
    for (event, want, word) in [
        (failed(StartFault::Conversation), Some((false, 0)), DetailedStatus::Restarting),
        (folder(false), Some((true, 1)), DetailedStatus::Restarting),
        (folder(true), None, DetailedStatus::Parked),
        (failed(StartFault::Person), None, DetailedStatus::Parked),
        (failed(StartFault::Passing), None, DetailedStatus::Restarting),
    ] {
        let mut bench = Bench::starting();
        assert_eq!(next_start(&mut bench, event.clone()), want, "{event:?}");
        assert_eq!(bench.agent.word(), word, "{event:?}");
    }
    // The other way of listening is tried once, and is the last one.
    let mut bench = Bench::starting();
    let at_port = |bench: &mut Bench| {
        let mut effects = bench.tell(Event::Provider(failed(StartFault::Listening)));
        effects.extend(bench.commit());
        effects.into_iter().find_map(|effect| match effect {
            Effect::Provider(ProviderCommand::Spawn { at_port, .. }) => Some(at_port),
            _ => None,
        })
    };
    assert_eq!(at_port(&mut bench), Some(true));
    assert_eq!((at_port(&mut bench), bench.agent.word()), (None, DetailedStatus::Parked));
    // Each try counts: in the end a person is asked.
    let mut bench = Bench::starting();
    let tries = (0..9).filter(|_| next_start(&mut bench, folder(false)).is_some()).count();
    assert_eq!((tries, bench.agent.word()), (3, DetailedStatus::Parked));
}

#[test]
fn a_refused_conversation_is_begun_anew_until_one_is_open() {
    let mut bench = Bench::starting();
    let open_fails = |bench: &mut Bench| {
        let process = ProcessRef { pid: 8, start: 2 };
        bench.tell(Event::Provider(ProviderEvent::Spawned { process, terminal: None }));
        bench.commit();
        let (reason, fault) = ("it is in use".to_string(), StartFault::Conversation);
        bench.session_event(SessionEvent::OpenFailed { reason, fault });
        let exited = ProviderEvent::Exited { code: 1, stderr: String::new() };
        next_start(bench, exited)
    };
    assert_eq!(open_fails(&mut bench), Some((false, 0)));
    assert_eq!(open_fails(&mut bench), Some((false, 0)), "under yet another id");
    let process = ProcessRef { pid: 8, start: 2 };
    bench.tell(Event::Provider(ProviderEvent::Spawned { process, terminal: None }));
    bench.commit();
    let opened = Opened {
        session: "fresh".into(),
        how: OpenMode::Lost("it is in use".into()),
        agent: "demo".into(),
        model: None,
        has_evidence: true,
    };
    bench.session_event(SessionEvent::Opened(opened));
    bench.commit();
    assert!(bench.agent.supervisor.why.contains("it is in use"), "people are told");
    bench.tell(Event::Provider(ProviderEvent::Exited { code: 9, stderr: String::new() }));
    bench.now.tick = bench.now.tick + Duration::from_secs(61);
    let mut effects = bench.agent.wake(bench.now);
    effects.extend(bench.commit());
    let goes_on = |effect: &Effect| matches!(effect, Effect::Provider(ProviderCommand::Spawn { conversation, refused: None, .. }) if conversation == "fresh");
    assert!(effects.iter().any(goes_on), "{effects:?}");
}

/// Where it listens is durable before it is used: the next runner ends what still listens there.
#[test]
fn the_terminal_of_an_earlier_runner_is_told_to_the_first_start() {
    let mut bench = Bench::starting();
    let process = ProcessRef { pid: 8, start: 2 };
    let terminal = Some("/r/tmux.sock".to_string());
    let effects = bench.tell(Event::Provider(ProviderEvent::Spawned { process, terminal }));
    let notes: Vec<(String, String)> = effects
        .iter()
        .flat_map(|effect| match effect {
            Effect::Store(StoreCommand::Commit(commit)) => commit.ops.as_slice(),
            _ => &[],
        })
        .filter_map(|op| match op {
            StoreOp::PutMeta { key, value: Some(value) } => Some((key.clone(), value.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(notes.len(), 1, "{effects:?}");
    let mut next = Bench::starting();
    next.agent.supervisor.restore(None, &notes);
    let mut effects = next.tell(Event::Provider(ProviderEvent::SpawnFailed {
        reason: "no".into(),
        fault: StartFault::Conversation,
    }));
    effects.extend(next.commit());
    let told = |effect: &Effect| matches!(effect, Effect::Provider(ProviderCommand::Spawn { left_terminal: Some(socket), .. }) if socket == "/r/tmux.sock");
    assert!(effects.iter().any(told), "{effects:?}");
}
