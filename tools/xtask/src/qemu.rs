//! A machine that QEMU emulates: what is in it, and the command line that says so.

use crate::setup::{self, QEMU};
use crate::size::Size;
use crate::{flash, paths};
use anyhow::{Context, Result};
use board_file::Emulator;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::NamedTempFile;

/// The CPU models that the project is tested on, oldest first. Together they have, and lack, VHE, 16-bit VMIDs, hardware
/// access and dirty flags, each BBM level, TTL, range TLBI, FWB and LPA2.
pub(crate) const CPUS: [&str; 5] = ["cortex-a72", "neoverse-n1", "neoverse-v1", "neoverse-n2", "max"];

/// The CPU model used where none is asked for.
pub(crate) const DEFAULT_CPU: &str = "neoverse-n2";

/// Where files are memory and nothing else.
const MEMORY: &str = "/dev/shm";

/// The exception level that the kernel is entered at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// As a guest is, or a kernel on a machine without virtualization.
    El1,
    /// As a hypervisor is.
    El2,
}

/// What the machine's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's time, every CPU on a host thread of its own.
    Host,
    /// One nanosecond and one tick of the counter for each instruction, CPUs taking turns: the same in every run.
    Instructions,
}

/// Who is at the other end of the serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    /// A person: QEMU's escape keys work.
    Terminal,
    /// A program: every byte goes through as it is.
    Pipe,
}

/// A machine, ready to be started.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// What QEMU has to be told of the board.
    pub(crate) emulator: Emulator,
    /// QEMU's name of the CPU model; empty where the board has one only.
    pub(crate) cpu: String,
    /// How many CPUs.
    pub(crate) cpus: u32,
    /// How much RAM.
    pub(crate) memory: Size,
    /// Where the kernel starts.
    pub(crate) entered: Entered,
    /// What its time is.
    pub(crate) clock: Clock,
    /// The kernel, an arm64 `Image` or an ELF file.
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs, or the bundle.
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub(crate) append: String,
    /// Flash, where the board's firmware is in it.
    pub(crate) flash: Option<flash::Parts>,
    /// Further arguments.
    pub(crate) extra: Vec<OsString>,
    /// The file that its RAM is mapped from, where others look at it; the file is gone when the last of those is.
    pub(crate) ram: Option<Arc<NamedTempFile>>,
}

impl Machine {
    /// Has a machine that is about to start map its RAM from a file, which others may map or read.
    pub(crate) fn share_ram(&mut self) -> Result<Arc<NamedTempFile>> {
        if let Some(ram) = &self.ram {
            return Ok(Arc::clone(ram));
        }
        let run = paths::target().join("run");
        let dir = if Path::new(MEMORY).is_dir() { Path::new(MEMORY) } else { run.as_path() };
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = tempfile::Builder::new().prefix("mezzanine-ram-").tempfile_in(dir);
        let file = file.with_context(|| format!("cannot make a file in {}", dir.display()))?;
        file.as_file().set_len(self.memory.bytes()).context("no room for the machine's memory")?;
        let ram = Arc::new(file);
        self.ram = Some(Arc::clone(&ram));
        Ok(ram)
    }

    /// Writes what the machine reads when it starts, and QEMU does not make.
    pub(crate) fn get_ready(&self) -> Result<()> {
        match &self.flash {
            Some(flash) => flash.write(self.initrd.as_deref(), &self.append),
            None => Ok(()),
        }
    }

    /// Returns QEMU's command line for it.
    pub(crate) fn command(&self, serial: Serial) -> Command {
        let mut command = Command::new(QEMU);
        let emulator = &self.emulator;
        let options = match self.entered {
            Entered::El1 => emulator.el1.as_deref().unwrap_or_default(),
            Entered::El2 => &emulator.el2,
        };
        let comma = if options.is_empty() { "" } else { "," };
        command.args(["-M", &format!("{}{comma}{options}", emulator.machine)]);
        if !self.cpu.is_empty() {
            command.args(["-cpu", &self.cpu_option()]);
        }
        command.args(["-smp", &self.cpus.max(emulator.least_cpus).to_string()]);
        match &emulator.memory {
            Some(fixed) => command.args(["-m", fixed]),
            None => command.args(["-m", &format!("{}K", self.memory.bytes() >> 10)]),
        };
        // No devices but the board's own: a network card would want a ROM from a package that nothing else needs.
        command.args(["-nodefaults", "-display", "none"]).args(&emulator.args);
        match serial {
            Serial::Terminal => command.args(["-serial", "mon:stdio"]),
            Serial::Pipe => command.args(["-serial", "stdio"]),
        };
        if self.clock == Clock::Instructions {
            command.args(["-icount", "shift=0,sleep=off,align=off", "-seed", "1"]);
            command.args(["-rtc", "base=2024-01-01T00:00:00,clock=vm"]);
        }
        if let Some(tree) = &emulator.device_tree {
            command.arg("-dtb").arg(setup::device_tree(tree));
        }
        if let Some(flash) = &self.flash {
            command.args(flash.arguments(self.kernel.as_deref(), self.initrd.as_deref()));
        } else {
            if let Some(kernel) = &self.kernel {
                command.arg("-kernel").arg(kernel);
            }
            if let Some(initrd) = &self.initrd {
                command.arg("-initrd").arg(initrd);
            }
            if !self.append.is_empty() {
                command.args(["-append", &self.append]);
            }
        }
        if let Some(ram) = &self.ram {
            let (size, path) = (self.memory.bytes() >> 10, ram.path().display());
            let backend = format!("memory-backend-file,id=ram,size={size}K,mem-path={path},share=on");
            command.args(["-object", &backend, "-machine", "memory-backend=ram"]);
        }
        command.args(&self.extra);
        command
    }

    fn cpu_option(&self) -> String {
        let mut option = self.cpu.clone();
        if self.cpu == "max" {
            // The architected algorithm of pointer authentication costs an emulator half of its speed.
            option += ",pauth-impdef=on";
        }
        if self.clock == Clock::Instructions {
            option += ",cntfrq=1000000000";
        }
        option
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::shell;

    fn machine() -> Machine {
        Machine {
            emulator: Board::virt().unwrap().emulator().unwrap().clone(),
            cpu: "max".to_owned(),
            cpus: 2,
            memory: Size::mib(1152),
            entered: Entered::El2,
            clock: Clock::Host,
            kernel: Some("Image".into()),
            initrd: Some("bundle.cpio".into()),
            append: "log=info".to_owned(),
            flash: None,
            extra: Vec::new(),
            ram: None,
        }
    }

    #[test]
    fn the_command_line_says_what_the_machine_is() {
        let line = shell::line(&machine().command(Serial::Pipe));
        assert_eq!(
            line,
            "qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -cpu max,pauth-impdef=on -smp 2 -m 1179648K \
             -nodefaults -display none -serial stdio -kernel Image -initrd bundle.cpio -append log=info"
        );
    }

    #[test]
    fn memory_that_others_look_at_is_a_file_of_its_size() {
        let mut machine = machine();
        let ram = machine.share_ram().unwrap();
        assert_eq!(ram.as_file().metadata().unwrap().len(), machine.memory.bytes());
        assert_eq!(machine.share_ram().unwrap().path(), ram.path());
        let line = shell::line(&machine.command(Serial::Pipe));
        assert!(line.contains("id=ram,size=1179648K") && line.ends_with("memory-backend=ram"), "{line}");
    }

    #[test]
    fn counted_time_makes_one_instruction_one_tick() {
        let counted = Machine { clock: Clock::Instructions, cpu: "cortex-a72".to_owned(), ..machine() };
        let line = shell::line(&counted.command(Serial::Pipe));
        assert!(line.contains("-cpu cortex-a72,cntfrq=1000000000 "), "{line}");
        assert!(line.contains("-icount shift=0,sleep=off,align=off"), "{line}");
    }
}
