//! What a host tells its relay about itself: load, memory, disk, versions and sessions. Read from
//! the kernel's tables, which are parsed here; what a machine does not tell is left out.

use serde::Serialize;

use crate::core::limits::PROGRAMS_REPORTED_MAX;

/// The report.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostReport {
    pub hostname: String,
    /// Version of this program.
    pub version: String,
    /// Programs of providers that are on this host.
    pub providers: Vec<Program>,
    pub sessions: Sessions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// Processors that may be used.
    pub cpus: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Seconds since the machine has started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<u64>,
}

/// A program of a provider.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Program {
    pub provider: String,
    pub path: String,
    /// The first line of what it says when asked; none: it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How many sessions there are.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sessions {
    pub running: usize,
    /// They are started no more without being asked for.
    pub parked: usize,
}

/// Processes that want to run, on average, over 1, 5 and 15 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Load(pub f64, pub f64, pub f64);

/// Bytes of memory.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub total: u64,
    /// What can be used without swapping.
    pub available: u64,
    pub swap_total: u64,
    pub swap_free: u64,
}

/// Bytes of the disk that holds our files.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Disk {
    pub total: u64,
    /// What is left for this user.
    pub free: u64,
}

impl HostReport {
    /// The report with so many programs at most.
    pub fn bounded(mut self) -> HostReport {
        self.providers.truncate(PROGRAMS_REPORTED_MAX);
        self
    }
}

impl Load {
    /// From the text of `/proc/loadavg`.
    pub fn read(text: &str) -> Option<Load> {
        let mut numbers = text.split_whitespace();
        let mut next = || {
            let number: f64 = numbers.next()?.parse().ok()?;
            (number.is_finite() && number >= 0.0).then_some(number)
        };
        Some(Load(next()?, next()?, next()?))
    }
}

impl Memory {
    /// From the text of `/proc/meminfo`. An old kernel does not tell what is available: there it is
    /// what is free.
    pub fn read(text: &str) -> Option<Memory> {
        let bytes = |name: &str| -> Option<u64> {
            let mut rows = text.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = rows.find(|(row, _)| *row == name)?;
            let mut words = value.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            number.checked_mul(unit)
        };
        Some(Memory {
            total: bytes("MemTotal")?,
            available: bytes("MemAvailable").or_else(|| bytes("MemFree"))?,
            swap_total: bytes("SwapTotal").unwrap_or(0),
            swap_free: bytes("SwapFree").unwrap_or(0),
        })
    }
}

/// Whole seconds since the start of the machine, from the text of `/proc/uptime`.
pub fn uptime(text: &str) -> Option<u64> {
    text.split(['.', ' ']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        for (text, want) in [
            ("0.52 1.04 12.9 3/514 123456\n", Some(Load(0.52, 1.04, 12.9))),
            ("0.00 0.00 0.00 1/2 3", Some(Load(0.0, 0.0, 0.0))),
            ("0.5 1.0", None),
            ("nan 1.0 2.0 1/2 3", None),
            ("-1 1.0 2.0", None),
            ("", None),
        ] {
            assert_eq!(Load::read(text), want, "{text:?}");
        }
        let recorded = "MemTotal:       24675140 kB\nMemFree:         1048576 kB\n\
                        MemAvailable:   22675140 kB\nBuffers:           0 kB\n\
                        SwapTotal:       2097152 kB\nSwapFree:        1048576 kB\n\
                        HugePages_Total:       0\n";
        let told = Memory {
            total: 24_675_140 * 1024,
            available: 22_675_140 * 1024,
            swap_total: 2 << 30,
            swap_free: 1 << 30,
        };
        let old = "MemTotal: 100 kB\nMemFree: 40 kB\n";
        let least = Memory { total: 102_400, available: 40_960, swap_total: 0, swap_free: 0 };
        for (text, want) in [
            (recorded, Some(told)),
            (old, Some(least)),
            ("MemTotal: 18446744073709551615 kB\nMemFree: 1 kB\n", None),
            ("MemTotal: many kB\nMemFree: 1 kB\n", None),
            ("MemTotalX: 1 kB\nMemFree: 1 kB\n", None),
            ("", None),
        ] {
            assert_eq!(Memory::read(text), want, "{text:?}");
        }
        for (text, want) in [("351.84 1200.11\n", Some(351)), ("7", Some(7)), ("", None)] {
            assert_eq!(uptime(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_report_says_what_is_known_and_no_more() {
        let program = |n: usize| Program {
            provider: "demo".into(),
            path: format!("/usr/bin/demo{n}"),
            version: (n == 0).then(|| "1.0".into()),
        };
        let report = HostReport {
            hostname: "host".into(),
            version: "0.1.0".into(),
            providers: (0..1000).map(program).collect(),
            sessions: Sessions { running: 3, parked: 1 },
            load: Some(Load(0.5, 1.0, 2.0)),
            cpus: 4,
            ..HostReport::default()
        };
        let told = serde_json::to_value(report.bounded()).expect("plain data");
        assert_eq!(told["load"], json!([0.5, 1.0, 2.0]));
        assert_eq!(told["sessions"], json!({"running": 3, "parked": 1}));
        assert_eq!(told["providers"].as_array().map(Vec::len), Some(PROGRAMS_REPORTED_MAX));
        assert_eq!(told["providers"][1], json!({"provider": "demo", "path": "/usr/bin/demo1"}));
        assert!(told.get("memory").is_none() && told.get("disk").is_none());
    }
}
