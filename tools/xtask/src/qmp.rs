//! QEMU's machine protocol, as far as exact counting needs it.

use crate::size::Size;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
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

    /// Returns how many instructions all CPUs together have executed, of a stopped machine with [`shared_memory`] whose
    /// time counts instructions. QEMU has no command that tells, but it saves the number with the machine's state, for
    /// which `file` is used.
    pub(crate) fn instructions(&mut self, file: &Path) -> Result<u64> {
        let shared = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.execute("migrate-set-capabilities", &shared)?;
        self.execute("migrate", &json!({ "uri": format!("file:{}", file.display()) }))?;
        loop {
            let progress = self.execute("query-migrate", &json!({}))?;
            match progress["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") | None => {
                    bail!("QEMU cannot save the machine's state: {progress}")
                }
                Some(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        count_in_state(&fs::read(file).context("cannot read the machine's state")?)
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

/// Returns the arguments that give a machine memory which is not saved with its state, so that saving is quick.
pub(crate) fn shared_memory(size: Size) -> [OsString; 4] {
    let backend = format!("memory-backend-memfd,id=ram,size={}K,share=on", size.bytes() >> 10);
    ["-object".into(), backend.into(), "-machine".into(), "memory-backend=ram".into()]
}

/// Finds the count in a saved state. There is a subsection of that name, and in it a version and two big-endian numbers:
/// what skipped idle time adds to the clock, and the instructions.
fn count_in_state(state: &[u8]) -> Result<u64> {
    const NAME: &[u8] = b"\x0ctimer/icount";
    const AT: usize = NAME.len() + 4 + 8;
    let start = state.windows(NAME.len()).position(|window| window == NAME);
    let start = start.context("the machine's state has no count: its time does not count instructions")?;
    let count = state.get(start + AT..start + AT + 8).context("the machine's state is cut off")?;
    Ok(u64::from_be_bytes(count.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From QEMU 10.0.2, where `info replay` said the same of a recorded execution: 1047170378.
    const STATE: &[u8] =
        b"QEVM....\x05\x0ctimer/icount\0\0\0\x01\0\0\0\0\0\x31\x69\xa2\0\0\0\0\x3e\x6a\x8d\x4a\x7e";

    #[test]
    fn the_count_is_read_from_the_saved_state() {
        assert_eq!(count_in_state(STATE).unwrap(), 1_047_170_378);
    }

    #[test]
    fn a_state_without_a_count_or_cut_off_is_an_error() {
        assert!(count_in_state(b"QEVM").is_err());
        assert!(count_in_state(&STATE[..STATE.len() - 2]).is_err());
    }
}
