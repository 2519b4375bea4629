use serde_json::{Value, json};

use super::*;

fn documents(line: impl AsRef<[u8]>) -> Vec<(Value, Damage)> {
    read_line(line.as_ref()).into_iter().map(|found| (found.value, found.damage)).collect()
}

#[test]
fn what_is_in_order_is_read_as_it_is() {
    for line in ["{\"a\":[1,3.0,\"\u{2028}\",{\"b\":null}]}", "  {\"a\":true}\r"] {
        let value: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(documents(line), [(value, Damage::None)], "{line}");
        assert_eq!(damage_of(line.as_bytes()), Damage::None, "{line}");
    }
    for line in ["", "  ", "[1]", "5", "ready {\"a\":1}", "\u{1b}[32m{\"a\":1}", "{a}x\u{0}"] {
        let found = documents(line);
        assert!(found.iter().all(|(value, _)| *value == json!({})), "{line}: {found:?}");
    }
}

#[test]
fn every_damage_is_mended_as_far_as_it_goes() {
    use Damage::{Broken, None, Patched};
    for (line, want, damage) in [
        // Characters.
        (r#"{"a":"x\ud83d"}"#, json!({"a": "x\u{fffd}"}), Patched),
        (r#"{"a":"\ud83d\ude00 \ude00 \ud83d!"}"#, json!({"a": "😀 \u{fffd} \u{fffd}!"}), Patched),
        (r#"{"a\ud83d":1}"#, json!({"a\u{fffd}": 1}), Patched),
        ("{\"a\":\"x\ty\u{1}z\"}", json!({"a": "x\ty\u{fffd}z"}), Patched),
        (r#"{"a":"\x \u12"}"#, json!({"a": "\u{fffd}x \u{fffd}u12"}), Patched),
        // In front and behind.
        ("\u{feff}{\"a\":1}", json!({"a": 1}), None),
        ("\0\0{\"a\":1}\0", json!({"a": 1}), None),
        // Numbers and words.
        (r#"{"a":1e999,"b":-1e999,"c":2}"#, json!({"a": null, "b": null, "c": 2}), Patched),
        (r#"{"a":NaN,"b":[undefined]}"#, json!({"a": null, "b": [null]}), Patched),
        (r#"{"a":[+1,.5,],}"#, json!({"a": [1.0, 0.5]}), None),
        // Cut off.
        (r#"{"a":"x"#, json!({"a": "x"}), Broken),
        (r#"{"a":"x\"#, json!({"a": "x\u{fffd}"}), Broken),
        (r#"{"a":[{"b":tr"#, json!({"a": [{"b": null}]}), Broken),
        (r#"{"a":1,"id":12"#, json!({"a": 1, "id": null}), Broken),
        (r#"{"a":1,"res"#, json!({"a": 1, "res": null}), Broken),
        (r#"{"a":1,"result":"#, json!({"a": 1, "result": null}), Broken),
        (r#"{"a":1,"#, json!({"a": 1}), Broken),
        (r#"{"a":1]"#, json!({"a": 1}), Broken),
    ] {
        assert_eq!(documents(line), [(want, damage)], "{line}");
    }
    assert_eq!(documents(b"{\"a\":\"caf\xe9\"}"), [(json!({"a": "caf\u{fffd}"}), Patched)]);
}

#[test]
fn two_objects_of_a_line_are_two() {
    let (first, second) = (json!({"a": [1, "}"]}), json!({"b": {"c": "{"}}));
    let whole = |value: &Value| (value.clone(), Damage::None);
    let line = format!("{first}{second}");
    assert_eq!(documents(&line), [whole(&first), whole(&second)]);
    // The first one was cut off, wherever that was: behind a quotation mark within a text or a
    // name, or between two values.
    for head in
        ["{\"a\":\"hello wor", "{\"a\":\"", "{\"a\":1,\"na", "{\"a\":1", "{\"a\":1,", "{\"a\""]
    {
        let found = documents(format!("{head}{second}"));
        assert_eq!(found.len(), 2, "{head}: {found:?}");
        assert_eq!(found[0].1, Damage::Broken, "{head}");
        assert_eq!(found[1], whole(&second), "{head}");
    }
    assert!(documents("{\"a\":1}".repeat(1000)).len() < 20, "they are counted");
}

#[test]
fn nesting_is_cut_where_it_would_hurt_and_nothing_overflows() {
    let nested = format!("{{\"a\":1,\"deep\":{}5{},\"b\":2}}", "[".repeat(200), "]".repeat(200));
    let found = documents(&nested);
    assert_eq!((found.len(), found[0].1), (1, Damage::Patched));
    assert_eq!((&found[0].0["a"], &found[0].0["b"]), (&json!(1), &json!(2)));
    assert!(found[0].0.to_string().contains("unreadable: nested too deeply"));
    for hostile in ["[".repeat(100_000), "{\"a\":".repeat(100_000), "{\"".repeat(100_000)] {
        documents(&hostile);
        documents(format!("{{\"x\":{hostile}"));
    }
}

#[test]
fn a_name_that_stands_twice_is_seen_where_somebody_judges_by_what_he_sees() {
    for (line, want) in [
        (r#"{"command":"ls","command":"rm"}"#, Damage::Patched),
        (r#"{"a":{"command":"ls","\u0063ommand":"rm"}}"#, Damage::Patched),
        (r#"{"a":{"command":"ls"},"b":{"command":"rm"}}"#, Damage::None),
        (r#"[]"#, Damage::Broken),
    ] {
        assert_eq!(damage_of(line.as_bytes()), want, "{line}");
    }
}

#[test]
fn a_whole_number_may_have_a_point() {
    for (value, want) in [
        (json!(3), Some(3)),
        (json!(3.0), Some(3)),
        (json!(-32000.0), Some(-32000)),
        (json!(3.5), None),
        (json!(1e300), None),
        (json!("3"), None),
        (Value::Null, None),
    ] {
        assert_eq!(whole(&value), want, "{value}");
    }
}

#[test]
fn only_what_was_not_damaged_identifies() {
    for (line, want) in [
        (r#"{"id":"abc","title":"\ud83d"}"#, Some("abc")),
        (r#"{"id":"ab\ud83d"}"#, None),
        (r#"{"title":"x","id":"ab"#, None),
        (r#"{"id":5}"#, None),
    ] {
        let document = read(line.as_bytes()).expect("an object");
        assert_eq!(document.identity("id"), want, "{line}");
    }
}

#[test]
fn a_damaged_payload_says_so() {
    for (damage, mut payload) in [
        (Damage::Patched, json!({"a": 1})),
        (Damage::Broken, Value::Null),
        (Damage::None, json!(5)),
    ] {
        damage.mark(&mut payload);
        assert_eq!(Damage::of(&payload), damage);
    }
    assert_eq!(Damage::None.title("touch x"), "touch x");
    assert_eq!(Damage::Patched.title("touch x"), "unreadable in part: touch x");
    assert_eq!(Damage::Broken.title(" "), "unreadable: a request for permission");
}
