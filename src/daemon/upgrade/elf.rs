//! What can be said of a program by looking at it: whether it is one at all, for this machine, and whole (elf(5)). Pure: the
//! bytes come from the caller. It keeps the kernel's one answer to nearly everything (ENOEXEC) from being all that an operator gets.

use std::fmt;

/// Bytes of the beginning that the judgement needs.
pub const HEAD: usize = 64 * 1024;

/// Why it cannot be executed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It begins with `#!`.
    Script,
    /// It is something else.
    NoProgram,
    /// It is for another kind of machine; holds which.
    Foreign(String),
    /// So many bytes are there, and it says that it has at least so many.
    Truncated(u64, u64),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Script => write!(f, "is a script; name the program itself"),
            Self::NoProgram => write!(f, "is no program (not ELF)"),
            Self::Foreign(machine) => {
                write!(f, "is a program for {machine}, and this machine is {}", std::env::consts::ARCH)
            }
            Self::Truncated(is, wants) => {
                write!(f, "is truncated: it has {is} bytes of at least {wants}; copy it again")
            }
        }
    }
}

/// What it needs to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its dynamic loader; `None`: it needs none.
    pub interpreter: Option<String>,
}

const PROGRAM_HEADERS: Table = Table { at: 32, size: 54, count: 56 };
const SECTION_HEADERS: Table = Table { at: 40, size: 58, count: 60 };
const PT_INTERP: u64 = 3;

/// Where the header says where a table is.
struct Table {
    at: usize,
    size: usize,
    count: usize,
}

/// Judges a file by its first [`HEAD`] bytes and its length. `own` is the beginning of a program that runs here.
pub fn judge(head: &[u8], length: u64, own: &[u8]) -> Result<Program, Flaw> {
    if head.starts_with(b"#!") {
        return Err(Flaw::Script);
    }
    if !head.starts_with(b"\x7fELF") {
        return Err(Flaw::NoProgram);
    }
    if head.len() < 64 {
        return Err(Flaw::Truncated(length, 64));
    }
    // Class, order of bytes, machine.
    if head[4..6] != own[4..6] || head[18..20] != own[18..20] {
        return Err(Flaw::Foreign(machine(head)));
    }
    let (mut wants, mut interpreter) = (0, None);
    let (at, size, count) = PROGRAM_HEADERS.of(head);
    wants = wants.max(at.saturating_add(size * count));
    for n in 0..count {
        let entry = at.saturating_add(n * size);
        let Some(kind) = number(head, entry, 4) else { break };
        let (Some(from), Some(bytes)) = (number(head, entry + 8, 8), number(head, entry + 32, 8)) else { break };
        wants = wants.max(from.saturating_add(bytes));
        if kind == PT_INTERP {
            interpreter = text(head, from, bytes);
        }
    }
    let (at, size, count) = SECTION_HEADERS.of(head);
    wants = wants.max(at.saturating_add(size * count));
    if length < wants { Err(Flaw::Truncated(length, wants)) } else { Ok(Program { interpreter }) }
}

impl Table {
    fn of(&self, head: &[u8]) -> (u64, u64, u64) {
        let read = |at, bytes| number(head, at as u64, bytes).unwrap_or(0);
        (read(self.at, 8), read(self.size, 2), read(self.count, 2))
    }
}

/// In the machine's own order: that it is the file's has been seen.
fn number(head: &[u8], at: u64, bytes: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let mut all = [0; 8];
    let field = head.get(at..at.checked_add(bytes)?)?;
    if cfg!(target_endian = "big") {
        all[8 - bytes..].copy_from_slice(field);
        Some(u64::from_be_bytes(all))
    } else {
        all[..bytes].copy_from_slice(field);
        Some(u64::from_le_bytes(all))
    }
}

fn text(head: &[u8], at: u64, bytes: u64) -> Option<String> {
    let (at, bytes) = (usize::try_from(at).ok()?, usize::try_from(bytes).ok()?);
    let text = head.get(at..at.checked_add(bytes)?)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

fn machine(head: &[u8]) -> String {
    let number = if head[5] == 2 { [head[19], head[18]] } else { [head[18], head[19]] };
    let bits = if head[4] == 1 { "32" } else { "64" };
    match u16::from_le_bytes(number) {
        3 => "x86".into(),
        8 => format!("mips ({bits} bit)"),
        21 => "powerpc64".into(),
        22 => "s390x".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => format!("riscv{bits}"),
        other => format!("machine {other} ({bits} bit)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        let mut head = Vec::new();
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, HEAD as u64), &mut head).unwrap();
        head
    }

    fn length() -> u64 {
        std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len()
    }

    #[test]
    fn this_very_program_is_fit_and_its_loader_is_known() {
        let program = judge(&own(), length(), &own()).unwrap();
        assert!(program.interpreter.is_none_or(|path| path.starts_with('/') && std::path::Path::new(&path).exists()));
    }

    #[test]
    fn each_flaw_is_told_apart() {
        let own = own();
        assert_eq!(judge(b"#!/bin/sh\n", 10, &own), Err(Flaw::Script));
        assert_eq!(judge(b"hello", 5, &own), Err(Flaw::NoProgram));
        assert_eq!(judge(b"", 0, &own), Err(Flaw::NoProgram));
        assert_eq!(judge(&own[..20], 20, &own), Err(Flaw::Truncated(20, 64)));
        assert!(matches!(judge(&own, 4096, &own), Err(Flaw::Truncated(4096, wants)) if wants > 4096));
        assert!(matches!(judge(&own, length() - 1, &own), Err(Flaw::Truncated(..))));
        let mut foreign = own.clone();
        foreign[18..20].copy_from_slice(&243u16.to_le_bytes());
        assert_eq!(judge(&foreign, length(), &own), Err(Flaw::Foreign("riscv64".into())));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut head: Vec<u8>, length: u64, keep in 0usize..120) {
            let own = own();
            let _ = judge(&head, length, &own);
            head.splice(0..0, own[..keep].iter().copied());
            let _ = judge(&head, length, &own);
        }
    }
}
