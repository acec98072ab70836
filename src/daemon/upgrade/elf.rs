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

const PT_INTERP: u64 = 3;

/// Where a header says what, in bytes from its beginning; its numbers have 4 or 8.
struct Layout {
    head: usize,
    word: usize,
    programs: Table,
    sections: Table,
    /// Of an entry of the program's table.
    offset: u64,
    file_size: u64,
}

/// Where the header says where a table is.
struct Table {
    at: usize,
    size: usize,
    count: usize,
}

const BITS_32: Layout = Layout {
    head: 52,
    word: 4,
    programs: Table { at: 28, size: 42, count: 44 },
    sections: Table { at: 32, size: 46, count: 48 },
    offset: 4,
    file_size: 16,
};
const BITS_64: Layout = Layout {
    head: 64,
    word: 8,
    programs: Table { at: 32, size: 54, count: 56 },
    sections: Table { at: 40, size: 58, count: 60 },
    offset: 8,
    file_size: 32,
};

/// Judges a file by its first [`HEAD`] bytes and its length. `own` is the beginning of a program that runs here.
pub fn judge(head: &[u8], length: u64, own: &[u8]) -> Result<Program, Flaw> {
    if head.starts_with(b"#!") {
        return Err(Flaw::Script);
    }
    if !head.starts_with(b"\x7fELF") {
        return Err(Flaw::NoProgram);
    }
    // The class says where everything else is.
    let layout = if head.get(4) == Some(&1) { BITS_32 } else { BITS_64 };
    if head.len() < layout.head {
        return Err(Flaw::Truncated(length, layout.head as u64));
    }
    // Class, order of bytes, machine.
    if head[4..6] != own[4..6] || head[18..20] != own[18..20] {
        return Err(Flaw::Foreign(machine(head)));
    }
    let (mut wants, mut interpreter) = (0, None);
    let (at, size, count) = layout.table(&layout.programs, head);
    wants = wants.max(at.saturating_add(size * count));
    for n in 0..count {
        let entry = at.saturating_add(n * size);
        let Some(kind) = number(head, entry, 4) else { break };
        let field = |at: u64| number(head, entry.saturating_add(at), layout.word);
        let (Some(from), Some(bytes)) = (field(layout.offset), field(layout.file_size)) else { break };
        wants = wants.max(from.saturating_add(bytes));
        if kind == PT_INTERP {
            interpreter = text(head, from, bytes);
        }
    }
    let (at, size, count) = layout.table(&layout.sections, head);
    wants = wants.max(at.saturating_add(size * count));
    if length < wants { Err(Flaw::Truncated(length, wants)) } else { Ok(Program { interpreter }) }
}

impl Layout {
    fn table(&self, table: &Table, head: &[u8]) -> (u64, u64, u64) {
        let read = |at, bytes| number(head, at as u64, bytes).unwrap_or(0);
        (read(table.at, self.word), read(table.size, 2), read(table.count, 2))
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

    /// A program of 32 bits, of this machine's order of bytes: a header, a table of two entries, a loader, a table of sections.
    fn of_32_bits(machine: u16) -> Vec<u8> {
        let mut file = vec![0; 52];
        let order = if cfg!(target_endian = "big") { 2 } else { 1 };
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1, order, 1]);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(18, &machine.to_ne_bytes());
        put(28, &52u32.to_ne_bytes()); // where the program's table is, and the sections'
        put(32, &300u32.to_ne_bytes());
        [(42, 32u16), (44, 2), (46, 40), (48, 3)].iter().for_each(|(at, n)| put(*at, &n.to_ne_bytes()));
        for (kind, offset, bytes) in [(1u32, 0u32, 200u32), (3, 116, 16)] {
            let entry = [kind, offset, 0, 0, bytes, 0, 0, 0];
            file.extend(entry.iter().flat_map(|word| word.to_ne_bytes()));
        }
        file.extend(b"/lib/ld-linux.so\0");
        file.resize(420, 0);
        file
    }

    #[test]
    fn a_program_of_32_bits_is_read_by_its_own_layout() {
        let file = of_32_bits(3);
        let loader = Some("/lib/ld-linux.so".to_owned());
        assert_eq!(judge(&file, 420, &file), Ok(Program { interpreter: loader }));
        assert_eq!(judge(&file[..419], 419, &file), Err(Flaw::Truncated(419, 420)), "its sections are cut");
        assert_eq!(judge(&file[..199], 199, &file), Err(Flaw::Truncated(199, 420)));
        assert_eq!(judge(&file[..60], 60, &file), Err(Flaw::Truncated(60, 420)), "a header is whole with 52 bytes");
        assert_eq!(judge(&file[..51], 51, &file), Err(Flaw::Truncated(51, 52)));
        assert_eq!(judge(&file, 420, &of_32_bits(40)), Err(Flaw::Foreign("x86".into())));
        if own()[4] == 2 {
            assert_eq!(judge(&file, 420, &own()), Err(Flaw::Foreign("x86".into())));
        }
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
