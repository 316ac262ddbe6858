//! Load of the machine, or of the container's share of it: read from `/proc` and from the control
//! group (version 2).
//!
//! If a file is missing (another system, no control group), its part of the result is 0: then only
//! the slots decide.

use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::admission::Pressure;

/// Samples the machine. The CPU load is the mean since the previous sample.
#[derive(Debug)]
pub(super) struct PressureGauge {
    root: PathBuf,
    last_host: Option<CpuTime>,
    last_group: Option<(Instant, u64)>,
}

/// Ticks since the start of the machine, over all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTime {
    busy: u64,
    total: u64,
}

impl PressureGauge {
    pub(super) fn new() -> Self {
        Self::at("/")
    }

    fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            last_host: None,
            last_group: None,
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(Path::new(path))).ok()
    }

    /// Samples now. Reads a few small files that are in memory.
    pub(super) fn sample(&mut self, now: Instant) -> Pressure {
        let cpu = self.host_cpu().max(self.group_cpu(now));
        let memory = self.host_memory().max(self.group_memory());
        Pressure { cpu, memory }
    }

    fn host_cpu(&mut self) -> f64 {
        let Some(time) = self.read("proc/stat").as_deref().and_then(cpu_time) else {
            return 0.0;
        };
        let Some(last) = self.last_host.replace(time) else {
            return 0.0;
        };
        let total = time.total.saturating_sub(last.total);
        let busy = time.busy.saturating_sub(last.busy);
        if total == 0 {
            0.0
        } else {
            busy as f64 / total as f64
        }
    }

    /// The used part of the container's CPU quota.
    fn group_cpu(&mut self, now: Instant) -> f64 {
        let used = self
            .read("sys/fs/cgroup/cpu.stat")
            .as_deref()
            .and_then(|text| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("usage_usec "))?;
                line.trim().parse::<u64>().ok()
            });
        let cores = self
            .read("sys/fs/cgroup/cpu.max")
            .as_deref()
            .and_then(quota_cores);
        let (Some(used), Some(cores)) = (used, cores) else {
            return 0.0;
        };
        let Some((then, used_then)) = self.last_group.replace((now, used)) else {
            return 0.0;
        };
        let available_us = now.duration_since(then).as_micros() as f64 * cores;
        if available_us == 0.0 {
            0.0
        } else {
            used.saturating_sub(used_then) as f64 / available_us
        }
    }

    fn host_memory(&self) -> f64 {
        let Some(text) = self.read("proc/meminfo") else {
            return 0.0;
        };
        let kilobytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        match (kilobytes("MemTotal:"), kilobytes("MemAvailable:")) {
            (Some(total), Some(available)) if total > 0.0 => 1.0 - available / total,
            _ => 0.0,
        }
    }

    fn group_memory(&self) -> f64 {
        let bytes = |path: &str| {
            self.read(path)
                .and_then(|text| text.trim().parse::<f64>().ok())
        };
        // "max" stands for no limit and is no number.
        match (
            bytes("sys/fs/cgroup/memory.current"),
            bytes("sys/fs/cgroup/memory.max"),
        ) {
            (Some(current), Some(limit)) if limit > 0.0 => current / limit,
            _ => 0.0,
        }
    }
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal. (Guest time is
/// within user time.)
fn cpu_time(stat: &str) -> Option<CpuTime> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let total: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    Some(CpuTime {
        busy: total - idle,
        total,
    })
}

/// `cpu.max`: quota and period in microseconds, or "max".
fn quota_cores(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_busier_of_machine_and_container_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let start = Instant::now();
        let mut gauge = PressureGauge::at(root);
        write(
            root,
            "proc/stat",
            "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3 4\n",
        );
        write(
            root,
            "proc/meminfo",
            "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    750 kB\n",
        );
        assert_eq!(
            gauge.sample(start),
            Pressure {
                cpu: 0.0,
                memory: 0.25
            },
            "one sample says nothing about the CPU"
        );

        write(root, "proc/stat", "cpu  120 0 120 860 0 0 0 0 0 0\n");
        assert_eq!(gauge.sample(start + Duration::from_secs(1)).cpu, 0.4);

        write(root, "sys/fs/cgroup/cpu.max", "50000 100000\n");
        write(
            root,
            "sys/fs/cgroup/cpu.stat",
            "usage_usec 1000000\nuser_usec 7\n",
        );
        write(root, "sys/fs/cgroup/memory.max", "1000\n");
        write(root, "sys/fs/cgroup/memory.current", "900\n");
        gauge.sample(start + Duration::from_secs(2));
        write(
            root,
            "sys/fs/cgroup/cpu.stat",
            "usage_usec 1400000\nuser_usec 7\n",
        );
        let pressure = gauge.sample(start + Duration::from_secs(3));
        assert!(
            (pressure.cpu - 0.8).abs() < 1e-9,
            "0.4 s of 0.5 s: {}",
            pressure.cpu
        );
        assert!((pressure.memory - 0.9).abs() < 1e-9);
    }

    #[test]
    fn no_limit_and_no_files_mean_no_pressure() {
        let root = tempfile::tempdir().unwrap();
        let mut gauge = PressureGauge::at(root.path());
        assert_eq!(gauge.sample(Instant::now()), Pressure::default());
        write(root.path(), "sys/fs/cgroup/cpu.max", "max 100000\n");
        write(root.path(), "sys/fs/cgroup/cpu.stat", "usage_usec 1\n");
        write(root.path(), "sys/fs/cgroup/memory.max", "max\n");
        write(root.path(), "sys/fs/cgroup/memory.current", "900\n");
        gauge.sample(Instant::now());
        assert_eq!(gauge.sample(Instant::now()), Pressure::default());
    }
}
