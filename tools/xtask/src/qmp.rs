//! QEMU's machine protocol, as far as exact counting needs it.

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long QEMU may take to open its socket.
const OPENING: Duration = Duration::from_secs(10);

/// A connection to a running QEMU.
pub(crate) struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket, which QEMU opens soon after it has started. Reads give up after `patience`.
    pub(crate) fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let until = Instant::now() + OPENING;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
                Err(error) => return Err(error).context("QEMU does not open its QMP socket"),
            }
        };
        stream.set_read_timeout(Some(patience))?;
        let mut qmp = Self { lines: BufReader::new(stream) };
        qmp.line().context("QEMU does not greet")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Waits until the guest has shut the machine down, which QEMU then keeps as it is (`-no-shutdown`).
    pub(crate) fn wait_for_shutdown(&mut self) -> Result<()> {
        loop {
            let line = self.line().context("the machine does not shut down")?;
            if line["event"] == "SHUTDOWN" {
                return Ok(());
            }
        }
    }

    /// Returns how many instructions all CPUs together have executed; QEMU counts when it records an execution.
    pub(crate) fn instructions(&mut self) -> Result<u64> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": "info replay" }))?;
        parse_count(answer.as_str().unwrap_or_default())
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.lines.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = self.line().with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = line.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("QEMU closed its QMP socket");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

fn parse_count(answer: &str) -> Result<u64> {
    let regex = Regex::new(r"instruction count = (\d+)")?;
    let Some(found) = regex.captures(answer) else { bail!("QEMU says {answer:?}, which has no count") };
    Ok(found[1].parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_the_monitors_answer() {
        let answer = "Recording execution '/tmp/rr.bin': instruction count = 1047170378\r\n";
        assert_eq!(parse_count(answer).unwrap(), 1_047_170_378);
        assert!(parse_count("Record/replay is not active\r\n").is_err());
    }
}
