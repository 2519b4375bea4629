//! Connections: each is read by a thread of its own and written under a lock.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use crate::listen::Stream;

fn write_text(stream: &Stream, text: &str) {
    let Ok(stream) = stream.try_clone() else { return };
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    let _ = socket.send(Message::text(text));
}

/// Who is connected, and what is asked of them.
#[derive(Default)]
pub struct Clients {
    all: Mutex<BTreeMap<usize, Stream>>,
    next: Mutex<usize>,
    /// The open request, and its first answer.
    open: Mutex<Option<(Value, Option<Value>)>>,
    asked: Mutex<u64>,
}

fn write(stream: &Stream, frame: &Value) {
    write_text(stream, &frame.to_string());
}

impl Clients {
    /// Reads a client until it goes.
    pub fn serve(&self, mut socket: WebSocket<Stream>, mut on: impl FnMut(usize, Value)) {
        let id = {
            let mut next = self.next.lock().expect("a lock");
            *next += 1;
            *next
        };
        let writer = socket.get_ref().try_clone().expect("a second handle");
        self.all.lock().expect("a lock").insert(id, writer);
        while let Ok(message) = socket.read() {
            if let Message::Text(text) = message
                && let Ok(frame) = serde_json::from_str(&text)
            {
                on(id, frame);
            }
        }
        self.all.lock().expect("a lock").remove(&id);
    }

    /// For one client.
    pub fn say(&self, id: usize, frame: &Value) {
        if let Some(stream) = self.all.lock().expect("a lock").get(&id) {
            write(stream, frame);
        }
    }

    /// For all.
    pub fn tell(&self, frame: &Value) {
        self.all.lock().expect("a lock").values().for_each(|stream| write(stream, frame));
    }

    /// For all, whatever it is.
    pub fn tell_text(&self, text: &str) {
        self.all.lock().expect("a lock").values().for_each(|stream| write_text(stream, text));
    }

    /// All connections break.
    pub fn drop_all(&self) {
        for stream in std::mem::take(&mut *self.all.lock().expect("a lock")).into_values() {
            stream.shutdown();
        }
    }

    /// Asks all clients and waits for the first answer, or until it is given up.
    pub fn ask(&self, method: &str, params: &Value, given_up: impl Fn() -> bool) -> Option<Value> {
        let id = {
            let mut asked = self.asked.lock().expect("a lock");
            *asked += 1;
            *asked - 1
        };
        let frame = json!({"id": id, "method": method, "params": params});
        *self.open.lock().expect("a lock") = Some((frame.clone(), None));
        self.tell(&frame);
        loop {
            std::thread::sleep(Duration::from_millis(10));
            let mut open = self.open.lock().expect("a lock");
            match &*open {
                Some((_, None)) if !given_up() => {}
                _ => return open.take().and_then(|(_, answer)| answer),
            }
        }
    }

    /// The first answer counts. True: it was it.
    pub fn decide(&self, id: &Value, answer: &Value) -> bool {
        match &mut *self.open.lock().expect("a lock") {
            Some((frame, first @ None)) if frame["id"] == *id => {
                *first = Some(answer.clone());
                true
            }
            _ => false,
        }
    }

    /// An open request is told again to whom comes back.
    pub fn ask_again(&self, id: usize) {
        if let Some((frame, None)) = &*self.open.lock().expect("a lock") {
            self.say(id, frame);
        }
    }
}
