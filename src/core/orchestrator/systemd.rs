//! What systemd is asked and what it says: the arguments of `systemd-run`, and the text of
//! `systemctl show` as the end of a session.

use serde::{Deserialize, Serialize};

/// The slice that all sessions are in, so that they can be bounded together.
pub const SLICE: &str = "agent-relay.slice";
/// Properties that are asked of a unit.
pub const SHOWN: &str = "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,MainPID,MemoryPeak,StatusText";
/// Smallest ceiling of memory, bytes: a runner alone needs some.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Smallest ceiling of tasks: threads of the runner alone.
const TASKS_MIN: u64 = 16;

/// What a session may use. Nothing told: no ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ceilings {
    /// Bytes; beyond them something of it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
    /// Share of processors where they are scarce, 1 to 10,000; usual is 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u64>,
    /// Percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<u64>,
    /// Seconds until it is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_max: Option<u64>,
}

impl Ceilings {
    /// One sentence for a ceiling that no unit can have.
    pub fn check(&self) -> Result<(), String> {
        let is_below = |told: Option<u64>, least: u64| told.is_some_and(|told| told < least);
        if is_below(self.memory_max, MEMORY_BYTES_MIN) {
            return Err(format!("\"memoryMax\" must be at least {MEMORY_BYTES_MIN} bytes"));
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            return Err("\"cpuWeight\" must be 1 to 10000".into());
        }
        if is_below(self.cpu_quota, 1) {
            return Err("\"cpuQuota\" must be at least 1 (percent of one processor)".into());
        }
        if is_below(self.tasks_max, TASKS_MIN) {
            return Err(format!("\"tasksMax\" must be at least {TASKS_MIN}"));
        }
        Ok(())
    }

    /// These, and where nothing is told what `others` say.
    pub fn or(self, others: Ceilings) -> Ceilings {
        Ceilings {
            memory_max: self.memory_max.or(others.memory_max),
            cpu_weight: self.cpu_weight.or(others.cpu_weight),
            cpu_quota: self.cpu_quota.or(others.cpu_quota),
            tasks_max: self.tasks_max.or(others.tasks_max),
            runtime_max: self.runtime_max.or(others.runtime_max),
        }
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Ceilings::default()
    }

    /// As properties of a unit.
    fn properties(&self) -> Vec<String> {
        let number = |name: &str, told: Option<u64>| told.map(|told| format!("{name}={told}"));
        [
            number("MemoryMax", self.memory_max),
            number("CPUWeight", self.cpu_weight),
            self.cpu_quota.map(|percent| format!("CPUQuota={percent}%")),
            number("TasksMax", self.tasks_max),
            number("RuntimeMaxSec", self.runtime_max),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What a unit is made of.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct UnitOrder {
    /// Without `.service`.
    pub unit: String,
    /// One line for people.
    pub description: String,
    pub log: String,
    pub script: String,
    pub ceilings: Ceilings,
    /// The runner must have told that it is ready in that time, seconds.
    pub start_seconds: u64,
    /// What is left of it is killed so long after it was told to end, seconds.
    pub stop_seconds: u64,
}

/// Arguments of `systemd-run` for a session. The unit stays to be asked when it has failed; it is
/// forgotten when somebody has looked.
pub fn run_arguments(order: &UnitOrder) -> Vec<String> {
    let mut all = vec![
        "--user".to_string(),
        format!("--unit={}", order.unit),
        format!("--description={}", order.description),
        format!("--slice={SLICE}"),
        "--quiet".into(),
    ];
    let fixed = [
        "Type=notify".to_string(),
        "NotifyAccess=main".into(),
        "KillMode=control-group".into(),
        "OOMPolicy=stop".into(),
        "LimitNOFILE=65536".into(),
        format!("TimeoutStartSec={}", order.start_seconds),
        format!("TimeoutStopSec={}", order.stop_seconds),
        format!("StandardOutput=append:{}", order.log),
        format!("StandardError=append:{}", order.log),
    ];
    let properties = fixed.into_iter().chain(order.ceilings.properties());
    all.extend(properties.map(|property| format!("--property={property}")));
    all.push(order.script.clone());
    all
}

/// What `systemctl show` says of a unit.
#[allow(missing_docs)] // named after the properties
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitState {
    pub load_state: String,
    pub active_state: String,
    pub sub_state: String,
    pub result: String,
    pub exec_main_code: String,
    pub exec_main_status: String,
    /// 0: none.
    pub main_pid: u32,
    /// Bytes, where the kernel tells.
    pub memory_peak: Option<u64>,
    pub status_text: String,
}

impl UnitState {
    /// Reads lines of `Name=value`; what is missing is empty.
    pub fn read(text: &str) -> UnitState {
        let mut state = UnitState::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let value = value.trim().to_string();
            match name {
                "LoadState" => state.load_state = value,
                "ActiveState" => state.active_state = value,
                "SubState" => state.sub_state = value,
                "Result" => state.result = value,
                "ExecMainCode" => state.exec_main_code = value,
                "ExecMainStatus" => state.exec_main_status = value,
                "MainPID" => state.main_pid = value.parse().unwrap_or(0),
                "MemoryPeak" => state.memory_peak = value.parse().ok().filter(|n| *n < u64::MAX),
                "StatusText" => state.status_text = value,
                _ => {}
            }
        }
        state
    }

    /// Whether something of it may still run.
    pub fn is_up(&self) -> bool {
        !matches!(self.active_state.as_str(), "" | "inactive" | "failed")
    }

    /// How it ended.
    pub fn exit(&self) -> Exit {
        let status = || self.exec_main_status.parse().unwrap_or(0);
        match (self.result.as_str(), self.exec_main_code.as_str()) {
            ("oom-kill", _) => Exit::OutOfMemory { peak: self.memory_peak },
            ("timeout", _) => Exit::TimedOut,
            // A unit that ended in order is forgotten at once.
            ("success" | "", _) if self.load_state == "not-found" => Exit::Orderly,
            (_, "2" | "3" | "killed" | "dumped") => Exit::Signal(status()),
            (_, "1" | "exited") if status() != 0 => Exit::Code(status()),
            ("success", _) => Exit::Orderly,
            _ => Exit::Unknown,
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As it should.
    Orderly,
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// The kernel killed something of it for want of memory.
    OutOfMemory {
        /// Most bytes that it had, where the kernel tells.
        peak: Option<u64>,
    },
    /// It did not start, end or live in its time.
    TimedOut,
    /// With its machine.
    Reboot,
    /// Nobody saw it.
    Unknown,
}

/// Exit code of wrong use: a further start would end in the same way.
const USAGE: i32 = 2;

impl Exit {
    /// Whether something went wrong.
    pub fn is_failure(self) -> bool {
        self != Exit::Orderly
    }

    /// Whether another start would end in the same way.
    pub fn is_permanent(self) -> bool {
        self == Exit::Code(USAGE)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Orderly => f.write_str("it ended in order"),
            Exit::Code(code) => write!(f, "it ended with exit code {code}"),
            Exit::Signal(signal) => write!(f, "it was ended by signal {signal}"),
            Exit::OutOfMemory { peak: None } => {
                f.write_str("it was killed for want of memory (OOM)")
            }
            Exit::OutOfMemory { peak: Some(peak) } => write!(
                f,
                "it was killed for want of memory (OOM) after using {} MB",
                peak.div_ceil(1_000_000)
            ),
            Exit::TimedOut => f.write_str("it did not keep a time limit of its unit"),
            Exit::Reboot => f.write_str("its machine was started anew"),
            Exit::Unknown => f.write_str("it is gone, and nobody saw how it ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_gets_its_ceilings_and_nothing_else() {
        let order = UnitOrder {
            unit: "u".into(),
            description: "agent a".into(),
            log: "/l".into(),
            script: "/s.sh".into(),
            ceilings: Ceilings {
                memory_max: Some(209_715_200),
                cpu_quota: Some(50),
                tasks_max: Some(50),
                cpu_weight: Some(20),
                runtime_max: Some(60),
            },
            start_seconds: 30,
            stop_seconds: 20,
        };
        let all = run_arguments(&order);
        for want in [
            "--user",
            "--unit=u",
            "--slice=agent-relay.slice",
            "--property=Type=notify",
            "--property=KillMode=control-group",
            "--property=StandardOutput=append:/l",
            "--property=StandardError=append:/l",
            "--property=MemoryMax=209715200",
            "--property=CPUQuota=50%",
            "--property=TasksMax=50",
            "--property=CPUWeight=20",
            "--property=RuntimeMaxSec=60",
        ] {
            assert!(all.iter().any(|word| word == want), "{want}: {all:?}");
        }
        assert_eq!(all.last().map(String::as_str), Some("/s.sh"));
        let plain = run_arguments(&UnitOrder { ceilings: Ceilings::default(), ..order });
        assert!(!plain.iter().any(|word| word.contains("Max") || word.contains("CPU")));
    }

    /// Texts of systemd 252.
    #[test]
    fn ends_are_told_from_what_systemd_says() {
        for (text, up, want) in [
            (
                "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nExecMainCode=0\nExecMainStatus=0\nMainPID=77\n",
                true,
                Exit::Orderly,
            ),
            (
                "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\nMainPID=0\n",
                false,
                Exit::Orderly,
            ),
            (
                "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=71\nMainPID=0\n",
                false,
                Exit::Code(71),
            ),
            (
                "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\nExecMainCode=2\nExecMainStatus=9\n",
                false,
                Exit::Signal(9),
            ),
            (
                "LoadState=loaded\nActiveState=failed\nResult=core-dump\nExecMainCode=3\nExecMainStatus=6\n",
                false,
                Exit::Signal(6),
            ),
            (
                "LoadState=loaded\nActiveState=failed\nResult=oom-kill\nExecMainCode=2\nExecMainStatus=9\nMemoryPeak=209715200\n",
                false,
                Exit::OutOfMemory { peak: Some(209_715_200) },
            ),
            (
                "LoadState=loaded\nActiveState=failed\nResult=oom-kill\nExecMainCode=2\nExecMainStatus=15\nMemoryPeak=[not set]\n",
                false,
                Exit::OutOfMemory { peak: None },
            ),
            (
                "LoadState=loaded\nActiveState=failed\nResult=timeout\nExecMainCode=2\nExecMainStatus=15\n",
                false,
                Exit::TimedOut,
            ),
            ("", false, Exit::Unknown),
        ] {
            let state = UnitState::read(text);
            assert_eq!((state.is_up(), state.exit()), (up, want), "{text}");
        }
        assert_eq!(UnitState::read("MainPID=77\nStatusText=agent a; x=y").main_pid, 77);
        assert_eq!(UnitState::read("StatusText=agent a; x=y").status_text, "agent a; x=y");
    }

    #[test]
    fn only_wrong_use_is_for_good_and_memory_is_named() {
        assert!(Exit::Code(2).is_permanent() && !Exit::Code(71).is_permanent());
        assert!(!Exit::Orderly.is_failure() && Exit::Unknown.is_failure());
        let told = Exit::OutOfMemory { peak: Some(209_715_200) }.to_string();
        assert!(told.contains("want of memory") && told.contains("210 MB"), "{told}");
    }
}
