//! A running machine's console: wait for what it prints, type into it, see it end.

use crate::process::{Process, bound_to_us, interrupted};
use crate::qemu::{Machine, Serial};
use crate::report::{END, Report, Watch};
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the rest of a report may take once it has begun.
const REPORT_TIME: Duration = Duration::from_secs(5);

/// Whether what the machine prints is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// As it comes.
    Shown,
    /// Not at all; it is kept all the same.
    Kept,
}

/// Why a wait was in vain.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// What was waited for did not come in time.
    Timeout(String),
    /// The hypervisor panicked, or refused its input.
    Report(Report),
    /// The machine ended first.
    Ended(ExitStatus),
    /// The user asked to stop.
    Interrupted,
    /// The host failed us.
    Host(String),
}

/// A running machine and its console. Dropping it ends the machine.
pub(crate) struct Console {
    process: Process,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    echo: Echo,
    /// Everything printed so far, without carriage returns.
    log: String,
    /// Where the next wait starts to look.
    cursor: usize,
    watch: Watch,
    report_until: Option<Instant>,
    started: Instant,
    /// Says how the machine has ended, from how the emulator has.
    judge: fn(&Path, ExitStatus) -> ExitStatus,
    /// What that looks at.
    folder: PathBuf,
    /// Whether software can turn the machine off.
    turns_off: bool,
}

/// What a wait looks for.
enum Goal<'a> {
    /// A match anywhere, also in a line that is not finished.
    Text(&'a Regex),
    /// A match in a finished line.
    Line(&'a Regex),
    End,
}

/// How a wait came to its goal.
enum Reached {
    Match(Vec<String>),
    End(ExitStatus),
}

impl Console {
    /// Starts the machine with a program at its serial line.
    pub(crate) fn piped(machine: &Machine, echo: Echo) -> Result<Self> {
        machine.get_ready()?;
        let console = Self::start(machine.command(Serial::Pipe), Stdio::piped(), echo)?;
        Ok(Self { turns_off: machine.emulator.power_off, ..console })
    }

    /// Starts the machine with the user's keyboard at its serial line.
    pub(crate) fn interactive(machine: &Machine) -> Result<Self> {
        machine.get_ready()?;
        Self::start(machine.command(Serial::Terminal), Stdio::inherit(), Echo::Shown)
    }

    /// Starts a machine that writes its serial port into `serial` of `folder`, and follows that. What the emulator itself
    /// says is not the machine's; nothing can be typed. `judge` says from the folder and from how the emulator has ended how
    /// the machine has.
    pub(crate) fn followed(
        command: Command,
        (folder, serial): (&Path, &str),
        judge: fn(&Path, ExitStatus) -> ExitStatus,
        echo: Echo,
    ) -> Result<Self> {
        let mut command = bound_to_us(command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let serial = folder.join(serial);
        let serial = File::open(&serial).with_context(|| format!("cannot read {}", serial.display()))?;
        let started = Instant::now();
        let process = Process::start(command)?;
        let ended = process.watch_end();
        let (sender, output) = channel();
        follow(serial, ended, sender);
        let folder = folder.to_owned();
        let (log, watch) = (String::new(), Watch::default());
        Ok(Self {
            process,
            input: None,
            output,
            echo,
            log,
            cursor: 0,
            watch,
            report_until: None,
            started,
            judge,
            folder,
            turns_off: true,
        })
    }

    fn start(command: Command, stdin: Stdio, echo: Echo) -> Result<Self> {
        let mut command = bound_to_us(command);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut process = Process::start(command)?;
        let child = process.child();
        let input = child.stdin.take();
        let (sender, output) = channel();
        forward(child.stdout.take().context("QEMU has no output")?, sender.clone());
        forward(child.stderr.take().context("QEMU has no error output")?, sender);
        let (log, watch) = (String::new(), Watch::default());
        let (judge, folder) = (|_: &Path, status| status, PathBuf::new());
        Ok(Self {
            process,
            input,
            output,
            echo,
            log,
            cursor: 0,
            watch,
            report_until: None,
            started,
            judge,
            folder,
            turns_off: true,
        })
    }

    /// Waits until `regex` matches within a line, finished or not, after the last match: a prompt, for example. Returns
    /// the match and its groups, which may yet grow where they reach to the end of the line.
    pub(crate) fn expect(&mut self, regex: &Regex, within: Duration) -> Result<Vec<String>, Trouble> {
        self.expect_goal(&Goal::Text(regex), within)
    }

    /// Waits until `regex` matches within a finished line after the last match, and returns the match and its groups.
    /// The next wait starts at the next line.
    pub(crate) fn expect_line(&mut self, regex: &Regex, within: Duration) -> Result<Vec<String>, Trouble> {
        self.expect_goal(&Goal::Line(regex), within)
    }

    fn expect_goal(&mut self, goal: &Goal<'_>, within: Duration) -> Result<Vec<String>, Trouble> {
        match self.wait(goal, Some(Instant::now() + within))? {
            Reached::Match(groups) => Ok(groups),
            Reached::End(status) => Err(Trouble::Ended(status)),
        }
    }

    /// Waits until the machine ends by itself.
    pub(crate) fn end(&mut self, within: Option<Duration>) -> Result<ExitStatus, Trouble> {
        match self.wait(&Goal::End, within.map(|time| Instant::now() + time))? {
            Reached::End(status) => Ok(status),
            Reached::Match(_) => Err(Trouble::Host("a match without an expression".to_owned())),
        }
    }

    /// Waits until nothing runs any more: for a clean end of the machine, or, where software cannot turn it off, for the last
    /// that the hypervisor says.
    pub(crate) fn finish(&mut self, within: Duration) -> Result<()> {
        if self.turns_off {
            let status = self.end(Some(within))?;
            ensure!(status.success(), "the emulator ended with {status}");
        } else {
            self.expect_line(&Regex::new(&format!("^{}", regex::escape(END)))?, within)?;
        }
        Ok(())
    }

    /// Types into the console.
    pub(crate) fn send(&mut self, text: &str) -> Result<(), Trouble> {
        let Some(input) = &mut self.input else {
            return Err(Trouble::Host("the keyboard is the user's".to_owned()));
        };
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .map_err(|error| Trouble::Host(format!("cannot type into the console: {error}")))
    }

    /// Returns everything that was printed so far, without carriage returns.
    pub(crate) fn log(&self) -> &str {
        &self.log
    }

    /// Returns the time since QEMU was started.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The one loop: looks at what is there, then waits for more.
    fn wait(&mut self, goal: &Goal<'_>, until: Option<Instant>) -> Result<Reached, Trouble> {
        loop {
            if let Some(groups) = self.look(goal)? {
                return Ok(Reached::Match(groups));
            }
            let limit = [until, self.report_until].into_iter().flatten().min();
            let received = match limit {
                Some(limit) => self.output.recv_timeout(limit.saturating_duration_since(Instant::now())),
                None => self.output.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(bytes) => self.keep(&bytes)?,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(match self.watch.unfinished() {
                        Some(report) => Trouble::Report(report),
                        None => Trouble::Timeout(goal.to_string()),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.process.wait().map_err(|error| Trouble::Host(format!("{error:#}")))?;
                    return match self.watch.unfinished() {
                        Some(report) => Err(Trouble::Report(report)),
                        None if interrupted() => Err(Trouble::Interrupted),
                        None => Ok(Reached::End((self.judge)(&self.folder, status))),
                    };
                }
            }
        }
    }

    /// Looks at the lines from the cursor on. A line that matches is never taken as a report of trouble, so that trouble
    /// itself can be waited for.
    fn look(&mut self, goal: &Goal<'_>) -> Result<Option<Vec<String>>, Trouble> {
        loop {
            let rest = &self.log[self.cursor..];
            let (line, finished) = match rest.split_once('\n') {
                Some((line, _)) => (line, true),
                None => (rest, false),
            };
            let regex = match goal {
                Goal::Text(regex) => Some(regex),
                Goal::Line(regex) if finished => Some(regex),
                Goal::Line(_) | Goal::End => None,
            };
            if let Some(regex) = regex
                && !self.watch.in_report()
                && let Some(found) = regex.captures(line)
            {
                let groups = found.iter().map(|group| group.map_or("", |g| g.as_str()).to_owned()).collect();
                self.cursor += match goal {
                    Goal::Text(_) => found.get(0).map_or(0, |whole| whole.end()),
                    _ => line.len() + 1,
                };
                return Ok(Some(groups));
            }
            if !finished {
                return Ok(None);
            }
            let next = self.cursor + line.len() + 1;
            let report = self.watch.line(line);
            self.cursor = next;
            self.report_until = match self.watch.in_report() {
                true => self.report_until.or_else(|| Some(Instant::now() + REPORT_TIME)),
                false => None,
            };
            if let Some(report) = report {
                return Err(Trouble::Report(report));
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if self.echo == Echo::Shown {
            let mut out = stdout().lock();
            out.write_all(bytes)
                .and_then(|()| out.flush())
                .map_err(|error| Trouble::Host(format!("cannot write to the terminal: {error}")))?;
        }
        self.log.extend(String::from_utf8_lossy(bytes).chars().filter(|c| *c != '\r'));
        Ok(())
    }
}

/// Passes on what a pipe delivers, until it closes.
fn forward(mut pipe: impl Read + Send + 'static, to: Sender<Vec<u8>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if to.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
}

/// How often a file is looked at that grows.
const LOOK: Duration = Duration::from_millis(20);

/// Passes on what a file grows by, until whoever writes it has ended.
fn follow(mut file: File, ended: impl Fn() -> bool + Send + 'static, to: Sender<Vec<u8>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            // Asked first: what was written before the end is read all the same.
            let last = ended();
            while let Ok(count @ 1..) = file.read(&mut buffer) {
                if to.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
            if last {
                return;
            }
            thread::sleep(LOOK);
        }
    });
}

impl fmt::Display for Goal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Text(regex) | Goal::Line(regex) => write!(f, "/{regex}/"),
            Goal::End => f.write_str("the machine's end"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(goal) => write!(f, "waited in vain for {goal}"),
            Self::Report(report) => report.fmt(f),
            Self::Ended(status) => write!(f, "the machine ended first ({status})"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Host(error) => f.write_str(error),
        }
    }
}

impl std::error::Error for Trouble {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that is a shell script.
    fn machine(script: &str) -> Console {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Console::start(command, Stdio::piped(), Echo::Kept).unwrap()
    }

    /// Far more than a script needs; a test that passes does not wait for it.
    const LONG: Duration = Duration::from_secs(60);

    fn regex(pattern: &str) -> Regex {
        Regex::new(pattern).unwrap()
    }

    #[test]
    fn a_prompt_is_seen_before_its_line_ends_and_what_is_typed_arrives() {
        let mut console = machine("printf 'boot\\r\\nlogin: '; read name; echo \"hello $name\"");
        console.expect(&regex("login: $"), LONG).unwrap();
        console.send("mz\n").unwrap();
        let groups = console.expect_line(&regex("^hello (.*)$"), LONG).unwrap();
        assert_eq!(groups[1], "mz");
        assert!(console.end(Some(LONG)).unwrap().success());
        assert_eq!(console.log(), "boot\nlogin: hello mz\n");
    }

    #[test]
    fn each_wait_starts_after_the_last_match() {
        let mut console = machine("echo one; echo two; echo one");
        for _ in 0..2 {
            console.expect_line(&regex("^one$"), LONG).unwrap();
        }
        assert!(matches!(console.expect_line(&regex("^one$"), LONG), Err(Trouble::Ended(_))));
    }

    #[test]
    fn an_unfinished_line_is_not_taken_for_a_line() {
        let mut console = machine("printf 'count 1'; read go; echo 2");
        console.expect(&regex("count 1"), LONG).unwrap();
        console.send("\n").unwrap();
        let mut console = machine("printf 'count 1'; read go; echo 2");
        console.send("\n").unwrap();
        assert_eq!(console.expect_line(&regex(r"count (\d+)$"), LONG).unwrap()[1], "12");
    }

    #[test]
    fn a_panic_ends_every_wait_with_its_report() {
        let script = "echo '[mz PANIC c0] oops'; echo '  #0 +0x10'; echo '[mz END]'; read forever";
        let Err(Trouble::Report(Report::Panic(lines))) = machine(script).expect(&regex("INIT-OK"), LONG)
        else {
            panic!("no report");
        };
        assert_eq!(lines.len(), 3);
        assert!(matches!(machine(script).end(None), Err(Trouble::Report(_))));
    }

    #[test]
    fn a_panic_cut_off_by_the_machines_end_is_a_report() {
        let result = machine("echo '[mz PANIC c0] oops'").expect(&regex("INIT-OK"), LONG);
        assert!(matches!(result, Err(Trouble::Report(Report::Panic(_)))));
    }

    #[test]
    fn a_refusal_can_be_waited_for_and_is_trouble_where_it_is_not() {
        let script = "echo '[mz FATAL] no bundle'";
        machine(script).expect_line(&regex("no bundle"), LONG).unwrap();
        let result = machine(script).expect_line(&regex("INIT-OK"), LONG);
        assert!(matches!(result, Err(Trouble::Report(Report::Fatal(message))) if message == "no bundle"));
    }

    #[test]
    fn what_never_comes_is_a_timeout() {
        let result = machine("read forever").expect(&regex("INIT-OK"), Duration::from_millis(10));
        assert!(matches!(result, Err(Trouble::Timeout(goal)) if goal == "/INIT-OK/"));
    }

    #[test]
    fn a_file_is_followed_to_its_writer_s_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serial");
        std::fs::write(&file, "").unwrap();
        let mut command = Command::new("sh");
        let script = format!("printf 'one\\ntw' > {0}; sleep 0.1; echo o >> {0}; exit 3", file.display());
        command.args(["-c", &script]);
        let judge = |folder: &Path, status: ExitStatus| {
            assert!(folder.join("serial").exists() && status.code() == Some(3));
            ExitStatus::default()
        };
        let mut console = Console::followed(command, (dir.path(), "serial"), judge, Echo::Kept).unwrap();
        console.expect_line(&regex("^two$"), LONG).unwrap();
        assert!(console.end(Some(LONG)).unwrap().success());
        assert_eq!(console.log(), "one\ntwo\n");
    }

    #[test]
    fn an_end_with_an_error_is_seen_as_one() {
        let status = machine("echo to-stderr >&2; exit 3").end(Some(LONG)).unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
