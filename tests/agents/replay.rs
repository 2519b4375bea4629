//! An agent that plays a recording of a real one: what was recorded as its output comes when the
//! recorded input has come. `replay FILE`: methods are matched in order, ids are translated, what
//! the recording does not know is answered `{}`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, Write};

use serde_json::{Value, json};

fn main() {
    let path = std::env::args().nth(1).expect("a recording");
    let text = std::fs::read_to_string(path).expect("reads");
    let mut lines: VecDeque<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // Recorded ids of the client's requests, as this client numbers them.
    let mut ids: BTreeMap<String, Value> = BTreeMap::new();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(frame) = serde_json::from_str::<Value>(&line) else { continue };
        // What the recorded client did beyond that is passed over, and so is what it was told then.
        let wanted =
            |line: &Value| line["dir"] == "out" && line["frame"]["method"] == frame["method"];
        let Some(at) = lines.iter().position(wanted) else {
            if frame["method"].is_string() && !frame["id"].is_null() {
                let _ = writeln!(
                    output,
                    "{}",
                    json!({"jsonrpc": "2.0", "id": frame["id"], "result": {}})
                );
            }
            continue;
        };
        let recorded = lines[at]["frame"].clone();
        lines.drain(..=at);
        ids.insert(recorded["id"].to_string(), frame["id"].clone());
        // Everything that the real one said before it needed its client again.
        while lines.front().is_some_and(|line| line["dir"] == "in") {
            let line = lines.pop_front().expect("looked at above");
            let mut said = line["frame"].clone();
            if said.is_null() {
                let _ = writeln!(output, "{}", line["text"].as_str().unwrap_or_default());
                continue;
            }
            if said["method"].is_null()
                && let Some(id) = ids.get(&said["id"].to_string())
            {
                said["id"] = id.clone();
            }
            let _ = writeln!(output, "{said}");
        }
        let _ = output.flush();
    }
}
