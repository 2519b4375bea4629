//! `config`: the settings files of this machine, shown without their secrets and changed whole.

use std::io::Read;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::args::Config;
use super::exit::{Failure, OK, Outcome};
use super::print;
use crate::config::{home, read_record};
use crate::os;
use crate::provider::registry;

/// Stands for a value that is nobody's to see.
const MASK: &str = "********";
/// What the name of a secret holds, in any case.
const SECRET: [&str; 4] = ["token", "secret", "key", "password"];
/// The beginning of a value that only names a variable.
const VARIABLE: &str = "$env:";
/// Bytes of a value.
const VALUE_BYTES_MAX: u64 = 64 << 10;

/// `config`
pub fn config(asked: &Config) -> Outcome {
    let words: Vec<&str> = asked.words.iter().map(String::as_str).collect();
    let (action, words) = words.split_first().unwrap_or((&"get", &[]));
    match (*action, words) {
        ("path", []) => print::line(&file(None)?.display().to_string()),
        ("path", [name]) => print::line(&file(Some(name))?.display().to_string()),
        ("get", []) => show(None, None)?,
        ("get", [name]) => show(Some(name), None)?,
        ("get", [name, field]) => show(Some(name), Some(field))?,
        ("set", [name, field]) if asked.stdin => set(name, field, &standard_input()?)?,
        ("set", [name, field, value]) if !asked.stdin => set(name, field, value)?,
        _ => {
            return Err(Failure::usage(
                "say `config path [PROVIDER]`, `config get [PROVIDER [FIELD]]`, or `config set PROVIDER FIELD VALUE` (--stdin reads the value)",
            ));
        }
    }
    Ok(OK)
}

/// The file of a provider, or the one of everything else.
fn file(provider: Option<&str>) -> Result<PathBuf, Failure> {
    let home = home()?;
    let Some(name) = provider else { return Ok(home.join("config.json")) };
    if registry::by_name(name).is_none() {
        let known = registry::names();
        return Err(Failure::usage(format!("there is no provider {name:?}; there are {known}")));
    }
    Ok(home.join("providers").join(format!("{name}.json")))
}

/// A value as it may be seen, by the name of its field.
fn masked(name: &str, value: &Value) -> Value {
    let lower = name.to_lowercase();
    let is_secret = SECRET.iter().any(|word| lower.contains(word));
    let names_variable = value.as_str().is_some_and(|text| text.starts_with(VARIABLE));
    match value {
        Value::Null => Value::Null,
        _ if is_secret && !names_variable => json!(MASK),
        value => value.clone(),
    }
}

/// What everybody may see of a file. Names count where they are a person's own: in `env`, and for
/// the token of everything.
fn public(path: &std::path::Path, record: &Map<String, Value>) -> Map<String, Value> {
    let mut all = Map::from_iter([("path".to_string(), json!(path))]);
    for (name, value) in record {
        let shown = match value {
            Value::Object(env) if name == "env" => {
                env.iter().map(|(name, value)| (name.clone(), masked(name, value))).collect()
            }
            value if name == "token" => masked(name, value),
            value => value.clone(),
        };
        all.insert(name.clone(), shown);
    }
    all
}

fn show(provider: Option<&str>, field: Option<&str>) -> Result<(), Failure> {
    let path = file(provider)?;
    let all = Value::Object(public(&path, &read_record(&path)?));
    let found = match field {
        None => Some(&all),
        Some(field) => field.split('.').try_fold(&all, |value, part| value.get(part)),
    };
    match found {
        Some(Value::String(text)) => print::line(text),
        Some(value) => print::json(value),
        None => {
            let field = field.unwrap_or_default();
            return Err(Failure::no(format!("{} does not say {field}", path.display())));
        }
    }
    Ok(())
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(VALUE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
    Ok(text.trim_end_matches('\n').to_string())
}

/// A value is JSON, or else a text; null takes the field away.
fn set(provider: &str, field: &str, value: &str) -> Result<(), Failure> {
    let path = file(Some(provider))?;
    let mut record = read_record(&path)?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    let (outer, inner) = match field.split_once('.') {
        None => (field, None),
        Some((outer, inner)) => (outer, Some(inner)),
    };
    if outer.is_empty() || outer == "path" || inner == Some("") {
        return Err(Failure::usage(format!("{field:?} is no field of a provider's settings")));
    }
    match inner {
        None => put(&mut record, outer, value),
        Some(inner) => {
            let within = record.entry(outer).or_insert_with(|| json!({}));
            let Some(within) = within.as_object_mut() else {
                let text = format!("{outer} in {} holds no fields", path.display());
                return Err(Failure::usage(text));
            };
            put(within, inner, value);
        }
    }
    let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
    let failed = |error: std::io::Error| {
        Failure::system(format!("cannot write {}: {error}", path.display()))
    };
    os::write_private_file(&path, &text).map_err(failed)?;
    print::line(&format!("{field} is set in {}; it counts at the next start", path.display()));
    Ok(())
}

fn put(record: &mut Map<String, Value>, name: &str, value: Value) {
    match value {
        Value::Null => drop(record.remove(name)),
        value => drop(record.insert(name.to_string(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let record = json!({
            "token": "t", "command": "key", "approvalMode": "open",
            "env": {
                "ANTHROPIC_API_KEY": "sk-1", "My_Password": 5, "TOKEN": "$env:OTHER", "PATH": "/bin",
                "SECRET": null
            }
        });
        let record = record.as_object().expect("a record");
        let shown = Value::Object(public(std::path::Path::new("/x.json"), record));
        let want = json!({
            "path": "/x.json", "token": MASK, "command": "key", "approvalMode": "open",
            "env": {
                "ANTHROPIC_API_KEY": MASK, "My_Password": MASK, "TOKEN": "$env:OTHER",
                "PATH": "/bin", "SECRET": null
            }
        });
        assert_eq!(shown, want);
    }
}
