//! What the hub's gate makes of each thing that happens there: it is refused by its shape, or goes
//! to the state thread.

use crate::core::cost::outer_member;
use crate::core::hub::event::Event;
use crate::core::limits::URGENT_BYTES_MAX;
use crate::edge::gate::{GateEvent, Handled};
use crate::wire::api::error_body;
use crate::wire::bus::RelayFrame;

/// Hears each event of the gate.
pub(super) fn handler(event: GateEvent) -> Handled<Event> {
    match event {
        GateEvent::Request(ticket, request) => match request.cost.refusal() {
            Some((code, text)) => Handled::Answer(422, error_body(code, &text).into()),
            None => Handled::Forward(Event::Request { ticket, request }),
        },
        GateEvent::Upgrade(ticket, request) if request.path.ends_with("/bus") => {
            Handled::Forward(Event::Upgrade { ticket, request })
        }
        GateEvent::Upgrade(..) => {
            Handled::Answer(404, error_body("not_found", "the bus is at /bus").into())
        }
        GateEvent::PeerText(peer, text, cost) => match cost.refusal() {
            Some((code, why)) => Handled::Reply(refused_frame(&text, code, why)),
            None => Handled::Forward(Event::PeerText { peer, text }),
        },
        GateEvent::PeerClosed(peer) => Handled::Forward(Event::PeerClosed { peer }),
    }
}

/// Signs of life and acknowledgements do not wait behind any crowd.
pub(super) fn is_urgent(event: &GateEvent) -> bool {
    match event {
        GateEvent::Request(_, request) => {
            request.cost.bytes <= URGENT_BYTES_MAX && request.path.ends_with("/heartbeat")
        }
        GateEvent::PeerText(_, text, cost) => {
            cost.bytes <= URGENT_BYTES_MAX
                && matches!(outer_member(text, "type"), Some("heartbeat" | "ack"))
        }
        GateEvent::PeerClosed(_) => true,
        GateEvent::Upgrade(..) => false,
    }
}

/// What the sender of a frame hears that is not read.
fn refused_frame(text: &str, code: &str, message: String) -> String {
    let id = outer_member(text, "id").map(str::to_string);
    RelayFrame::Error { id, code: code.into(), message, retryable: false }.to_text()
}
