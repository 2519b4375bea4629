//! Channels, steps of typing, and proofs, each as a table.

use super::*;
use crate::core::ids::BatchNumber;
use crate::core::session::Output;
use crate::core::time::Wall;
use crate::provider::claude::screen::{Dialog, InputBox, ScreenState};

const HEADER: &str = "[relay message #1 from user]";

struct Rig {
    sender: Sender,
    observed: Observed,
    turns: Turns,
    out: Out,
    now: Now,
}

fn delivery(person: bool, urgent: bool) -> Delivery {
    let text = format!("{HEADER}\ndo it");
    Delivery { batch: BatchNumber(1), key: "key".into(), text, person, urgent }
}

impl Rig {
    fn new(terminal: bool, has_socket: bool) -> Rig {
        let socket = has_socket.then(|| "/s".to_string());
        let start = Start { terminal, mailbox: socket.clone(), socket, ..Start::default() };
        let mut rig = Rig {
            sender: Sender::new(&start),
            observed: Observed::new(terminal),
            turns: Turns::new(false),
            out: Out::default(),
            now: Now { tick: Tick(1_000_000_000), wall: Wall(1_000_000) },
        };
        rig.observed.on_registry(Some(r#"{"status":"idle"}"#));
        rig
    }

    /// A text of a person, seen in the box and submitted.
    fn pasted() -> Rig {
        let mut rig = Rig::new(true, false);
        rig.sender.deliver(delivery(true, false));
        rig.next();
        rig.show(Some(InputBox::Empty), None);
        rig.show(Some(InputBox::Text(HEADER.into())), None);
        assert!(rig.sender.has_unproven());
        rig.out.take();
        rig
    }

    fn around(&mut self) -> (&mut Sender, SenderContext<'_>) {
        let Rig { sender, observed, turns, out, now } = self;
        let registry = observed.registry_word(turns.quiet_at(), false);
        (
            sender,
            SenderContext {
                now: *now,
                keys: TerminalKeys::default(),
                registry,
                observed,
                turns,
                out,
            },
        )
    }

    fn next(&mut self) {
        let (sender, mut around) = self.around();
        sender.next(Gate::Open, &mut around);
    }

    fn show(&mut self, input: Option<InputBox>, dialog: Option<Dialog>) {
        self.observed.keep_screen(ScreenState { dialog, input, ..ScreenState::default() });
        let (sender, mut around) = self.around();
        sender.on_screen(&mut around);
    }

    fn pass(&mut self, time: Duration) {
        self.now.tick = self.now.tick + time;
        self.now.wall.0 += time.as_millis() as i64;
    }

    fn wake(&mut self) -> Due {
        let (sender, mut around) = self.around();
        sender.wake(&mut around)
    }

    /// The outputs in short.
    fn acts(&mut self) -> String {
        let act = |output| match output {
            Output::CaptureScreen => "look".into(),
            Output::Paste(_) => "paste".into(),
            Output::Press(key) => key.to_string(),
            Output::WriteSocket { .. } => "post".into(),
            Output::Event(SessionEvent::Announce { .. }) => "announce".into(),
            Output::Event(SessionEvent::Fact { value, .. }) => value.to_string(),
            Output::Event(SessionEvent::Refused { .. }) => "refused".into(),
            Output::Event(SessionEvent::TurnEnded { .. }) => "no turn".into(),
            Output::Event(SessionEvent::Log { .. }) => "note".into(),
            other => format!("{other:?}"),
        };
        self.out.take().into_iter().map(act).collect::<Vec<String>>().join(" ")
    }
}

#[test]
fn provenance_and_terminal_decide_the_channel() {
    // terminal, socket, person, urgent, a turn runs -> what is done
    for (terminal, socket, person, urgent, runs, want) in [
        (true, true, true, false, false, "look"),
        (true, true, false, false, false, "post"),
        (true, false, false, false, false, "look"),
        (false, true, true, false, false, "post"),
        (false, false, true, false, false, "announce"),
        (true, true, true, false, true, ""),
        (true, true, true, true, true, "post"),
        (true, false, true, true, true, ""),
        (false, false, true, true, true, "announce"),
    ] {
        let mut rig = Rig::new(terminal, socket);
        if runs {
            rig.turns.begin(rig.now, rig.now.wall.0, false, RegistryWord::Busy);
        }
        rig.sender.deliver(delivery(person, urgent));
        rig.next();
        assert_eq!(rig.acts(), want, "{terminal} {socket} {person} {urgent} {runs}");
        assert_eq!(rig.sender.has_unproven(), !matches!(want, "" | "look"));
    }
}

#[test]
fn nothing_goes_while_the_gate_is_closed_or_a_proof_is_due() {
    let mut rig = Rig::new(true, true);
    rig.sender.deliver(delivery(false, false));
    let (sender, mut around) = rig.around();
    sender.next(Gate::Closed, &mut around);
    assert_eq!(rig.acts(), "");
    rig.next();
    rig.sender.deliver(delivery(false, false));
    rig.next();
    assert_eq!(rig.acts(), "post", "the second one waits for the proof of the first");
}

#[test]
fn each_picture_leads_to_one_step() {
    let text = |text: &str| Some(InputBox::Text(text.into()));
    let wipe = "C-e C-u C-u C-u C-u C-k";
    for (input, dialog, want) in [
        (Some(InputBox::Empty), None, "paste"),
        (text("somebody's draft"), None, "C-s"),
        (text(HEADER), None, wipe),
        (text("[Pasted text #1]"), None, "C-s"),
        (None, Some(Dialog::Permission), ""),
        (None, None, ""),
    ] {
        let mut rig = Rig::new(true, false);
        rig.sender.deliver(delivery(true, false));
        rig.next();
        rig.acts();
        rig.show(input.clone(), dialog);
        assert_eq!(rig.acts(), want, "{input:?} {dialog:?}");
    }
}

#[test]
fn enter_is_pressed_only_when_the_text_is_seen() {
    let text = Some(InputBox::Text(HEADER.into()));
    for (input, dialog, want) in [
        (text, None, "Enter"),
        (Some(InputBox::Empty), None, ""),
        (None, Some(Dialog::Permission), ""),
    ] {
        let mut rig = Rig::new(true, false);
        rig.sender.deliver(delivery(true, false));
        rig.next();
        rig.show(Some(InputBox::Empty), None);
        rig.acts();
        rig.show(input.clone(), dialog);
        assert_eq!(rig.acts(), want, "{input:?}");
    }
}

#[test]
fn a_prompt_hook_proves_unless_the_text_only_waits() {
    for (foreign, want) in [(false, HookProof::Arrived(0)), (true, HookProof::Waits)] {
        let mut rig = Rig::pasted();
        rig.turns.begin(rig.now, rig.now.wall.0, false, RegistryWord::Busy);
        rig.turns.set_prompt("p", String::new(), !foreign);
        assert_eq!(rig.sender.on_prompt_hook("another", &rig.turns), HookProof::NotOurs);
        let found = rig.sender.on_prompt_hook(&format!("{HEADER} do it"), &rig.turns);
        assert_eq!(found, want, "foreign={foreign}");
    }
}

#[test]
fn what_is_not_proven_in_time_is_looked_into() {
    #[derive(Debug, Clone, Copy)]
    enum Case {
        Missed,
        Queued,
        Dialog,
        TurnRuns,
        NoSource,
    }
    let again = Due::Settled;
    for (case, want, acts) in [
        (Case::Missed, again, "note"),
        (Case::Queued, Due::Nothing, "\"not proven yet: it waits in the session's own queue\""),
        (Case::Dialog, Due::Nothing, "\"not proven yet: the session is not at its prompt\""),
        (Case::TurnRuns, Due::Nothing, "\"not proven yet: the session is not at its prompt\""),
        (Case::NoSource, Due::Nothing, ""),
    ] {
        let mut rig = Rig::pasted();
        rig.sender.on_source();
        rig.observed
            .keep_screen(ScreenState { input: Some(InputBox::Empty), ..ScreenState::default() });
        match case {
            Case::Missed => {}
            Case::Queued => rig.sender.on_enqueued(&format!("{HEADER} do it")),
            Case::Dialog => rig.observed.keep_screen(ScreenState::default()),
            Case::TurnRuns => rig.turns.begin(rig.now, rig.now.wall.0, false, RegistryWord::Busy),
            Case::NoSource => rig.sender.has_source = false,
        }
        rig.pass(Duration::from_secs(2));
        assert_eq!(rig.wake(), Due::Nothing, "first the Enter is checked");
        rig.acts();
        rig.pass(PROOF_TIME);
        assert_eq!(rig.wake(), want, "{case:?}");
        assert_eq!(rig.acts(), acts, "{case:?}");
    }
}

#[test]
fn an_enter_that_was_lost_is_pressed_again_and_then_given_up() {
    let mut rig = Rig::pasted();
    let in_box = || Some(InputBox::Text(HEADER.into()));
    let mut enters = 0;
    for _ in 0..40 {
        rig.pass(Duration::from_secs(2));
        if rig.wake() == Due::Settled {
            break;
        }
        rig.acts();
        rig.show(in_box(), None);
        enters += usize::from(rig.acts().contains("Enter"));
    }
    assert_eq!(enters, 2, "after the first one");
    assert_eq!(rig.acts(), "note refused no turn");
    assert!(!rig.sender.has_unproven());
    rig.show(in_box(), None);
    assert_eq!(rig.acts(), "C-e C-u C-u C-u C-u C-u C-k", "nobody sends it by mistake");
}

#[test]
fn refusals_of_the_socket_are_heard() {
    // status -> what is done, a text is still on its way, the socket can be used
    for (status, want, on_its_way, usable) in [
        ("delivered", "", true, true),
        ("held", "\"held by the session: allow it with `agent-relay attach`\"", true, true),
        ("denied", "note refused no turn", false, true),
        ("dropped", "note", false, true),
        ("unknown", "note", false, false),
    ] {
        let mut rig = Rig::new(true, true);
        rig.sender.deliver(delivery(false, false));
        rig.next();
        rig.acts();
        let line = json!({"action": "peer_message_status", "orig_msg_id": "key", "status": status});
        let receipt = rig.sender.on_receipt(rig.now, &line.to_string(), &mut rig.out);
        for (receipt, key) in
            receipt.iter().flat_map(|(receipt, keys)| keys.iter().map(|key| (*receipt, key)))
        {
            let (sender, mut around) = rig.around();
            assert!(sender.settle_receipt(key, receipt, &mut around));
        }
        assert_eq!(rig.acts(), want, "{status}");
        assert_eq!(rig.sender.has_unproven(), on_its_way, "{status}");
        assert_eq!(rig.sender.socket.is_usable(&rig.observed), usable, "{status}");
        assert_eq!(rig.sender.socket.pauses(rig.now), status == "dropped", "{status}");
    }
}

#[test]
fn what_a_monitor_named_is_proven_when_all_of_it_was_fetched() {
    let mut rig = Rig::new(false, false);
    let text = format!("{HEADER}\na\n[relay message #2 from user]\nb");
    rig.sender.deliver(Delivery { text, ..delivery(true, false) });
    rig.next();
    assert_eq!(rig.acts(), "announce");
    assert_eq!(rig.sender.on_fetched(&[2, 9]), None);
    rig.pass(PROOF_TIME);
    assert_eq!(rig.wake(), Due::Nothing);
    assert!(rig.acts().ends_with("announce"), "it is named again");
    assert_eq!(rig.sender.on_fetched(&[1]), Some(0));
}
