//! Linux on a PC: as the guest that has the machine, and on the bare machine, to compare with.

use super::{Built, DEFAULT_SMP, Disc, Machine, OVERHEAD, Prepared, build};
use crate::board::Board;
use crate::bundle::{self, One, Vm};
use crate::run;
use crate::setup::{self, Need};
use crate::size::Size;
use anyhow::{Context, Result};
use std::borrow::Cow;
use std::fs;
use std::path::Path;

/// Linux's memory where nothing is said.
const MEMORY: Size = Size::mib(256);
/// What it makes VMs of, where it does: the name, and their memory.
pub(crate) const TEMPLATE: &str = "brief";
const TEMPLATE_MEMORY: Size = Size::mib(8);
/// Its console, first on its command line. Without the rate it would be 9600 baud, and Linux would mostly wait for it.
const CONSOLE: &str = "console=ttyS0,115200";

/// What is asked of a PC that runs Linux.
#[derive(Clone, Copy)]
pub(crate) struct Linux<'a> {
    /// The board.
    pub(crate) board: Board,
    /// The CPU model.
    pub(crate) cpu: &'a str,
    /// The CPUs.
    pub(crate) smp: Option<u32>,
    /// Linux's memory.
    pub(crate) memory: Option<Size>,
    /// Added to Linux's command line.
    pub(crate) append: Option<&'a str>,
    /// Whether it is granted the calls.
    pub(crate) hypercalls: bool,
    /// The payload that it makes VMs of, on a CPU that the machine has beyond Linux's.
    pub(crate) runs: Option<&'a Path>,
    /// The hypervisor's own command line.
    pub(crate) hypervisor: &'a str,
}

impl Linux<'_> {
    fn cpus(&self) -> u32 {
        self.smp.unwrap_or(DEFAULT_SMP)
    }

    fn memory(&self) -> Size {
        self.memory.unwrap_or(MEMORY)
    }

    fn cmdline(&self) -> String {
        let mut line = CONSOLE.to_owned();
        if self.runs.is_some() {
            // Firmware tells it of all.
            line += &format!(" maxcpus={}", self.cpus());
        }
        if let Some(more) = self.append {
            line += &format!(" {more}");
        }
        line
    }

    /// Makes the machine that starts from a disc with the hypervisor and its bundle, and with the same kernel and initramfs
    /// as files: what GRUB is told to do, by `menu` where it is not to start the hypervisor, is the only difference between
    /// the two ways.
    fn prepare(&self, memory: Size, menu: Option<String>) -> Result<Prepared> {
        setup::ensure(&[Need::PcGuest])?;
        let (kernel, initramfs) = setup::pc_guest();
        let mut vm = run::vm("linux", self.cpus(), self.memory(), Some(self.cmdline()));
        vm.role = Some("primary".to_owned());
        vm.hypercalls = self.hypercalls.then(|| run::GRANTED.to_owned());
        vm.controller = self.runs.map(|_| true);
        let template = self.runs.map(|kernel| {
            let vm = run::vm(TEMPLATE, 1, TEMPLATE_MEMORY, None);
            let (role, cpus) = (Some("template".to_owned()), Some(vec![self.cpus()]));
            One { vm: Vm { role, cpus, ..vm }, kernel, initrd: None }
        });
        let mut vms = vec![One { vm, kernel: &kernel, initrd: Some(&initramfs) }];
        vms.extend(template);
        let (bundle, _) = bundle::of(vms)?;
        let built: Built = build(self.board)?;
        let mut disc = Disc::of_hypervisor(&built, self.hypervisor, Some(&bundle))?;
        for (name, path) in [("vmlinuz", &kernel), ("initrd.gz", &initramfs)] {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            disc.files.push((name, Cow::Owned(bytes)));
        }
        disc.menu = menu.unwrap_or(disc.menu);
        let cpus = self.cpus() + u32::from(self.runs.is_some());
        let machine = Machine { cpu: self.cpu, cpus, memory, append: "", bundle: None, trace: None };
        Prepared::with_disc(&disc, &machine, Some(built.elf))
    }
}

/// Makes the machine that Linux has, but for the hypervisor's memory: all its CPUs, devices and interrupts.
pub(crate) fn with_linux(wanted: Linux<'_>) -> Result<Prepared> {
    wanted.prepare(wanted.memory().plus(OVERHEAD), None)
}

/// Makes the machine that Linux has all of: no hypervisor, and as much memory as the other one leaves it.
pub(crate) fn bare_linux(wanted: Linux<'_>) -> Result<Prepared> {
    let cmdline = wanted.cmdline();
    let menu = format!("set timeout=0\nlinux /boot/vmlinuz {cmdline}\ninitrd /boot/initrd.gz\nboot\n");
    wanted.prepare(wanted.memory(), Some(menu))
}
