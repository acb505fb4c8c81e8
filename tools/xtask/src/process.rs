//! Child processes that never outlive this one.
//!
//! A [`Process`] is killed when it is dropped. For Ctrl-C and the other polite signals there is a list of those alive; for
//! the impolite one, `setpriv` asks the kernel to kill the child with its parent.

use crate::{shell, terminal};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// The children alive. Never held while waiting.
static ALIVE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a shell returns for a program that SIGINT ended.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// A running child.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the command. It must have come from [`bound_to_us`] if it is to end with a parent that is killed.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        watch_for_interrupts()?;
        let line = shell::line(&command);
        let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        alive(|list| list.push(child.id()));
        Ok(Self(child))
    }

    /// Returns the child itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Returns what tells, on any thread, whether the child has ended. It need not have been waited for.
    pub(crate) fn watch_end(&self) -> impl Fn() -> bool + Send + use<> {
        let stat = format!("/proc/{}/stat", self.0.id());
        // The state follows the program's name, which is in parentheses: Z for one that nobody has waited for.
        move || match fs::read_to_string(&stat) {
            Ok(text) => {
                text.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
            }
            Err(_) => true,
        }
    }

    /// Ends the child and all that it has started, where it leads a process group.
    pub(crate) fn kill_group(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL); // all of it may have ended meanwhile
        }
    }

    /// Waits until the child has ended.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.0.wait().context("cannot wait for a child process")?;
        let pid = self.0.id();
        alive(|list| list.retain(|other| *other != pid));
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the child has ended already, and then there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.wait();
    }
}

/// Tells whether the user has asked to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn alive<T>(act: impl FnOnce(&mut Vec<u32>) -> T) -> T {
    act(&mut ALIVE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Kills the children at the first signal, so that whoever waits for them cleans up and ends; exits at the second one,
/// or if there are none.
fn watch_for_interrupts() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = ctrlc::set_handler(|| {
            let children = alive(std::mem::take);
            let first = !INTERRUPTED.swap(true, Ordering::Relaxed);
            for pid in children.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended meanwhile
            }
            if !first || children.is_empty() {
                terminal::restore();
                std::process::exit(EXIT_INTERRUPTED.into());
            }
        });
    });
    result.context("cannot watch for Ctrl-C")
}

/// Wraps the command so that the kernel ends it with us, where util-linux is there to ask for it. Only program and
/// arguments are kept.
pub(crate) fn bound_to_us(command: Command) -> Command {
    let Some(setpriv) = shell::which("setpriv") else { return command };
    let mut wrapped = Command::new(setpriv);
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn exists(pid: u32) -> bool {
        // A process that has ended and been waited for has no entry any more.
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut process = Process::start(command).unwrap();
        let pid = process.child().id();
        assert!(exists(pid));
        drop(process);
        assert!(!exists(pid));
        assert!(alive(|list| !list.contains(&pid)));
    }

    #[test]
    fn the_exit_code_comes_through() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let mut command = bound_to_us(command);
        command.stdin(Stdio::null());
        assert_eq!(Process::start(command).unwrap().wait().unwrap().code(), Some(3));
    }
}
