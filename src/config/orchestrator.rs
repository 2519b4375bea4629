//! Settings of an orchestrator: `orchestrator.json` in the home folder. A setting that is wrong is
//! an error: a host that takes more than it should is noticed too late.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Trouble, read_record, restart_policy};
use crate::core::agent::config::RestartPolicy;
use crate::core::orchestrator::SESSIONS_MAX;
use crate::core::orchestrator::admission::Room;
use crate::core::orchestrator::options::is_variable;
use crate::core::orchestrator::systemd::Ceilings;
use crate::provider::registry;

/// What the names of sessions begin with.
const PREFIX: &str = "agent-relay";
/// Starts at once, and in the time below.
const STARTS_BURST: u64 = 40;
/// ms.
const STARTS_TIME: u64 = 20_000;

/// Names of the settings.
const KNOWN: [&str; 13] = [
    "tmuxPrefix",
    "baseDir",
    "hostname",
    "env",
    "apiPort",
    "maxSessions",
    "memoryKept",
    "memoryExpected",
    "startsMax",
    "startsWindowMs",
    "restart",
    "providers",
    "token",
];

/// What the file says.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct OrchestratorSettings {
    pub prefix: String,
    pub base_dir: Option<PathBuf>,
    pub hostname: Option<String>,
    pub env: BTreeMap<String, String>,
    pub api_port: Option<u16>,
    /// A token of the orchestrator's own, where no root token is at hand.
    pub token: Option<String>,
    pub room: Room,
    pub starts_burst: u32,
    pub starts_time: Duration,
    pub restart: RestartPolicy,
    /// Ceilings by provider.
    pub ceilings: BTreeMap<String, Ceilings>,
}

impl OrchestratorSettings {
    /// Reads `<home>/orchestrator.json`; without one everything has its default.
    pub fn load(home: &Path) -> Result<OrchestratorSettings, Trouble> {
        let path = home.join("orchestrator.json");
        let record = read_record(&path)?;
        OrchestratorSettings::read(&record)
            .map_err(|text| Trouble::Broken(format!("{}: {text}", path.display())))
    }

    fn read(record: &Map<String, Value>) -> Result<OrchestratorSettings, String> {
        if let Some(name) = record.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(format!("the setting {name:?} is not known; use {}", KNOWN.join(", ")));
        }
        let told = |name: &str| record.get(name).filter(|value| !value.is_null());
        let text = |name: &str| match told(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(format!("{name:?} must be a text in quotes")),
        };
        let number = |name: &str, default: u64, most: u64| match told(name) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|number| (1..=most).contains(number))
                .ok_or_else(|| format!("{name:?} must be a number from 1 to {most}")),
        };
        let room = Room::default();
        let prefix = text("tmuxPrefix")?.unwrap_or_else(|| PREFIX.into());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !prefix.chars().all(plain) || prefix.len() > 40 {
            return Err("\"tmuxPrefix\" must be small letters, digits and hyphens".into());
        }
        let port = number("apiPort", 0, u64::from(u16::MAX))?;
        let restart = told("restart").and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(OrchestratorSettings {
            prefix,
            base_dir: text("baseDir")?.map(PathBuf::from),
            hostname: text("hostname")?,
            token: text("token")?,
            env: environment(told("env"))?,
            api_port: u16::try_from(port).ok().filter(|port| *port > 0),
            room: Room {
                sessions_max: number("maxSessions", room.sessions_max as u64, SESSIONS_MAX as u64)?
                    as usize,
                memory_kept: number("memoryKept", room.memory_kept, u64::MAX)?,
                memory_expected: number("memoryExpected", room.memory_expected, u64::MAX)?,
            },
            starts_burst: number("startsMax", STARTS_BURST, 10_000)? as u32,
            starts_time: Duration::from_millis(number("startsWindowMs", STARTS_TIME, 86_400_000)?),
            restart: restart_policy(&restart),
            ceilings: ceilings(told("providers"))?,
        })
    }
}

fn environment(told: Option<&Value>) -> Result<BTreeMap<String, String>, String> {
    let Some(told) = told else { return Ok(BTreeMap::new()) };
    let pairs = told.as_object().into_iter().flatten().map(|(name, value)| {
        let value = value.as_str().filter(|_| is_variable(name))?;
        Some((name.clone(), value.to_string()))
    });
    let all: Option<BTreeMap<String, String>> = pairs.collect();
    all.filter(|_| told.is_object()).ok_or_else(|| "\"env\" must be a map of texts".to_string())
}

fn ceilings(told: Option<&Value>) -> Result<BTreeMap<String, Ceilings>, String> {
    let mut all = BTreeMap::new();
    for (name, value) in told.and_then(Value::as_object).into_iter().flatten() {
        if registry::by_name(name).is_none() {
            return Err(format!("\"providers\" names {name:?}; there are {}", registry::names()));
        }
        let read: Ceilings = serde_json::from_value(value.clone())
            .map_err(|error| format!("\"providers.{name}\": {error}"))?;
        read.check().map_err(|text| format!("\"providers.{name}\": {text}"))?;
        all.insert(name.clone(), read);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(told: Value) -> Result<OrchestratorSettings, String> {
        OrchestratorSettings::read(told.as_object().expect("a record"))
    }

    #[test]
    fn settings_have_defaults_and_wrong_ones_are_refused() {
        let plain = read(json!({})).expect("reads");
        assert_eq!((plain.prefix.as_str(), plain.api_port), ("agent-relay", None));
        assert_eq!(plain.room, Room::default());
        let name = registry::PROVIDERS[0].name;
        let told = read(json!({
            "maxSessions": 3, "apiPort": 4990, "env": {"A": "b"}, "restart": {"exitsMax": 2},
            "providers": {name: {"memoryMax": 2097152}},
        }))
        .expect("reads");
        assert_eq!((told.room.sessions_max, told.api_port), (3, Some(4990)));
        assert_eq!(told.ceilings[name].memory_max, Some(2 << 20));
        assert_eq!(told.restart.exits_max, 2);
        for (told, want) in [
            (json!({"maxSession": 3}), "is not known"),
            (json!({"maxSessions": 0}), "from 1 to 1000"),
            (json!({"maxSessions": "3"}), "from 1 to 1000"),
            (json!({"apiPort": 70000}), "from 1 to 65535"),
            (json!({"tmuxPrefix": "A/b"}), "small letters"),
            (json!({"env": {"A": 5}}), "map of texts"),
            (json!({"env": []}), "map of texts"),
            (json!({"providers": {"nobody": {}}}), "there are"),
            (json!({"providers": {name: {"memoryMax": 5}}}), "memoryMax"),
        ] {
            let refused = read(told.clone()).expect_err("is refused");
            assert!(refused.contains(want), "{told}: {refused}");
        }
    }
}
