//! Another machine that does what a test asks of it, over a page that the test lends it: one end for the payload that serves
//! ([`serve`]), one for the test ([`Partner`]).
//!
//! The page is a mailbox of words. Who asks writes the command and its arguments, and then the next number; who serves does it,
//! writes the results, and then the same number as served.

use crate::calls::{Registers, hypercall};
use crate::guard::{Caught, attempt};
use crate::mmu::{Memory, PAGE, Window};
use crate::ram::Ram;
use crate::report::{NotPassed, Text};
use crate::service::{Answer, call};
use crate::{cpu, fail, same, say};
use abi::{Status, control, share};
use core::sync::atomic::{AtomicU64, Ordering::*};

/// Words of the mailbox.
const ASKED: u64 = 0;
const COMMAND: u64 = 1;
const ARGUMENTS: u64 = 2;
const SERVED: u64 = 8;
const RESULTS: u64 = 9;

/// Commands.
const READ: u64 = 1;
const WRITE: u64 = 2;
const CALL: u64 = 3;
const PLACE: u64 = 4;
const END: u64 = 5;

/// What became of an access: the first result.
const MADE: u64 = 0;
const REFUSED: u64 = 1;
const ASTRAY: u64 = 2;

/// How often something is looked at before that counts as a failure.
const PATIENCE: u32 = 20_000_000;

/// What became of an access of the partner's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It was made; what was read, or zero.
    Made(u64),
    /// It ended as one does where there is no memory.
    Refused,
    /// It ended in another exception, of which the partner has told.
    Astray,
}

/// Reads a word of another machine's, through a window.
pub fn read(va: u64) -> Result<u64, Caught> {
    // SAFETY: memory in which there is no object of Rust's, or none at all.
    unsafe { attempt(|| (va as *const u64).read_volatile()) }
}

/// Writes one.
fn write(va: u64, value: u64) -> Result<(), Caught> {
    // SAFETY: likewise.
    unsafe { attempt(|| (va as *mut u64).write_volatile(value)) }
}

/// Says what became of an access.
fn became(result: Result<u64, Caught>) -> (u64, u64) {
    match result {
        Ok(value) => (MADE, value),
        Err(caught) if caught.is_of_no_memory() => (REFUSED, 0),
        Err(caught) => {
            say!("an access of the partner's ended in {caught:?}");
            (ASTRAY, 0)
        }
    }
}

/// Serves whoever lends this machine a page, until it is told to end. `free` is memory that nobody else here uses.
pub fn serve(free: Ram) -> Result<(), NotPassed> {
    let found = wait("an offer", || {
        let found = call(share::FIND, &[0])?;
        Ok((found.status == Status::Success).then_some(found))
    })?;
    let (from, offer) = (found.x[1], found.x[2]);
    wait("the page to come", || {
        let answer = call(share::ACCEPT, &[from, offer, share::WINDOW])?;
        Ok((answer.status == Status::Success).then_some(()))
    })?;
    let mut served = 0;
    loop {
        // The other page of the window is where a command is about.
        let mailbox = Window::mine().at(share::WINDOW, Memory::Normal);
        wait("a command", || {
            let asked = word(mailbox, ASKED).load(Acquire);
            Ok((asked != served).then_some(()))
        })?;
        served += 1;
        let argument = |n: u64| word(mailbox, ARGUMENTS + n).load(Relaxed);
        let address = argument(0);
        let place = || Window::mine().both(share::WINDOW, address, Memory::Normal)[1];
        let command = word(mailbox, COMMAND).load(Relaxed);
        let (ended, value) = match command {
            READ => became(read(place())),
            WRITE => became(write(place(), argument(1)).map(|()| 0)),
            CALL => {
                let mut registers: Registers = [0; _];
                (0..5).for_each(|n| registers[n as usize] = argument(n));
                match hypercall(registers) {
                    Ok(results) => (results[0], results[1]),
                    Err(caught) => fail!("a call of the partner's ended in {caught:?}"),
                }
            }
            PLACE => (0, free.region().start),
            _ => (0, 0),
        };
        word(mailbox, RESULTS).store(ended, Relaxed);
        word(mailbox, RESULTS + 1).store(value, Relaxed);
        word(mailbox, SERVED).store(served, Release);
        if command == END {
            return Ok(());
        }
    }
}

/// Returns a word of the page at `va`.
fn word(va: u64, number: u64) -> &'static AtomicU64 {
    // SAFETY: a page that is mapped, and that is read and written as words only.
    unsafe { &*((va + 8 * number) as *const AtomicU64) }
}

/// Looks again and again until there is something. Others have a turn meanwhile.
fn wait<R>(what: &str, look: impl Fn() -> Result<Option<R>, NotPassed>) -> Result<R, NotPassed> {
    for _ in 0..PATIENCE {
        if let Some(found) = look()? {
            return Ok(found);
        }
        cpu::give_way();
    }
    fail!("waiting for {what}: it does not come")
}

/// A machine of template number 0 that [serves](serve).
#[derive(Debug)]
pub struct Partner {
    /// Its number.
    pub number: u64,
    /// This machine's number.
    pub me: u64,
    /// The offer of the mailbox.
    offer: u64,
    mailbox: u64,
    asked: AtomicU64,
}

impl Partner {
    /// Makes and starts it, with a page for the mailbox.
    pub fn start(page: Ram) -> Result<Self, NotPassed> {
        let mailbox = page.region().start;
        (0..PAGE / 8).for_each(|n| word(mailbox, n).store(0, Relaxed));
        let me = done(share::NUMBER, &[])?.x[0];
        let number = done(control::CREATE, &[0])?.x[0];
        let offer = done(share::LEND, &[mailbox, PAGE, 3, number])?.x[0];
        done(control::START, &[number])?;
        Ok(Self { number, me, offer, mailbox, asked: AtomicU64::new(0) })
    }

    fn ask(&self, command: u64, arguments: &[u64]) -> Result<(u64, u64), NotPassed> {
        for (n, &argument) in (0..).zip(arguments) {
            word(self.mailbox, ARGUMENTS + n).store(argument, Relaxed);
        }
        word(self.mailbox, COMMAND).store(command, Relaxed);
        let number = self.asked.load(Relaxed) + 1;
        self.asked.store(number, Relaxed);
        word(self.mailbox, ASKED).store(number, Release);
        wait("the partner", || Ok((word(self.mailbox, SERVED).load(Acquire) == number).then_some(())))?;
        let result = |n| word(self.mailbox, RESULTS + n).load(Relaxed);
        Ok((result(0), result(1)))
    }

    fn access(&self, command: u64, arguments: &[u64]) -> Result<Access, NotPassed> {
        Ok(match self.ask(command, arguments)? {
            (MADE, value) => Access::Made(value),
            (REFUSED, _) => Access::Refused,
            _ => Access::Astray,
        })
    }

    /// Has it read a word.
    pub fn read(&self, address: u64) -> Result<Access, NotPassed> {
        self.access(READ, &[address])
    }

    /// Has it write a word.
    pub fn write(&self, address: u64, value: u64) -> Result<Access, NotPassed> {
        self.access(WRITE, &[address, value])
    }

    /// Returns where it has memory that it does not use, of four pages at least.
    pub fn place(&self) -> Result<u64, NotPassed> {
        Ok(self.ask(PLACE, &[])?.1)
    }

    /// Has it make a call with up to four arguments. Returns the status, and `X1`.
    pub fn call(&self, function: u32, arguments: &[u64]) -> Result<(Status, u64), NotPassed> {
        let mut all = [0; 5];
        all[0] = function.into();
        all[1..=arguments.len()].copy_from_slice(arguments);
        let (status, value) = self.ask(CALL, &all)?;
        match Status::of(status) {
            Some(status) => Ok((status, value)),
            None => fail!("a call of the partner's: expected a status, found {status:#x}"),
        }
    }

    /// Has it make a call until that neither goes on nor is busy.
    pub fn complete(&self, function: u32, arguments: &[u64]) -> Result<(Status, u64), NotPassed> {
        wait("a call of the partner's", || {
            let answer = self.call(function, arguments)?;
            Ok((!matches!(answer.0, Status::Continue | Status::Busy)).then_some(answer))
        })
    }

    /// Ends it, wherever it is, and checks that all that it had has come back, and that nothing is lent to it any more.
    pub fn destroy(self) -> Result<(), NotPassed> {
        let last = complete(control::DESTROY, &[self.number])?;
        same!("the last status of DESTROY", self.number, Status::Success as u64, last.status as u64);
        let gone = call(share::TAKE_BACK, &[self.offer])?;
        same!(
            "TAKE_BACK of what was lent to who is gone",
            self.offer,
            Status::NoHandle as u64,
            gone.status as u64
        );
        Ok(())
    }

    /// Lets it end by itself, and ends it.
    pub fn end(self) -> Result<(), NotPassed> {
        self.ask(END, &[])?;
        self.destroy()
    }
}

/// Makes a call until it neither goes on nor is busy.
pub fn complete(function: u32, arguments: &[u64]) -> Result<Answer, NotPassed> {
    wait("a call", || {
        let answer = call(function, arguments)?;
        Ok((!matches!(answer.status, Status::Continue | Status::Busy)).then_some(answer))
    })
}

/// Makes a call that is to succeed.
pub fn done(function: u32, arguments: &[u64]) -> Result<Answer, NotPassed> {
    let answer = complete(function, arguments)?;
    if answer.status == Status::Success {
        return Ok(answer);
    }
    Err(NotPassed::Failed(Text::new(format_args!(
        "call {function:#x} with {arguments:x?}: expected success, found {:?}",
        answer.status
    ))))
}
